"""A trained model with the settings of its checkpoint, as predict, serve and the node use it.

Arrays only: `pipeline` reads a patient's files, `evaluator` a prepared split.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import ValidationRecord, apply_temperature
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.models.checkpoint_metadata import Meta

if TYPE_CHECKING:
    from drenet_jax.models.build import Model
    from drenet_jax.models.checkpoints import Checkpoints, PyTree
    from drenet_jax.models.slice_scorer import SliceScorer


@runtime_checkable
class Scorer(Protocol):
    """A forward pass over slices; see `SliceScorer` for results.

    Attributes:
      batch_size: slices in a pass.
      runtime: its name and version.
    """

    batch_size: int
    runtime: str

    def compile(self) -> None: ...

    def __call__(self, variables: Any, images: np.ndarray) -> dict[str, np.ndarray]: ...

    def padded(
        self, variables: Any, batches: Iterable[np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]: ...


class Predictor:
    """A trained model with all that it needs to know: labels, settings, weights.

    Attributes:
      meta: of the checkpoint.
      identity: the part `model` of `result.json`.
      scorer: the forward pass.
      variables: the weights that it takes, replicated over the devices.
      temperature: by which `slices` divides the logits before the softmax, or None.
      rule: aggregates the slices' probabilities and decides the person's label.
      validation_record: the results on the validation persons, or None.
    """

    def __init__(
        self,
        meta: Meta,
        step: int,
        workdir: Path,
        scorer: Scorer,
        variables: Any,
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
        self.variables = variables

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
          aggregate: how the slices' probabilities are aggregated (`aggregates.AGGREGATES`); None:
            likewise.

        Raises:
          InputError: `workdir` holds no usable checkpoint, or none with a temperature; or the
            threshold or the aggregate does not fit its labels.
        """
        # Imported here: an exported model is used without JAX and Orbax.
        from drenet_jax import parallel
        from drenet_jax.models.build import build_model
        from drenet_jax.models.checkpoints import Checkpoints
        from drenet_jax.models.slice_scorer import SliceScorer

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
            weights = _weights(checkpoints, step, model, scorer)
            variables = parallel.put_on_devices(weights)
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
    from drenet_jax.models.build import variable_shapes

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
