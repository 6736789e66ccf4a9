"""Every figure of metrics.json, computed again from slices.csv with scikit-learn alone.

Nothing of the library is used for it: the table is read by the csv module, slices become persons
and decisions here.
"""

from __future__ import annotations

import csv
import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve

from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

SETTINGS = MetricSettings(
    threshold=0.375, specificities=(0.8, 0.9, 0.95, 0.975), calibration_bins=7, bootstrap_draws=30
)
VALIDATION_THRESHOLD = 0.55
AGGREGATES = ("mean", "median", "top3_mean", "noisy_or")


def write_slices(path, labels, seed, steps) -> SlicePredictions:
    random = np.random.default_rng(seed)
    n_persons = 40
    person = np.repeat(np.arange(n_persons), random.integers(1, 7, n_persons))
    n = len(person)
    label = random.integers(0, len(labels), n_persons)[person]
    logits = random.normal(0, 1, (n, len(labels))) + random.normal(
        0, 0.7, (n_persons, len(labels))
    ).take(person, axis=0)
    logits[np.arange(n), label] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slices = SlicePredictions(
        labels=labels,
        patient_id=np.char.add("p", person.astype(str)),
        slice_name=np.arange(n).astype(str),
        slice_index=np.arange(n),
        # A person in ten was at two hospitals.
        site=np.where((person % 3 == 0) ^ ((person % 10 == 0) & (np.arange(n) % 2 == 0)), "A", ""),
        label=label,
        # Eighths add up without rounding, in any order: ties stay ties.
        probabilities=np.round(steps * p) / steps,
    )
    order = random.permutation(n)
    slices.of(order).to_csv(path)
    return slices.of(order)


