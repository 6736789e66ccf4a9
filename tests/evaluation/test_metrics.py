"""Tests of the metrics: against scikit-learn, by hand, and at the edges."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.evaluation import statistics
from drenet_jax.evaluation.decisions import MetricSettings, youden_threshold
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.metrics import DECISION_METRICS, classification_metrics, of_label
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions
from drenet_jax.evaluation.statistics import metrics_with_intervals

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


def assert_same(got: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        if value is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(value, abs=1e-12), name


def test_macro_averages_are_scikit_learns_own():
    slices = random_slices(0, 60)
    label, chosen = slices.label, slices.probabilities.argmax(axis=1)
    p = slices.probabilities / slices.probabilities.sum(axis=1, keepdims=True)
    got = classification_metrics(label, p, THREE, 0)
    assert_same(
        got,
        {
            "precision_macro": sklearn.metrics.precision_score(label, chosen, average="macro"),
            "recall_macro": sklearn.metrics.balanced_accuracy_score(label, chosen),
            "f1_macro": sklearn.metrics.f1_score(label, chosen, average="macro"),
            "auc_macro": sklearn.metrics.roc_auc_score(label, p, multi_class="ovr"),
            "average_precision_macro": sklearn.metrics.average_precision_score(label, p),
            # Brier's own sum over the labels.
            "brier_macro": sklearn.metrics.brier_score_loss(label, p, scale_by_half=False) / 3,
            "accuracy_argmax": sklearn.metrics.accuracy_score(label, chosen),
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
            "balanced_accuracy": (3 / 4 + 4 / 6) / 2,
            # In order of score: positive, positive, 2 negative, positive, 2 negative, positive.
            "average_precision": (1 / 1 + 2 / 2 + 3 / 5 + 4 / 8) / 4,
            # One of six negative cases may pass, and none.
            "recall_at_specificity_0.80": 2 / 4,
            "recall_at_specificity_0.90": 2 / 4,
            "brier": (0.01 + 0.04 + 0.25 + 0.64 + 0.49 + 0.36 + 0.01 + 0.01 + 0.09 + 0.16) / 10,
            # Bins of a tenth; 0.1 twice in one.
            "ece": (0.1 + 0.2 + 0.5 + 0.8 + 0.7 + 0.6 + 2 * 0.1 + 0.3 + 0.4) / 10,
        },
    )


def test_ties_count_half_in_the_auc_and_pass_together():
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    got = classification_metrics(np.array([0, 1, 1]), p, BINARY, 0)
    assert got["auc"] == 0.5
    assert got["average_precision"] == pytest.approx(1 / 3)
    assert got["recall_at_specificity_0.80"] == 0


@pytest.mark.parametrize(
    "labels",
    [
        ("macro", "paper", "argmax"),
        ("paper[macro]", "macro", "paper_macro"),
        ("auc", "at_specificity_0.80", "paper"),
        ("a]", "a", "a]]"),
    ],
)
def test_no_name_of_a_label_collides_with_a_metrics(labels):
    plain = classification_metrics(*cases_of(("x", "y", "z")), 0)
    named = classification_metrics(*cases_of(labels), 0)
    assert len(named) == len(plain)
    for metric in ("f1", "f1_paper", "auc", "recall"):
        assert named[metric] == plain[metric]
        assert named[f"{metric}_macro"] == plain[f"{metric}_macro"]
        for label, other in zip(labels, ("x", "y", "z"), strict=True):
            assert named[of_label(metric, label)] == plain[of_label(metric, other)]


def cases_of(labels):
    slices = random_slices(3, 40, labels)
    return slices.label, slices.probabilities, labels


def test_reasons_are_reported_of_labels_with_any_name():
    slices = random_slices(3, 40, ("macro", "a]", "paper"))
    few = slices.of(slices.label == 0)
    table = metrics_with_intervals(few, 0, MetricSettings(bootstrap_draws=5))
    assert table["recall[a]]"]["why"] == "no case is a]"
    assert table["auc[macro]"]["why"] == "only one class present"
    assert table["recall_macro"]["why"] == "undefined for at least one of the labels"
    assert table["average_precision[paper]"]["why"] == "no case is paper"


def test_the_threshold_itself_is_positive():
    p = np.array([[0.5, 0.5]])
    assert classification_metrics(np.array([0]), p, BINARY, 0)["recall"] == 1


def with_intervals(slices, **kwargs):
    given = {"bootstrap_draws": 100} | {f"bootstrap_{name}": kwargs[name] for name in kwargs}
    return metrics_with_intervals(slices, 0, MetricSettings(**given))


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
    assert table["balanced_accuracy"]["why"] == "recall or specificity is undefined"
    assert table["recall_at_specificity_0.90"]["why"] == "only one class present"
    assert table["average_precision"]["value"] == 1
    assert table["brier"]["value"] == pytest.approx((0.01 + 0.04 + 0.64) / 3)
    assert table["precision"]["value"] == 1
    assert table["recall"]["value"] == pytest.approx(2 / 3)


def test_no_positive_case_and_no_positive_decision_are_distinguished():
    table = with_intervals(slices_from([1, 1], [0.9, 0.1]))
    assert table["recall"]["why"] == "no case is COVID-19"
    assert table["average_precision"]["why"] == "no case is COVID-19"
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


def test_all_correct_is_one_without_an_interval():
    # From 1 to 1 would be an interval that holds the truth never, not in 95% of cases.
    table = with_intervals(slices_from([0, 0, 0, 1, 1, 1], [0.9, 0.8, 0.7, 0.1, 0.2, 0.3]))
    for name in (*DECISION_METRICS, "auc", "average_precision", "recall_at_specificity_0.95"):
        assert table[name] == {
            "value": 1,
            "low": None,
            "high": None,
            "why": "every bootstrap draw gives the same value, so there is no estimate of "
            "its error",
        }, name
    assert table["brier"]["low"] < table["brier"]["value"] < table["brier"]["high"]


def test_a_metric_that_most_draws_leave_undefined_has_no_interval():
    # One of 2 persons in each class: a draw holds both with probability 1/2. Of 2 predicted as
    # COVID-19 a draw always has one.
    slices = slices_from([0, 1], [0.9, 0.8])
    of_seed = {}
    for seed in range(4):
        times = statistics.person_draws(slices.patient_id, 101, seed)[1]
        undefined = int((times.max(axis=1) == 2).sum())
        table = with_intervals(slices, draws=101, seed=seed)
        assert table["auc"]["value"] == 1
        assert table["precision"]["low"] == 0
        assert table["auc"]["low"] is table["auc"]["high"] is None
        is_reported = table["auc"]["why"] == f"undefined in {undefined} of 101 bootstrap draws"
        assert is_reported == (undefined > 50)
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
    assert table["precision[bacterial]"]["why"] == "no case is predicted as bacterial"
    assert table["recall[healthy]"]["why"] == "no case is healthy"
    assert table["f1_paper[healthy]"]["why"] == "precision or recall is undefined"
    assert table["auc[healthy]"]["why"] == "only one class present"
    assert table["precision_macro"]["why"] == "undefined for at least one of the labels"


@pytest.mark.parametrize("labels", [BINARY, THREE])
def test_intervals_are_those_of_repeating_the_drawn_persons_slices(labels):
    slices = random_slices(5, 14, labels, decimals=1)
    draws = 40
    table = with_intervals(slices, draws=draws, seed=9)
    person, times = statistics.person_draws(slices.patient_id, draws, 9)
    n = times.shape[1]

    def figures(times_of_person):
        rows = np.repeat(np.arange(len(slices)), times_of_person[person].astype(int))
        return classification_metrics(slices.label[rows], slices.probabilities[rows], labels, 0)

    def column(explicit, name):
        return np.array([values[name] for values in explicit], np.float64)

    drawn = [figures(weights) for weights in times]
    left_out = [figures(1 - weights) for weights in np.eye(n)]
    for name, metric in table.items():
        of_draws = column(drawn, name)
        if metric["value"] is None:
            wanted = None
        elif name.startswith("ece"):
            wanted = statistics.calibration_interval(metric["value"], of_draws)
        else:
            wanted = statistics.bca_interval(metric["value"], of_draws, column(left_out, name))
        if wanted is None:
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
        settings=MetricSettings(bootstrap_draws=20),
        validation_threshold=0.4,
    )
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert table["split"] == "test"
    assert table["labels"] == list(THREE)
    assert set(table["person"]) == set(table["image"])
    assert set(table["image"]["auc"]) == {"value", "low", "high"}
    assert table["validation_threshold"]["threshold"] == 0.4
    assert set(table["validation_threshold"]["person"]) == set(DECISION_METRICS)
    assert table["sites"] == []
    assert (table["n_persons"], table["n_slices"]) == (12, len(slices))


def test_a_threshold_that_was_not_chosen_is_null_with_the_reason():
    slices = random_slices(1, 5)
    table = evaluation_metrics(
        slices,
        person_predictions(slices),
        split="test",
        positive=0,
        settings=MetricSettings(bootstrap_draws=5),
    )
    assert table["validation_threshold"]["threshold"] is None
    assert "no validation persons" in table["validation_threshold"]["why"]


def test_a_threshold_moves_the_decisions_and_nothing_else():
    slices = random_slices(1, 30, BINARY)
    few = MetricSettings(bootstrap_draws=5)
    at_half, moved = (metrics_with_intervals(slices, 0, few, t) for t in (None, 0.2))
    assert moved["recall"]["value"] > at_half["recall"]["value"]
    for name in at_half.keys() - set(DECISION_METRICS):
        assert moved[name] == at_half[name]


def test_the_same_seed_gives_the_same_intervals_in_any_row_order():
    slices = random_slices(2, 15)
    shuffled = slices.of(np.random.default_rng(0).permutation(len(slices)))
    first, other = with_intervals(slices, draws=50), with_intervals(shuffled, draws=50)
    for name in first:
        assert first[name]["low"] == pytest.approx(other[name]["low"], abs=1e-9), name


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
    threshold = youden_threshold(
        np.array([False, True, False, True]), np.array([0.1, 0.9, 0.3, 0.8])
    )
    assert threshold == pytest.approx(0.55)


def test_youdens_threshold_of_neighbouring_floats_decides_right():
    low = 0.5
    high = np.nextafter(low, 1)
    threshold = youden_threshold(np.array([False, True]), np.array([low, high]))
    assert low < threshold <= high


@pytest.mark.parametrize("labels", [BINARY, THREE])
def test_2000_draws_of_3000_slices_take_seconds(labels):
    slices = random_slices(0, 1200, labels)
    assert len(slices) > 2900
    started = time.perf_counter()
    with_intervals(slices, draws=2000)
    # 0.6 s with two classes and 1.5 s with three on one core alone; the rest is for machines that
    # are busy.
    assert time.perf_counter() - started < 15
