"""Early stopping, and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from drenet_jax.training.stopping import is_out_of_patience, preemption


def _lines(*metrics, every=1):
    """One for each validation; a validation takes place a little after its epoch's end."""
    return [
        {"epoch": i * every + 0.04 * (i % 3), "validation": {"auc": auc, "cross_entropy": loss}}
        for i, (auc, loss) in enumerate(metrics, 1)
    ]


@pytest.mark.parametrize(
    ("metrics", "patience", "expected"),
    [
        ([], 1, False),
        ([(0.5, 1.0)], 1, False),
        ([(0.5, 1.0), (0.6, 1.0)], 1, False),
        ([(0.5, 1.0), (0.5, 1.0)], 1, True),  # as good is not better
        ([(0.5, 1.0), (0.5, 0.9)], 1, False),  # of equal AUCs, the lower cross-entropy
        ([(0.9, 1.0), (0.5, 0.1), (0.6, 0.1)], 3, False),
        ([(0.9, 1.0), (0.5, 0.1), (0.6, 0.1), (0.8, 0.1)], 3, True),
        ([(0.9, 1.0), (0.5, 0.1), (0.6, 0.1), (0.95, 0.1)], 3, False),
        ([(None, 1.0), (None, 1.1), (None, 1.2)], 2, True),
        ([(0.9, 1.0)] + [(0.5, 1.0)] * 50, 0, False),
    ],
)
def test_patience_ends_so_many_epochs_after_the_best(metrics, patience, expected):
    assert is_out_of_patience(_lines(*metrics), patience) == expected


def test_patience_counts_epochs_and_not_validations():
    lines = _lines((0.9, 1.0), (0.5, 1.0), every=3)
    assert not is_out_of_patience(lines, 4)
    assert is_out_of_patience(lines, 3)


def test_sigterm_asks_for_a_stop_within_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with preemption() as is_stop_requested:
        assert not is_stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stop_requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone():
    before, requested = signal.getsignal(signal.SIGTERM), []

    def work():
        with preemption() as is_stop_requested:
            requested.append(is_stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [False]
    assert signal.getsignal(signal.SIGTERM) == before
