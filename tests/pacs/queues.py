"""Queues in this process, with instances and results that are no images."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom.sop_class import CTImageStorage

from drenet_jax.configs import node as node_config
from drenet_jax.pacs.instance_files import InstanceHeader
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import DIMSE, READY, Study
from drenet_jax.pacs.study_queue import StudyQueue


def settings_of(**changes: object) -> NodeSettings:
    return NodeSettings.from_dict({**node_config.get_config().to_dict(), **changes})


def accept(
    queue: StudyQueue,
    study_uid: str,
    sop_uid: str,
    *,
    content: bytes = b"x" * 1000,
    association: str = "",
) -> Study:
    """Gives a queue an instance of these bytes."""
    with tempfile.NamedTemporaryFile(dir=queue.receiving, delete=False) as file:
        file.write(content)
    header = InstanceHeader(study_uid, sop_uid, str(CTImageStorage), str(ExplicitVRLittleEndian))
    return queue.accept(Path(file.name), header, DIMSE, association)


def answer(queue: StudyQueue, study_uid: str, *, n_results: int = 3, model: str = "m") -> bool:
    """Makes a study ready, and gives it results; returns whether they were kept."""
    study = queue.database.find(study_uid)
    assert study is not None
    queue.move(study, READY)
    study = queue.database.find(study_uid)
    assert study is not None
    folder = Path(tempfile.mkdtemp(dir=queue.receiving))
    for number in range(n_results):
        _result(study_uid).save_as(folder / f"result_{number}.dcm", enforce_file_format=True)
    return queue.keep_results(study, queue.digest(study, model), folder)


def _result(study_uid: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = study_uid
    dataset.Modality = "OT"
    return dataset
