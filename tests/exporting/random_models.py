"""Models with random weights whose batch norms have no special values, and slices for them."""

from __future__ import annotations

import jax
import numpy as np

from drenet_jax.models.build import init_variables


def random_variables(model, seed: int = 0) -> dict:
    """First weights, and batch norms of no special values."""
    variables = init_variables(model, seed)
    rng = np.random.default_rng(seed)

    def changed(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name in ("bias", "mean"):
            return rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return np.asarray(leaf)

    return jax.tree_util.tree_map_with_path(changed, variables)


def smooth_slices(n: int, size_px: int) -> np.ndarray:
    """Smooth random images, uint8 [n, size_px, size_px]."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (n, size_px // 8, size_px // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
