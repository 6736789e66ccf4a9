"""The parts of `run.sh` that no command of drenet_jax does: scores across sites, and the table."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

LABELS = ("COVID-19", "bacterial", "healthy")
SEEDS = (0, 1, 2)
DRAWS = 2000

# Persons of site B to fine-tune on; all others are for the test.
TRAINING_PERSONS = {"COVID-19": 4, "bacterial": 3, "healthy": 3}

# What is scored: file name, and how the table calls it.
ARMS = {
    "a_on_a": "trained on A, tested on A",
    "a_on_b": "trained on A, tested on B",
    "ab_on_b": "then fine-tuned on 10 persons of B, tested on B",
    "b_on_b": "trained on the 10 persons of B alone, tested on B",
}
DIFFERENCES = {
    "a_on_b - a_on_a": "lost on the way from A to B",
    "ab_on_b - a_on_b": "gained by fine-tuning, on B",
    "ab_on_b - b_on_b": "fine-tuned minus B alone, on B",
}
METRICS = {
    "person_auc": "person AUC",
    "slice_auc": "slice AUC",
    "person_accuracy": "person accuracy, 3 classes",
    "slice_cross_entropy": "slice cross-entropy",
}
ARROWS = ("<!-- shift: made by studies/shift/shift.py table -->", "<!-- /shift -->")


def split(cohort: Path, out: Path) -> None:
    """Adds a split column: the first persons of each label to training, the rest to test."""
    with cohort.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    left = dict(TRAINING_PERSONS)
    for row in rows:
        row["split"] = "train" if left[row["label"]] else "test"
        left[row["label"]] = max(0, left[row["label"]] - 1)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def score(workdir: Path, data_dir: Path, out: Path) -> None:
    """Writes the `slices.csv` of a test split, whatever data the model was trained on.

    `evaluate` scores a model on the data set that it was trained on, lest training persons get
    into the test. Here they cannot: sites A and B are drawn from other seeds.
    """
    from drenet_jax import cli
    from drenet_jax.data.records import open_data
    from drenet_jax.evaluation.inference import Predictor
    from drenet_jax.evaluation.splits import score_split

    cli.use_compilation_cache()
    predictor = Predictor.load(workdir)
    data = open_data(data_dir)
    assert data.labels == predictor.meta.labels == LABELS, data.labels
    assert data.ct == predictor.meta.ct, "prepared in another way"
    slices, _ = score_split(
        predictor.scorer, predictor.variables, data, "test", predictor.meta.config.data.fill
    )
    slices.to_csv(out)


def results(folder: Path, out: Path) -> None:
    """Writes every figure with its 95% interval, for each seed and for the mean over the seeds."""
    figures = {
        (seed, arm): _figures(folder / str(seed) / f"{arm}.csv", 2 * seed + arm.endswith("on_b"))
        for seed in SEEDS
        for arm in ARMS
    }
    for seed in SEEDS:
        for name in DIFFERENCES:
            one, other = (figures[seed, arm] for arm in name.split(" - "))
            figures[seed, name] = {metric: one[metric] - other[metric] for metric in METRICS}
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "metric", "value", "low", "high"])
        for arm in (*ARMS, *DIFFERENCES):
            for metric in METRICS:
                per_seed = {str(seed): figures[seed, arm][metric] for seed in SEEDS}
                # Seeds are cohorts and trainings of their own, so their draws are independent.
                for seed, values in (per_seed | {"mean": _mean(per_seed)}).items():
                    low, high = np.percentile(values[1:], (2.5, 97.5))
                    writer.writerow(
                        [arm, seed, metric, *(f"{x:.4f}" for x in (values[0], low, high))]
                    )


def _mean(per_seed: dict[str, np.ndarray]) -> np.ndarray:
    return np.mean(list(per_seed.values()), axis=0)


def _figures(path: Path, draws_seed: int) -> dict[str, np.ndarray]:
    """Metric -> [1 + DRAWS]: its value, and its values in draws of the persons.

    With one seed, models that are tested on the same persons are judged on the same draws.
    """
    from drenet_jax.evaluation.intervals import auc_of_draws, person_draws
    from drenet_jax.evaluation.persons import SlicePredictions, person_predictions

    slices = SlicePredictions.from_csv(path)
    persons = person_predictions(slices)
    positive = LABELS.index("COVID-19")
    found = {}
    for level, table in (("slice", slices), ("person", persons)):
        person, times = person_draws(table.patient_id, DRAWS, draws_seed)
        # The persons as they are, before the draws.
        times = np.concatenate([np.ones((1, times.shape[1])), times])
        found[f"{level}_auc"] = auc_of_draws(
            table.label == positive, table.probabilities[:, positive], person, times
        )
        weight = times[:, person]
        right = table.probabilities.argmax(axis=1) == table.label
        p = table.probabilities[np.arange(len(table)), table.label]
        surprise = -np.log(np.maximum(p, np.finfo(np.float32).tiny))
        found[f"{level}_accuracy"] = weight @ right / weight.sum(axis=1)
        found[f"{level}_cross_entropy"] = weight @ surprise / weight.sum(axis=1)
    return {metric: found[metric] for metric in METRICS}


def table(results_file: Path) -> str:
    """The table of docs/training.md."""
    with results_file.open(encoding="utf-8", newline="") as file:
        cells = {(row["arm"], row["seed"], row["metric"]): row for row in csv.DictReader(file)}
    lines = []
    for metric, title in METRICS.items():
        lines += [
            f"| {title} | seed 0 | seed 1 | seed 2 | mean of the three |",
            "| --- | --- | --- | --- | --- |",
        ]
        for arm, name in (ARMS | DIFFERENCES).items():
            sign = "+" if arm in DIFFERENCES else ""
            row = [_cell(cells[arm, seed, metric], sign) for seed in (*map(str, SEEDS), "mean")]
            lines.append(f"| {name} | {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[str, str], sign: str) -> str:
    value, low, high = (f"{float(row[name]):{sign}.2f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def put_table(results_file: Path, page: Path) -> None:
    """Puts the table between its marks in a page of Markdown."""
    before, _, rest = page.read_text(encoding="utf-8").partition(ARROWS[0])
    _, _, after = rest.partition(ARROWS[1])
    page.write_text(
        f"{before}{ARROWS[0]}\n\n{table(results_file)}\n{ARROWS[1]}{after}", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, paths in (
        ("split", ("cohort", "out")),
        ("score", ("workdir", "data", "out")),
        ("results", ("folder", "out")),
        ("table", ("results", "page")),
    ):
        command = commands.add_parser(name)
        for path in paths:
            command.add_argument(f"--{path}", type=Path, required=True)
    values = vars(parser.parse_args())
    action = {"split": split, "score": score, "results": results, "table": put_table}
    action[values.pop("command")](*values.values())


if __name__ == "__main__":
    main()
