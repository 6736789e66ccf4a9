"""What is stored beside the weights of a checkpoint: how to use them, and which slices they saw."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from drenet_jax.ct.settings import CtSettings

# Raised whenever the names or shapes of what is saved change.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Meta:
    """What must be known of weights to use them.

    Attributes:
      config: the training configuration.
      labels: names of the classes, in order.
      ct: the settings of the image side; a new person is prepared in the same way.
      fill_seed: of the data set's fill.
      data_fingerprint: of the data set (`records.PreparedData`): which persons are in which split.
      version: of drenet_jax.
      trained_on: {"splits": {"train": {label: persons}, "validation": likewise}, "sites": [...]};
        None of weights that no run of ours made.
    """

    config: ml_collections.ConfigDict
    labels: tuple[str, ...]
    ct: CtSettings
    fill_seed: int
    data_fingerprint: str
    version: str
    trained_on: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": json.loads(self.config.to_json()),
            "labels": list(self.labels),
            "ct": self.ct.to_dict(),
            "fill_seed": self.fill_seed,
            "data_fingerprint": self.data_fingerprint,
            "version": self.version,
            "trained_on": self.trained_on,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Meta:
        return cls(
            config=ml_collections.ConfigDict(values["config"]),
            labels=tuple(values["labels"]),
            ct=CtSettings.from_dict(values["ct"]),
            fill_seed=values["fill_seed"],
            data_fingerprint=values["data_fingerprint"],
            version=values["version"],
            trained_on=values["trained_on"],
        )


@dataclasses.dataclass(frozen=True)
class BackboneMeta:
    """What must be known of weights of some parts of a model, from which training can start.

    Attributes:
      architecture: of the backbone.
      width: channels of the backbone's first stage.
      parts: names of the parts among a model's parameters, such as `backbone`.
      source: the name of the file from which they were converted.
      version: of drenet_jax.
    """

    architecture: str
    width: int
    parts: tuple[str, ...]
    source: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self), "parts": list(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneMeta:
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"parts": tuple(values["parts"])})


@dataclasses.dataclass(frozen=True, eq=False)
class KnownSlices:
    """Digests of the slices that weights know, those of earlier runs that they come from too.

    Attributes:
      trained: uint64 [N], of the slices that they were trained on, ascending.
      chosen: uint64 [N], of the slices by which they were chosen (validation), ascending.
    """

    trained: np.ndarray
    chosen: np.ndarray

    @classmethod
    def none(cls) -> KnownSlices:
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    @property
    def all(self) -> np.ndarray:
        return np.union1d(self.trained, self.chosen)

    def __or__(self, other: KnownSlices) -> KnownSlices:
        return KnownSlices(
            np.union1d(self.trained, other.trained), np.union1d(self.chosen, other.chosen)
        )
