"""The pictures of docs/study.md, made of `figures.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drenet_jax.evaluation.plots import COLOURS, GUIDE, new_figure, save
from studies import figures
from studies.methods import METHODS
from studies.studies import PERSONS, PERSONS_METHODS, SHIFT_METHODS, SITE_B_PERSONS

Rows = Mapping[tuple[str, str, str], Mapping[str, str]]


def draw_all(rows: Rows, folder: Path) -> None:
    """Writes every picture for which there are figures."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = [item for item in METHODS if _has(rows, "phantoms", figures.main_arm(item))]
    if methods:
        _methods(rows, methods, folder / "methods.png")
        _lesions(rows, methods, folder / "lesions.png")
    _persons(rows, folder / "persons.png")
    shifted = [
        item for item in SHIFT_METHODS if _has(rows, "site_b", figures.ShiftArms.of(item).of_a)
    ]
    if shifted:
        _shift(rows, shifted, folder / "shift.png")


def _has(rows: Rows, test: str, arm: str, metric: str = "person_auc") -> bool:
    return (test, arm, metric) in rows


def _value(row: Mapping[str, str]) -> tuple[float, float, float]:
    return float(row["value"]), float(row["low"]), float(row["high"])


def _bars(ax, rows: Sequence[Mapping[str, str]], colour: str, shift: float = 0.0) -> None:
    """Values with intervals from the top down, and the seeds as dots."""
    for i, row in enumerate(rows):
        value, low, high = _value(row)
        y = i + shift
        ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot([value], [y], "o", color=colour, markersize=6)
        seeds = [float(x) for x in row["by_seed"].split()]
        ax.plot(seeds, np.full(len(seeds), y + 0.2), ".", color="0.6", markersize=4)


def _methods(rows: Rows, methods: Sequence[str], path: Path) -> None:
    figure, (left, right) = new_figure(11, 0.42 * len(methods) + 1.2, columns=2)
    arms = [figures.main_arm(method) for method in methods]
    _bars(left, [rows["phantoms", arm, "person_auc"] for arm in arms], COLOURS[0])
    left.set_yticks(range(len(methods)), [METHODS[method].title for method in methods], fontsize=8)
    left.set(xlabel="person AUC, COVID-19 against the rest", ylim=(len(methods) - 0.5, -0.5))
    others = [arm for arm in arms[1:] if ("phantoms", _less(arms[0], arm), "person_auc") in rows]
    matches = [rows["phantoms", _less(arms[0], arm), "person_auc"] for arm in others]
    _bars(right, matches, COLOURS[1], shift=1.0)
    right.axvline(0, **GUIDE)
    right.set_yticks([])
    right.set(xlabel="DRENet less this method, paired", ylim=(len(methods) - 0.5, -0.5))
    for ax in (left, right):
        ax.grid(axis="x", color="0.92")
        ax.locator_params(axis="x", nbins=6)
    save(figure, path)


def _less(arm: str, other: str) -> str:
    return arm + figures.LESS + other


def _lesions(rows: Rows, methods: Sequence[str], path: Path) -> None:
    figure, (ax,) = new_figure(8, 0.42 * len(methods) + 1.2)
    for i, method in enumerate(methods):
        arm = figures.main_arm(method)
        for shift, metric, colour in ((-0.12, "heat_map", 0), (0.12, "box", 1)):
            if ("phantoms", arm, metric) in rows:
                value, low, high = _value(rows["phantoms", arm, metric])
                ax.plot([low, high], [i + shift] * 2, color=COLOURS[colour], linewidth=2)
                ax.plot([value], [i + shift], "os"[colour], color=COLOURS[colour], markersize=5)
    chance = float(rows["phantoms", figures.main_arm(methods[0]), "chance"]["value"])
    ax.axvline(chance, **GUIDE)
    ax.text(chance, -0.75, "chance", ha="center", va="center", color="0.4", fontsize=8)
    for colour, name, marker in ((0, "heat map's maximum", "o"), (1, "best box's centre", "s")):
        ax.plot([], [], marker, color=COLOURS[colour], label=name)
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    ax.set_yticks(range(len(methods)), [METHODS[method].title for method in methods], fontsize=8)
    ax.set(xlabel="share of slices with a lesion that are hit", ylim=(len(methods) - 0.5, -1))
    ax.grid(axis="x", color="0.92")
    save(figure, path)


def _persons(rows: Rows, path: Path) -> None:
    figure, (ax,) = new_figure(6, 4)
    drawn = 0
    for i, method in enumerate(PERSONS_METHODS):
        known = [
            (n, rows["phantoms", figures.persons_arm(method, train), "person_auc"])
            for train, n in PERSONS.items()
            if _has(rows, "phantoms", figures.persons_arm(method, train))
        ]
        if known:
            drawn = max(drawn, len(known))
            _curve(ax, known, i, METHODS[method].title)
    ax.set(xscale="log", xlabel="training persons", ylabel="person AUC")
    ax.set_xticks(list(PERSONS.values()), list(map(str, PERSONS.values())))
    ax.minorticks_off()
    ax.legend(fontsize=9, loc="lower right")
    ax.grid(color="0.92")
    if drawn > 1:
        save(figure, path)


def _curve(ax, known: Sequence[tuple[int, Mapping[str, str]]], number: int, name: str) -> None:
    # A little apart, so that intervals do not hide each other.
    x = [n * (1 + 0.03 * number) for n, _ in known]
    values = np.array([_value(row) for _, row in known])
    error = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
    style = "-" if number == 0 else "--"
    ax.errorbar(
        x, values[:, 0], error, fmt=f"o{style}", color=COLOURS[number], capsize=3, label=name
    )


def _shift(rows: Rows, methods: Sequence[str], path: Path) -> None:
    figure, axes = new_figure(5 * len(methods) + 1, 4.3, columns=len(methods))
    for method, ax in zip(methods, axes, strict=True):
        _shift_of(rows, figures.ShiftArms.of(method), ax)
        ax.set_title(METHODS[method].title, fontsize=10)
    axes[0].legend(fontsize=8, loc="lower right")
    save(figure, path)


def _shift_of(rows: Rows, arms: figures.ShiftArms, ax) -> None:
    for i, (metric, name) in enumerate(
        (("person_auc", "person AUC"), ("person_accuracy", "person accuracy, three classes"))
    ):
        at = [(0, arms.of_a)] + [(n, arms.fine_tuned[train]) for train, n in SITE_B_PERSONS.items()]
        known = [
            (n, rows["site_b", arm, metric]) for n, arm in at if ("site_b", arm, metric) in rows
        ]
        _curve(ax, [(n + 1, row) for n, row in known], i, f"{name}, tested on B")
        at_home = rows.get(("site_a", arms.of_a, metric))
        if at_home:
            ax.axhline(float(at_home["value"]), color=COLOURS[i], linewidth=1, linestyle=":")
    ticks = [0, *SITE_B_PERSONS.values()]
    ax.set(
        xscale="log", xlabel="persons of B to fine-tune on (dotted: tested on A)", ylim=(0, 1.02)
    )
    ax.set_xticks([n + 1 for n in ticks], list(map(str, ticks)))
    ax.minorticks_off()
    ax.grid(color="0.92")
