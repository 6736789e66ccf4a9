"""Every figure of docs/study.md with its interval, made of the committed predictions.

    python -m studies.figures [--results=FOLDER]

Writes `figures.csv`: test set, arm (or "A less B", paired), metric, value, low, high (95%), and the
values of the single seeds.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.intervals import Figure, persons_figures, pointed_figures, slices_figures
from studies.methods import METHODS
from studies.predictions import RESULTS, read_table
from studies.studies import (
    COVID_CT_METHODS,
    LONG_METHODS,
    LONG_TRAIN,
    MAIN,
    PERSONS,
    PERSONS_METHODS,
    SEEDS,
    SHIFT_METHODS,
    SITE_B_PERSONS,
    covid_ct_run,
    fine_tuned_run,
    long_run,
    phantom_run,
    site_a_run,
    site_b_run,
)

COLUMNS = ("test", "arm", "metric", "value", "low", "high", "by_seed")
POSITIVE = {"phantoms": "COVID-19", "site_a": "COVID-19", "site_b": "COVID-19", "covid_ct": "covid"}
LESS = " less "

Figures = dict[tuple[str, str, str], Figure]


def main_arm(method: str) -> str:
    return phantom_run(method, 0).arm


def persons_arm(method: str, train: str) -> str:
    return phantom_run(method, 0, train).arm


def covid_arm(method: str, pretrained: bool, weights: str = "last") -> str:
    arm = covid_ct_run(method, 0, pretrained).arm
    return arm if weights == "last" else f"{arm}-{weights}"


def long_arm(method: str, train: str) -> str:
    return long_run(method, 0, train).arm


@dataclasses.dataclass(frozen=True)
class ShiftArms:
    """The arms of a method in the study of another site.

    Attributes:
      of_a: trained on site A.
      fine_tuned: by the data set of B.
      of_b: trained on site B alone.
    """

    of_a: str
    fine_tuned: Mapping[str, str]
    of_b: str

    @classmethod
    def of(cls, method: str) -> ShiftArms:
        fine_tuned = {train: fine_tuned_run(method, 0, train).arm for train in SITE_B_PERSONS}
        return cls(site_a_run(method, 0).arm, fine_tuned, site_b_run(method, 0).arm)


def differences() -> list[tuple[str, str, str]]:
    """(test set, arm, arm to take off) of all that are reported."""
    drenet = main_arm("drenet")
    matches = [("phantoms", drenet, main_arm(method)) for method in METHODS if method != "drenet"]
    for how in ("", "_per_pass"):
        arms = [main_arm(f"fill_{when}{how}") for when in ("train", "never")]
        matches.append(("phantoms", *arms))
    own = main_arm("drenet_per_pass")
    matches += [
        ("phantoms", own, main_arm(method)) for method in METHODS if main_arm(method) != own
    ]
    matches.append(("phantoms", main_arm("nts_net_per_pass"), main_arm("nts_net")))
    matches += [
        ("phantoms", persons_arm(method, train), persons_arm("resnet", train))
        for method in PERSONS_METHODS
        if method != "resnet"
        for train in PERSONS
        if train != MAIN
    ]
    for pretrained in (False, True):
        for weights in ("last", "best"):
            arms = {item: covid_arm(item, pretrained, weights) for item in COVID_CT_METHODS}
            ours = arms.pop("drenet")
            matches += [("covid_ct", ours, arm) for arm in arms.values()]
    matches += [
        ("covid_ct", covid_arm(method, True), covid_arm(method, False))
        for method in COVID_CT_METHODS
    ]
    for train in (LONG_TRAIN, "covid_ct"):
        for method in LONG_METHODS:
            arm = long_arm(method, train)
            matches += [
                (train, long_arm(ours, train), arm)
                for ours in ("drenet", "drenet_per_pass")
                if method not in ("drenet_per_pass", ours)
            ]
    for method in SHIFT_METHODS:
        arms = ShiftArms.of(method)
        matches += [("site_b", arm, arms.of_a) for arm in arms.fine_tuned.values()]
        matches.append(("site_b", arms.fine_tuned["site_b"], arms.of_b))
    return matches


def compute(results: Path) -> Figures:
    """Of every arm whose runs are all there, and of the differences of two that are."""
    figures: Figures = {}
    for test, positive in POSITIVE.items():
        for kind, measure in (
            ("persons", persons_figures),
            ("slices", slices_figures),
            ("pointed", pointed_figures),
        ):
            path = results / f"{test}-{kind}.csv"
            if not path.is_file():
                continue
            table = read_table(path)
            for arm, of_seeds in table.values.items():
                if set(of_seeds) < set(SEEDS):
                    continue
                given = (table, arm) if kind == "pointed" else (table, arm, positive)
                for metric, figure in measure(*given).items():
                    figures[test, arm, metric] = figure
    for test, arm, other in differences():
        for (of_test, of_arm, metric), figure in list(figures.items()):
            if (of_test, of_arm) == (test, arm) and (test, other, metric) in figures:
                figures[test, arm + LESS + other, metric] = figure.less(
                    figures[test, other, metric]
                )
    figures |= _across(figures)
    return figures


def _across(figures: Figures) -> Figures:
    """Differences between levels and between test sets."""
    drenet, result = main_arm("drenet"), {}
    levels = [figures.get(("phantoms", drenet, m)) for m in ("person_auc", "slice_auc")]
    if all(levels):
        result["phantoms", drenet, "person_less_slice_auc"] = levels[0].less(levels[1])
    metrics = ("person_auc", "person_accuracy", "slice_auc")
    for method, metric in itertools.product(SHIFT_METHODS, metrics):
        arm = ShiftArms.of(method).of_a
        # Other persons, but the same seeds.
        on_b, on_a = (figures.get((test, arm, metric)) for test in ("site_b", "site_a"))
        if on_b and on_a:
            result["site_b less site_a", arm, metric] = on_b.less(on_a)
    return result


def write(figures: Figures, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key, figure in figures.items():
            numbers = (figure.value, *figure.interval)
            seeds = " ".join(f"{x:.4f}" for x in figure.by_seed)
            writer.writerow([*key, *(f"{x:.4f}" for x in numbers), seeds])


def read(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """(test set, arm, metric) -> the row of `figures.csv`."""
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["test"], row["arm"], row["metric"]): row for row in csv.DictReader(file)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    values = parser.parse_args(arguments)
    write(compute(values.results), values.results / "figures.csv")


if __name__ == "__main__":
    main()
