"""The forward pass over slices, compiled for one batch size: what a trained model gives of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.models.build import Model
from drenet_jax.models.grad_cam import grad_cam
from drenet_jax.models.model_outputs import Outputs


class SliceScorer:
    """A model on all local devices of this host, compiled for one batch size."""

    runtime = f"jax {jax.__version__}"

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

    def trace(self, shapes: dict[str, Any]) -> None:
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
        self, variables: dict[str, Any], images: UInt8[np.ndarray, "slices size size"]
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
        self, variables: dict[str, Any], batches: Iterable[np.ndarray]
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


def make_forward(model: Model, *, heat_maps: bool) -> Callable[..., dict[str, jax.Array]]:
    """For one device: what `SliceScorer` returns of uint8 images [b, S, S]."""

    def forward(variables: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
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
