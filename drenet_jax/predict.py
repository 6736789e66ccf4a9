"""Predicts a patient's diagnosis with a trained model, with the slices and boxes that explain it.

--input is a folder or a zip of DICOM files or of PNG/JPEG slices (lung window), a NIfTI, MetaImage
or NRRD volume, or a single slice. The folder --out gets `result.json` and `report.html`, which
name no patient. For research only, not for clinical use.

The label is decided as `evaluate` decides: by the threshold and the aggregate of the run's config
(`evaluation.threshold`, `evaluation.aggregate`), or by --threshold and --aggregate. `result.json`
says by which rule.

--dicom_out, from DICOM input only, also writes a folder for the PACS: `report.dcm`, a structured
report with the boxes as regions on their slices, and `capture_01.dcm` and so on, the slices that
the report shows. These files name the patient: they hold the patient's name, ID, birth date and sex
and the study of the input, so that a PACS files them there. No other output
of drenet_jax names the patient.

Examples:

  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7
  python -m drenet_jax.predict --workdir=runs/mine --input=person8.zip --out=person8
  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person9 --out=person9 \\
      --series_uid=1.2.840.113619.2.55.3
  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7 \\
      --dicom_out=person7_dicom
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("input", None, "The patient's CT.")
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")
    flags.DEFINE_string(
        "series_uid",
        "",
        "The SeriesInstanceUID of the DICOM series to use; empty: selected automatically.",
    )
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature fitted on the validation slices.",
    )
    cli.define_decision()
    flags.DEFINE_string(
        "dicom_out",
        "",
        "The folder to make for the PACS, with DICOM files that name the patient; none if empty. "
        "Needs DICOM input and `pip install 'drenet_jax[pacs]'`.",
    )


def main() -> None:
    # Imported here: --help and flag errors need not wait for JAX.
    from drenet_jax.ct.reader import Reader
    from drenet_jax.output_files import new_folder

    values = flags.FLAGS
    with contextlib.ExitStack() as folders:
        if values.dicom_out:
            from drenet_jax.dicom_export.objects import require_highdicom, write_objects

            require_highdicom()
            _require_apart(values.out, values.dicom_out)
        folder = folders.enter_context(new_folder(values.out))
        if values.dicom_out:
            dicom_folder = folders.enter_context(new_folder(values.dicom_out, flag="--dicom_out"))
        reader = folders.enter_context(Reader())
        # The child process starts while this one imports JAX.
        reader.start()
        from drenet_jax.evaluation.decisions import decision_text
        from drenet_jax.evaluation.person_report import person_report
        from drenet_jax.evaluation.pipeline import PersonPipeline
        from drenet_jax.evaluation.predictor import Predictor

        cli.use_compilation_cache()
        predictor = Predictor.load(
            values.workdir,
            calibrated=values.calibrated,
            threshold=values.threshold,
            aggregate=values.aggregate,
        )
        prediction = PersonPipeline(predictor, reader).predict(
            values.input,
            series_uid=values.series_uid,
            with_instances=bool(values.dicom_out),
            with_hu=True,
        )
        text = json.dumps(prediction.result, indent=2, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        report = person_report(prediction.result, prediction.pictures, prediction.left_out)
        (folder / "report.html").write_text(report, encoding="utf-8")
        if values.dicom_out:
            write_objects(
                dicom_folder, prediction.result, prediction.pictures, prediction.instances
            )
    person = prediction.result["person"]
    answer = ", ".join(f"{label} {p:.2f}" for label, p in person["probabilities"].items())
    print(f"{person['label']} ({answer}), from {person['n_slices']} slices")
    if person["probabilities"][person["label"]] < max(person["probabilities"].values()):
        print(f"rule: {decision_text(prediction.result['decision'], person['n_slices'])}")
    print(f"report: {stand_ins.shown(Path(values.out) / 'report.html')}")
    if values.dicom_out:
        print(f"for the PACS, with the patient's name: {values.dicom_out}")


def _require_apart(out: str, dicom_out: str) -> None:
    """Refuses nested folders: --out must be shareable without the patient's name."""
    first, second = Path(out).resolve(), Path(dicom_out).resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise InputError(
            f"--dicom_out={dicom_out} and --out={out} are nested; name separate folders, since "
            "only the DICOM files may name the patient."
        )


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("workdir", "input", "out"),
        places={"workdir": stand_ins.run, "input": stand_ins.copied, "out": stand_ins.output},
    )
