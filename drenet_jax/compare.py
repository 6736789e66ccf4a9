"""Compares runs on the same patients: the paper's tables and plots, and paired tests.

--runs names workdirs, which are scored, or folders that `evaluate` or `crossvalidate` wrote, which
are read. All must have the same patients. The first run is the reference. The folder --out gets
`compare.json`, `compare.md`, `tables.csv`, `tables.tex`, `roc.png`, `confusion.png` and
`report.html`.

Examples:

  python -m drenet_jax.compare --runs=runs/resnet50,runs/vgg16,runs/drenet --out=results/compared
  python -m drenet_jax.compare --runs=results/a,results/b --names=ResNet50,DRENet --out=results/ab
  python -m drenet_jax.compare --runs=runs/cv_a,runs/cv_b --split=cross-validation --out=results/cv
"""

from __future__ import annotations

from absl import flags

from drenet_jax import cli
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_list("runs", None, "Folders, separated by commas; the first is the reference.")
    flags.DEFINE_enum(
        "split",
        "test",
        ["train", "validation", "test", "cross-validation"],
        "The split; cross-validation: results of crossvalidate.",
    )
    flags.DEFINE_list(
        "names", [], "A name for each run; empty: the differing parts of the folders."
    )
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for scikit-learn.
    from drenet_jax.evaluation.comparison import compare, read_runs
    from drenet_jax.evaluation.metrics import metric_text
    from drenet_jax.output_files import new_folder

    cli.use_compilation_cache()
    values = flags.FLAGS
    with new_folder(values.out) as folder:
        runs = read_runs(values.runs, values.split, values.names)
        result = compare(runs, values.split, folder)
    for run in result["runs"]:
        print(f"{run['name']}: person AUC {metric_text(run['person']['auc'])}")
    for comparison in result["differences"]:
        p = comparison["delong_auc"]["p_holm"]
        text = "no test" if p is None else f"p {p:.3f} (DeLong, Holm)"
        difference = metric_text(comparison["person"]["auc"], plus=True)
        print(f"{comparison['run']} less {comparison['against']}: AUC {difference}, {text}")
    out = stand_ins.shown(values.out)
    print(f"tables: {out}/compare.md, report: {out}/report.html")


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("runs", "out"),
        places={"runs": stand_ins.run, "out": stand_ins.output},
    )
