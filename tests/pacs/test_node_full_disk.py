"""A node whose disk is full refuses, loses nothing, and goes on when there is space."""

from __future__ import annotations

import pytest
from pacs.nodes import associate, close_socket, start_node, study, wait_until
from pacs.senders import check_answers, is_answered, send_until_taken

import drenet_jax


@pytest.mark.slow
def test_a_full_disk_refuses_and_nothing_is_lost(small_disk, trained, archive, persons):
    place = small_disk("size=1200k")
    node = start_node(trained, place / "spool", destination=archive.peer, quiet_seconds=1.0)
    datasets = study(persons[0])
    n_bytes = sum(len(dataset.PixelData) for dataset in datasets)
    assert n_bytes < 1200 << 10
    others = study(persons[1])
    try:
        association = associate(node.port)
        n_taken = 0
        # It refuses one, or ends the association if it cannot keep what it receives.
        for dataset in others + datasets:
            if association.send_c_store(dataset).get("Status") != 0:
                break
            n_taken += 1
        if association.is_established:
            association.abort()
        close_socket(association)
        assert 0 < n_taken < len(others + datasets)
        assert node.get("healthz")
        kept = list((node.spool / "studies").rglob("*.dcm"))
        assert len(kept) == n_taken

        small_disk("remount", "size=64m")
        send_until_taken(node.port, others + datasets)

        uids = {others[0].StudyInstanceUID, datasets[0].StudyInstanceUID}
        wait_until(lambda: is_answered(archive, uids), 120)
        wait_until(lambda: node.n_studies("done") == 2)
        pipeline = drenet_jax.load(trained)
        check_answers(
            archive,
            {
                found[0].StudyInstanceUID: pipeline.person(person)["person"]["probabilities"]
                for found, person in ((datasets, persons[0]), (others, persons[1]))
            },
        )
        assert node.stop() == 0
    finally:
        node.process.kill()
        node.process.wait()
    assert "Traceback" not in node.log.read_text()