def read_rows(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [name[2:] for name in rows[0] if name.startswith("p_")]
    return labels, [
        (row["patient_id"], row["site"], row["label"], [float(row[f"p_{name}"]) for name in labels])
        for row in rows
    ]


def to_persons(rows, aggregate, positive):
    """A person's probabilities, in plain loops."""
    of_person: dict[str, list] = {}
    for patient, _, label, p in rows:
        of_person.setdefault(patient, []).append((label, p))
    persons = []
    for patient, own in of_person.items():
        columns = list(zip(*(p for _, p in own), strict=True))
        mean = [math.fsum(column) / len(own) for column in columns]
        if aggregate == "mean":
            p = mean
        elif aggregate == "median":
            p = [float(np.median(column)) for column in columns]
            p = [value / sum(p) for value in p]
        elif aggregate == "top3_mean":
            best = sorted((p for _, p in own), key=lambda row: -row[positive])[:3]
            p = [sum(column) / len(best) for column in zip(*best, strict=True)]
        else:
            none = math.prod(1 - value for value in columns[positive])
            others = sum(mean) - mean[positive]
            p = [none * value / others if others else 0.0 for value in mean]
            p[positive] = 1 - none
        persons.append((patient, "", own[0][0], p))
    return persons


def rates(truth, decision):
    """Of scikit-learn's figures those with a denominator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision = sk.precision_score(truth, decision) if any(decision) else None
        recall = sk.recall_score(truth, decision) if any(truth) else None
        specificity = sk.recall_score(truth, decision, pos_label=False) if not all(truth) else None
        both = None not in (recall, specificity)
        return {
            "accuracy": sk.accuracy_score(truth, decision),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decision) if both else None,
            "precision": precision,
            "recall": recall,
            "specificity": specificity,
            "f1": sk.f1_score(truth, decision) if any(truth) or any(decision) else None,
            "f1_paper": None if None in (precision, recall) else (precision + recall) / 2,
        }


def calibration_error(truth, score):
    bins = SETTINGS.calibration_bins
    share, mean = calibration_curve(truth, score, n_bins=bins)
    place = np.digitize(score, np.linspace(0, 1, bins + 1)[1:-1])
    n = [np.sum(place == i) for i in range(bins)]
    return sum(c / len(score) * abs(s - m) for c, s, m in zip(filter(None, n), share, mean))  # noqa: B905


def of_scores(truth, score):
    values = {
        "brier": sk.brier_score_loss(truth, score, labels=[False, True], pos_label=True),
        "ece": calibration_error(truth, score),
        "auc": None,
        "average_precision": sk.average_precision_score(truth, score) if any(truth) else None,
    }
    names = {0.8: "0.80", 0.9: "0.90", 0.95: "0.95", 0.975: "0.975"}
    values |= {f"recall_at_specificity_{name}": None for name in names.values()}
    if any(truth) and not all(truth):
        values["auc"] = sk.roc_auc_score(truth, score)
        false_positive, recall, _ = sk.roc_curve(truth, score, drop_intermediate=False)
        for specificity, name in names.items():
            reached = 1 - false_positive >= specificity - 1e-9
            values[f"recall_at_specificity_{name}"] = max(recall[reached])
    return values


def figures(rows, labels, positive, threshold):
    truth = np.array([label == labels[positive] for _, _, label, _ in rows])
    p = np.array([p for _, _, _, p in rows])
    values = rates(truth, p[:, positive] >= threshold) | of_scores(truth, p[:, positive])
    if len(labels) == 2:
        return values
    label = np.array([labels.index(label) for _, _, label, _ in rows])
    chosen = p.argmax(axis=1)
    values["accuracy_argmax"] = sk.accuracy_score(label, chosen)
    values["ece_argmax"] = calibration_error(chosen == label, p.max(axis=1))
    of_labels = []
    for i, name in enumerate(labels):
        own = rates(label == i, chosen == i) | of_scores(label == i, p[:, i])
        del own["accuracy"]
        values |= {f"{metric}[{name}]": value for metric, value in own.items()}
        of_labels.append(own)
    for metric in of_labels[0]:
        each = [own[metric] for own in of_labels]
        values[f"{metric}_macro"] = None if None in each else float(np.mean(each))
    return values


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if value is None:
            assert got[name]["value"] is None, name
            assert got[name]["why"], name
        else:
            assert got[name]["value"] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(
    ("aggregate", "labels", "steps"),
    [
        *((name, ("healthy", "COVID-19"), 2**40) for name in AGGREGATES),
        *((name, ("COVID-19", "bacterial", "healthy"), 2**40) for name in AGGREGATES),
        # Ties, also at the threshold. Which of equal slices are the top three is another test's.
        ("mean", ("COVID-19", "bacterial", "healthy"), 8),
        ("noisy_or", ("COVID-19", "bacterial", "healthy"), 8),
    ],
)
def test_every_figure_is_scikit_learns_from_slices_csv(tmp_path, aggregate, labels, steps):
    slices = write_slices(tmp_path / "slices.csv", labels, 1, steps)
    positive = labels.index("COVID-19")
    metrics = evaluation_metrics(
        slices,
        person_predictions(slices, aggregate, positive),
        split="test",
        positive=positive,
        settings=SETTINGS,
        validation_threshold=VALIDATION_THRESHOLD,
        aggregate=aggregate,
    )
    metrics = json.loads(json.dumps(metrics, allow_nan=False))

    names, rows = read_rows(tmp_path / "slices.csv")
    persons = to_persons(rows, aggregate, positive)
    assert_same(metrics["image"], figures(rows, names, positive, SETTINGS.threshold))
    assert_same(metrics["person"], figures(persons, names, positive, SETTINGS.threshold))
    moved = figures(persons, names, positive, VALIDATION_THRESHOLD)
    predicted_labels = metrics["validation_threshold"]["person"]
    assert_same(predicted_labels, {name: moved[name] for name in predicted_labels})
    assert {"accuracy", "balanced_accuracy", "recall", "specificity"} <= predicted_labels.keys()

    assert [site["site"] for site in metrics["sites"]] == ["", "A"]
    for site in metrics["sites"]:
        there = [row for row in rows if row[1] == site["site"]]
        persons_there = to_persons(there, aggregate, positive)
        assert (site["n_slices"], site["n_persons"]) == (len(there), len(persons_there))
        assert_same(site["image"], figures(there, names, positive, SETTINGS.threshold))
        assert_same(site["person"], figures(persons_there, names, positive, SETTINGS.threshold))


def test_figures_at_each_of_several_seeds(tmp_path):
    labels = ("COVID-19", "bacterial", "healthy")
    for seed in range(12):
        slices = write_slices(tmp_path / "slices.csv", labels, seed, 128)
        names, rows = read_rows(tmp_path / "slices.csv")
        # A few rows only: classes are absent, and undecided for.
        few, rows = slices.of(np.arange(4 + seed)), rows[: 4 + seed]
        metrics = evaluation_metrics(
            few,
            person_predictions(few),
            split="test",
            positive=0,
            settings=SETTINGS,
        )
        assert_same(metrics["image"], figures(rows, names, 0, SETTINGS.threshold))
        persons = to_persons(rows, "mean", 0)
        assert_same(metrics["person"], figures(persons, names, 0, SETTINGS.threshold))
