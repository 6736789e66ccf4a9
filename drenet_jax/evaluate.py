"""Scores a split with a trained model: slices, persons, intervals, plots and a report.

The folder --out gets `metrics.json`, `persons.csv`, `slices.csv`, `roc.png`, `confusion.png`,
`calibration.png` and `report.html`. The best checkpoint by validation is used. Intervals are 95%,
by bootstrap over persons.

Examples:

  python -m drenet_jax.evaluate --workdir=runs/mine --out=runs/mine/test
  python -m drenet_jax.evaluate --workdir=runs/mine --split=validation --out=/tmp/validation
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from drenet_jax import cli


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which persons.")
    flags.DEFINE_string(
        "data",
        "",
        "The data set, if it has moved since the run was trained; any, for converted weights.",
    )
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax.evaluation.evaluate import evaluate_split
    from drenet_jax.outputs import new_folder

    cli.use_compilation_cache()
    values = flags.FLAGS
    with new_folder(values.out) as folder:
        metrics = evaluate_split(Path(values.workdir), values.split, folder, values.data)
    for level in ("person", "image"):
        auc = metrics[level]["auc"]
        print(f"{level} AUC, {metrics['positive']} against the rest: {_interval(auc)}")
    print(f"report: {Path(values.out) / 'report.html'}")


def _interval(metric: dict) -> str:
    if metric["value"] is None:
        return f"none ({metric['why']})"
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} (95% interval {metric['low']:.3f} to {metric['high']:.3f})"


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir", "out"))
