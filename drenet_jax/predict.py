"""One person's diagnosis by a trained model, with the slices and boxes that speak for it.

--input is a folder or a zip of DICOM files or of PNG/JPEG slices (lung window), a NIfTI, MetaImage
or NRRD volume, or a single slice. The folder --out gets `result.json` and `report.html`. For
research only, not for clinical use.

Examples:

  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7
  python -m drenet_jax.predict --workdir=runs/mine --input=person8.zip --out=person8
  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person9 --out=person9 \\
      --series_uid=1.2.840.113619.2.55.3
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from drenet_jax import cli


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("input", None, "The person's CT.")
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")
    flags.DEFINE_string(
        "series_uid",
        "",
        "The DICOM series to take (SeriesInstanceUID), if not the largest.",
    )
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature that suited the validation slices best.",
    )


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX.
    import drenet_jax
    from drenet_jax.evaluation.report import person_report
    from drenet_jax.outputs import new_folder

    cli.use_compilation_cache()
    values = flags.FLAGS
    with new_folder(values.out) as folder:
        predictor = drenet_jax.load(values.workdir, calibrated=values.calibrated)
        found = predictor.explain(values.input, series_uid=values.series_uid)
        text = json.dumps(found.result, indent=2, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        report = person_report(found.result, found.pictures)
        (folder / "report.html").write_text(report, encoding="utf-8")
    person = found.result["person"]
    answer = ", ".join(f"{label} {p:.2f}" for label, p in person["probabilities"].items())
    print(f"{person['label']} ({answer}), from {person['n_slices']} slices")
    print(f"report: {Path(values.out) / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir", "input", "out"))
