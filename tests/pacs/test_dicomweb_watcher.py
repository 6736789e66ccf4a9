"""Which studies the node fetches from a DICOMweb server, with Orthanc and with a failing server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pacs.dicomweb_servers import failing_server, quick_settings
from pacs.nodes import study, wait_until
from pacs.orthanc import Orthanc, running_orthanc
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from drenet_jax.pacs.completeness import Completeness
from drenet_jax.pacs.dicomweb_server import DicomwebServer
from drenet_jax.pacs.dicomweb_watcher import DicomwebWatcher, not_counted
from drenet_jax.pacs.instance_files import read_instance_header
from drenet_jax.pacs.study_database import DICOMWEB, RECEIVING
from drenet_jax.pacs.study_queue import StudyQueue


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


class Watch:
    """A queue with a watcher that runs."""

    def __init__(self, spool: Path, url: str, **changes: object):
        settings = quick_settings(**changes)
        self.queue = StudyQueue(spool, settings)
        self._watcher = DicomwebWatcher(self.queue, DicomwebServer(url, "", settings), settings)
        self._watcher.start()

    def close(self) -> None:
        self._watcher.stop()
        self.queue.database.close()

    def n_expected(self, uid: str) -> int | None:
        """The number of CT instances of a study, once it was fetched."""
        row = self.queue.database.find(uid)
        return row and row.expected

    @property
    def is_first_look(self) -> bool:
        return not self.queue.database.rows("SELECT url FROM dicomweb_servers")

    def wait_for_looks(self) -> None:
        time.sleep(0.6)


@contextlib.contextmanager
def watching(spool: Path, url: str, **changes: object) -> Iterator[Watch]:
    watch = Watch(spool, url, **changes)
    with contextlib.closing(watch):
        wait_until(lambda: not watch.is_first_look)
        yield watch


def _upload(orthanc: Orthanc, folder: Path, datasets: list[pydicom.Dataset]) -> str:
    """Stores data sets; returns the UID of their study."""
    for dataset in datasets:
        dataset.save_as(folder / "upload.dcm", enforce_file_format=True)
        orthanc.upload(folder / "upload.dcm")
    return datasets[0].StudyInstanceUID


def test_new_studies_are_fetched_and_older_ones_are_not_even_after_a_restart(
    orthanc, persons, tmp_path
):
    old = _upload(orthanc, tmp_path, study(persons[0])[:5])
    with watching(tmp_path / "spool", orthanc.dicomweb) as watch:
        new = _upload(orthanc, tmp_path, study(persons[0])[:6])
        wait_until(lambda: watch.n_expected(new) == 6)
        row = watch.queue.database.find(new)
        assert (row.origin, row.n_instances) == (DICOMWEB, 6)
    meanwhile = _upload(orthanc, tmp_path, study(persons[0])[:7])
    with watching(tmp_path / "spool", orthanc.dicomweb, dicomweb_backlog=True) as watch:
        wait_until(lambda: watch.n_expected(meanwhile) == 7)
        watch.wait_for_looks()
        assert watch.queue.database.find(old) is None
        assert len(list((tmp_path / "spool/studies").iterdir())) == 2
    with watching(tmp_path / "other", orthanc.dicomweb, dicomweb_backlog=True) as watch:
        wait_until(lambda: all(map(watch.n_expected, (old, new, meanwhile))))


def test_a_server_without_studies_at_the_first_look_has_only_new_ones(persons, tmp_path):
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        with watching(tmp_path / "spool", orthanc.dicomweb):
            pass
        uid = _upload(orthanc, tmp_path, study(persons[0])[:3])
        with watching(tmp_path / "spool", orthanc.dicomweb) as watch:
            wait_until(lambda: watch.n_expected(uid) == 3)


def test_late_slices_are_fetched_and_results_are_no_reason_to_fetch_again(
    orthanc, persons, tmp_path
):
    datasets = study(persons[0])
    with watching(tmp_path / "spool", orthanc.dicomweb) as watch:
        uid = _upload(orthanc, tmp_path, datasets[:5])
        wait_until(lambda: watch.n_expected(uid) == 5)
        _upload(orthanc, tmp_path, datasets[5:8])
        wait_until(lambda: watch.n_expected(uid) == 8)
        report = datasets[9]
        report.Modality, report.SeriesInstanceUID = "SR", generate_uid()
        _upload(orthanc, tmp_path, [report])
        watch.wait_for_looks()
        assert watch.queue.database.find(uid).n_instances == 8


def test_series_of_other_body_parts_and_dose_reports_are_left_out(
    orthanc, persons, tmp_path, caplog
):
    lungs = study(persons[0], BodyPartExamined="CHEST_ABDOMEN")[:4]
    uid = lungs[0].StudyInstanceUID
    head = study(persons[1], uid=uid, BodyPartExamined="HEAD", SeriesNumber=7)[:3]
    dose = study(persons[2], uid=uid, SOPClassUID=SecondaryCaptureImageStorage)[:1]
    dose[0].file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    knee = study(persons[3], BodyPartExamined="KNEE", SeriesNumber=9)[:2]
    with (
        caplog.at_level("INFO", "drenet_jax.service"),
        watching(tmp_path / "spool", orthanc.dicomweb) as watch,
    ):
        _upload(orthanc, tmp_path, knee)
        _upload(orthanc, tmp_path, [*lungs, *head, *dose])
        wait_until(lambda: watch.n_expected(uid) == 4)
        watch.wait_for_looks()
        assert watch.queue.database.find(uid).n_instances == 4
        assert watch.queue.database.find(knee[0].StudyInstanceUID) is None
    assert "another body part, not fetched: series 7" in caplog.text
    assert caplog.text.count("a study: another body part, not fetched: series 9") == 1


def test_a_full_spool_and_a_study_over_its_limit(orthanc, persons, tmp_path):
    with watching(tmp_path / "spool", orthanc.dicomweb, study_instances=3) as watch:
        uid = _upload(orthanc, tmp_path, study(persons[0])[:5])
        # Expected, so that the study is parked in time, with the reason.
        wait_until(lambda: watch.n_expected(uid) == 5)
        assert watch.queue.database.find(uid).n_instances == 3
        watch.queue.n_bytes = 50 << 30
        late = _upload(orthanc, tmp_path, study(persons[0])[:2])
        wait_until(lambda: watch.queue.database.find(late) is not None)
        watch.wait_for_looks()
        assert watch.queue.database.find(late).n_instances == 0
        watch.queue.n_bytes = 0
        wait_until(lambda: watch.n_expected(late) == 2)


def test_a_server_that_is_away_is_one_line_in_the_log(orthanc, persons, tmp_path, caplog):
    uid = _upload(orthanc, tmp_path, study(persons[0])[:2])
    with caplog.at_level("INFO", "drenet_jax.service"), failing_server([]) as url:
        watch = Watch(tmp_path / "spool", url)
        with contextlib.closing(watch):
            watch.wait_for_looks()
    assert caplog.text.count("the DICOMweb server is not available: ") == 1
    assert "HTTP status 503" in caplog.text
    assert "127.0.0.1" not in caplog.text
    assert uid not in caplog.text


def test_a_study_that_is_fetched_half_is_not_complete(persons, tmp_path):
    settings = quick_settings(quiet_seconds=0.01)
    queue = StudyQueue(tmp_path / "spool", settings)
    with contextlib.closing(queue.database):
        file = queue.receiving / "slice.dcm"
        file.write_bytes(next(persons[0].iterdir()).read_bytes())
        queue.accept(file, read_instance_header(file), DICOMWEB)
        time.sleep(0.05)
        Completeness(queue, settings, {DICOMWEB: not_counted}).update()
        (study,) = queue.database.by_state(RECEIVING)
        queue.expect(study, 1)
        Completeness(queue, settings, {DICOMWEB: not_counted}).update()
        assert not queue.database.by_state(RECEIVING)
