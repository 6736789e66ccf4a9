"""Keeps patients of the validation and test splits out of the weights that a run starts from."""

from __future__ import annotations

import sys

import ml_collections

from drenet_jax import parallel
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.duplicates import named_persons
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.models.checkpoint_metadata import KnownSlices
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.models.imagenet import IMAGENET


def known_slices(config: ml_collections.ConfigDict, data: PreparedData) -> KnownSlices:
    """The slices that the weights of a run are trained or selected on, those of `init.weights` too.

    Raises:
      InputError: the initial weights were trained on validation or test persons of this run.
    """
    own = KnownSlices(
        data.digests.of_persons(data.persons["train"]),
        data.digests.of_persons(data.persons["validation"]),
    )
    if config.init.weights in ("", IMAGENET):
        return own
    with Checkpoints.of(config.init.weights, flag="--config.init.weights") as source:
        earlier = source.digests(source.best_step)
        if earlier is None:  # converted weights
            return own
        source_ct = source.meta(source.best_step).ct
    if _window(source_ct) != _window(data.ct) and parallel.is_first_host():
        print(
            f"note: --config.init.weights={config.init.weights} was trained on pictures of another "
            f"window than {data.name}, so whether it knows persons of the validation and test "
            "splits cannot be checked.",
            file=sys.stderr,
        )
    for split, digests in (("validation", earlier.trained), ("test", earlier.all)):
        known = data.digests.known(digests, data.persons[split])
        if known:
            raise InputError(
                f"--config.init.weights={config.init.weights} was trained on pictures of "
                f"{len(known)} persons of the {split} split of {data.name}, who can then not tell "
                f"how good the model is: {named_persons(known)}; put these persons into the "
                "training split of the cohort, or remove them, or start from other weights."
            )
    return earlier | own


def _window(ct: CtSettings) -> tuple[float, float]:
    """The settings by which the grey values that are digested were made."""
    return ct.window_level_hu, ct.window_width_hu
