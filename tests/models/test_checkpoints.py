"""Checkpoints: which are kept, and how misfits are reported."""

from __future__ import annotations

import jax
import ml_collections
import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.checkpoint_integrity import check_shapes
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints


@pytest.fixture
def meta(ct_settings):
    config = ml_collections.ConfigDict({"model": {"hidden": (3, 4)}, "seed": 1})
    return Meta(config, ("a", "b"), ct_settings, 7, "abc", "0.1.0")


def _weights(value):
    return {"params": {"w": np.full((2, 3), value, np.float32)}, "batch_stats": {}}


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _save(workdir, meta, figures):
    with Checkpoints(workdir) as checkpoints:
        for step, (auc, cross_entropy) in figures.items():
            metrics = {"auc": auc, "cross_entropy": cross_entropy}
            optimizer, progress = {"m": np.ones(2)}, {"loss": [0.1, step]}
            checkpoints.save(step, _weights(step), optimizer, meta, metrics, progress)
        checkpoints.wait()


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ({1: (0.5, 1.0), 2: (0.9, 2.0), 3: (0.7, 0.1)}, 2),
        ({1: (1.0, 0.4), 2: (1.0, 0.2), 3: (1.0, 0.3)}, 2),
        ({1: (None, 0.4), 2: (None, 0.2), 3: (0.1, 0.3)}, 3),
        ({1: (None, None), 2: (None, None), 3: (None, None)}, 3),
        # Stopped between validations: the latest, never the best.
        ({1: (0.5, 1.0), 2: (0.4, 1.0), 3: (None, None)}, 1),
        ({1: (None, 0.4), 3: (None, None)}, 1),
    ],
)
def test_the_best_and_the_latest_are_kept(figures, best, meta, tmp_path):
    _save(tmp_path, meta, figures)
    with Checkpoints.of(tmp_path, flag="--workdir") as checkpoints:
        assert checkpoints.best_step == best
        assert checkpoints.latest_step == 3
        assert checkpoints.metrics(3) == dict(
            zip(("auc", "cross_entropy"), figures[3], strict=True)
        )
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 3}


def test_a_reader_leaves_the_checkpoint_that_is_being_saved_alone(meta, tmp_path):
    _save(tmp_path, meta, {1: (0.5, 1.0)})
    saving = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    saving.mkdir()
    with Checkpoints.of(tmp_path, flag="--workdir") as checkpoints:
        assert checkpoints.latest_step == 1
    assert saving.exists()


def test_what_was_saved_comes_back(meta, tmp_path):
    _save(tmp_path, meta, {4: (0.5, 1.0)})
    with Checkpoints.of(tmp_path, flag="--workdir") as checkpoints:
        found = checkpoints.meta(4)
        weights = checkpoints.weights(4, _shapes(_weights(0)))
        assert checkpoints.weight_shapes(4) == _shapes(_weights(0))
        assert checkpoints.progress(4) == {"loss": [0.1, 4]}
    assert (found.labels, found.ct, found.fill_seed) == (meta.labels, meta.ct, 7)
    assert found.config.to_dict() == {"model": {"hidden": [3, 4]}, "seed": 1}
    np.testing.assert_array_equal(weights["params"]["w"], np.full((2, 3), 4))


def test_weights_of_another_model_are_reported_by_name(meta, tmp_path):
    _save(tmp_path, meta, {1: (0.5, 1.0)})
    other = {"params": {"v": np.zeros(3), "w": np.zeros((2, 4))}, "batch_stats": {}}
    with (
        Checkpoints.of(tmp_path, flag="--workdir") as checkpoints,
        pytest.raises(InputError) as caught,
    ):
        checkpoints.weights(1, _shapes(other))
    assert "params/v is missing; params/w has shape (2, 3) instead of (2, 4)" in str(caught.value)


def test_extra_arrays_are_reported_by_name():
    with pytest.raises(InputError, match="b is not expected"):
        check_shapes({"a": np.zeros(2), "b": np.zeros(1)}, {"a": np.zeros(2)}, "there")


def test_a_workdir_without_a_checkpoint_is_reported(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints.of(tmp_path, flag="--workdir")
    assert not list(tmp_path.iterdir())
