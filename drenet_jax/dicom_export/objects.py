"""The DICOM objects that `predict --dicom_out` writes: a structured report and captures.

They hold the patient's name, ID and study, as a PACS needs to file them. Nothing else that this
package writes does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydicom import config

from drenet_jax.ct.dicom.elements import without_warnings
from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.errors import InputError
from drenet_jax.evaluation.overlays import SlicePicture
from drenet_jax.evaluation.person_report import top_slices


def require_highdicom(flag: str = "--dicom_out") -> None:
    """An InputError if highdicom is not installed; it comes with the extra `pacs`."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError(f"{flag} needs highdicom; install it with pip install 'drenet_jax[pacs]'.")


def write_objects(
    folder: Path,
    result: Mapping,
    pictures: Sequence[SlicePicture],
    instances: Sequence[SourceInstance],
    *,
    uid_seed: str | None = None,
) -> tuple[Path, ...]:
    """Writes `report.dcm` and, of each slice that the report shows large, `capture_01.dcm` and on.

    All are new instances in two new series of the source's study. Text is in UTF-8, which holds
    names and labels of every script. The report holds `result["notes"]`, which say what series was
    taken and what was left out: sentences of this package with counts, spacings and series numbers
    in them, and nothing else of a header. They name no patient, as nothing in `result` does.

    Args:
      folder: an empty one.
      result: what `predict` writes to result.json.
      pictures: of the slices in `result`, in the same order.
      instances: the DICOM instances of the same slices, all of one study.
      uid_seed: the UIDs of series, instances and tracked measurements are derived from it and
        nothing else, so it must name all that the objects depend on (study, slices, model, rule);
        None: they are new each time. Dates and times are those of the call in either case.

    Returns:
      The files, the report first.
    """
    # Here, because highdicom is an extra.
    from drenet_jax.dicom_export.header import UidSource
    from drenet_jax.dicom_export.secondary_capture import captures
    from drenet_jax.dicom_export.structured_report import structured_report

    assert len(result["slices"]) == len(pictures) == len(instances)
    uids = UidSource(uid_seed)
    shown = top_slices(pictures, result["person"]["label"])
    # The patient's elements are copied unchanged, even where they violate the standard: a corrected
    # name or ID is another one. Warnings would quote them.
    with without_warnings(), config.disable_value_validation():
        files = [folder / "report.dcm"]
        report = structured_report(result, instances, uids)
        report.save_as(files[0], enforce_file_format=True)
        made = captures(
            [pictures[i] for i in shown], [instances[i] for i in shown], result["model"], uids
        )
        for number, capture in enumerate(made, start=1):
            files.append(folder / f"capture_{number:02d}.dcm")
            capture.save_as(files[-1], enforce_file_format=True)
    return tuple(files)
