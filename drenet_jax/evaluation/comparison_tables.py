"""The tables of a comparison: the paper's Tables 1 and 2, and the differences to the first run."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

from drenet_jax.evaluation.metrics import metric_text, number_text

# Columns of the paper's Table 1, and the F1 that everybody else means.
_BINARY = {
    "auc": "AUC",
    "recall": "recall",
    "precision": "precision",
    "specificity": "specificity",
    "f1_paper": "F1 as in the paper",
    "f1": "F1",
    "accuracy": "accuracy",
}
# Of Table 2: averages over the labels.
_MACRO = {
    "recall_macro": "recall",
    "precision_macro": "precision",
    "specificity_macro": "specificity",
    "f1_paper_macro": "F1 as in the paper",
    "f1_macro": "F1",
    "accuracy_argmax": "accuracy",
    "auc_macro": "AUC",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A field of a table.

    Attributes:
      text: as shown.
      best: whether it is the best of its column.
      value, low, high: the numbers, for CSV; None where there are none.
    """

    text: str
    best: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a comparison.

    Attributes:
      name: short, for CSV and LaTeX labels.
      caption: what it is.
      columns: the headings but the first.
      rows: the run's name and its cells.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def tables(result: Mapping) -> tuple[list[Table], list[str]]:
    """The tables of what `compare.json` holds, and what a reader must know of them.

    A number that is missing has a note on why.
    """
    positive, labels = result["positive"], result["labels"]
    persons = f"{result['n_persons']} {result['split']} patients"
    slices = f"{result['n_slices']} {result['split']} slices"
    binary, several = f"{positive} against the rest", f"{len(labels)} classes"
    reasons: dict[str, int] = {}  # of missing numbers, with their footnotes
    all_tables = [
        _metric_table("table1", f"{binary}, {persons}", result, "person", _BINARY, reasons),
        _difference_table(
            "differences1", f"{binary}, differences, {persons}", result, _BINARY, reasons
        ),
        _metric_table("table1_slices", f"{binary}, {slices}", result, "image", _BINARY, reasons),
    ]
    if len(labels) > 2:
        means = f"{several}, averages over the labels"
        all_tables += [
            _metric_table("table2", f"{means}, {persons}", result, "person", _MACRO, reasons),
            _difference_table(
                "differences2", f"{means}, differences, {persons}", result, _MACRO, reasons
            ),
        ]
    all_tables.append(_test_table(result, persons, reasons))
    return all_tables, [*_notes(result), *(f"[{i}] {why}" for why, i in reasons.items())]


