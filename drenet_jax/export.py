"""Exports a trained model to a file that other runtimes read: ONNX or StableHLO.

The folder --out gets `model.onnx` (or `model.stablehlo`) and `model.json`, which says all that is
needed to use it: labels, decision rule, preprocessing, training cohort, SHA-256. One graph takes
uint8 lung crops [N, S, S], N of any size, and gives probabilities, boxes, box scores and, with
--heat_maps, Grad-CAM. The file is run in its own runtime beside JAX first; if they do not agree,
nothing is written. What comes before the graph: docs/export.md. For research only, not for clinical
use.

Examples:

  python -m drenet_jax.export --workdir=runs/mine --format=onnx --heat_maps --out=exported/onnx
  python -m drenet_jax.export --workdir=runs/mine --format=stablehlo --out=exported/stablehlo
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_enum("format", "onnx", ["onnx", "stablehlo"], "The format of the file.")
    flags.DEFINE_bool("heat_maps", False, "Also give Grad-CAM heat maps.")
    cli.define_decision()
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and flag errors need not wait for JAX.
    from drenet_jax.evaluation.predictor import Predictor
    from drenet_jax.exporting.exporter import MODEL_FILES, export_model
    from drenet_jax.exporting.runtimes import require_onnx
    from drenet_jax.output_files import new_folder

    values = flags.FLAGS
    if values.format == "onnx":
        require_onnx("--format=onnx")
    cli.use_compilation_cache()
    with new_folder(values.out) as folder:
        predictor = Predictor.load(
            values.workdir, threshold=values.threshold, aggregate=values.aggregate
        )
        agreed = export_model(
            predictor,
            values.workdir,
            folder,
            format=values.format,
            heat_maps=values.heat_maps,
        )
        n_bytes = (folder / MODEL_FILES[values.format]).stat().st_size
    others = f", other boxes of equal scores in {agreed.n_other_boxes}" * bool(agreed.n_other_boxes)
    print(
        f"agrees with JAX on {agreed.n_slices} slices (probabilities within "
        f"{agreed.largest_difference:.1g}{others})"
    )
    path = stand_ins.shown(Path(values.out) / MODEL_FILES[values.format])
    print(f"exported: {path} ({n_bytes / 1e6:.0f} MB)")


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("workdir", "out"),
        places={"workdir": stand_ins.run, "out": stand_ins.output},
    )
