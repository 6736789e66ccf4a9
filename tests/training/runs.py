"""Comparing runs of `train` by what their latest checkpoints and logs hold."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from drenet_jax.data.prepared_data import open_data
from drenet_jax.models.build import build_model
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.training import loop
from drenet_jax.training.state import TrainState, learning_rate, make_optimizer


def latest_state(config: ConfigDict, workdir: Path) -> TrainState:
    """What the latest checkpoint holds."""
    data = open_data(config.data.dir)
    schedule = learning_rate(config, data.n_slices["train"], config.data.batch_size)
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        return loop._restore(
            checkpoints,
            checkpoints.latest_step,
            build_model(config, len(data.labels)),
            make_optimizer(config, schedule),
            config.train.ema_decay,
        )


def assert_same_run(config: ConfigDict, stopped: Path, whole: Path) -> None:
    """Fails unless both runs have the same latest state and the same metrics, bit for bit."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(latest_state(config, whole)),
        jax.tree.leaves(latest_state(config, stopped)),
        strict=True,
    ):
        np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
