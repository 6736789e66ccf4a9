"""Overlays of a slice: the Grad-CAM heat map, the lungs' crop and the lesion boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int16, UInt8

from drenet_jax.ct.orientation import Box

# Paper, Fig. 3: boxes "with normalized predicted scores above 0.8" are shown.
LESION_BOX_MIN_PROBABILITY = 0.8

# Default opacity of the heat map: the slice must stay visible.
HEAT_OPACITY = 0.45

# Least shorter side and greatest longer side of an enlarged slice.
_MIN_PICTURE_PX = 512
_MAX_PICTURE_PX = 2048

# Longer side of an enlarged crop.
_CROP_PICTURE_PX = 192

# RGBA. Light red with a dark edge is visible on lung, bone and every colour of the heat map, to the
# colour-blind too; white text is readable on the darker red only.
_BOX_COLOUR = (255, 40, 40, 255)
_BOX_EDGE_COLOUR = (0, 0, 0, 150)
_PLATE_COLOUR = (200, 30, 30, 255)
_TEXT_COLOUR = (255, 255, 255, 255)
_CROP_COLOUR = (170, 170, 170, 255)


class ScoredBox(NamedTuple):
    """A crop of the model in pixels of a slice, half open.

    Attributes:
      y0, x0, y1, x1: its edges.
      probability: of the predicted label, from this crop alone.
    """

    y0: float
    x0: float
    y1: float
    x1: float
    probability: float

    @property
    def edges(self) -> Box:
        return self[:4]

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x)."""
        return (self.y0 + self.y1) / 2, (self.x0 + self.x1) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class SlicePicture:
    """A slice as a patient's report shows it.

    Attributes:
      index: its number in the series, or along the slice axis of a volume as stored, from 0.
      name: its file.
      source: the slice in the lung window, in canonical orientation.
      source_box: (y0, x0, y1, x1) of the lungs' crop, in pixels of `source`, ends outside.
      probabilities: label to probability.
      boxes: the crops, in pixels of `source`.
      heat_map: Grad-CAM of the predicted label over the lung crop, 0 or more; None if not
        computed.
      crop_heat_maps: the same over each of `boxes`; None if not computed.
      hu: `source` in HU; None if not requested, or if the file is a picture in a window.
      pixel_aspect: height of a pixel of `source` over its width.
    """

    index: int
    name: str
    source: UInt8[np.ndarray, "height width"]
    source_box: Box
    probabilities: Mapping[str, float]
    boxes: Sequence[ScoredBox]
    heat_map: Float[np.ndarray, "rows columns"] | None = None
    crop_heat_maps: Float[np.ndarray, "boxes crop_rows crop_columns"] | None = None
    hu: Int16[np.ndarray, "height width"] | None = None
    pixel_aspect: float = 1.0

    @property
    def lesion_boxes(self) -> list[ScoredBox]:
        """The boxes above `LESION_BOX_MIN_PROBABILITY`, highest probability first."""
        passed = [box for box in self.boxes if box.probability > LESION_BOX_MIN_PROBABILITY]
        return sorted(passed, key=lambda box: -box.probability)

    @property
    def peak_location(self) -> tuple[float, float] | None:
        """(y, x) in pixels of `source`, the centre of the heat map's maximum; None without heat."""
        if self.heat_map is None or not self.heat_map.max() > 0:
            return None
        height, width = self.heat_map.shape
        row, column = divmod(int(self.heat_map.argmax()), width)
        y0, x0, y1, x1 = self.source_box
        return y0 + (row + 0.5) / height * (y1 - y0), x0 + (column + 0.5) / width * (x1 - x0)


