"""A trained model with its settings: scores slices and decides a person's label. Arrays only."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import ValidationRecord, apply_temperature
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.evaluation.scoring import SliceScorer
from drenet_jax.models.build import Model, build_model, variable_shapes
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints, PyTree


class Predictor:
    """A trained model with all that it needs to know: labels, settings, weights.

    Attributes:
      meta: of the checkpoint.
      identity: the part `model` of `result.json`.
      scorer: the compiled forward pass.
      variables: the weights, replicated over the devices.
      temperature: by which `slices` divides the logits before the softmax, or None.
      rule: aggregates the slices' probabilities and decides the person's label.
      validation_record: the results on the validation persons, or None.
    """

    def __init__(
        self,
        meta: Meta,
        step: int,
        workdir: Path,
        scorer: SliceScorer,
        variables: Mapping[str, PyTree],
        temperature: float | None = None,
        validation_record: ValidationRecord | None = None,
        rule: DecisionRule | None = None,
    ) -> None:
        """See `load`; without a `rule` it is that of the checkpoint's config."""
        self.meta = meta
        self.rule = rule or DecisionRule.of(meta.labels, meta.config.evaluation)
        self.identity = {
            "name": meta.config.model.name,
            "workdir": str(workdir),
            "step": step,
            "labels": list(meta.labels),
            "ct": meta.ct.to_dict(),
            "version": meta.version,
            "temperature": 1.0 if temperature is None else temperature,
            "trained_on": meta.trained_on,
        }
        self.temperature = temperature
        self.validation_record = validation_record
        self.scorer = scorer
        self.variables = parallel.put_on_devices(variables)

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike[str],
        *,
        calibrated: bool = False,
        latest: bool = False,
        threshold: float | None = None,
        aggregate: str | None = None,
    ) -> Predictor:
        """The best checkpoint of `workdir`.

        Args:
          workdir: of the run.
          calibrated: use the temperature fitted on the validation slices.
          latest: the latest checkpoint instead, which no validation has selected.
          threshold: of two labels, a person gets the positive one from this probability on; None:
            as in the config of the run.
          aggregate: how the slices' probabilities are aggregated (`predictions.AGGREGATES`); None:
            likewise.

        Raises:
          InputError: `workdir` holds no usable checkpoint, or none with a temperature; or the
            threshold or the aggregate does not fit its labels.
        """
        with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
            step = checkpoints.latest_step if latest else checkpoints.best_step
            assert step is not None  # `Checkpoints.of` refuses a workdir without any
            meta = checkpoints.meta(step)
            rule = DecisionRule.of(
                meta.labels, meta.config.evaluation, threshold=threshold, aggregate=aggregate
            )
            model = build_model(meta.config, len(meta.labels))
            batch_size = parallel.best_batch_size(meta.config.evaluation.batch_size)
            scorer = SliceScorer(model, batch_size, heat_maps=True)
            variables = _weights(checkpoints, step, model, scorer)
            temperature = _temperature(checkpoints, step, workdir) if calibrated else None
            validation = checkpoints.validation(step)
        record = None if validation is None else ValidationRecord.from_dict(validation)
        return cls(meta, step, Path(workdir), scorer, variables, temperature, record, rule)

    def slices(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Scores prepared slices.

        Args:
          images: uint8 [N, S, S], lung crops of the model's input size, masked (or filled, if
            `data.fill` is "always").

        Returns:
          probabilities (calibrated, if asked for), logits, raw_logits [N, C]; boxes [N, K, 4]
          (y0, x0, y1, x1 in pixels of the model's input, half open, best first); scores [N, K], the
          proposal logits; part_probabilities [N, K, C], what each box alone predicts; heat_maps
          [N, C, h, w], Grad-CAM of each class over the input, at least 0, not scaled;
          crop_heat_maps [N, C, K, h', w'], the same over each box.

        Raises:
          InputError: the images have another type or size.
        """
        size = self.meta.ct.image_size_px
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
            raise InputError(
                f"the images are {images.dtype} {list(images.shape)}; "
                f"this model takes uint8 [N, {size}, {size}]."
            )
        if not len(images):
            raise InputError("there are no images; give at least one.")
        scored = self.scorer(self.variables, images)
        if self.temperature is not None:
            scored["probabilities"] = apply_temperature(scored["logits"], self.temperature)
        return scored


def _weights(checkpoints: Checkpoints, step: int, model: Model, scorer: SliceScorer) -> PyTree:
    """The weights of a checkpoint, read while the scorer is traced, which shows that they fit."""
    shapes = checkpoints.weight_shapes(step)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        weights = pool.submit(checkpoints.weights, step, shapes)
        try:
            scorer.trace(shapes)
        except Exception:
            # Only now: the model's own shapes take as long as the scorer's trace.
            checkpoints.check_weights(step, variable_shapes(model))
            raise
        return weights.result()


def _temperature(checkpoints: Checkpoints, step: int, workdir: str | os.PathLike[str]) -> float:
    """The temperature that training fitted on the validation slices."""
    temperature = checkpoints.metrics(step).get("temperature")
    if temperature is None:
        raise InputError(
            f"--calibrated: the checkpoint of {workdir} has no temperature (no validation slices, "
            "none that suits them, or a run of an older version); leave the flag out."
        )
    return temperature
