"""Writes docs/study.md: the template with every number put in from the result files.

python -m studies.page
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from studies import figures, plots
from studies.claims import MARGIN, counts, in_short, judged, sentences
from studies.cohorts import SLICES_PER_PERSON
from studies.collect import COVID_CT_LEFT_OUT
from studies.figures import LESS, covid_arm, long_arm, main_arm, persons_arm
from studies.intervals import DRAWS
from studies.methods import IMAGE_SIZE_PX, METHODS, STEPS, method_config
from studies.predictions import RESULTS
from studies.studies import (
    COVID_CT_METHODS,
    FINE_TUNING_STEPS,
    LONG_METHODS,
    LONG_STEPS,
    LONG_TRAIN,
    PERSONS,
    PERSONS_METHODS,
    SEEDS,
    SITE_B_PERSONS,
    STUDIES,
)

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).with_name("study.template.md")
PAGE = REPOSITORY / "docs" / "study.md"
PICTURES = REPOSITORY / "docs" / "study"

_SPAN = re.compile(r"\{\{(\w+)(?::([^{}]+))?\}\}")


def render(template: str, results: Path) -> str:
    """The page: each `{{name}}` or `{{name:argument}}` of the template gives way to its text."""
    page = _Page(results)

    def span(match: re.Match) -> str:
        name, argument = match.groups()
        return page.spans[name](argument) if argument else page.spans[name]()

    return _SPAN.sub(span, template)


class _Page:
    """The texts that the template asks for, by name."""

    def __init__(self, results: Path):
        self.rows = figures.read(results / "figures.csv")
        self._runs = {row["run"]: row for row in _read(results / "runs.csv")}
        self._data = {(row["data"], row["split"]): row for row in _read(results / "data.csv")}
        # What `time` said of the commands.
        self._timings = {row["what"]: row for row in _read(results / "timings.csv")}
        left_out = results / COVID_CT_LEFT_OUT
        self._left_out = len(_read(left_out)) if left_out.is_file() else 0
        self.spans: Mapping[str, Callable[..., str]] = {
            "steps": lambda: str(STEPS),
            "image_size_px": lambda: str(IMAGE_SIZE_PX),
            "slices_per_person": lambda: str(SLICES_PER_PERSON),
            "fine_tuning_steps": lambda: str(FINE_TUNING_STEPS),
            "seeds": lambda: str(len(SEEDS)),
            "draws": lambda: str(DRAWS),
            "margin": lambda: f"{MARGIN:.2f}",
            "persons": self._persons,
            "slices": self._slices,
            "left_out": lambda: str(self._left_out),
            "short_table": self._short_table,
            "claims": lambda section: sentences(section, self.rows),
            "counts": lambda when="": counts(self.rows, later=when == "later"),
            "long_steps": lambda: str(LONG_STEPS),
            "long_epochs": self._long_epochs,
            "long_table": self._long_table,
            "figure": self._figure,
            "main_table": self._main_table,
            "lesions_table": self._lesions_table,
            "persons_table": self._persons_table,
            "covid_ct_table": self._covid_ct_table,
            "shift_table": self._shift_table,
            "not_made": self._not_made,
            "minutes": lambda what: f"{float(self._timings[what]['seconds']) / 60:.0f}",
            "hours": lambda: f"{sum(self._seconds()) / 3600:.1f}",
            "runs": lambda: str(len(self._runs)),
            "long": lambda: str(METHODS["resnet_long"].steps // STEPS),
        }

    def _persons(self, of: str) -> str:
        data, split = of.split("/")
        return self._data[data, split]["persons"]

    def _slices(self, of: str) -> str:
        data, split = of.split("/")
        return self._data[data, split]["slices"]

    def _figure(self, of: str) -> str:
        """`test set, arm, metric`."""
        test, arm, metric = of.split(", ")
        return self._cell(test, arm, metric)

    def _cell(self, test: str, arm: str, metric: str) -> str:
        row = self.rows.get((test, arm, metric))
        if row is None:
            return "–"
        sign = "+" if LESS in arm or "above" in metric or "less" in test + metric else ""
        value, low, high = (f"{float(row[name]):{sign}.3f}" for name in ("value", "low", "high"))
        return f"{value} ({low} to {high})"

    def _seconds(self) -> list[float]:
        return [float(row["cpu_seconds"]) for row in self._runs.values()]

    def _is_there(self, test: str, arm: str) -> bool:
        return (test, arm, "person_auc") in self.rows

    def _short_table(self) -> str:
        lines = [[text, *(judged(key, self.rows) for key in keys)] for text, *keys in in_short()]
        return _table(("", "as published", "with per-pass batch norm"), lines)

    def _main_table(self) -> str:
        drenet, lines = main_arm("drenet"), []
        metrics = (
            "person_auc",
            "person_auc_bacterial",
            "person_auc_healthy",
            "person_accuracy",
            "slice_auc",
        )
        for method, about in METHODS.items():
            arm = main_arm(method)
            if self._is_there("phantoms", arm):
                less = drenet + LESS + arm
                lines.append(
                    [
                        about.title,
                        *(self._cell("phantoms", arm, metric) for metric in metrics),
                        "" if arm == drenet else self._cell("phantoms", less, "person_auc"),
                        self._runs[f"{arm}/0"]["parameters"],
                    ]
                )
        return _table(
            (
                "method",
                "person AUC",
                "against bacterial",
                "against healthy",
                "accuracy, three classes",
                "slice AUC",
                "DRENet less this, person AUC",
                "parameters",
            ),
            lines,
        )

    def _lesions_table(self) -> str:
        lines = []
        for method, about in METHODS.items():
            arm = main_arm(method)
            if self._is_there("phantoms", arm):
                lines.append(
                    [about.title]
                    + [
                        self._cell("phantoms", arm, metric)
                        for metric in (
                            "heat_map",
                            "heat_map_above_chance",
                            "box",
                            "box_above_chance",
                        )
                    ]
                )
        titles = ("method", "heat map hits", "less chance", "best box hits", "less chance")
        return _table(titles, lines)

    def _persons_table(self) -> str:
        lines = []
        for train, n in PERSONS.items():
            arms = {method: persons_arm(method, train) for method in PERSONS_METHODS}
            if self._is_there("phantoms", arms["drenet"]):
                resnet = arms["resnet"]
                cells = [self._cell("phantoms", arm, "person_auc") for arm in arms.values()]
                less = [
                    self._cell("phantoms", arm + LESS + resnet, "person_auc")
                    for arm in arms.values()
                    if arm != resnet
                ]
                lines.append([str(n), *cells, *less])
        titles = [METHODS[method].title for method in PERSONS_METHODS]
        return _table(
            (
                "training persons",
                *(f"{title}, person AUC" for title in titles),
                *(f"{title}, less {titles[-1]}" for title in titles[:-1]),
            ),
            lines,
        )

    def _covid_ct_table(self) -> str:
        lines = []
        for pretrained, start in ((False, "random weights"), (True, "phantoms")):
            for method in COVID_CT_METHODS:
                arm = covid_arm(method, pretrained)
                if not self._is_there("covid_ct", arm):
                    continue
                less = covid_arm("drenet", pretrained) + LESS + arm
                gained = arm + LESS + covid_arm(method, False)
                lines.append(
                    [
                        METHODS[method].title,
                        start,
                        self._cell("covid_ct", arm, "person_auc"),
                        self._cell("covid_ct", arm, "slice_auc"),
                        self._cell("covid_ct", covid_arm(method, pretrained, "best"), "person_auc"),
                        "" if method == "drenet" else self._cell("covid_ct", less, "person_auc"),
                        self._cell("covid_ct", gained, "person_auc") if pretrained else "",
                    ]
                )
        return _table(
            (
                "method",
                "starts from",
                "person AUC, last weights",
                "slice AUC, last weights",
                "person AUC, weights chosen on these persons (optimistic)",
                "DRENet less this",
                "gained by the phantoms",
            ),
            lines,
        )

    def _long_epochs(self, train: str) -> str:
        config = method_config(
            "drenet",
            seed=0,
            data_dir=Path(train),
            train_slices=int(self._slices(f"{train}/train")),
            steps=LONG_STEPS,
        )
        return str(config.train.epochs)

    def _long_table(self, test: str) -> str:
        """Of the tested persons of the phantoms or of COVID-CT."""
        metrics = {"person_auc": "person AUC", "slice_auc": "slice AUC"}
        if test == LONG_TRAIN:
            metrics = {
                "person_auc": "person AUC",
                "person_accuracy": "accuracy, three classes",
                "slice_auc": "slice AUC",
                "heat_map": "heat map hits",
                "box": "best box hits",
            }
        ours, lines = "drenet_per_pass", []
        for method in LONG_METHODS:
            arm = long_arm(method, test)
            if not self._is_there(test, arm):
                continue
            less = long_arm(ours, test) + LESS + arm
            lines.append(
                [
                    METHODS[method].title,
                    *(self._cell(test, arm, metric) for metric in metrics),
                    "" if method == ours else self._cell(test, less, "person_auc"),
                ]
            )
        return _table(
            (
                "method",
                *metrics.values(),
                "DRENet with per-pass batch norm less this, person AUC",
            ),
            lines,
        )

    def _shift_table(self, method: str) -> str:
        of = figures.ShiftArms.of(method)
        arms = [("site_a", of.of_a, "trained on A, tested on A")]
        arms.append(("site_b", of.of_a, "trained on A, tested on B"))
        arms += [
            ("site_b", of.fine_tuned[train], f"then fine-tuned on {n} persons of B")
            for train, n in SITE_B_PERSONS.items()
        ]
        arms.append(("site_b", of.of_b, f"{SITE_B_PERSONS['site_b']} persons of B alone"))
        metrics = ("person_auc", "person_accuracy", "slice_auc")
        lines = [
            [
                title,
                *(self._cell(test, arm, metric) for metric in metrics),
                self._cell("site_b", arm + LESS + of.of_a, "person_auc")
                if arm in of.fine_tuned.values()
                else "",
            ]
            for test, arm, title in arms
            if self._is_there(test, arm)
        ]
        return _table(
            (
                "",
                "person AUC",
                "accuracy, three classes",
                "slice AUC",
                "gained by fine-tuning, person AUC",
            ),
            lines,
        )

    def _not_made(self) -> str:
        runs = dict.fromkeys(run for runs in STUDIES.values() for run in runs)
        left: dict[str, int] = {}
        for run in runs:
            if run.name not in self._runs:
                left[run.arm] = left.get(run.arm, 0) + 1
        if not left:
            return "All runs of the plan were made."
        text = ", ".join(f"`{arm}` ({n} of {len(SEEDS)})" for arm, n in left.items())
        return f"These runs of the plan were not made: {text}."


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    PAGE.write_text(render(TEMPLATE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    plots.draw_all(figures.read(RESULTS / "figures.csv"), PICTURES)


if __name__ == "__main__":
    main()
