"""Looks for shortcuts: does anything but the lungs predict the labels as well as a model does?

On persons that the model was not trained on, its AUC stands beside those of small fixed classifiers
that see no lungs: the crop with its lungs removed, the outline of the lungs, facts of the files
(format, size, spacing, kernel, JPEG quality), grey values and texture outside the lungs, and the
site. Where one of them comes near, the model's AUC is no evidence that it recognises disease.
docs/audit.md explains each row.

The folder --out gets `audit.md` with the verdict, `audit.png`, `audit.json` and `audit.csv`. Needs
pip install 'drenet_jax[pretrained]', for a network that has never seen a CT.

Examples:

  python -m drenet_jax.audit --workdir=runs/mine --out=runs/mine/audit
  python -m drenet_jax.audit --workdir=runs/crossvalidation --out=audit
  python -m drenet_jax.audit --data=data/mine --out=audit
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "The folder of a run or of a cross-validation.")
    flags.DEFINE_string(
        "data",
        "",
        "Without --workdir: the folder that prepare wrote, of which the controls alone are "
        "compared. With it: the run's own data, if they were moved.",
    )
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")
    cli.define_config("audit", "the audit")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax.data.prepared_data import open_data
    from drenet_jax.evaluation.metrics import metric_text
    from drenet_jax.output_files import new_folder
    from drenet_jax.shortcuts.auditor import audit, read_model
    from drenet_jax.shortcuts.frozen_features import FrozenFeatures
    from drenet_jax.shortcuts.report_files import write_audit

    cli.use_compilation_cache()
    values = flags.FLAGS
    config = values.config
    if not values.workdir and not values.data:
        raise InputError("give the --workdir of a model, or --data to audit a data set alone.")
    with new_folder(values.out) as folder:
        network = FrozenFeatures(config.feature_size_px, config.batch_size)
        if values.workdir:
            model = read_model(Path(values.workdir), values.data)
            result = audit(config, network, model=model)
        else:
            result = audit(config, network, data=open_data(values.data))
        write_audit(folder, result)
    for evaluation in result["evaluations"]:
        print(f"{evaluation['name']}, {evaluation['n_persons']} persons:")
        for row in evaluation["rows"]:
            print(f"  {row['title']}: AUC {metric_text(row['person_auc'])}")
    for sentence in result["verdict"]["sentences"]:
        print(sentence)
    print(f"report: {stand_ins.shown(Path(values.out) / 'audit.md')}")


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("out",),
        places={"workdir": stand_ins.run, "data": None, "out": stand_ins.output},
    )
