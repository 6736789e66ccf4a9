"""Features of a network that has never seen a CT: EfficientNet-Lite0, trained on ImageNet."""

from __future__ import annotations

from typing import cast

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from drenet_jax.errors import InputError
from drenet_jax.models.backbones.backbone import Features
from drenet_jax.models.backbones.efficientnet_lite import EfficientNetLite
from drenet_jax.models.imagenet import imagenet_variables
from drenet_jax.models.model_outputs import normalise

_ARCHITECTURE = "efficientnet_lite0"


class FrozenFeatures:
    """The network's pooled features, by the weights of the extra `pretrained`."""

    def __init__(self, size_px: int, batch_size: int):
        """Reads the weights.

        Args:
          size_px: height and width to which images are resized.
          batch_size: images in a forward pass.

        Raises:
          InputError: the weights are not installed.
        """
        try:
            self._variables = imagenet_variables(_ARCHITECTURE)
        except InputError as error:
            raise InputError(f"the controls need ImageNet weights: {error}") from error
        self._size_px, self._batch_size = size_px, batch_size
        network = EfficientNetLite(
            architecture=_ARCHITECTURE,
            width=EfficientNetLite.published_width,
            dtype=jnp.float32,
        )

        def forward(variables: dict, images: jax.Array) -> jax.Array:
            pixels = normalise(images.astype(jnp.float32) / 255)
            return cast(Features, network.apply(variables, pixels, False))[1]

        self._forward = jax.jit(forward)

    def __call__(
        self, images: UInt8[np.ndarray, "slices size size"]
    ) -> Float[np.ndarray, "slices features"]:
        """The features of images of any number and size."""
        size = (self._size_px, self._size_px)
        shrinks = images.shape[1] >= self._size_px
        kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        # Always as many, so that one program is compiled.
        padded = np.zeros((-(-len(images) // self._batch_size) * self._batch_size, *size), np.uint8)
        for image, place in zip(images, padded, strict=False):
            place[:] = cv2.resize(image, size, interpolation=kind)
        parts = [
            np.asarray(self._forward(self._variables, padded[start : start + self._batch_size]))
            for start in range(0, len(padded), self._batch_size)
        ]
        return np.concatenate(parts)[: len(images)].astype(np.float64)
