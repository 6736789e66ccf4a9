"""The node and `predict` with Orthanc as the archive: C-STORE, storage commitment, DICOMweb."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pacs.nodes import Node, start_node, study, wait_until
from pacs.orthanc import Orthanc, running_orthanc

from drenet_jax.errors import InputError
from drenet_jax.pacs.study_download import download_ct, open_server, store_results

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def stored(orthanc, persons, tmp_path_factory) -> str:
    """A study that Orthanc has before the node starts."""
    return _upload(orthanc, persons[0], tmp_path_factory, PatientID="HOSP-1", PatientName="A^EINS")


@pytest.fixture(scope="module")
def node(trained, orthanc, stored, tmp_path_factory) -> Iterator[Node]:
    """A node that watches Orthanc, and to which Orthanc can send."""
    running = start_node(
        trained,
        tmp_path_factory.mktemp("node") / "spool",
        f"--dicomweb={orthanc.dicomweb}",
        port=orthanc.node_port,
        destination=orthanc.peer,
        source=orthanc.peer,
        storage_commitment=True,
        dicomweb_poll_seconds=0.3,
    )
    yield running
    assert running.stop() == 0


def _upload(orthanc: Orthanc, person: Path, tmp_path_factory, **tags: object) -> str:
    """Stores a person's slices as a new study in Orthanc; returns Orthanc's name of it."""
    file = tmp_path_factory.mktemp("upload") / "slice.dcm"
    for dataset in study(person, **tags):
        dataset.save_as(file, enforce_file_format=True)
        identifier = orthanc.upload(file)
    return identifier


def _check_results(orthanc: Orthanc, identifier: str, patient_id: str, folder: Path) -> None:
    results = [pydicom.dcmread(file) for file in orthanc.results(identifier, folder)]
    assert [dataset.Modality for dataset in results] == ["SR", "OT", "OT", "OT"]
    uid = orthanc.get(f"/studies/{identifier}")["MainDicomTags"]["StudyInstanceUID"]
    assert {dataset.StudyInstanceUID for dataset in results} == {uid}
    assert {dataset.PatientID for dataset in results} == {patient_id}


def test_a_study_that_orthanc_sends_is_answered_and_its_results_are_committed(
    node, orthanc, stored, tmp_path
):
    orthanc.send_to_node(stored)

    wait_until(lambda: node.n_studies("done") == 1)
    _check_results(orthanc, stored, "HOSP-1", tmp_path)
    assert "results are committed" in node.log.read_text()
    # By C-FIND, not by the time since the last instance.
    assert re.search(r'class="number">(\d+) of \1<', node.get(""))


def test_a_new_study_is_fetched_over_dicomweb_and_its_results_are_stored_there(
    node, orthanc, stored, persons, tmp_path, tmp_path_factory
):
    assert len(orthanc.get(f"/studies/{stored}")["Series"]) in (1, 3)  # no DICOMweb answer
    n_done = node.n_studies("done")
    new = _upload(orthanc, persons[1], tmp_path_factory, PatientID="HOSP-2", PatientName="B^ZWEI")

    wait_until(lambda: node.n_studies("done") == n_done + 1)
    _check_results(orthanc, new, "HOSP-2", tmp_path)
    log = node.log.read_text()
    assert "1 CT studies, which are not taken" in log
    assert "HOSP" not in log
    assert "ZWEI" not in log
    assert "1.2.826" not in log


def test_a_study_is_downloaded_byte_by_byte_and_its_results_can_be_stored_twice(
    orthanc, stored, tmp_path
):
    uid = orthanc.get(f"/studies/{stored}")["MainDicomTags"]["StudyInstanceUID"]
    server = open_server(orthanc.dicomweb)

    assert download_ct(server, uid, "", tmp_path) == []

    files = sorted(tmp_path.iterdir())
    there = [
        orthanc.request(f"/instances/{instance}/file")
        for instance in orthanc.find("Instance", StudyInstanceUID=uid, Modality="CT")
    ]
    assert sorted(file.read_bytes() for file in files) == sorted(there)
    numbers = [int(pydicom.dcmread(file).InstanceNumber) for file in files]
    assert [file.name for file in files] == [f"IM_{number:04d}.dcm" for number in numbers]
    with pytest.raises(InputError, match=r"no CT series 1\.2\.3 in the study; its CT"):
        download_ct(server, uid, "1.2.3", tmp_path)
    # Orthanc has them already.
    n_instances = orthanc.get("/statistics")["CountInstances"]
    store_results(server, files[:2])
    assert orthanc.get("/statistics")["CountInstances"] == n_instances


@pytest.mark.slow
def test_predict_of_a_study_on_a_server_is_predict_of_its_files(
    orthanc, stored, trained, tmp_path, command
):
    uid = orthanc.get(f"/studies/{stored}")["MainDicomTags"]["StudyInstanceUID"]
    folder = tmp_path / "files"
    folder.mkdir()
    download_ct(open_server(orthanc.dicomweb), uid, "", folder)
    n_series = len(orthanc.get(f"/studies/{stored}")["Series"])

    first = command("predict", f"--workdir={trained}", f"--input={folder}", f"--out={tmp_path}/1")
    done = command(
        "predict",
        f"--workdir={trained}",
        f"--dicomweb={orthanc.dicomweb}",
        f"--study={uid}",
        f"--out={tmp_path}/2",
        f"--dicom_out={tmp_path}/dicom",
        "--stow",
    )

    assert (first.returncode, done.returncode) == (0, 0), first.stderr + done.stderr
    assert (tmp_path / "1/result.json").read_bytes() == (tmp_path / "2/result.json").read_bytes()
    assert json.loads((tmp_path / "2/result.json").read_bytes())["slices"]
    assert len(orthanc.get(f"/studies/{stored}")["Series"]) == n_series + 2
    for file in (tmp_path / "dicom").iterdir():
        sop_uid = pydicom.dcmread(file).SOPInstanceUID
        assert orthanc.find("Instance", SOPInstanceUID=sop_uid)


@pytest.mark.slow
def test_kills_while_studies_are_fetched_lose_none_and_answer_none_twice(
    trained, persons, tmp_path, tmp_path_factory
):
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc") as orthanc, contextlib.ExitStack() as nodes:

        def start() -> Node:
            node = start_node(
                trained,
                tmp_path / "spool",
                f"--dicomweb={orthanc.dicomweb}",
                dicomweb_poll_seconds=0.1,
                attempts=100,
            )
            nodes.callback(node.kill)
            return node

        node = start()
        wait_until(lambda: "CT studies, which are not taken" in node.log.read_text())
        studies = []
        for number in range(5):
            studies.append(_upload(orthanc, persons[number % 3], tmp_path_factory))
            # At different moments of the fetch, the work and the delivery.
            time.sleep(0.3 + 1.5 * number)
            node.kill()
            node = start()
        wait_until(lambda: node.n_studies("done") == len(studies), 120)
        for identifier in studies:
            results = orthanc.results(identifier, tmp_path)
            assert [pydicom.dcmread(file).Modality for file in results] == ["SR"] + 3 * ["OT"]
