"""A trained model applied to slices, as validation, evaluate, predict and serve share it.

`SliceScorer` is the compiled forward pass; a `Predictor` has it with the settings and weights of a
checkpoint. Arrays only: `pipeline` reads a patient's files, `evaluator` a prepared split.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import ValidationRecord, apply_temperature
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.models.build import Model, build_model, variable_shapes
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints, PyTree
from drenet_jax.models.grad_cam import grad_cam
from drenet_jax.models.model_outputs import Outputs


class SliceScorer:
    """A model on all local devices of this host, compiled for one batch size."""

    def __init__(self, model: Model, batch_size: int, *, heat_maps: bool = False):
        """Prepares the forward pass; it is compiled at the first call.

        Args:
          model: the network.
          batch_size: slices in a forward pass, over all local devices; rounded up to a multiple of
            their number.
          heat_maps: whether to compute Grad-CAM too.
        """
        self.batch_size = parallel.round_up_to_devices(batch_size)
        self._image_size_px = model.image_size_px
        self._forward = parallel.map_over_devices(make_forward(model, heat_maps=heat_maps))
        self._lowered = None

    def trace(self, shapes: dict) -> None:
        """Traces the forward pass, so that `compile` has only XLA's part to do.

        Args:
          shapes: of the weights of the calls to come, on one device.

        Raises:
          Exception: of many kinds, if the model has other weights.
        """
        images = np.zeros((self.batch_size, *(self._image_size_px,) * 2), np.uint8)
        self._lowered = self._forward.lower(  # type: ignore[attr-defined]
            parallel.replicated_shapes(shapes), parallel.shard(images)
        )

    def compile(self) -> None:
        """Compiles what `trace` has traced, if it is not compiled, without running it."""
        if self._lowered is not None:
            self._forward, self._lowered = self._lowered.compile(), None

    def __call__(
        self, variables: dict, images: UInt8[np.ndarray, "slices size size"]
    ) -> dict[str, np.ndarray]:
        """Scores slices, each exactly once, whatever the number of devices.

        Args:
          variables: `params` and `batch_stats`, replicated over the devices.
          images: prepared slices, at least one.

        Returns:
          probabilities, logits, raw_logits: [N, C].
          boxes: [N, K, 4], y0, x0, y1, x1 in pixels of the input, half open, best first.
          scores: [N, K], the proposal logits.
          part_probabilities: [N, K, C], the prediction from each box alone.
          heat_maps: [N, C, h, w], Grad-CAM of each class over the input, at least 0, not scaled,
            and crop_heat_maps: [N, C, K, h', w'], over each box; only with `heat_maps`.

        Raises:
          InputError: a result is not finite, or the batch does not fit the memory.
        """
        batches = (
            images[start : start + self.batch_size]
            for start in range(0, len(images), self.batch_size)
        )
        parts = list(self.padded(variables, batches))
        outputs = {
            name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]
        }
        check_finite(outputs["logits"])
        return outputs

    def padded(
        self, variables: dict, batches: Iterable[np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Scores batches and the black images that fill them up; with several hosts, all call it.

        The next batch is dispatched before the results of the current one are fetched.

        Args:
          variables: as above.
          batches: each uint8 [n, S, S], n from 0 to `batch_size`.

        Yields:
          as above for each batch, with `batch_size` rows of which the first n count; they may not
          be finite.
        """
        pending = None
        with parallel.translate_out_of_memory(
            f"--config.evaluation.batch_size={self.batch_size} slices do not fit the memory; "
            "train with a smaller one (it may change when a run goes on)"
        ):
            self.compile()
            for images in batches:
                padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
                padded[: len(images)] = images
                scored = self._forward(variables, parallel.shard_on_devices(padded))
                if pending is not None:
                    yield parallel.unshard(pending)
                pending = scored
            if pending is not None:
                yield parallel.unshard(pending)


def check_finite(logits: np.ndarray) -> None:
    """Raises InputError unless all are finite."""
    if not np.isfinite(logits).all():
        raise InputError(
            "the model's output is not finite; use an earlier checkpoint, or lower "
            "--config.optimizer.learning_rate."
        )


def make_forward(model: Model, *, heat_maps: bool) -> Callable:
    """For one device: what `SliceScorer` returns of uint8 images [b, S, S]."""

    def forward(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        pixels = images.astype(jnp.float32) / 255
        maps = {}
        if heat_maps:
            outputs, heat = grad_cam(model, variables, pixels)
            maps = {"heat_maps": heat.image, "crop_heat_maps": heat.crops}
        else:
            outputs = cast(Outputs, model.apply(variables, pixels, train=False))
        return maps | {
            "probabilities": jax.nn.softmax(outputs.logits),
            "logits": outputs.logits,
            "raw_logits": outputs.raw_logits,
            "boxes": outputs.boxes,
            "scores": outputs.scores,
            "part_probabilities": jax.nn.softmax(outputs.part_logits),
        }

    return forward


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
          images: uint8 [N, S, S], lung crops of the model's input size: as they are if `data.fill`
            of its config is "none", filled if it is "always", else black outside the lungs.

        Returns:
          as `SliceScorer`, with heat maps; probabilities at the temperature, if there is one.

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
            "or no temperature that fits them); leave the flag out."
        )
    return temperature
