"""Exports a trained model to a file that other runtimes read: ONNX or StableHLO, or for Triton.

The folder --out gets `model.onnx` (or `model.stablehlo`) and `model.json`, which says all that is
needed to use it: labels, decision rule, preprocessing, training cohort, SHA-256. One graph takes
uint8 lung crops [N, S, S], N of any size, and gives probabilities, boxes, box scores and, with
--heat_maps, Grad-CAM. The file is run in its own runtime beside JAX first; if they do not agree,
nothing is written. What comes before the graph: docs/export.md. --format=triton writes the ONNX
file into a model repository of NVIDIA Triton, with its `config.pbtxt`.

Lower precisions are faster on CPUs (docs/export.md). The answers are compared with those in float32
on --split, and `model.json` has the result. In the folder exported/ of --workdir, predict, serve,
evaluate and node use such a file by themselves (--runtime=auto) if no probability of at least 100
persons differs by 0.005 or more. For research only, not for clinical use.

Examples:

  python -m drenet_jax.export --workdir=runs/mine --format=onnx --heat_maps --out=exported/onnx
  python -m drenet_jax.export --workdir=runs/mine --precision=bfloat16_crops --heat_maps \\
      --out=runs/mine/exported/bfloat16_crops
  python -m drenet_jax.export --workdir=runs/mine --format=stablehlo --out=exported/stablehlo
  python -m drenet_jax.export --workdir=runs/mine --format=triton --heat_maps --out=repository
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.exporting.precision import PRECISIONS, summary_lines
from drenet_jax.storage import stand_ins

if TYPE_CHECKING:
    from drenet_jax.data.prepared_data import PreparedData
    from drenet_jax.models.checkpoint_metadata import Meta


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_enum("format", "onnx", ["onnx", "triton", "stablehlo"], "The format of the file.")
    flags.DEFINE_bool("heat_maps", False, "Also give Grad-CAM heat maps.")
    flags.DEFINE_enum(
        "precision",
        "float32",
        list(PRECISIONS),
        "Of ONNX. int8: convolutions in 8-bit integers; bfloat16: run by OpenVINO; ..._crops: only "
        "in the passes over crops and context image, so that boxes stay those of float32.",
    )
    flags.DEFINE_string(
        "data",
        "",
        "Of a lower precision: the prepared data set by whose training slices it is calibrated, "
        "and on which it is compared with float32; empty: that of the run.",
    )
    flags.DEFINE_enum(
        "split",
        "test",
        ["train", "validation", "test"],
        "The split of --data on which a lower precision is compared.",
    )
    cli.define_decision()
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and flag errors need not wait for JAX.
    from drenet_jax.evaluation.predictor import Predictor
    from drenet_jax.exporting.exporter import export_model
    from drenet_jax.exporting.runtimes import require_onnx
    from drenet_jax.output_files import new_folder

    values = flags.FLAGS
    if values.format != "stablehlo":
        require_onnx(f"--format={values.format}")
    elif values.precision != "float32":
        raise InputError(f"--precision={values.precision} needs --format=onnx or triton.")
    cli.use_compilation_cache()
    with new_folder(values.out) as folder:
        predictor = Predictor.load(
            values.workdir, threshold=values.threshold, aggregate=values.aggregate
        )
        data = None
        if values.precision != "float32":
            data = _open_data(predictor.meta, values.data, values.split)
        export = export_model(
            predictor,
            values.workdir,
            folder,
            format=values.format,
            heat_maps=values.heat_maps,
            precision=values.precision,
            data=data,
            split=values.split,
        )
        n_bytes = export.file.stat().st_size
    agreed = export.agreement
    others = f", other boxes of equal scores in {agreed.n_other_boxes}" * bool(agreed.n_other_boxes)
    print(
        f"agrees with JAX on {agreed.n_slices} slices (probabilities within "
        f"{agreed.largest_difference:.1g}{others})"
    )
    if export.precision_report is not None:
        print("\n".join(summary_lines(export.precision_report)))
    if export.ms_per_slice:
        speeds = export.ms_per_slice
        print(f"milliseconds a slice: {speeds['exported']:.1f}, in JAX {speeds['jax']:.1f}")
    path = stand_ins.shown(Path(values.out) / export.file.relative_to(folder))
    print(f"exported: {path} ({n_bytes / 1e6:.0f} MB)")


def _open_data(meta: Meta, folder: str, split: str) -> PreparedData:
    from drenet_jax.data.prepared_data import open_data

    data = open_data(folder or meta.config.data.dir)
    if data.labels != meta.labels or data.ct != meta.ct:
        raise InputError(
            f"--data={data.name} has other labels or settings of preparation than the model; "
            "name a data set that was prepared as the model's."
        )
    for needed in ("train", split):
        if not data.n_slices[needed]:
            raise InputError(f"{data.name} has no persons in its {needed} split; name another.")
    return data


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("workdir", "out"),
        places={"workdir": stand_ins.run, "data": None, "out": stand_ins.output},
    )
