"""From a person's files to lung crops: the one path that prepare, predict and serve share."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from drenet_jax.ct import lungs, slices
from drenet_jax.ct.fill import fill_blank
from drenet_jax.ct.series import Excluded, Series, UnreadableSlice, open_series, printable
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.window import window
from drenet_jax.errors import InputError

# A person's largest lung area over the picture's is 0.2 to 0.6; 0.04 in the widest field of view.
_LEAST_LUNG_SHARE = 0.04


@dataclasses.dataclass(frozen=True, eq=False)
class PickedSlice:
    """One picked slice of a person, kept or not.

    Attributes:
      index: its place in the ordered series (in the list of paths for single images).
      name: its file name, relative to the series' folder.
      source: uint8 [H, W], the original slice, lung-windowed.
      source_mask: bool [H, W], the lungs; all False if none were found.
      source_box: the lungs' box (y0, x0, y1, x1) in pixels of the source, half open, or None.
      image: uint8 [S, S], the lungs' box resized, neither masked nor filled, or None.
      lung_mask: bool [S, S], the lungs in `image`, or None.
      why_excluded: '' if the slice is kept.
    """

    index: int
    name: str
    source: np.ndarray
    source_mask: np.ndarray
    source_box: tuple[int, int, int, int] | None
    image: np.ndarray | None
    lung_mask: np.ndarray | None
    why_excluded: str

    @property
    def kept(self) -> bool:
        return not self.why_excluded

    @property
    def masked(self) -> np.ndarray:
        """uint8 [S, S]: the crop with 0 outside the lungs. For slices with lungs only."""
        assert self.image is not None
        assert self.lung_mask is not None
        return np.where(self.lung_mask, self.image, np.uint8(0))


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedPerson:
    """What became of a person's files.

    Attributes:
      picked: the picked slices in order, kept or not.
      excluded: files that are no slices of the series, and picked slices that were not kept.
      n_slices: how many slices the series has (how many single images were given).
    """

    picked: tuple[PickedSlice, ...]
    excluded: tuple[Excluded, ...]
    n_slices: int

    @property
    def kept(self) -> tuple[PickedSlice, ...]:
        return tuple(one for one in self.picked if one.kept)


def prepare_person(paths: Sequence[Path], settings: CtSettings) -> PreparedPerson:
    """Picks a person's slices, finds the lungs in them and crops to the lungs (paper 2.2.1).

    One path to a folder is a series: `settings.slices_per_person` slices are picked, and those are
    kept whose lung area is at least `settings.min_area_share` of the largest among them. Several
    paths, or one to a file, are single images: all in which lungs are found are kept (DESIGN 3.1).
    A slice that cannot be decoded is excluded, and the rest goes on; a person may end with nothing
    kept.

    Args:
      paths: a folder, or one or more single slices; at least one.
      settings: how slices are picked and cropped.

    Raises:
      InputError: a path does not exist; the only path holds no CT slice; a folder among several
        paths; pictures of different sizes in one folder.
    """
    assert paths
    paths = [Path(path) for path in paths]
    if len(paths) == 1 and paths[0].is_dir():
        return _prepare_series(open_series(paths[0]), settings)
    for path in paths:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder beside other paths of the same person; "
                "give a person one folder, or single slices only."
            )
    return _prepare_single_images(paths, settings)


def filled(picked: PickedSlice, settings: CtSettings, seed: int) -> np.ndarray:
    """The crop with its blank filled, the same in every run for the same arguments.

    Args:
      picked: a slice in which lungs were found.
      settings: how many copies fill the blank.
      seed: the seed of the data set. Chance depends on it and on the picture, not on names, so a
        slice is filled alike in a data set and in a prediction.

    Returns:
      uint8 [S, S].
    """
    assert picked.image is not None
    assert picked.lung_mask is not None
    # Python's hash() differs between processes.
    picture = hashlib.sha256(picked.masked.tobytes()).digest()
    entropy = (seed, int.from_bytes(picture[:8], "little"))
    return fill_blank(picked.image, picked.lung_mask, settings.fill_copies, entropy)


def _prepare_series(series: Series, settings: CtSettings) -> PreparedPerson:
    excluded = list(series.excluded)
    indices, images = [], []
    for index in slices.pick(len(series.names), settings.slices_per_person):
        name = series.names[index]
        try:
            image = series.read(index)
        except UnreadableSlice as error:
            excluded.append(Excluded(name, error.why))
            continue
        if images and image.shape != images[0].shape:
            raise InputError(
                f"{series.path} holds pictures of different sizes ({series.names[indices[0]]} and "
                f"{name}), so they are no series; give them as single images, each in a row."
            )
        indices.append(index)
        images.append(image)
    masks = lungs.find_lungs_in_series(images, from_feet=series.is_hu)
    found = [
        _Found(index, series.names[index], _windowed(image, settings), mask)
        for index, image, mask in zip(indices, images, masks, strict=True)
    ]
    return _person(found, excluded, len(series.names), settings.min_area_share, settings)


def _prepare_single_images(paths: Sequence[Path], settings: CtSettings) -> PreparedPerson:
    excluded, found = [], []
    above = os.path.commonpath([path.parent for path in paths])
    for index, path in enumerate(paths):
        name = printable(os.path.relpath(path, above))
        try:
            image = open_series(path).read(0)
        except UnreadableSlice as error:
            if len(paths) == 1:
                raise
            excluded.append(Excluded(name, error.why))
            continue
        mask = lungs.find_lungs(image)
        found.append(_Found(index, name, _windowed(image, settings), mask))
    return _person(found, excluded, len(paths), 0.0, settings)


class _Found(NamedTuple):
    index: int
    name: str
    source: np.ndarray
    mask: np.ndarray


def _windowed(image: np.ndarray, settings: CtSettings) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return window(image, settings.window_level_hu, settings.window_width_hu)


def _person(
    found: Sequence[_Found],
    excluded: Sequence[Excluded],
    n_slices: int,
    min_area_share: float,
    settings: CtSettings,
) -> PreparedPerson:
    # In a chest some slice is full of lung; what is found elsewhere is gas in gut or sinuses.
    is_chest = any(one.mask.mean() > _LEAST_LUNG_SHARE for one in found)
    areas = [int(one.mask.sum()) if is_chest else 0 for one in found]
    largest = max(areas, default=0)
    picked = []
    for one, area in zip(found, areas, strict=True):
        why = ""
        if area == 0:
            one = one._replace(mask=np.zeros_like(one.mask))
            why = "no lungs found"
        elif area < min_area_share * largest:
            why = (
                f"small lung area: {area / largest:.1%} of the person's largest, "
                f"below {min_area_share:.0%}"
            )
        picked.append(_crop(one, why, settings.image_size_px))
    not_kept = [Excluded(one.name, one.why_excluded) for one in picked if not one.kept]
    return PreparedPerson(tuple(picked), (*excluded, *not_kept), n_slices)


def _crop(found: _Found, why: str, size_px: int) -> PickedSlice:
    index, name, source, mask = found
    if not mask.any():
        return PickedSlice(index, name, source, mask, None, None, None, why)
    x0, y0, width, height = cv2.boundingRect(mask.view(np.uint8))
    y1, x1 = y0 + height, x0 + width
    shrinks = height >= size_px and width >= size_px
    image = cv2.resize(
        source[y0:y1, x0:x1],
        (size_px, size_px),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    lung_mask = cv2.resize(mask[y0:y1, x0:x1] * np.uint8(255), (size_px, size_px)) >= 128
    return PickedSlice(index, name, source, mask, (y0, x0, y1, x1), image, lung_mask, why)
