"""The HTML report of an evaluation: one file with embedded images."""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drenet_jax.evaluation.decisions import predicted_labels
from drenet_jax.evaluation.metrics import metric_text
from drenet_jax.evaluation.person_report import PACKAGE, facts
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.html_images import data_uri
from drenet_jax.html_templates import render
from drenet_jax.version import __version__

_SOFTWARE = ("jax", "flax", "optax", "numpy", "scikit-learn", "tensorflow-datasets")

# Slices shown of each misclassified patient, and their size.
_SHOWN_SLICES = 8
_THUMBNAIL_PX = 144

_TITLES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "f1": "F1",
    "f1_paper": "F1 as in the paper, (P + R) / 2",
    "brier": "Brier score",
    "ece": "expected calibration error",
}
_RECALL_AT = "recall_at_specificity_"

# Keys of the part `explain` of metrics.json.
POINTERS = {
    "heat_map": "heat map's maximum in a lesion",
    "box": "best box's centre in a lesion",
    "top_slices": "slices with a lesion among the top three",
}

# Of each site.
_SITE_METRICS = ("auc", "accuracy", "recall", "specificity")

# Anchors and headings of the page.
_PARTS = (
    ("cohort", "Cohort"),
    ("folds", "Folds"),
    ("metrics", "Metrics"),
    ("explain", "Pointing game"),
    ("audit", "Audit for shortcuts"),
    ("plots", "Plots"),
    ("misses", "Misclassified patients"),
    ("claim", "CLAIM checklist"),
    ("model", "Model"),
    ("settings", "Settings"),
)

_PLOTS = {
    "roc": (
        "ROC curves; AUC (95% confidence interval) in the legend.",
        "ROC curves of patients and slices; the AUCs are in the metrics table.",
    ),
    "confusion": (
        "Confusion matrices: counts, and percentages of the true label.",
        "Confusion matrices of patients and slices.",
    ),
    "calibration": (
        "Reliability diagrams before and (where there is a temperature) after calibration; bars: "
        "95% confidence intervals (Wilson) of patients.",
        "Reliability diagrams of patients and slices, and histograms of their probabilities.",
    ),
}

