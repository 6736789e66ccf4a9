"""Writes docs/study.md: the template with every number put in from the result files.

python -m studies.page
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from drenet_jax.evaluation.metrics import metric_text, ranking_metrics
from drenet_jax.evaluation.plots import COLOURS, GUIDE, new_figure, save
from studies import intervals
from studies.arms import ARMS, STEPS
from studies.claims import CLAIMS, MARGIN, Claim, verdict
from studies.cohorts import FOLDS, read_csv
from studies.intervals import DRAWS, Estimate
from studies.results import RESULTS, Table, read_table
from studies.runs import runs_of

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).with_name("study.template.md")
PAGE = REPOSITORY / "docs" / "study.md"
PICTURE = REPOSITORY / "docs" / "study.png"
POSITIVE = {"phantoms": "COVID-19", "covid_ct": "covid", "covid_ct_160": "covid"}
# COVID-CT's published test part, which is not here.
TEST_SLICES = 203
EXPECTED_ARM = "best"

_SPAN = re.compile(r"\{\{(\w+)(?::([^{}]+))?\}\}")
# Of runs that were not made, and of boxes of a model that has none.
_NOT_MADE, _NONE = "not made yet", "–"


def render(template: str, results: Path) -> str:
    """The page: each `{{name}}` or `{{name:argument}}` of the template gives way to its text."""
    page = Page(results)

    def span(match: re.Match) -> str:
        name, argument = match.groups()
        return page.spans[name](*(argument.split(", ") if argument else ()))

    return _SPAN.sub(span, template)


class Page:
    """The texts that the template asks for, by name."""

    def __init__(self, results: Path):
        self._results = results
        self._runs = read_csv(results / "runs.csv")
        self._data = {(row["data"], row["split"]): row for row in read_csv(results / "data.csv")}
        self.spans: Mapping[str, Callable[..., str]] = {
            "steps": lambda: str(STEPS),
            "epochs_covid_ct": lambda: str(ARMS["imagenet_strong"].config().train.epochs),
            "folds": lambda: str(FOLDS),
            "pixels": lambda arm: str(ARMS[arm].config().model.image_size_px),
            "draws": lambda: f"{DRAWS:,}",
            "margin": lambda: f"{MARGIN:.2f}",
            "n_claims": lambda: str(len(CLAIMS)),
            "data": lambda data, split, column: self._data[data, split][column],
            "judged": self._judged,
            "claims": self._claims,
            "auc": self._auc,
            "arms": self._arms,
            "lesions": self._lesions,
            "audit": self._audit,
            "audit_best": self._audit_best,
            "earlier": self._earlier,
            "repeated": self._repeated,
            "mean": lambda arm, column: self._mean(arm, column, 2),
            "expected_test": self._expected_test,
            "runs": lambda: str(len(self._runs)),
            "hours": self._hours,
        }

        # Each is needed by several rows, and takes a second.
        self._table = functools.cache(self._read_table)
        self.estimate = functools.cache(self._estimate)

    def _read_table(self, data: str, kind: str) -> Table:
        return read_table(self._results / f"{data}-{kind}.csv")

    def is_made(self, arm: str) -> bool:
        """Whether all runs of all seeds of an arm are there."""
        made = {row["run"] for row in self._runs}
        return all(run.name in made for run in runs_of(arm))

    def _estimate(self, metric: str, arm: str) -> Estimate:
        data = ARMS[arm].data
        if metric == "person_auc":
            return intervals.person_auc(self._table(data, "persons"), arm, POSITIVE[data])
        if metric == "slice_auc":
            return intervals.slice_auc(self._table(data, "slices"), arm, POSITIVE[data])
        return intervals.hits_above_chance(self._table(data, "hits"), arm, metric)

    def difference(self, claim: Claim) -> Estimate | None:
        """What is claimed to be above 0; None if its runs were not made."""
        if not all(self.is_made(arm) for arm in (claim.arm, claim.other) if arm):
            return None
        value = self.estimate(claim.metric, claim.arm)
        return value.minus(self.estimate(claim.metric, claim.other)) if claim.other else value

    def _judged(self, *compared: str) -> str:
        """The verdict on the claim of a metric, an arm and perhaps another one."""
        (claim,) = (
            claim
            for claim in CLAIMS
            if tuple(filter(None, (claim.metric, claim.arm, claim.other))) == compared
        )
        estimate = self.difference(claim)
        return f"**{_verdict(estimate)}** ({_text(estimate, signed=True)})"

    def _auc(self, arm: str, metric: str) -> str:
        return _text(self.estimate(metric, arm) if self.is_made(arm) else None)

    def _claims(self, arm: str) -> str:
        lines = []
        for claim in CLAIMS:
            if claim.arm == arm:
                text = f"**{claim.text}** (primary)" if claim is CLAIMS[0] else claim.text
                estimate = self.difference(claim)
                lines.append([text, _text(estimate, signed=True), _verdict(estimate)])
        return _markdown(("claim", "difference (95% interval)", "verdict"), lines)

    def _arms(self, data: str, *names: str) -> str:
        lines = [
            [
                ARMS[arm].title,
                self._mean(arm, "training_slice_auc", 3),
                self._auc(arm, "slice_auc"),
                self._auc(arm, "person_auc"),
                self._mean(arm, "training_cpu_seconds", 0),
            ]
            for arm in names or [name for name in ARMS if ARMS[name].data == data]
        ]
        return _markdown(
            ("", "slice AUC in training", "slice AUC", "person AUC", "processor seconds a run"),
            lines,
        )

    def _lesions(self) -> str:
        lines = []
        for arm in ("drenet", "random_boxes", "backbone", "densenet"):
            points = ("heat_map", "box") if arm in ("drenet", "random_boxes") else ("heat_map",)
            cells = [
                _text(self.estimate(point, arm), signed=True) if self.is_made(arm) else _NOT_MADE
                for point in points
            ]
            lines.append([ARMS[arm].title, *cells, _NONE][:3])
        return _markdown(("", "heat map's maximum", "best box's centre"), lines)

    def _evaluations(self, audit: str) -> list[dict[str, Any]]:
        text = (self._results / f"audit-{audit}.json").read_text(encoding="utf-8")
        return json.loads(text)["evaluations"]

    def _audit_best(self, row: str) -> str:
        """The AUC of a row on the persons who were held out."""
        (auc,) = (
            item["person_auc"]
            for item in self._evaluations("best")[0]["rows"]
            if item["name"] == row
        )
        return metric_text(auc)

    def _audit(self) -> str:
        (evaluation,) = self._evaluations("covid_ct")
        lines = []
        for row in evaluation["rows"]:
            if row["name"] in ("image", "lungs", "outside", "facts", "texture", "mask"):
                auc = row["person_auc"]
                lines.append((auc["value"], [row["title"], metric_text(auc)]))
        lines.sort(reverse=True)
        return _markdown(("what a fixed classifier sees", "person AUC"), [row for _, row in lines])

    def _earlier(self) -> str:
        lines = [
            [row["what"], *(f"{float(row[name]):+.3f}" for name in ("value", "low", "high"))]
            for row in read_csv(self._results / "earlier.csv")
        ]
        return _markdown(
            ("", "difference (95% interval)"),
            [[what, f"{value} ({low} to {high})"] for what, value, low, high in lines],
        )

    def _repeated(self, figure: str) -> str:
        """Of a run that was made again on another machine: its person AUCs, or how far they are."""
        rows = read_csv(self._results / "repeated.csv")
        is_positive = [row["label"] == POSITIVE["covid_ct_160"] for row in rows]
        p = {name: np.array([float(row[name]) for row in rows]) for name in ("first", "again")}
        if figure == "difference":
            return f"{np.abs(p['first'] - p['again']).mean():.2f}"
        return f"{roc_auc_score(is_positive, p[figure]):.3f}"

    def _of_arm(self, arm: str) -> list[dict[str, str]]:
        return [row for row in self._runs if row["run"].startswith(f"{arm}-seed")]

    def _mean(self, arm: str, column: str, digits: int) -> str:
        if not self.is_made(arm):
            return _NOT_MADE
        values = [float(row[column]) for row in self._of_arm(arm)]
        return f"{np.mean(values):.{digits}f}"

    def _hours(self) -> str:
        return f"{sum(float(row['training_cpu_seconds']) for row in self._runs) / 3600:.1f}"

    def _expected_test(self, kind: str) -> str:
        """The AUC of as many other images: the interval is that of a sample of their size."""
        if not self.is_made(EXPECTED_ARM):
            return _NOT_MADE
        table = self._table(ARMS[EXPECTED_ARM].data, f"{kind}s")
        slices = self._table(ARMS[EXPECTED_ARM].data, "slices")
        persons, counts = np.unique(slices.patient_id, return_counts=True)
        n = round(TEST_SLICES / counts.mean())
        draws = np.random.default_rng(0).multinomial(
            n, np.full(len(persons), 1 / len(persons)), size=DRAWS
        )
        positive = POSITIVE[ARMS[EXPECTED_ARM].data]
        name = positive if kind == "person" else ""
        aucs = ranking_metrics(
            table.label == positive,
            np.mean([of[name] for of in table.values[EXPECTED_ARM].values()], axis=0),
            np.searchsorted(persons, table.patient_id),
            draws.astype(float),
            (),
        )["auc"]
        low, middle, high = np.nanpercentile(aucs, (2.5, 50, 97.5))
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    def draw(self, path: Path) -> None:
        """The differences of all claims with their intervals, and the margins."""
        figure, (ax,) = new_figure(9, 0.42 * len(CLAIMS) + 1.0)
        for i, claim in enumerate(CLAIMS):
            estimate = self.difference(claim)
            if estimate is None:
                continue
            low, high = estimate.interval
            colour = COLOURS[0 if claim.data == "phantoms" else 1]
            ax.plot([low, high], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot([estimate.value], [i], "o", color=colour, markersize=6)
            ax.plot(estimate.by_seed, np.full(len(estimate.by_seed), i + 0.25), ".", color="0.6")
        ax.axvspan(-MARGIN, MARGIN, color="0.92")
        ax.axvline(0, **GUIDE)
        ax.set_yticks(range(len(CLAIMS)), [claim.text for claim in CLAIMS], fontsize=8)
        ax.set(
            xlabel="difference of person AUC, or share of hits above chance",
            ylim=(len(CLAIMS) - 0.5, -0.5),
        )
        for colour, name in ((COLOURS[0], "phantoms"), (COLOURS[1], "COVID-CT")):
            ax.plot([], [], "o", color=colour, label=name)
        ax.legend(fontsize=8, loc="lower right")
        save(figure, path)


def _verdict(estimate: Estimate | None) -> str:
    return _NOT_MADE if estimate is None else verdict(estimate.value, *estimate.interval)


def _text(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None:
        return _NOT_MADE
    sign = "+" if signed else ""
    value, low, high = (f"{x:{sign}.3f}" for x in (estimate.value, *estimate.interval))
    return f"{value} ({low} to {high})"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    page = Page(RESULTS)
    page.draw(PICTURE)
    PAGE.write_text(render(TEMPLATE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
