"""One study of a DICOMweb server as files, for `predict`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import pydicom

from drenet_jax.ct.dicom.elements import without_warnings
from drenet_jax.errors import InputError
from drenet_jax.pacs.dicomweb_server import DicomwebServer, is_uid, take_token
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings


def open_server(url: str) -> DicomwebServer:
    """A server with the limits of `configs/node.py` and the token of the environment.

    Raises:
      InputError: the URL cannot be used.
    """
    config = importlib.import_module("drenet_jax.configs.node").get_config()
    return DicomwebServer(url, take_token(), NodeSettings.from_dict(config.to_dict()))


def download_ct(server: DicomwebServer, study_uid: str, series_uid: str, folder: Path) -> list[str]:
    """Writes the CT series of a study to a folder; several to a folder each.

    Args:
      server: that has it.
      study_uid: of the study.
      series_uid: of one series, of any body part; '': all of the chest, or of no stated body part.
      folder: an empty one.

    Returns:
      What was not fetched, as sentences.

    Raises:
      InputError: the server or the study cannot be used.
    """
    for flag, uid in (("study", study_uid), ("series_uid", series_uid)):
        if uid and not is_uid(uid):
            raise InputError(f"--{flag}={uid} is no UID; give digits and dots.")
    place = f"--dicomweb={server.url} --study={study_uid}"
    try:
        there = server.ct_series(study_uid)
        if series_uid:
            wanted = [series for series in there if series.uid == series_uid]
        else:
            wanted = [series for series in there if series.is_chest]
        if not wanted:
            what = f"CT series {series_uid}" if series_uid else "CT series of the chest"
            others = ", ".join(series.uid for series in there)
            hint = f"; its CT series are {others}" if there else ""
            raise InputError(f"{place}: the server has no {what} in the study{hint}.")
        for number, series in enumerate(wanted, start=1):
            # result.json has the names of files and of folders between.
            series_folder = folder / f"series_{number:02d}" if len(wanted) > 1 else folder
            series_folder.mkdir(exist_ok=True)
            for file in server.fetch_series(study_uid, series, series_folder):
                _name_as_viewers_do(file)
    except PeerError as error:
        raise InputError(f"{place} could not be fetched: {error}.") from error
    skipped = [series for series in there if not series_uid and not series.is_chest]
    return [f"not fetched, of another body part: series {series.number}" for series in skipped]


def _name_as_viewers_do(file: Path) -> None:
    """Names a file, which result.json has the name of, after its Instance Number."""
    try:
        with without_warnings():
            header = pydicom.dcmread(
                file, specific_tags=["InstanceNumber"], stop_before_pixels=True
            )
        name = f"IM_{int(header.InstanceNumber):04d}"
    # pydicom raises many kinds of errors on damaged files, which the reader will report.
    except Exception:
        name = "IM"
    target = file.with_name(f"{name}.dcm")
    file.rename(file.with_name(f"{name}_{file.stem}.dcm") if target.exists() else target)


def store_results(server: DicomwebServer, files: Sequence[Path]) -> None:
    """Stores the DICOM objects of a result.

    Raises:
      InputError: the server has not taken all of them.
    """
    try:
        server.store(files, lambda file: None)
    except PeerError as error:
        raise InputError(
            f"--stow: the results could not be stored on {server.url}: {error}; call again."
        ) from error
