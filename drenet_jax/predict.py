"""Predicts a patient's diagnosis with a trained model, with the slices and boxes that explain it.

--input is a folder or a zip of DICOM files or of PNG/JPEG slices (lung window), a NIfTI, MetaImage
or NRRD volume, or a single slice. In its place, --dicomweb and --study name a study on a DICOMweb
server, whose chest CT series are fetched (WADO-RS). The folder --out gets `result.json` and
`report.html`, which name no patient. For research only, not for clinical use.

The label is decided as `evaluate` decides: by the threshold and the aggregate of the run's config
(`evaluation.threshold`, `evaluation.aggregate`), or by --threshold and --aggregate. `result.json`
says by which rule.

--dicom_out, from DICOM input only, also writes a folder for the PACS: `report.dcm`, a structured
report with the boxes as regions on their slices, and `capture_01.dcm` and so on, the slices that
the report shows. These files name the patient: they hold the patient's name, ID, birth date and sex
and the study of the input, so that a PACS files them there. No other output
of drenet_jax names the patient.

--stow stores these files on the DICOMweb server (STOW-RS), with --dicom_out or without. The server
gets the bearer token of the environment variable DICOMWEB_TOKEN, or the password of ~/.netrc.

Examples:

  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7
  python -m drenet_jax.predict --workdir=runs/mine --input=person8.zip --out=person8
  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person9 --out=person9 \\
      --series_uid=1.2.840.113619.2.55.3
  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7 \\
      --dicom_out=person7_dicom
  python -m drenet_jax.predict --workdir=runs/mine --dicomweb=https://pacs.example/dicom-web \\
      --study=1.2.840.113619.2.55.1 --out=person10 --stow
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins

if TYPE_CHECKING:
    from drenet_jax.pacs.dicomweb_server import DicomwebServer


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("input", "", "The patient's CT.")
    flags.DEFINE_string(
        "dicomweb",
        "",
        "The URL of a DICOMweb server to fetch --study from, in place of --input. Needs "
        "`pip install 'drenet_jax[node]'`.",
    )
    flags.DEFINE_string("study", "", "The StudyInstanceUID of the study on --dicomweb.")
    flags.DEFINE_bool("stow", False, "Store the DICOM files of the result on --dicomweb.")
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
    cli.define_runtime()
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
    _check_source(values)
    makes_dicom = bool(values.dicom_out) or values.stow
    with contextlib.ExitStack() as folders:
        if makes_dicom:
            from drenet_jax.dicom_export.objects import require_highdicom, write_objects

            require_highdicom("--dicom_out" if values.dicom_out else "--stow")
        if values.dicom_out:
            _require_apart(values.out, values.dicom_out)
        server = _open_server(values.dicomweb) if values.dicomweb else None
        folder = folders.enter_context(new_folder(values.out))
        if values.dicom_out:
            dicom_folder = folders.enter_context(new_folder(values.dicom_out, flag="--dicom_out"))
        elif values.stow:
            dicom_folder = Path(folders.enter_context(tempfile.TemporaryDirectory()))
        source = values.input
        if server is not None:
            from drenet_jax.pacs import study_download

            source = folders.enter_context(tempfile.TemporaryDirectory(prefix="drenet-jax-"))
            address = f"{server.url}/studies/{values.study}"
            stand_ins.stand_for(Path(source), address)
            for note in study_download.download_ct(
                server, values.study, values.series_uid, Path(source)
            ):
                print(note)
        reader = folders.enter_context(Reader())
        # The child process starts while this one imports JAX.
        reader.start()
        from drenet_jax.evaluation.decisions import decision_text
        from drenet_jax.evaluation.person_report import person_report
        from drenet_jax.evaluation.pipeline import PersonPipeline
        from drenet_jax.exporting.runtimes import load_predictor

        predictor = load_predictor(
            values.workdir,
            runtime=values.runtime,
            calibrated=values.calibrated,
            threshold=values.threshold,
            aggregate=values.aggregate,
            prepare_jax=cli.use_compilation_cache,
        )
        prediction = PersonPipeline(predictor, reader).predict(
            source,
            series_uid=values.series_uid,
            with_instances=makes_dicom,
            with_hu=True,
        )
        text = json.dumps(prediction.result, indent=2, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        report = person_report(prediction.result, prediction.pictures, prediction.left_out)
        (folder / "report.html").write_text(report, encoding="utf-8")
        if makes_dicom:
            files = write_objects(
                dicom_folder, prediction.result, prediction.pictures, prediction.instances
            )
        if server is not None and values.stow:
            study_download.store_results(server, files)
    person = prediction.result["person"]
    answer = ", ".join(f"{label} {p:.2f}" for label, p in person["probabilities"].items())
    print(f"{person['label']} ({answer}), from {person['n_slices']} slices")
    if person["probabilities"][person["label"]] < max(person["probabilities"].values()):
        print(f"rule: {decision_text(prediction.result['decision'], person['n_slices'])}")
    print(f"report: {stand_ins.shown(Path(values.out) / 'report.html')}")
    if values.dicom_out:
        print(f"for the PACS, with the patient's name: {values.dicom_out}")
    if values.stow:
        print(f"stored in the patient's study: {len(files)} DICOM files on {values.dicomweb}")


def _check_source(values: flags.FlagValues) -> None:
    if bool(values.input) == bool(values.dicomweb):
        raise InputError("give one of --input and --dicomweb: the CT's files, or their server.")
    if bool(values.dicomweb) != bool(values.study):
        raise InputError("--dicomweb and --study go together; give the study's StudyInstanceUID.")
    if values.stow and not values.dicomweb:
        raise InputError("--stow needs --dicomweb, the server to store on.")


def _open_server(url: str) -> DicomwebServer:
    try:
        from drenet_jax.pacs.study_download import open_server
    except ModuleNotFoundError as error:
        raise InputError(
            f"--dicomweb needs {error.name}, which is not installed; install the extra: "
            "pip install 'drenet_jax[node]'."
        ) from error
    return open_server(url)


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
        required=("workdir", "out"),
        places={"workdir": stand_ins.run, "input": stand_ins.copied, "out": stand_ins.output},
    )
