"""Tests of the settings of the metrics, also of runs that are older than they are."""

from __future__ import annotations

import importlib
import json

import ml_collections
import pytest

from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import MetricSettings


@pytest.mark.parametrize("name", ["drenet", "demo", "resnet50", "drenet_authors"])
def test_a_config_states_every_setting(name):
    evaluation = importlib.import_module(f"drenet_jax.configs.{name}").get_config().evaluation
    settings = MetricSettings.from_config(evaluation)
    for field in MetricSettings.__dataclass_fields__:
        assert field in evaluation
        assert getattr(settings, field) == evaluation[field]


def test_settings_survive_the_checkpoint():
    config = ml_collections.ConfigDict({"specificities": (0.7, 0.85), "bootstrap_seed": 5})
    stored = ml_collections.ConfigDict(json.loads(config.to_json()))
    settings = MetricSettings.from_config(stored)
    assert settings.specificities == (0.7, 0.85)
    assert settings.bootstrap_seed == 5


def test_a_run_made_before_these_were_settings_is_evaluated_as_it_was_then():
    before = ml_collections.ConfigDict(
        {"batch_size": 8, "positive_label": "", "bootstrap_draws": 500}
    )
    settings = MetricSettings.from_config(before)
    assert settings.bootstrap_draws == 500
    assert (settings.threshold, settings.bootstrap_seed) == (0.5, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", 0.0, "between 0 and 1"),
        ("threshold", 50, "between 0 and 1"),
        ("specificities", (0.8, 90), "above 0 and below 1"),
        ("specificities", (0.8, 0.8), "different shares"),
        ("calibration_bins", 0, "1 or more"),
        ("bootstrap_draws", 0, "1 or more"),
        ("bootstrap_seed", -1, "0 or more"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name, value, message):
    with pytest.raises(InputError, match=rf"--config\.evaluation\.{name}=.*{message}"):
        MetricSettings.from_config({name: value})


def test_no_specificities_are_fine():
    assert MetricSettings.from_config({"specificities": []}).specificities == ()
