"""The HTML report of `predict`: one file, with its pictures inside."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from drenet_jax.pages import render

PACKAGE = "drenet_jax.evaluation"

# Paper, Fig. 3, and DESIGN 3.8: boxes "with normalized predicted scores above 0.8" are shown. It is
# not lowered where no box passes.
LESION_BOX_MIN_SCORE = 0.8

# Paper, Fig. 3: the top 3 slices of a person.
_SHOWN_SLICES = 3

# A picture's shorter side has at least, its longer side at most so many pixels.
_MIN_PICTURE_PX = 512
_MAX_PICTURE_PX = 2048

# Blue, green, red: OpenCV's order.
_BOX_COLOUR = (40, 40, 255)
_CROP_COLOUR = (170, 170, 170)


@dataclasses.dataclass(frozen=True, eq=False)
class SlicePicture:
    """A slice as a person's report shows it.

    Attributes:
      index: its place in the series.
      name: its file.
      source: [H, W] uint8, the whole slice in the lung window.
      source_box: (y0, x0, y1, x1) of the lungs' crop, in pixels of `source`, ends outside.
      probabilities: label to probability.
      boxes: each with y0, x0, y1, x1 (pixels of `source`, ends outside) and score.
      heat_map: [h, w] float32, at least 0: Grad-CAM of the person's label over `source_box`.
      crop_heat_maps: [K, h', w'], the same over each of the boxes.
    """

    index: int
    name: str
    source: np.ndarray
    source_box: tuple[float, float, float, float]
    probabilities: Mapping[str, float]
    boxes: Sequence[Mapping[str, float]]
    heat_map: np.ndarray | None = None
    crop_heat_maps: np.ndarray | None = None


def person_report(result: Mapping, pictures: Sequence[SlicePicture]) -> str:
    """What `predict` writes to report.html (DESIGN sections 2 and 3.8).

    Args:
      result: what `predict` writes to result.json.
      pictures: of the slices in `result`, all or at least the three with the highest probability
        of the predicted label.

    Returns:
      The text of an HTML file that needs nothing outside it.
    """
    label = result["person"]["label"]
    labels = list(result["person"]["probabilities"])
    shown = [pictures[place] for place in most_suspected(pictures, label)]
    shown_slices = {(picture.index, picture.name) for picture in shown}
    return render(
        PACKAGE,
        "person.html.j2",
        label=label,
        probability=result["person"]["probabilities"][label],
        n_slices=result["person"]["n_slices"],
        bars=[
            {"label": name, "probability": probability}
            for name, probability in result["person"]["probabilities"].items()
        ],
        min_score=LESION_BOX_MIN_SCORE,
        pictures=[_shown_picture(picture, label) for picture in shown],
        slices=[
            {
                "index": row["index"],
                "name": row["name"],
                "probabilities": [row["probabilities"][name] for name in labels],
                "best_box": max((box["score"] for box in row["boxes"]), default=None),
                "shown": (row["index"], row["name"]) in shown_slices,
            }
            for row in result["slices"]
        ],
        excluded=result["excluded"],
        notes=result["notes"],
        model=facts(result["model"]),
    )


def most_suspected(pictures: Sequence[SlicePicture], label: str) -> list[int]:
    """Places in `pictures` of the slices that a report shows large, the most probable first."""
    order = sorted(
        range(len(pictures)), key=lambda i: (-pictures[i].probabilities[label], pictures[i].index)
    )
    return order[:_SHOWN_SLICES]


def draw_boxes(picture: SlicePicture) -> tuple[np.ndarray, list[float]]:
    """Draws the lungs' crop and the boxes above `LESION_BOX_MIN_SCORE` on the slice.

    Returns:
      [h, w, 3] uint8 in OpenCV's order (blue, green, red), enlarged if the slice is small, and the
      scores of the boxes drawn, highest first.
    """
    source = picture.source
    assert source.ndim == 2, source.shape
    assert source.dtype == np.uint8, source.dtype
    short_px, long_px = min(source.shape), max(source.shape)
    scale = min(max(1.0, _MIN_PICTURE_PX / short_px), _MAX_PICTURE_PX / long_px)
    height, width = (max(1, round(side * scale)) for side in source.shape)
    canvas = cv2.resize(
        source, (width, height), interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    canvas = cv2.cvtColor(canvas, cv2.COLOR_GRAY2BGR)
    line_px = max(2, round(2 * min(height, width) / _MIN_PICTURE_PX))
    y0, x0, y1, x1 = picture.source_box
    _draw_rectangle(canvas, (y0, x0, y1, x1), scale, _CROP_COLOUR, max(1, line_px // 2))
    passed = [box for box in picture.boxes if box["score"] > LESION_BOX_MIN_SCORE]
    passed.sort(key=lambda box: -box["score"])
    for box in passed:
        corners = (box["y0"], box["x0"], box["y1"], box["x1"])
        left, top = _draw_rectangle(canvas, corners, scale, _BOX_COLOUR, line_px)
        _write_score(canvas, f"{box['score']:.2f}", left, top, line_px)
    return canvas, [float(box["score"]) for box in passed]


def _draw_rectangle(
    canvas: np.ndarray,
    box: tuple[float, float, float, float],
    scale: float,
    colour: tuple[int, int, int],
    line_px: int,
) -> tuple[int, int]:
    """Draws a box of the slice on the canvas; returns its left and top there."""
    height, width = canvas.shape[:2]
    y0, x0, y1, x1 = box
    # A box may reach over the slice's edge: its line is then drawn along the edge.
    left, right = (int(np.clip(round(x * scale), 0, width)) for x in (x0, x1))
    top, bottom = (int(np.clip(round(y * scale), 0, height)) for y in (y0, y1))
    cv2.rectangle(
        canvas, (left, top), (max(left, right - 1), max(top, bottom - 1)), colour, line_px
    )
    return left, top


def _write_score(canvas: np.ndarray, text: str, left: int, top: int, line_px: int) -> None:
    """Writes a score at the box's upper left corner, above the box where there is room."""
    size = 0.3 * line_px
    stroke_px = max(1, line_px // 2)
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, stroke_px)
    # On a plate of the box's colour: figures straight on bone and lung cannot be read.
    plate_top = top - height - base if top - height - base >= 0 else top
    left = max(0, min(left, canvas.shape[1] - width))
    cv2.rectangle(
        canvas, (left, plate_top), (left + width, plate_top + height + base), _BOX_COLOUR, -1
    )
    place = (left, plate_top + height + base // 2)
    white = (255, 255, 255)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, white, stroke_px, cv2.LINE_AA)


def _shown_picture(picture: SlicePicture, label: str) -> dict:
    canvas, box_scores = draw_boxes(picture)
    n = len(box_scores)
    boxes = "no lesion box" if n == 0 else "1 red box" if n == 1 else f"{n} red boxes"
    done, png = cv2.imencode(".png", canvas)
    assert done
    return {
        "uri": data_uri(png.tobytes()),
        "width": canvas.shape[1],
        "height": canvas.shape[0],
        "alt": f"CT slice {picture.index}, file {picture.name}, with {boxes}",
        "index": picture.index,
        "name": picture.name,
        "score": picture.probabilities[label],
        "box_scores": box_scores,
    }


def facts(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names and values for a list in a report."""
    facts = []
    for name, value in values.items():
        if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            value = ", ".join(value)
        elif isinstance(value, (Mapping, list, tuple)):
            value = json.dumps(value, ensure_ascii=False, default=str)
        facts.append((name, str(value)))
    return facts


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