# (patient_id, slice_index, slice_name) -> uint8 [S, S], the model's input.
Pictures = Mapping[tuple[str, int, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ShortcutAudit:
    """What `audit` found out about a model.

    Attributes:
      result: what audit.json holds.
      plot: the PNG file beside it.
    """

    result: Mapping[str, Any]
    plot: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class ReportContext:
    """What a report says beside the predictions and their metrics.

    Attributes:
      title: of the report.
      model: what identifies it.
      config: the training configuration.
      ct: the preprocessing settings.
      design: how patients were assigned to training, validation and test, in a sentence.
      partitions: name, persons and slices of each; none for a cross-validation.
      excluded: the rows of excluded.csv: patient_id, file, why.
      pictures: returns those of the patients named.
      folds: of a cross-validation, a row each.
      audit: of the model for shortcuts; None: there is none.
    """

    title: str
    model: Mapping[str, object]
    config: Mapping[str, Any]
    ct: Mapping[str, Any]
    design: str
    partitions: Sequence[tuple[str, int, int]]
    excluded: Sequence[Mapping[str, str]]
    pictures: Callable[[Sequence[str]], Pictures]
    folds: Sequence[Mapping[str, object]] = ()
    audit: ShortcutAudit | None = None


@dataclasses.dataclass(frozen=True)
class Misclassification:
    """A patient with a wrong predicted label.

    Attributes:
      patient_id, site, truth: of the person.
      predicted: the wrong label.
      probability: of the wrong label.
      probability_of_truth: of the true one.
      n_slices: of the person.
    """

    patient_id: str
    site: str
    truth: str
    predicted: str
    probability: float
    probability_of_truth: float
    n_slices: int


def worst_errors(
    persons: PersonPredictions, positive: int, threshold: float, most: int
) -> list[Misclassification]:
    """The misclassified patients, the most probable wrong labels first, each patient once."""
    label = predicted_labels(persons, positive, threshold)
    probability = persons.probabilities[np.arange(len(persons)), label]
    of_truth = persons.probabilities[np.arange(len(persons)), persons.label]
    wrong = np.flatnonzero(label != persons.label)
    errors: dict[str, Misclassification] = {}
    for i in wrong[np.argsort(-probability[wrong], kind="stable")]:
        patient_id = str(persons.patient_id[i])
        errors.setdefault(
            patient_id,
            Misclassification(
                patient_id=patient_id,
                site=str(persons.site[i]),
                truth=persons.labels[persons.label[i]],
                predicted=persons.labels[label[i]],
                probability=float(probability[i]),
                probability_of_truth=float(of_truth[i]),
                n_slices=int(persons.n_slices[i]),
            ),
        )
    return list(errors.values())[:most]


def evaluation_report(
    context: ReportContext,
    metrics: Mapping[str, Any],
    slices: SlicePredictions,
    misses: Sequence[Misclassification],
    plot_files: Mapping[str, Path],
) -> str:
    """The report.html of `evaluate` and `crossvalidate`.

    Args:
      context: what the report says beside the metrics.
      metrics: what metrics.json holds.
      slices: that the metrics are of.
      misses: the misclassified patients to show, worst first.
      plot_files: the PNG files of "roc", "confusion" and "calibration".

    Returns:
      The text of an HTML file that needs nothing outside it.
    """
    # The text after a colon is of the one slice.
    reasons = collections.Counter(row["why"].split(":")[0] for row in context.excluded)
    cohort = _cohort_rows(slices)
    pictures = context.pictures([miss.patient_id for miss in misses])
    software = {
        "drenet_jax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _SOFTWARE},
    }
    return render(
        PACKAGE,
        "evaluation.html.j2",
        title=context.title,
        person_auc=metric_text(metrics["person"]["auc"]),
        image_auc=metric_text(metrics["image"]["auc"]),
        whys={},
        metrics=metrics,
        moved=metrics["validation_threshold"],
        moved_metrics=metrics["validation_threshold"].get("person"),
        binary=_binary_rows(metrics),
        by_label=_rows_by_label(metrics) if len(metrics["labels"]) > 2 else [],
        site_titles=[_TITLES[name] for name in _SITE_METRICS],
        sites=[
            {
                "site": row["site"] or "not given",
                "n_persons": row["n_persons"],
                "n_slices": row["n_slices"],
                "metrics": [row["person"][name] for name in _SITE_METRICS],
            }
            for row in metrics["sites"]
        ],
        cohort=cohort,
        design=context.design,
        partitions=context.partitions,
        folds=context.folds,
        excluded=context.excluded,
        reasons=reasons.most_common(),
        plots=[
            {"uri": data_uri(plot_files[name].read_bytes()), "caption": caption, "alt": alt}
            for name, (caption, alt) in _PLOTS.items()
        ],
        misses=[_shown_miss(miss, slices, pictures) for miss in misses],
        explain=[
            (title, result)
            for name, title in POINTERS.items()
            if (result := metrics.get("explain", {}).get(name))
        ],
        audit=context.audit and context.audit.result,
        audit_plot=context.audit and data_uri(context.audit.plot),
        parts=[
            part
            for part in _PARTS
            if (part[0] != "folds" or context.folds)
            and (part[0] != "audit" or context.audit)
            and (part[0] != "explain" or "explain" in metrics)
        ],
        ct=context.ct,
        config=context.config,
        software=software,
        n_sites=len(np.unique(slices.site)),
        n_evaluated=cohort[-1]["counts"][-1][0],
        counts_by_label=", ".join(
            f"{n} {label}"
            for label, (n, _) in zip(metrics["labels"], cohort[-1]["counts"][:-1], strict=True)
        ),
        model=facts({**context.model, "labels": metrics["labels"], "ct": context.ct}),
        settings=facts({**context.config, "software": software}),
    )


def _binary_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and title of each metric of the positive class against the rest."""
    rows = list(_TITLES.items())
    for name in metrics["person"]:
        share = name.removeprefix(_RECALL_AT)
        # Of a label or an average over the labels, more follows.
        if share != name and share.replace(".", "").isdecimal():
            rows.append((name, f"recall at specificity {share}"))
    return rows


def _rows_by_label(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of each label against the rest, of persons and of slices."""
    # The accuracy of one label against the rest says little, and is not among the metrics.
    titles = {name: title for name, title in _TITLES.items() if name != "accuracy"}
    columns = [(label, f"[{label}]") for label in metrics["labels"]]
    return [
        {
            "name": name,
            "accuracy": metrics[level]["accuracy_argmax"],
            "titles": list(titles.values()),
            "rows": [
                {"label": title, "metrics": [metrics[level][metric + suffix] for metric in titles]}
                for title, suffix in [*columns, ("macro average", "_macro")]
            ],
        }
        for level, name in (("person", "patients"), ("image", "slices"))
    ]


def _cohort_rows(slices: SlicePredictions) -> list[dict[str, Any]]:
    """Persons and slices of each site (a row) and label (a column), with totals.

    A patient tested in several repeats of a cross-validation counts once, as does a slice.
    """
    keys = zip(slices.patient_id, slices.slice_index, slices.slice_name, strict=True)
    once = slices.of(np.array(list({key: i for i, key in enumerate(keys)}.values()), np.int64))
    sites = sorted(set(once.site.tolist()))
    rows = [(site or "not given", once.of(once.site == site)) for site in sites]
    if len(rows) != 1:
        rows.append(("all sites", once))
    return [{"site": name, "counts": _counts(part)} for name, part in rows]


def _counts(slices: SlicePredictions) -> list[tuple[int, int]]:
    """Persons and slices of each label, and of all."""
    counts = []
    for i in range(len(slices.labels)):
        its = slices.label == i
        counts.append((len(np.unique(slices.patient_id[its])), int(its.sum())))
    return [*counts, (len(np.unique(slices.patient_id)), len(slices))]


def _shown_miss(
    miss: Misclassification, slices: SlicePredictions, pictures: Pictures
) -> dict[str, Any]:
    """A misclassified patient, with the slices of the highest probability of the wrong label."""
    probability = slices.probabilities[:, slices.labels.index(miss.predicted)]
    rows = np.flatnonzero(slices.patient_id == miss.patient_id)
    most = rows[np.argsort(-probability[rows], kind="stable")]
    # Of several repeats, the one with the highest probability.
    first = {(int(slices.slice_index[i]), str(slices.slice_name[i])): i for i in most[::-1]}
    shown = sorted(first.values(), key=lambda i: -probability[i])[:_SHOWN_SLICES]
    tiles = []
    for i in sorted(shown, key=lambda i: slices.slice_index[i]):
        index, name = int(slices.slice_index[i]), str(slices.slice_name[i])
        image = pictures[miss.patient_id, index, name]
        thumbnail = cv2.resize(image, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
        done, png = cv2.imencode(".png", thumbnail)
        assert done
        tiles.append(
            {
                "uri": data_uri(png.tobytes()),
                "alt": f"slice {index} of {miss.patient_id}, the model input",
                "index": index,
                "probability": probability[i],
            }
        )
    return {"person": miss, "pictures": tiles, "size_px": _THUMBNAIL_PX}
