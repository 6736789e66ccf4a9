"""A picture of slices as the preset `strong` augments them, black around the lungs and filled.

    python -m studies.augmentation --data=demo/data --out=docs/augmentation.png

`--data` is what `prepare` wrote, of phantoms: the picture in the documentation shows no patient.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from drenet_jax.configs import drenet
from drenet_jax.data.batches import split_batches
from drenet_jax.data.prepared_data import open_data
from drenet_jax.training.augment import Augmentation, augment

# A row of the picture: the slice as it is, and so many augmented ones.
_AUGMENTED = 5
_TILE_PX = 96
_GAP_PX = 4


def picture(data: Path) -> np.ndarray:
    """A uint8 grid: a row for each of two slices and each fill, the unchanged slice first."""
    opened = open_data(data)
    rows = []
    for fill in ("never", "always"):
        config = drenet.get_config("strong")
        config.data.fill = fill
        apply = jax.jit(functools.partial(augment, settings=Augmentation.from_config(config)))
        batch = next(split_batches(opened, "train", batch_size=40, fill=fill))["image"]
        for row, image in enumerate(batch[[0, -1]] / np.float32(255)):
            keys = jax.random.split(jax.random.key(row), _AUGMENTED)
            same = jnp.broadcast_to(image, (_AUGMENTED, *image.shape))
            rows.append([image, *np.asarray(apply(same, keys))])
    tiles = [[_tile(image) for image in row] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in tiles])


def _tile(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA)
    return np.pad((small * 255).round().astype(np.uint8), _GAP_PX // 2, constant_values=255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    arguments = parser.parse_args()
    cv2.imwrite(str(arguments.out), picture(arguments.data), [cv2.IMWRITE_PNG_COMPRESSION, 9])
