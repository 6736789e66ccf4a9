"""A node as a scanner and an archive see it."""

from __future__ import annotations

import pytest
from pacs.nodes import associate, send, study, wait_until

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")


def test_a_study_is_answered_under_its_patient_and_study(node, module_archive, persons):
    datasets = study(persons[0], PatientID="HOSP-77", PatientName="MUSTERFRAU^ERIKA")

    assert set(send(node.port, datasets)) == {0}

    uid = datasets[0].StudyInstanceUID
    wait_until(lambda: any(report.StudyInstanceUID == uid for report in module_archive.reports))
    wait_until(lambda: node.n_studies("done") == 1)
    results = [dataset for dataset in module_archive.stored if dataset.StudyInstanceUID == uid]
    assert sorted(dataset.Modality for dataset in results) == ["OT", "OT", "OT", "SR"]
    assert {dataset.PatientID for dataset in results} == {"HOSP-77"}
    assert {str(dataset.PatientName) for dataset in results} == {"MUSTERFRAU^ERIKA"}


def test_verification(node):
    association = associate(node.port)
    assert association.send_c_echo().Status == 0
    association.release()
