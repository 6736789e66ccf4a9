"""Real series between Orthanc, DCMTK and the node; the results in Orthanc's viewer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from dicom_checks import require_valid
from pacs.nodes import Node, start_node, study, wait_until
from pacs.orthanc import Orthanc, running_orthanc

pytestmark = pytest.mark.slow
pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def stored(orthanc, shared_data) -> dict[str, str]:
    """Studies that Orthanc has before the node starts: name -> Orthanc's name."""
    return {
        name: _upload(orthanc, shared_data / "covid_ct_md" / name)
        for name in ("CAP/cap001", "COVID-19/P001")
    }


@pytest.fixture(scope="module")
def node(trained, orthanc, stored, tmp_path_factory) -> Iterator[Node]:
    running = start_node(
        trained,
        tmp_path_factory.mktemp("node") / "spool",
        f"--dicomweb={orthanc.dicomweb}",
        port=orthanc.node_port,
        destination=orthanc.peer,
        storage_commitment=True,
        dicomweb_poll_seconds=1.0,
        quiet_seconds=2.0,
    )
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def answered(node, orthanc, stored) -> str:
    """A real study with its results, sent to the node by Orthanc."""
    orthanc.send_to_node(stored["CAP/cap001"])
    wait_until(lambda: node.n_studies("done") == 1, 120)
    return stored["CAP/cap001"]


def _upload(orthanc: Orthanc, folder: Path) -> str:
    return {orthanc.upload(file) for file in folder.iterdir()}.pop()


def _results(orthanc: Orthanc, identifier: str, folder: Path) -> list[Path]:
    """The checked results of a study in Orthanc."""
    folder.mkdir()
    files = orthanc.results(identifier, folder)
    require_valid(folder)
    datasets = [pydicom.dcmread(file) for file in files]
    assert [dataset.Modality for dataset in datasets] == ["SR", "OT", "OT", "OT"]
    instance = orthanc.get(f"/studies/{identifier}/instances")[-1]["ID"]
    tags = orthanc.get(f"/instances/{instance}/simplified-tags")
    for keyword in ("StudyInstanceUID", "PatientID"):
        assert {dataset[keyword].value for dataset in datasets} == {tags[keyword]}
    return files


def _dcmtk(program: str, *arguments: object) -> str:
    """Runs a program of DCMTK; returns what it prints."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: dcmtk)")
    done = subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_results_of_a_study_that_orthanc_sends_are_valid_and_readable(
    node, orthanc, answered, tmp_path
):
    report, *_ = _results(orthanc, answered, tmp_path / "results")

    assert "results are committed" in node.log.read_text()
    text = _dcmtk("dsrdump", report)
    assert "Comprehensive SR Document" in text
    assert "Imaging Measurement" in text
    # DCMTK checks no text in UTF-8.
    problems = [line for line in text.splitlines() if line.startswith(("E:", "W:"))]
    assert all("does not support this Specific Character Set" in line for line in problems)


def test_results_are_found_by_a_query_of_dcmtk(node, orthanc, answered):
    uid = orthanc.get(f"/studies/{answered}")["MainDicomTags"]["StudyInstanceUID"]

    text = _dcmtk(
        "findscu",
        *("-S", "-aet", "DCMTK", "-aec", "ORTHANC", "127.0.0.1", orthanc.dicom_port),
        *("-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={uid}"),
        *("-k", "Modality=SR", "-k", "SeriesInstanceUID", "-k", "SeriesDescription"),
    )

    assert text.count("(0008,0060) CS [SR]") == 1


def test_a_study_that_dcmtk_moves_to_the_node_is_answered(node, orthanc, stored, tmp_path):
    identifier = stored["COVID-19/P001"]
    uid = orthanc.get(f"/studies/{identifier}")["MainDicomTags"]["StudyInstanceUID"]
    n_done = node.n_studies("done")

    _dcmtk(
        "movescu",
        *("-S", "-aet", "DCMTK", "-aec", "ORTHANC", "-aem", "DRENET"),
        *("127.0.0.1", orthanc.dicom_port),
        *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}"),
    )

    wait_until(lambda: node.n_studies("done") == n_done + 1, 120)
    _results(orthanc, identifier, tmp_path / "results")


def test_a_study_that_arrives_in_orthanc_is_answered_over_dicomweb(
    node, orthanc, shared_data, tmp_path
):
    n_done = node.n_studies("done")

    identifier = _upload(orthanc, shared_data / "covid_ct_md" / "Normal" / "normal001")

    wait_until(lambda: node.n_studies("done") == n_done + 1, 180)
    _results(orthanc, identifier, tmp_path / "results")
    assert "154 CT instances fetched" in node.log.read_text()


@pytest.mark.parametrize(
    ("compress", "propose"),
    [
        ((), "-xe"),
        ((), "-xi"),
        ((), "-xb"),
        ((), "-xd"),
        (("dcmcjpeg",), "-xs"),
        (("dcmcjpls",), "-xt"),
        (("dcmcrle",), "-xr"),
    ],
    ids=["explicit", "implicit", "big endian", "deflated", "JPEG lossless", "JPEG-LS", "RLE"],
)
def test_storescu_sends_in_this_transfer_syntax(
    compress, propose, node, orthanc, persons, tmp_path
):
    slices = study(persons[0], PatientID="DCMTK")
    for number, dataset in enumerate(slices):
        file = tmp_path / f"{number}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        for program in compress:
            _dcmtk(program, file, file)
    n_done = node.n_studies("done")

    _dcmtk("echoscu", "-aec", "DRENET", "127.0.0.1", node.port)
    # Only this syntax is proposed.
    _dcmtk("storescu", "-R", propose, "-aec", "DRENET", "127.0.0.1", node.port, *tmp_path.iterdir())

    wait_until(lambda: node.n_studies("done") == n_done + 1)
    (identifier,) = orthanc.find("Study", StudyInstanceUID=slices[0].StudyInstanceUID)
    _results(orthanc, identifier, tmp_path / "results")


def test_a_capture_is_seen_in_orthanc_s_viewer(orthanc, answered, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    (series,) = (
        series
        for series in orthanc.get(f"/studies/{answered}")["Series"]
        if orthanc.get(f"/series/{series}")["MainDicomTags"]["Modality"] == "OT"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{orthanc.url}/web-viewer/app/viewer.html?series={series}")
        page.wait_for_selector("canvas")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=tmp_path / "viewer.png")
        browser.close()
    seen = cv2.imread(str(tmp_path / "viewer.png"))
    # Boxes are coloured, and the viewer is grey.
    colour = seen.max(axis=2).astype(int) - seen.min(axis=2)
    assert np.count_nonzero(colour > 60) > 500
