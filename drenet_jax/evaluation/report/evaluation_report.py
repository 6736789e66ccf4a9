"""The HTML report of an evaluation: one file, with its pictures inside."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from drenet_jax.evaluation.decisions import Misclassification
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.evaluation.report.claim import ClaimRow, claim_rows
from drenet_jax.evaluation.report.formatting import POINTERS, Footnotes, metric_text
from drenet_jax.evaluation.report.person_report import PACKAGE, data_uri, facts
from drenet_jax.html_templates import render

# Of each missed person so many slices are shown, of so many pixels.
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

# Of each site.
_SITE_METRICS = ("auc", "accuracy", "recall", "specificity")

# Anchors and headings of the page.
_PARTS = (
    ("cohort", "Cohort"),
    ("folds", "Folds"),
    ("metrics", "Metrics"),
    ("explain", "Pointing game"),
    ("plots", "Plots"),
    ("misses", "Worst misses"),
    ("claim", "CLAIM checklist"),
    ("model", "Model"),
    ("settings", "Settings"),
)

_PLOTS = {
    "roc": (
        "ROC curves; in the legend the AUC (95% interval).",
        "ROC curves of persons and slices; the AUCs are in the metrics table.",
    ),
    "confusion": (
        "Counts, and shares of the true label.",
        "Confusion matrices of persons and slices.",
    ),
    "calibration": (
        "How often a predicted probability holds, before and (where there is a temperature) after "
        "calibration; bars: 95% intervals (Wilson) of the persons.",
        "Reliability diagrams of persons and slices, and the distribution of their probabilities.",
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class RunReport:
    """What a report tells.

    Attributes:
      title: its heading.
      metrics: what metrics.json holds.
      slices, persons: that the metrics are of.
      misses: the worst, worst first.
      pictures: (patient_id, slice_index, slice_name) -> uint8 [S, S] of their slices.
      model: what identifies the model; shown as it stands.
      config: the training configuration; shown as it stands.
      ct: the settings of the image side; shown as they stand.
      design: how persons were assigned to partitions, in a sentence.
      partitions: name, persons and slices of each; none for a cross-validation.
      folds: of a cross-validation, a row each; shown as they stand.
      excluded: what `prepare` left out: patient_id, file, why.
      software: package -> version.
      plots: the PNG files of "roc", "confusion" and "calibration".
    """

    title: str
    metrics: Mapping
    slices: SlicePredictions
    persons: PersonPredictions
    misses: Sequence[Misclassification]
    pictures: Mapping[tuple[str, int, str], np.ndarray]
    model: Mapping[str, object]
    config: Mapping
    ct: Mapping[str, object]
    design: str
    partitions: Sequence[tuple[str, int, int]]
    folds: Sequence[Mapping[str, object]]
    excluded: Sequence[Mapping[str, str]]
    software: Mapping[str, str]
    plots: Mapping[str, Path]


def run_report(report: RunReport) -> str:
    """What `evaluate` and `crossvalidate` write to report.html.

    Returns:
      The text of an HTML file that needs nothing outside it.
    """
    metrics = report.metrics
    # What stands after a colon is of the one slice.
    reasons = collections.Counter(row["why"].split(":")[0] for row in report.excluded)
    cohort = _cohort_rows(report.slices)
    return render(
        PACKAGE,
        "evaluation.html.j2",
        title=report.title,
        person_auc=metric_text(metrics["person"]["auc"]),
        image_auc=metric_text(metrics["image"]["auc"]),
        whys=Footnotes(),
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
        design=report.design,
        partitions=report.partitions,
        folds=report.folds,
        excluded=report.excluded,
        reasons=reasons.most_common(),
        plots=[
            {"uri": data_uri(report.plots[name].read_bytes()), "caption": caption, "alt": alt}
            for name, (caption, alt) in _PLOTS.items()
        ],
        misses=[_shown_miss(miss, report) for miss in report.misses],
        explain=_explain_rows(metrics),
        parts=[
            part
            for part in _PARTS
            if (part[0] != "folds" or report.folds)
            and (part[0] != "explain" or "explain" in metrics)
        ],
        claim=_claim(report, cohort[-1]["counts"]),
        model=facts({**report.model, "labels": metrics["labels"], "ct": report.ct}),
        settings=facts({**report.config, "software": report.software}),
    )


def _claim(
    report: RunReport, counts: Sequence[tuple[int, int]]
) -> list[tuple[str, list[ClaimRow]]]:
    """The checklist's items by part of the paper."""
    labels = report.metrics["labels"]
    rows = claim_rows(
        metrics=report.metrics,
        design=report.design,
        ct=report.ct,
        config=report.config,
        software=report.software,
        n_excluded=len(report.excluded),
        n_sites=len(np.unique(report.slices.site)),
        # The last of the counts is of all labels.
        n_persons={label: n for label, (n, _) in zip(labels, counts[:-1], strict=True)},
    )
    return [(part, list(own)) for part, own in itertools.groupby(rows, lambda row: row.part)]


def _explain_rows(metrics: Mapping) -> list[tuple[str, Mapping]]:
    """Title and figures of each way in which a model points at lesions."""
    result = metrics.get("explain", {})
    return [(title, result[name]) for name, title in POINTERS.items() if result.get(name)]


def _binary_rows(metrics: Mapping) -> list[tuple[str, str]]:
    """Name and title of each metric of the positive class against the rest."""
    rows = list(_TITLES.items())
    for name in metrics["person"]:
        share = name.removeprefix(_RECALL_AT)
        # Of a label or an average over the labels, more follows.
        if share != name and share.replace(".", "").isdecimal():
            rows.append((name, f"recall at specificity {share}"))
    return rows


def _rows_by_label(metrics: Mapping) -> list[dict]:
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
                {"label": title, "metrics": [metrics[level][item + suffix] for item in titles]}
                for title, suffix in [*columns, ("macro average", "_macro")]
            ],
        }
        for level, name in (("person", "persons"), ("image", "slices"))
    ]


def _cohort_rows(slices: SlicePredictions) -> list[dict]:
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


def _shown_miss(miss: Misclassification, report: RunReport) -> dict:
    """A person of the table of misses, with the slices that speak most for the wrong label."""
    slices = report.slices
    probability = slices.probabilities[:, slices.labels.index(miss.predicted)]
    rows = np.flatnonzero(slices.patient_id == miss.patient_id)
    most = rows[np.argsort(-probability[rows], kind="stable")]
    # Of several repeats, the one that says it loudest.
    first = {(int(slices.slice_index[i]), str(slices.slice_name[i])): i for i in most[::-1]}
    shown = sorted(first.values(), key=lambda i: -probability[i])[:_SHOWN_SLICES]
    pictures = []
    for i in sorted(shown, key=lambda i: slices.slice_index[i]):
        index, name = int(slices.slice_index[i]), str(slices.slice_name[i])
        image = report.pictures[miss.patient_id, index, name]
        thumbnail = cv2.resize(image, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
        done, png = cv2.imencode(".png", thumbnail)
        assert done
        pictures.append(
            {
                "uri": data_uri(png.tobytes()),
                "alt": f"slice {index} of {miss.patient_id}, as the model saw it",
                "index": index,
                "probability": probability[i],
            }
        )
    return {"person": miss, "pictures": pictures, "size_px": _THUMBNAIL_PX}
