"""How figures are computed: the part of a config's `evaluation` block that they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from drenet_jax.errors import InputError
from drenet_jax.evaluation.aggregate import AGGREGATES


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics, of their intervals and of the tests between runs.

    The defaults are for runs older than a setting: those are evaluated as they would have been in
    their time. New runs have all of them from `configs/drenet.py`.

    Attributes:
      threshold: a case is positive from this probability of the positive class on.
      aggregate: how a person's probabilities are made of the slices' (`aggregate.AGGREGATES`).
      specificities: the recall is told at each of them; shares, above 0 and below 1.
      calibration_bins: bins of equal width for the calibration error and the reliability diagram.
      bootstrap_draws: bootstrap samples of persons.
      bootstrap_seed: of the draws.
    """

    threshold: float = 0.5
    aggregate: str = "mean"
    specificities: tuple[float, ...] = (0.80, 0.90, 0.95)
    calibration_bins: int = 10
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0

    @classmethod
    def from_config(cls, evaluation: Mapping) -> MetricSettings:
        """Reads `config.evaluation`.

        Raises:
          InputError: a value cannot be used; the message names the field.
        """
        given = {
            field.name: evaluation[field.name]
            for field in dataclasses.fields(cls)
            if field.name in evaluation
        }
        if "specificities" in given:
            given["specificities"] = tuple(given["specificities"])
        settings = cls(**given)
        for name, mend, ok in (
            ("threshold", "between 0 and 1", 0 < settings.threshold < 1),
            (
                "aggregate",
                f"one of {', '.join(AGGREGATES)}",
                settings.aggregate in AGGREGATES,
            ),
            (
                "specificities",
                "different shares, above 0 and below 1",
                all(0 < one < 1 for one in settings.specificities)
                and len(set(settings.specificities)) == len(settings.specificities),
            ),
            ("calibration_bins", "1 or more", settings.calibration_bins >= 1),
            ("bootstrap_draws", "1 or more", settings.bootstrap_draws >= 1),
            ("bootstrap_seed", "0 or more", settings.bootstrap_seed >= 0),
        ):
            if not ok:
                raise InputError(
                    f"--config.evaluation.{name}={getattr(settings, name)} must be {mend}."
                )
        return settings
