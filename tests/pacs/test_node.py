"""A node as scanners and an archive see it."""

from __future__ import annotations

import ssl

import numpy as np
import pydicom
import pytest
from pacs.nodes import associate, client_tls, close_socket, send, start_node, study, wait_until
from pacs.results import probabilities
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from test_privacy import PLANTED, SECRETS

import drenet_jax

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")


@pytest.fixture(scope="module")
def pipeline(trained):
    return drenet_jax.load(trained)


def _wait_for_result(node, archive, uid: str, n_objects: int = 4) -> list[pydicom.Dataset]:
    def results():
        return [dataset for dataset in archive.stored if dataset.StudyInstanceUID == uid]

    wait_until(lambda: len(results()) >= n_objects)
    return results()


def test_a_study_is_answered_as_predict_does_under_its_patient_and_study(
    node, module_archive, persons, pipeline
):
    datasets = study(persons[0], PatientID="HOSP-77", PatientName="MUSTERFRAU^ERIKA")

    assert set(send(node.port, datasets)) == {0}

    results = _wait_for_result(node, module_archive, datasets[0].StudyInstanceUID)
    assert sorted(dataset.Modality for dataset in results) == ["OT", "OT", "OT", "SR"]
    assert {dataset.PatientID for dataset in results} == {"HOSP-77"}
    assert {str(dataset.PatientName) for dataset in results} == {"MUSTERFRAU^ERIKA"}
    expected = pipeline.person(persons[0])["person"]["probabilities"]
    assert probabilities(results) == pytest.approx(expected, abs=1e-5)


def test_a_study_that_comes_again_is_not_answered_again(node, module_archive, persons):
    datasets = study(persons[1])
    send(node.port, datasets)
    uid = datasets[0].StudyInstanceUID
    results = _wait_for_result(node, module_archive, uid)
    wait_until(lambda: node.n_studies("sending") == 0)

    assert set(send(node.port, datasets)) == {0}
    send(node.port, study(persons[2]))  # is answered after it

    wait_until(lambda: len(module_archive.stored) >= len(results) + 4)
    wait_until(lambda: node.n_studies("done") >= 3)
    assert _wait_for_result(node, module_archive, uid) == results


def test_late_instances_change_the_result_and_its_uids(node, module_archive, persons, pipeline):
    datasets = study(persons[3])
    # A gap in the middle would be refused; the ends of the lungs are missing.
    ordered = sorted(datasets, key=lambda dataset: dataset.ImagePositionPatient[2])
    uid = datasets[0].StudyInstanceUID
    send(node.port, ordered[4:-4])
    first = _wait_for_result(node, module_archive, uid)

    send(node.port, ordered[:4] + ordered[-4:])

    both = _wait_for_result(node, module_archive, uid, 2 * len(first))
    second = [dataset for dataset in both if dataset not in first]
    assert not {dataset.SOPInstanceUID for dataset in first} & {
        dataset.SOPInstanceUID for dataset in second
    }
    expected = pipeline.person(persons[3])["person"]["probabilities"]
    assert probabilities(second) == pytest.approx(expected, abs=1e-5)


def test_another_instance_of_the_same_uid_is_refused_and_keeps_the_study_from_an_answer(
    node, module_archive, persons
):
    datasets = study(persons[4])
    association = associate(node.port)
    assert association.send_c_store(datasets[0]).Status == 0
    changed = np.array(datasets[0].pixel_array)
    changed[0, 0] += 1
    datasets[0].PixelData = changed.tobytes()

    answer = association.send_c_store(datasets[0])

    association.release()
    assert answer.Status == 0x0111
    assert "same SOPInstanceUID" in answer.ErrorComment
    page = node.get("")
    assert "receiving" in page


def test_what_is_no_chest_is_parked_with_the_reason_and_nothing_of_the_patient_is_shown(
    node, module_archive, persons
):
    datasets = study(persons[0])[:20]
    uid = generate_uid()
    for dataset in datasets:
        for keyword, value in PLANTED.items():
            setattr(dataset, keyword, value)
        dataset.StudyInstanceUID = uid
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PixelData = np.full_like(dataset.pixel_array, 24).tobytes()

    association = associate(node.port, calling="QUACKSALBER")
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0
    association.release()

    wait_until(lambda: node.n_studies("parked") == 1)
    page, metrics, log = node.get(""), node.get("metrics"), node.log.read_text()
    assert "no result: " in page
    assert "no result: " in log
    for text in (page, metrics, log):
        assert uid not in text
        for secret in SECRETS:
            assert secret not in text
    assert not any(dataset.StudyInstanceUID == uid for dataset in module_archive.stored)


def test_a_damaged_data_set_is_refused(node, persons):
    [dataset] = study(persons[0])[:1]
    del dataset.StudyInstanceUID
    association = associate(node.port)

    answer = association.send_c_store(dataset)

    association.release()
    assert answer.Status == 0xC000
    assert answer.ErrorComment == "a data set without a valid StudyInstanceUID"


def test_other_than_ct_is_not_negotiated(node):
    entity = AE("CT1")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2.1")  # enhanced CT
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.4")  # MR
    association = entity.associate("127.0.0.1", node.port, ae_title="DRENET")
    association.release()

    assert len(association.accepted_contexts) == 1
    assert len(association.rejected_contexts) == 1


def test_another_called_ae_title_is_rejected(node):
    association = associate(node.port, called="ANOTHER")
    close_socket(association)

    assert association.is_rejected


def test_the_page_is_not_for_other_paths_and_health_is_ok(node):
    assert '"status":"ok"' in node.get("healthz")
    assert "drenet_node_instances_total" in node.get("metrics")


def test_senders_and_tls(trained, tmp_path, certificates):
    """Who is not listed, or shows no certificate of the authority, gets no association."""
    node = start_node(
        trained,
        tmp_path / "spool",
        senders="CT1@127.0.0.1,CT2@10.0.0.7",
        tls_certificate=certificates / "ours.pem",
        tls_key=certificates / "ours.key",
        tls_authorities=certificates / "ours_ca.pem",
    )

    def outcome(ae_title: str, tls: ssl.SSLContext | None) -> str:
        entity = AE(ae_title)
        entity.acse_timeout = 5
        entity.add_requested_context(Verification)
        association = entity.associate(
            "127.0.0.1", node.port, ae_title="DRENET", tls_args=(tls, None) if tls else None
        )
        if not association.is_established:
            close_socket(association)
            return "rejected" if association.is_rejected else "none"
        status = association.send_c_echo().Status
        association.release()
        return f"answered {status}"

    try:
        assert outcome("CT1", client_tls(certificates, "ours")) == "answered 0"
        assert outcome("CT2", client_tls(certificates, "ours")) == "rejected"
        assert outcome("CT3", client_tls(certificates, "ours")) == "rejected"
        assert outcome("CT1", client_tls(certificates, "other")) == "none"
        assert outcome("CT1", None) == "none"
    finally:
        assert node.stop() == 0