@dataclasses.dataclass(frozen=True, eq=False)
class LeftOutSlice:
    """A sampled slice that was not kept.

    Attributes:
      index: its number in the series, or along the slice axis of a volume as stored, from 0.
      name: its file.
      source: the slice in the lung window, in canonical orientation.
      why: the reason.
    """

    index: int
    name: str
    source: UInt8[np.ndarray, "height width"]
    why: str


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """Image layers of one size.

    Attributes:
      slice: grey.
      heat: red, green, blue and opacity; None without any heat.
      marks: likewise, the lung crop (grey), the lesion boxes (red), their probabilities.
    """

    slice: UInt8[np.ndarray, "height width"]
    heat: UInt8[np.ndarray, "height width 4"] | None
    marks: UInt8[np.ndarray, "height width 4"]


def layers(picture: SlicePicture) -> Layers:
    """The slice, enlarged if it is small, and its overlays."""
    source = picture.source
    assert source.ndim == 2, source.shape
    assert source.dtype == np.uint8, source.dtype
    short_px, long_px = min(source.shape), max(source.shape)
    scale = min(max(1.0, _MIN_PICTURE_PX / short_px), _MAX_PICTURE_PX / long_px)
    shape = tuple(max(1, round(side * scale)) for side in source.shape)
    enlarged = cv2.resize(
        source, shape[::-1], interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    # Rounding to whole pixels may scale the two sides a little differently.
    by = np.array(shape) / source.shape
    return Layers(enlarged, _heat_over_slice(picture, shape, by), _marks(picture, shape, by))


def crop_layers(picture: SlicePicture, k: int) -> Layers:
    """The crop at `picture.boxes[k]`, enlarged, with its heat map; no marks."""
    y0, x0, y1, x1 = picture.boxes[k].edges
    scale = _CROP_PICTURE_PX / max(y1 - y0, x1 - x0, 1.0)
    height, width = (max(1, round(side * scale)) for side in (y1 - y0, x1 - x0))
    rows, columns = (np.arange(n) + 0.5 for n in (height, width))
    cut = _interpolated(
        picture.source.astype(np.float32),
        y0 + rows * (y1 - y0) / height,
        x0 + columns * (x1 - x0) / width,
    )
    heat = None
    if picture.crop_heat_maps is not None and picture.crop_heat_maps[k].max() > 0:
        heat_map = picture.crop_heat_maps[k] / picture.crop_heat_maps[k].max()
        n_rows, n_columns = heat_map.shape
        heat = _coloured(
            _interpolated(heat_map, rows * n_rows / height, columns * n_columns / width)
        )
    return Layers(np.rint(cut).astype(np.uint8), heat, np.zeros((height, width, 4), np.uint8))


def composite(layers: Layers, heat_opacity: float) -> UInt8[np.ndarray, "height width 3"]:
    """Alpha-blends the layers to red, green and blue.

    Args:
      layers: from `layers`.
      heat_opacity: from 0 (no heat map) to 1 (opaque at its maximum).
    """
    canvas = np.repeat(layers.slice[..., None], 3, axis=2).astype(np.float32)
    for layer, opacity in ((layers.heat, heat_opacity), (layers.marks, 1.0)):
        if layer is not None:
            share = layer[..., 3:].astype(np.float32) * (opacity / 255)
            canvas += share * (layer[..., :3] - canvas)
    return np.rint(canvas).astype(np.uint8)


def heat_scale(shape: tuple[int, int]) -> UInt8[np.ndarray, "height width 4"]:
    """The colours of the heat map, with opacity, from none at the left to its maximum."""
    return _coloured(np.tile(np.linspace(0, 1, shape[1]), (shape[0], 1)))


def _heat_over_slice(
    picture: SlicePicture, shape: tuple[int, int], by: np.ndarray
) -> np.ndarray | None:
    if picture.peak_location is None:
        return None
    y0, x0, y1, x1 = picture.source_box
    heat_map = picture.heat_map
    assert heat_map is not None
    heat_map = heat_map / heat_map.max()
    # Where each pixel's centre lies in the heat map, in its cells.
    rows = ((np.arange(shape[0]) + 0.5) / by[0] - y0) / (y1 - y0) * heat_map.shape[0]
    columns = ((np.arange(shape[1]) + 0.5) / by[1] - x0) / (x1 - x0) * heat_map.shape[1]
    heat = _interpolated(heat_map, rows, columns)
    heat[(rows < 0) | (rows >= heat_map.shape[0])] = 0
    heat[:, (columns < 0) | (columns >= heat_map.shape[1])] = 0
    return _coloured(heat)


def _interpolated(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples [H, W] of `values` [h, w], whose entry [i, j] lies at (i + 0.5, j + 0.5).

    OpenCV's warps round coordinates to 1/32 of a cell, which shows where a cell is 30 pixels wide.
    """
    by_row, by_column = (
        np.maximum(0, 1 - np.abs(np.clip(at - 0.5, 0, n - 1)[:, None] - np.arange(n)))
        for at, n in zip((rows, columns), values.shape, strict=True)
    )
    return by_row @ values @ by_column.T


def _coloured(heat: np.ndarray) -> np.ndarray:
    """Heat from 0 to 1 as [H, W, 4] uint8: viridis, whose opacity is the heat.

    Viridis is readable for the colour-blind, and has no red, which is the boxes'.
    """
    opacity = np.rint(255 * heat).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(opacity, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    colours[opacity == 0] = 0
    return np.dstack((colours, opacity))


def _marks(picture: SlicePicture, shape: tuple[int, int], by: np.ndarray) -> np.ndarray:
    marks = np.zeros((*shape, 4), np.uint8)
    line_px = max(2, round(2 * min(shape) / _MIN_PICTURE_PX))
    _draw_frame(marks, picture.source_box, by, max(1, line_px // 2), _CROP_COLOUR)
    boxes = picture.lesion_boxes
    # The highest probability on top.
    for box in boxes[::-1]:
        _draw_frame(marks, box.edges, by, 2 * line_px, _BOX_EDGE_COLOUR)
        _draw_frame(marks, box.edges, by, line_px, _BOX_COLOUR)
    for box in boxes[::-1]:
        _write_probability(marks, box.y0 * by[0], box.x0 * by[1], box.probability, line_px)
    return marks


def _draw_frame(
    canvas: np.ndarray,
    box: Box,
    by: np.ndarray,
    line_px: int,
    colour: tuple[int, int, int, int],
) -> None:
    """Draws a box of the slice; its edges lie in the middle of the line."""
    limits = np.array([*canvas.shape[:2]] * 2)
    edges = np.array(box) * [*by, *by]
    outer = edges + np.array([-1, -1, 1, 1]) * (line_px / 2)
    # A box may reach over the slice's edge: its line is then drawn along the edge.
    top, left, bottom, right = np.clip(np.rint(outer), 0, limits).astype(int)
    canvas[top:bottom, left : left + line_px] = colour
    canvas[top:bottom, max(left, right - line_px) : right] = colour
    canvas[top : top + line_px, left:right] = colour
    canvas[max(top, bottom - line_px) : bottom, left:right] = colour


def _write_probability(
    canvas: np.ndarray, y: float, x: float, probability: float, line_px: int
) -> None:
    """Writes a probability at the box's upper left corner, above the box where there is room."""
    text, font = f"{probability:.2f}", cv2.FONT_HERSHEY_SIMPLEX
    size, stroke_px, margin_px = 0.3 * line_px, max(1, line_px // 2), 2 * line_px
    (width, height), base = cv2.getTextSize(text, font, size, stroke_px)
    # On a plate: text straight on bone and lung cannot be read.
    plate = np.array([height + base + margin_px, width + margin_px])
    top, left = round(y - line_px / 2) - plate[0], round(x - line_px / 2)
    if top < 0:
        top += plate[0]
    top, left = np.clip((top, left), 0, np.maximum(0, canvas.shape[:2] - plate))
    canvas[top : top + plate[0], left : left + plate[1]] = _PLATE_COLOUR
    place = int(left + margin_px // 2), int(top + margin_px // 2 + height + base // 2)
    cv2.putText(canvas, text, place, font, size, _TEXT_COLOUR, stroke_px, cv2.LINE_AA)
