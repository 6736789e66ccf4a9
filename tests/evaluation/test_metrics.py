"""Tests of the metrics: against scikit-learn, by hand, and at the edges."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.evaluation import intervals, metrics
from drenet_jax.evaluation.metrics import (
    classification_metrics,
    evaluation_metrics,
    metrics_with_intervals,
    youden_threshold,
)
from drenet_jax.evaluation.persons import SlicePredictions, person_predictions

BINARY = ("COVID-19", "healthy")
THREE = ("COVID-19", "bacterial", "healthy")


def random_slices(seed, n_persons, labels=THREE, decimals=8) -> SlicePredictions:
    random = np.random.default_rng(seed)
    of_person = random.integers(1, 5, n_persons)
    person = np.repeat(np.arange(n_persons), of_person)
    n = len(person)
    label = random.integers(0, len(labels), n_persons)[person]
    logits = random.normal(0, 1, (n, len(labels)))
    logits[np.arange(n), label] += 0.7
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return SlicePredictions(
        labels=labels,
        patient_id=person.astype(str),
        slice_name=np.arange(n).astype(str),
        slice_index=np.arange(n),
        site=np.full(n, "A"),
        label=label,
        probabilities=probabilities.round(decimals),
    )


def binary_from_scikit_learn(truth, decision) -> dict:
    """What scikit-learn says; None where the ratio is 0 / 0."""

    def ratio(function, denominator, truth=truth, decision=decision):
        return function(truth, decision, zero_division=0) if denominator.any() else None

    precision = ratio(sklearn.metrics.precision_score, decision)
    recall = ratio(sklearn.metrics.recall_score, truth)
    return {
        "accuracy": sklearn.metrics.accuracy_score(truth, decision),
        "precision": precision,
        "recall": recall,
        "specificity": ratio(sklearn.metrics.recall_score, ~truth, ~truth, ~decision),
        "f1": ratio(sklearn.metrics.f1_score, truth | decision),
        "f1_paper": None if precision is None or recall is None else (precision + recall) / 2,
    }


def auc_from_scikit_learn(truth, score):
    return sklearn.metrics.roc_auc_score(truth, score) if len(set(truth)) == 2 else None


def assert_same(got: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        if value is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(value, abs=1e-12), name


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.sampled_from([BINARY, THREE]),
    st.integers(0, 2),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.sampled_from([1, 8]),  # one decimal makes ties, also at the threshold
)
def test_every_metric_is_scikit_learns(seed, n, labels, positive, threshold, decimals):
    positive = min(positive, len(labels) - 1)
    slices = random_slices(seed, n, labels, decimals)
    label, p = slices.label, slices.probabilities
    got = classification_metrics(label, p, labels, positive, threshold)
    truth, decision = label == positive, p[:, positive] >= threshold
    assert_same(got, binary_from_scikit_learn(truth, decision))
    assert_same(got, {"auc": auc_from_scikit_learn(truth, p[:, positive])})
    if len(labels) == 2:
        assert set(got) == {*metrics.DECISION_METRICS, "auc"}
        return
    chosen = p.argmax(axis=1)
    assert_same(got, {"accuracy_argmax": sklearn.metrics.accuracy_score(label, chosen)})
    own = {
        name: binary_from_scikit_learn(label == i, chosen == i)
        | {"auc": auc_from_scikit_learn(label == i, p[:, i])}
        for i, name in enumerate(labels)
    }
    for metric in ("precision", "recall", "specificity", "f1", "f1_paper", "auc"):
        values = [own[name][metric] for name in labels]
        assert_same(got, {f"{metric}_{name}": own[name][metric] for name in labels})
        macro = None if None in values else np.mean(values)
        assert_same(got, {f"{metric}_macro": macro})


def test_macro_averages_are_scikit_learns_own():
    slices = random_slices(0, 60)
    label, chosen = slices.label, slices.probabilities.argmax(axis=1)
    p = slices.probabilities / slices.probabilities.sum(axis=1, keepdims=True)
    got = classification_metrics(label, p, THREE, 0)
    assert_same(
        got,
        {
            "precision_macro": sklearn.metrics.precision_score(label, chosen, average="macro"),
            "recall_macro": sklearn.metrics.recall_score(label, chosen, average="macro"),
            "f1_macro": sklearn.metrics.f1_score(label, chosen, average="macro"),
            "auc_macro": sklearn.metrics.roc_auc_score(label, p, multi_class="ovr"),
        },
    )


def test_the_equations_of_the_paper_by_hand():
    # 3 TP, 1 FN, 2 FP, 4 TN.
    positive = np.array([0.9, 0.8, 0.5, 0.2, 0.7, 0.6, 0.1, 0.1, 0.3, 0.4])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    got = classification_metrics(label, np.stack([positive, 1 - positive], 1), BINARY, 0)
    assert_same(
        got,
        {
            "accuracy": 7 / 10,
            "precision": 3 / 5,
            "recall": 3 / 4,
            "specificity": 4 / 6,
            "f1": 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4),
            "f1_paper": (3 / 5 + 3 / 4) / 2,
            # Of 24 pairs: 0.9 and 0.8 win 6 each, 0.5 wins 4, 0.2 wins 2.
            "auc": 18 / 24,
        },
    )


def test_ties_count_half_in_the_auc():
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert classification_metrics(np.array([0, 1, 1]), p, BINARY, 0)["auc"] == 0.5


def test_the_threshold_itself_is_positive():
    p = np.array([[0.5, 0.5]])
    assert classification_metrics(np.array([0]), p, BINARY, 0)["recall"] == 1


def with_intervals(slices, **kwargs):
    return metrics_with_intervals(slices, 0, **{"draws": 100, "seed": 0} | kwargs)


def slices_from(label, positive, persons=None) -> SlicePredictions:
    n, positive = len(label), np.asarray(positive, np.float64)
    return SlicePredictions(
        labels=BINARY,
        patient_id=np.array(persons or [str(i) for i in range(n)], np.str_),
        slice_name=np.array([str(i) for i in range(n)], np.str_),
        slice_index=np.arange(n),
        site=np.array([""] * n, np.str_),
        label=np.array(label, np.int64),
        probabilities=np.stack([positive, 1 - positive], axis=1),
    )


def test_one_class_only_leaves_metrics_undefined_with_the_reason():
    table = with_intervals(slices_from([0, 0, 0], [0.9, 0.8, 0.2]))
    assert table["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "why": "only one class present",
    }
    assert table["specificity"]["why"] == "every case is COVID-19"
    assert table["precision"]["value"] == 1
    assert table["recall"]["value"] == pytest.approx(2 / 3)


def test_no_positive_case_and_no_positive_decision_are_told_apart():
    table = with_intervals(slices_from([1, 1], [0.9, 0.1]))
    assert table["recall"]["why"] == "no case is COVID-19"
    assert table["precision"]["value"] == 0
    table = with_intervals(slices_from([0, 1], [0.1, 0.1]))
    assert table["precision"]["why"] == "no case is predicted as COVID-19"
    assert table["f1_paper"]["why"] == "precision or recall is undefined"
    # Every case of COVID-19 was missed: that is an F1 of 0, not an undefined one.
    assert table["f1"]["value"] == 0
    table = with_intervals(slices_from([1, 1], [0.1, 0.1]))
    assert table["f1"]["why"] == "no case is COVID-19 or is predicted as COVID-19"


def test_one_person_alone_has_values_but_no_interval():
    table = with_intervals(slices_from([0, 0], [0.9, 0.2], persons=["p", "p"]))
    assert table["recall"] == {
        "value": 0.5,
        "low": None,
        "high": None,
        "why": "one person alone gives no interval",
    }


def test_no_cases_at_all_give_no_metrics():
    assert {m["why"] for m in with_intervals(slices_from([], [])).values()} == {
        "there are no cases"
    }


def test_all_correct_is_one_with_the_interval_one_to_one():
    table = with_intervals(slices_from([0, 0, 0, 1, 1, 1], [0.9, 0.8, 0.7, 0.1, 0.2, 0.3]))
    for name in ("accuracy", "precision", "recall", "specificity", "f1", "f1_paper", "auc"):
        assert table[name] == {"value": 1, "low": 1, "high": 1}, name


def test_a_metric_that_most_draws_leave_undefined_has_no_interval():
    # One of 2 persons in each class: a draw holds both with probability 1/2. Of 2 predicted as
    # COVID-19 a draw always has one.
    slices = slices_from([0, 1], [0.9, 0.8])
    of_seed = {}
    for seed in range(4):
        times = intervals.person_draws(slices.patient_id, 101, seed)[1]
        undefined = int((times.max(axis=1) == 2).sum())
        table = with_intervals(slices, draws=101, seed=seed)
        assert table["auc"]["value"] == 1
        assert table["precision"]["low"] == 0
        if undefined > 50:
            assert table["auc"]["why"] == f"undefined in {undefined} of 101 bootstrap draws"
            assert table["auc"]["low"] is table["auc"]["high"] is None
        else:
            assert table["auc"]["low"] == 1
        of_seed[seed] = undefined > 50
    assert set(of_seed.values()) == {True, False}


def test_a_reason_names_the_label_of_a_one_against_the_rest_metric():
    slices = random_slices(0, 30)
    p = np.tile([0.6, 0.3, 0.1], (len(slices), 1))
    never = SlicePredictions(
        labels=THREE,
        patient_id=slices.patient_id,
        slice_name=slices.slice_name,
        slice_index=slices.slice_index,
        site=slices.site,
        label=np.minimum(slices.label, 1),
        probabilities=p,
    )
    table = with_intervals(never)
    assert table["precision_bacterial"]["why"] == "no case is predicted as bacterial"
    assert table["recall_healthy"]["why"] == "no case is healthy"
    assert table["f1_paper_healthy"]["why"] == "precision or recall is undefined"
    assert table["auc_healthy"]["why"] == "only one class present"
    assert table["precision_macro"]["why"] == "undefined for at least one of the labels"


@pytest.mark.parametrize("labels", [BINARY, THREE])
def test_intervals_are_those_of_repeating_the_drawn_persons_slices(labels):
    slices = random_slices(5, 14, labels, decimals=1)
    draws = 40
    table = with_intervals(slices, draws=draws, seed=9)
    person, times = intervals.person_draws(slices.patient_id, draws, 9)
    explicit = []
    for drawn in times.astype(int):
        rows = np.repeat(np.arange(len(slices)), drawn[person])
        explicit.append(
            classification_metrics(slices.label[rows], slices.probabilities[rows], labels, 0)
        )
    for name, metric in table.items():
        values = np.array([draw[name] for draw in explicit], np.float64)
        wanted = intervals.percentile_interval(values)
        if metric["value"] is None or wanted is None:
            assert metric["low"] is None, name
            assert metric["why"], name
        else:
            np.testing.assert_allclose((metric["low"], metric["high"]), wanted, err_msg=name)


def test_slices_of_few_persons_give_wider_intervals_than_as_many_persons():
    label = [0] * 40 + [1] * 40
    score = np.random.default_rng(0).random(8)
    score = np.repeat(score, 10)
    widths = []
    for persons in (None, [str(i // 10) for i in range(80)]):
        auc = with_intervals(slices_from(label, score, persons), draws=300)["auc"]
        widths.append(auc["high"] - auc["low"])
    assert widths[1] > 1.5 * widths[0]


def test_metrics_json_is_plain_json_and_has_the_documented_form():
    slices = random_slices(1, 12)
    table = evaluation_metrics(
        slices,
        person_predictions(slices),
        split="test",
        positive=0,
        draws=20,
        seed=0,
        validation_threshold=0.4,
    )
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert table["split"] == "test"
    assert table["labels"] == list(THREE)
    assert set(table["person"]) == set(table["image"])
    assert set(table["image"]["auc"]) == {"value", "low", "high"}
    assert table["validation_threshold"]["threshold"] == 0.4
    assert set(table["validation_threshold"]["person"]) == set(metrics.DECISION_METRICS)


def test_the_same_seed_gives_the_same_intervals_in_any_row_order():
    slices = random_slices(2, 15)
    order = np.random.default_rng(0).permutation(len(slices))
    shuffled = SlicePredictions(
        labels=slices.labels,
        **{
            name: getattr(slices, name)[order]
            for name in (
                "patient_id",
                "slice_name",
                "slice_index",
                "site",
                "label",
                "probabilities",
            )
        },
    )
    one, other = with_intervals(slices, draws=50), with_intervals(shuffled, draws=50)
    for name in one:
        assert one[name]["low"] == pytest.approx(other[name]["low"], abs=1e-12), name


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30))
def test_no_threshold_beats_youdens(cases):
    is_positive = np.array([case[0] for case in cases])
    score = np.array([case[1] for case in cases]) / 20
    threshold = youden_threshold(is_positive, score)
    if len(set(is_positive)) < 2:
        assert threshold is None
        return

    def youden(t):
        return (score[is_positive] >= t).mean() + (score[~is_positive] < t).mean()

    best = max(youden(t) for t in np.r_[score, 2])
    assert youden(threshold) == pytest.approx(best)
    # scikit-learn's way to it: the point of the ROC curve farthest above the diagonal.
    false_positive, recall, _ = sklearn.metrics.roc_curve(is_positive, score)
    assert youden(threshold) - 1 == pytest.approx((recall - false_positive).max())


def test_youdens_threshold_lies_halfway_between_separable_classes():
    threshold = youden_threshold(np.array([False, True, False, True]), [0.1, 0.9, 0.3, 0.8])
    assert threshold == pytest.approx(0.55)


def test_youdens_threshold_of_neighbouring_floats_decides_right():
    low = 0.5
    high = np.nextafter(low, 1)
    threshold = youden_threshold(np.array([False, True]), np.array([low, high]))
    assert low < threshold <= high


def test_2000_draws_of_3000_slices_take_seconds():
    slices = random_slices(0, 1200)
    started = time.perf_counter()
    with_intervals(slices, draws=2000)
    # 0.7 s on two cores alone; the rest is for machines that are busy.
    assert time.perf_counter() - started < 10
