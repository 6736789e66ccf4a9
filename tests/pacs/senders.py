"""Senders that repeat what was not taken, and what an archive must have in the end."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import pydicom
import pytest
from pacs.nodes import Archive, associate, close_socket
from pacs.results import probabilities


def send_until_taken(
    port: int,
    datasets: Sequence[pydicom.Dataset],
    *,
    breaks_off: Callable[[], bool] = lambda: False,
    on_taken: Callable[[pydicom.Dataset], None] = lambda dataset: None,
    seconds: float = 900.0,
) -> int:
    """Sends until each instance got success, in an association that was released.

    A node cannot know that nothing is missing of a study whose association broke. So after a break
    a study that was whole comes again with its last instance.

    Args:
      port: of the node, which may be away for a while.
      datasets: to send, in this order.
      breaks_off: whether the sender aborts now.
      on_taken: called with each instance that got success.
      seconds: fails after so many.

    Returns:
      The number of associations.
    """
    end_s = time.monotonic() + seconds
    left = list(datasets)
    for n in itertools.count(1):
        association = associate(port)
        taken: dict[str, pydicom.Dataset] = {}
        while association.is_established and left:
            if breaks_off():
                association.abort()
                break
            try:
                status = association.send_c_store(left[0]).get("Status")
            except (RuntimeError, ValueError):  # it ended meanwhile
                break
            if status != 0:
                break
            taken[left[0].StudyInstanceUID] = left[0]
            on_taken(left.pop(0))
        if association.is_established:
            association.release()
        close_socket(association)
        if association.is_released:
            if not left:
                return n
        else:
            left = [*taken.values(), *left]
        assert time.monotonic() < end_s, f"{len(left)} instances were not taken"
        time.sleep(0.2)
    raise AssertionError


def interleaved(studies: Sequence[Sequence[pydicom.Dataset]]) -> list[pydicom.Dataset]:
    """The instances of studies in turns."""
    turns = itertools.zip_longest(*studies)
    return [dataset for turn in turns for dataset in turn if dataset is not None]


def check_answers(archive: Archive, expected: dict[str, dict[str, float]]) -> int:
    """Checks that each study has one answer, the right one; returns how many objects came twice.

    Args:
      archive: that got the results.
      expected: probabilities by Study Instance UID.
    """
    by_study: dict[str, dict[str, pydicom.Dataset]] = defaultdict(dict)
    n_again = 0
    for dataset in list(archive.stored):
        objects = by_study[dataset.StudyInstanceUID]
        before = objects.setdefault(dataset.SOPInstanceUID, dataset)
        if before is not dataset:
            n_again += 1
            assert before == dataset
    assert set(by_study) == set(expected)
    for uid, objects in by_study.items():
        modalities = sorted(dataset.Modality for dataset in objects.values())
        assert modalities[-1] == "SR"
        assert modalities.count("SR") == 1
        numbers = [dataset.InstanceNumber for dataset in objects.values()]
        assert len(numbers) == len(modalities)
        assert probabilities(list(objects.values())) == pytest.approx(expected[uid], abs=1e-5)
    return n_again


def is_answered(archive: Archive, uids: set[str]) -> bool:
    return uids <= {report.StudyInstanceUID for report in archive.reports}
