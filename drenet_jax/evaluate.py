"""Evaluates a trained model on a split: metrics with intervals, plots and a report.

The folder --out gets `metrics.json`, `persons.csv`, `slices.csv`, `roc.png`, `confusion.png`,
`calibration.png` and `report.html`. The best checkpoint by validation is used. Intervals are 95%,
by bootstrap over patients; docs/evaluation.md explains each metric.

A patient's probability is the mean of the slices' (--aggregate=mean, as in the paper), unless the
run's config says otherwise (`evaluation.aggregate`). noisy_or and top3_mean favor the positive
class, for a disease that shows in few slices; median is robust to a few outlier slices. Choose on
validation, not on test.

With --explain and a table of known lesions, the pointing game is evaluated (docs/evaluation.md),
and `explain.csv` has a row for each slice with a lesion.

Whether a high AUC comes from the lungs or from a shortcut, python -m drenet_jax.audit shows; with
--audit its result is a section of the report.

Examples:

  python -m drenet_jax.evaluate --workdir=runs/mine --out=runs/mine/test
  python -m drenet_jax.evaluate --workdir=runs/mine --split=validation --out=/tmp/validation
  python -m drenet_jax.evaluate --workdir=runs/mine --calibrated --out=runs/mine/test_calibrated
  python -m drenet_jax.evaluate --workdir=runs/mine --data=data/elsewhere --out=/tmp/elsewhere
  python -m drenet_jax.evaluate --workdir=runs/mine --explain --lesions=lesions.csv \\
      --out=runs/mine/test
"""

from __future__ import annotations

import functools
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "The split.")
    flags.DEFINE_string(
        "data",
        "",
        "Another dataset, of patients outside the training cohort, prepared with the same "
        "settings and labels; or the run's own, if it was moved.",
    )
    flags.DEFINE_bool(
        "other_persons",
        False,
        "Confirms that no patient of --data was in training or validation. Needed where the run's "
        "own dataset, with which this is checked otherwise, is not available.",
    )
    cli.define_decision()
    cli.define_runtime()
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature fitted to the validation slices.",
    )
    flags.DEFINE_bool("explain", False, "Also play the pointing game with known lesions.")
    flags.DEFINE_string(
        "lesions",
        "",
        "Of --explain: the table of lesions (patient_id, slice_name, y0, x0, y1, x1 in pixels of "
        "the original slice), if there was none beside the cohort.",
    )
    flags.DEFINE_string(
        "audit", "", "What python -m drenet_jax.audit wrote of this run, for the report."
    )
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax.evaluation.evaluation_files import summary_lines
    from drenet_jax.evaluation.evaluator import evaluate_split
    from drenet_jax.exporting.runtimes import load_predictor
    from drenet_jax.output_files import new_folder

    values = flags.FLAGS
    load = functools.partial(
        load_predictor, runtime=values.runtime, prepare_jax=cli.use_compilation_cache
    )
    with new_folder(values.out) as folder:
        metrics = evaluate_split(
            Path(values.workdir),
            values.split,
            folder,
            values.data,
            aggregate=values.aggregate,
            threshold=values.threshold,
            calibrated=values.calibrated,
            explain=values.explain,
            lesions=values.lesions,
            other_persons=values.other_persons,
            audit=values.audit,
            load=load,
        )
    for line in summary_lines(metrics):
        print(line)
    print(f"report: {stand_ins.shown(Path(values.out) / 'report.html')}")
    if not values.audit:
        workdir = stand_ins.shown(values.workdir)
        print(f"shortcuts? python -m drenet_jax.audit --workdir={workdir} --out=NEW_FOLDER")


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("workdir", "out"),
        places={
            "workdir": stand_ins.run,
            "data": None,
            "lesions": stand_ins.copied,
            "audit": stand_ins.copied,
            "out": stand_ins.output,
        },
    )
