"""Cross-validation: everybody is tested once, by a model that never saw them.

For cohorts of fewer than about a hundred persons, whose test split alone would say little. All
persons of --data take part, whatever split they are in; folds are by person and share out every
label alike. Of each model's other persons, as large a share as in --data is validation, which
chooses the checkpoint. The predictions of all folds together give, in --workdir/result, the files
of `evaluate` and `folds.csv`.

--folds=sites leaves out each site in turn: how a model does at a hospital that it never saw.

Called again after an interruption, it goes on where it stopped, and ends with the same table.

Examples:

  python -m drenet_jax.crossvalidate --config=configs/drenet.py --data=data/mine --folds=5 \\
      --workdir=runs/crossvalidation
  python -m drenet_jax.crossvalidate --config=configs/drenet.py --data=data/mine --folds=5 \\
      --repeats=3 --workdir=runs/repeated
  python -m drenet_jax.crossvalidate --config=configs/drenet.py --data=data/mine --folds=sites \\
      --workdir=runs/sites
"""

from __future__ import annotations

from absl import flags

from drenet_jax import cli


def define_flags() -> None:
    cli.define_config("drenet", "the training")
    flags.DEFINE_string("data", None, "The folder that prepare wrote.")
    flags.DEFINE_string("folds", "5", "How many folds, 2 or more; or: sites.")
    flags.DEFINE_integer(
        "repeats", 1, "How many times, with other folds and first weights.", lower_bound=1
    )
    flags.DEFINE_string("workdir", None, "The folder for the folds' runs and the result.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax.evaluation.evaluation_files import summary_lines
    from drenet_jax.training.crossvalidation import cross_validate, fold_table

    cli.use_compilation_cache()
    values = flags.FLAGS
    workdir = values.workdir
    metrics = cross_validate(values.config, values.data, values.folds, values.repeats, workdir)
    for row in fold_table(workdir):
        auc = row["person_auc"] or "none"
        print(
            f"repeat {row['repeat']}, fold {row['fold']}: {row['test_persons']} persons, AUC {auc}"
        )
    for line in summary_lines(metrics):
        print(line)
    print(f"report: {workdir.rstrip('/')}/result/report.html")


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("data", "workdir"),
        places={"data": None, "workdir": None},
    )