def _notes(result: Mapping) -> list[str]:
    first, n = result["runs"][0]["name"], len(result["differences"])
    aggregates = sorted({run["aggregate"] for run in result["runs"]})
    return [
        f"In parentheses: 95% confidence intervals (BCa bootstrap, {result['draws']} draws of "
        f"patients with all their slices, seed {result['seed']}, the same draws for all runs).",
        f"A case is positive if its probability of {result['positive']} is at least "
        f"{result['threshold']:g}; with three or more classes, the most probable label is "
        f"predicted. Slice probabilities are aggregated to patients by: {', '.join(aggregates)}.",
        f"Differences are each run minus {first}.",
        "Patient AUCs are compared by DeLong's test, accuracies by McNemar's. "
        + (
            f"The p-values of the {n} comparisons of each test are adjusted by Holm's method."
            if n > 1
            else "With one comparison, Holm's method changes nothing."
        )
        + " Slices of one patient are not independent, so they are not tested.",
        "F1 as in the paper is the mean of precision and recall; F1 is their harmonic mean.",
    ]


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, and the notes below them."""
    lines = []
    for table in tables:
        lines += [f"### {_md(table.caption)}", ""]
        lines.append("| run | " + " | ".join(map(_md, table.columns)) + " |")
        lines.append("| --- |" + " --- |" * len(table.columns))
        for name, cells in table.rows:
            texts = (f"**{_md(cell.text)}**" if cell.best else _md(cell.text) for cell in cells)
            lines.append(f"| {_md(name)} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {_md(note)}" for note in notes)]) + "\n"


def csv_text(tables: Sequence[Table]) -> str:
    """All tables in one: a line for each number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "run", "column", "value", "low", "high"))
    for table in tables:
        for name, cells in table.rows:
            for column, cell in zip(table.columns, cells, strict=True):
                numbers = (cell.value, cell.low, cell.high)
                texts = ("" if number is None else repr(float(number)) for number in numbers)
                writer.writerow((table.name, name, column, *texts))
    return file.getvalue()


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables as LaTeX, with no package needed; the notes are comments."""
    lines = [f"% {note}" for note in notes]
    for table in tables:
        lines += [
            "",
            r"\begin{table}",
            rf"\caption{{{_tex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\hline",
            " & ".join(["run", *map(_tex, table.columns)]) + r" \\",
            r"\hline",
        ]
        for name, cells in table.rows:
            texts = (
                rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in cells
            )
            lines.append(" & ".join([_tex(name), *texts]) + r" \\")
        lines += [r"\hline", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _metric_table(
    name: str,
    caption: str,
    result: Mapping,
    level: str,
    columns: Mapping[str, str],
    reasons: dict[str, int],
) -> Table:
    rows = []
    for run in result["runs"]:
        cells = []
        for metric in columns:
            values = [other[level][metric]["value"] for other in result["runs"]]
            known = [value for value in values if value is not None]
            value = run[level][metric]["value"]
            # Where all are equal, none is best.
            best = value is not None and value == max(known) > min(known)
            cells.append(_cell(run[level][metric], reasons, best=best))
        rows.append((run["name"], cells))
    return Table(name, caption, list(columns.values()), rows)


def _difference_table(
    name: str,
    caption: str,
    result: Mapping,
    columns: Mapping[str, str],
    reasons: dict[str, int],
) -> Table:
    rows = [
        (
            f"{difference['run']} − {difference['against']}",
            [_cell(difference["person"][metric], reasons, plus=True) for metric in columns],
        )
        for difference in result["differences"]
    ]
    return Table(name, caption, list(columns.values()), rows)


def _test_table(result: Mapping, persons: str, reasons: dict[str, int]) -> Table:
    tests = {"delong_auc": ("AUC", "DeLong"), "mcnemar_accuracy": ("accuracy", "McNemar")}
    if len(result["labels"]) > 2:
        several = f"accuracy of {len(result['labels'])} classes"
        tests["mcnemar_accuracy_argmax"] = (several, "McNemar")
    columns = []
    for metric, test in tests.values():
        columns += [metric, f"{metric}: p, {test}", f"{metric}: p, {test} and Holm"]
    rows = []
    for difference in result["differences"]:
        cells = []
        for test in tests:
            outcome = difference[test]
            cells.append(_cell({"value": outcome["difference"], **outcome}, reasons, plus=True))
            cells += [_p_cell(outcome["p_value"]), _p_cell(outcome["p_holm"])]
        rows.append((f"{difference['run']} − {difference['against']}", cells))
    return Table("tests", f"tests of the differences, {persons}", columns, rows)


def _cell(
    metric: Mapping, reasons: dict[str, int], *, best: bool = False, plus: bool = False
) -> Cell:
    numbers = metric["value"], metric["low"], metric["high"]
    if metric["low"] is not None:
        return Cell(metric_text(metric, plus=plus), best, *numbers)
    footnote = reasons.setdefault(metric["why"], len(reasons) + 1)
    return Cell(f"{number_text(metric['value'], plus=plus) or '–'} [{footnote}]", best, *numbers)


def _p_cell(p_value: float | None) -> Cell:
    if p_value is None:
        return Cell("–")
    return Cell("< 0.001" if p_value < 0.001 else f"{p_value:.3f}", value=p_value)


def _md(text: str) -> str:
    """A text as Markdown shows it literally."""
    return "".join(
        f"\\{character}" if character in "\\`*_[]<>#|" else character
        for character in " ".join(text.split())
    )


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "<": r"$<$",
    ">": r"$>$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    """A text as LaTeX shows it literally."""
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))
