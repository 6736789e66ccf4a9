"""The HTML report of `predict`: one file with embedded images."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from drenet_jax.evaluation.decisions import decision_text
from drenet_jax.evaluation.overlays import (
    HEAT_OPACITY,
    LESION_BOX_MIN_PROBABILITY,
    Layers,
    LeftOutSlice,
    SlicePicture,
    crop_layers,
    heat_scale,
    layers,
)
from drenet_jax.html_templates import render

PACKAGE = "drenet_jax.evaluation"

# Paper, Fig. 3: the top 3 slices of a person.
_SHOWN_SLICES = 3

# Until the reader moves the slider.
_HEAT_PERCENT = round(100 * HEAT_OPACITY)

# Longer side of a thumbnail: twice its size on the page, for high-resolution screens.
_THUMBNAIL_PX = 176

# At this quality JPEG is half as large as PNG, without visible artefacts.
_JPEG_QUALITY = 92

_STYLE = "\n".join(
    (
        "",
        render(PACKAGE, "base.css.j2"),
        render(PACKAGE, "person.css.j2", heat_percent=_HEAT_PERCENT),
        "",
    )
)
_SCRIPT = f"\n{render(PACKAGE, 'person.js.j2')}\n"


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
    return f"'sha256-{digest.decode('ascii')}'"


# Content-Security-Policy: no external content, and this script only.
REPORT_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    f"style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}"
)


def person_report(
    result: Mapping,
    pictures: Sequence[SlicePicture],
    left_out: Sequence[LeftOutSlice] = (),
) -> str:
    """What `predict` writes to report.html (paper 3.1).

    Args:
      result: what `predict` writes to result.json.
      pictures: of the slices in `result`, all or at least the three with the highest probability
        of the predicted label.
      left_out: the sampled slices that were not kept, to be shown; `result` has their names.

    Returns:
      The text of an HTML file that needs nothing outside it; `REPORT_POLICY` holds for it.
    """
    person, label = result["person"], result["person"]["label"]
    labels = list(person["probabilities"])
    most = [pictures[place] for place in top_slices(pictures, label)]
    ranks = {(picture.index, picture.name): rank for rank, picture in enumerate(most, start=1)}
    shown = [_shown_slice(picture, label) for picture in most]
    return render(
        PACKAGE,
        "person.html.j2",
        policy=REPORT_POLICY,
        style=_STYLE,
        script=_SCRIPT,
        heat_percent=_HEAT_PERCENT,
        label=label,
        probability=person["probabilities"][label],
        n_slices=person["n_slices"],
        probabilities=person["probabilities"],
        validation=_validation(person["validation"]),
        min_probability=LESION_BOX_MIN_PROBABILITY,
        strip=_strip(pictures, left_out, label, ranks),
        has_left_out=bool(left_out),
        shown=shown,
        heat_scale=_layer_uri(heat_scale((12, 96))),
        has_heat=any(picture["heat"] for picture in shown),
        slices=[
            {
                "index": row["index"],
                "name": row["name"],
                "probabilities": [row["probabilities"][name] for name in labels],
                "best_box": max((box["score"] for box in row["boxes"]), default=None),
                "rank": ranks.get((row["index"], row["name"])),
            }
            for row in result["slices"]
        ],
        decision=decision_text(result["decision"], person["n_slices"]),
        excluded=result["excluded"],
        notes=result["notes"],
        model=result["model"],
        cohort=_cohort(result["model"]["trained_on"]),
        facts=facts(
            {name: value for name, value in result["model"].items() if name != "trained_on"}
        ),
    )


def top_slices(pictures: Sequence[SlicePicture], label: str) -> list[int]:
    """Indices in `pictures` of the slices that a report shows large, the most probable first."""
    order = sorted(
        range(len(pictures)), key=lambda i: (-pictures[i].probabilities[label], pictures[i].index)
    )
    return order[:_SHOWN_SLICES]


def _validation(row: Mapping | None) -> dict | None:
    """The observed rate among validation patients, if any had such a probability."""
    if not row or not row["n"]:
        return None
    return {**row, "share": row["n_with_label"] / row["n"]}


def _cohort(trained_on: Mapping | None) -> dict | None:
    """The training and validation cohorts, as text and as a table."""
    if not trained_on:
        return None
    splits = trained_on["splits"]
    names = list(dict.fromkeys(label for counts in splits.values() for label in counts))
    rows = [
        {"label": name, "counts": [counts.get(name, 0) for counts in splits.values()]}
        for name in names
    ]
    totals = [sum(counts.values()) for counts in splits.values()]
    return {
        "splits": list(splits),
        "rows": [*rows, {"label": "all", "counts": totals}],
        "n": dict(zip(splits, totals, strict=True)),
        "sites": [site for site in trained_on["sites"] if site],
    }


def _strip(
    pictures: Sequence[SlicePicture],
    left_out: Sequence[LeftOutSlice],
    label: str,
    ranks: Mapping[tuple[int, str], int],
) -> list[dict]:
    """A thumbnail of each sampled slice, in the order of the series."""
    tiles = [
        {
            "uri": _slice_uri(_thumbnail(picture.source)),
            "alt": f"Slice {picture.index}: {label} {picture.probabilities[label]:.2f}",
            "index": picture.index,
            "probability": picture.probabilities[label],
            "rank": ranks.get((picture.index, picture.name)),
        }
        for picture in pictures
    ]
    tiles += [
        {
            "uri": _slice_uri(_thumbnail(skipped.source)),
            "alt": f"Slice {skipped.index}, excluded: {skipped.why}",
            "index": skipped.index,
            # The text after a colon is of the one slice.
            "why": skipped.why.split(":")[0],
        }
        for skipped in left_out
    ]
    return sorted(tiles, key=lambda tile: tile["index"]) if left_out else tiles


def _thumbnail(source: np.ndarray) -> np.ndarray:
    scale = min(1.0, _THUMBNAIL_PX / max(source.shape))
    height, width = (max(1, round(side * scale)) for side in source.shape)
    return cv2.resize(source, (width, height), interpolation=cv2.INTER_AREA)


def _shown_slice(picture: SlicePicture, label: str) -> dict:
    drawn = layers(picture)
    boxes = [
        {"probability": box.probability, "place": _place(*box.centre, picture.source.shape)}
        for box in picture.lesion_boxes
    ]
    listed = "; ".join(f"{box['probability']:.2f} {box['place']}" for box in boxes)
    peak_location = picture.peak_location and _place(*picture.peak_location, picture.source.shape)
    probability = picture.probabilities[label]
    return {
        "index": picture.index,
        "name": picture.name,
        "probability": probability,
        **_images(drawn),
        "marks": _layer_uri(drawn.marks),
        "alt": f"CT slice {picture.index}, file {picture.name}: {label} {probability:.2f}",
        "heat_alt": f"Heat map, peak: {peak_location}",
        "marks_alt": (
            f"Red box{'es' if len(boxes) > 1 else ''}: {listed}"
            if boxes
            else "No lesion box; the thin grey box is the lung crop"
        ),
        "is_cold": picture.heat_map is not None and drawn.heat is None,
        "peak_location": peak_location,
        "boxes": boxes,
        "crops": [_shown_crop(picture, k, label) for k in range(len(picture.boxes))],
    }


def _shown_crop(picture: SlicePicture, k: int, label: str) -> dict:
    drawn = crop_layers(picture, k)
    box = picture.boxes[k]
    place = _place(*box.centre, picture.source.shape)
    return {
        **_images(drawn),
        "marks": None,
        "alt": f"Region {k + 1}, {place} of slice {picture.index}: {label} {box.probability:.2f}",
        "heat_alt": f"Heat map of region {k + 1}",
        "probability": box.probability,
        "passed": box.probability > LESION_BOX_MIN_PROBABILITY,
    }


def _images(drawn: Layers) -> dict[str, object]:
    height, width = drawn.slice.shape
    return {
        "width": width,
        "height": height,
        "slice": _slice_uri(drawn.slice),
        "heat": None if drawn.heat is None else _layer_uri(drawn.heat),
    }


def _place(y: float, x: float, shape: tuple[int, int]) -> str:
    """The ninth of an image that a point lies in, in words."""
    row, column = (min(2, max(0, int(3 * at / n))) for at, n in zip((y, x), shape, strict=True))
    if row == column == 1:
        return "centre"
    return f"{('upper', 'middle', 'lower')[row]} {('left', 'middle', 'right')[column]}"


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


def _slice_uri(image: np.ndarray) -> str:
    """A grey image [H, W] as JPEG or PNG, whichever is smaller."""
    done, png = cv2.imencode(".png", image)
    assert done
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    if len(png) <= len(jpeg):
        return data_uri(png.tobytes())
    return data_uri(jpeg.tobytes(), "image/jpeg")


def _layer_uri(layer: np.ndarray) -> str:
    """A layer [H, W, 4] (red, green, blue, opacity) as PNG."""
    bgra = cv2.cvtColor(layer, cv2.COLOR_RGBA2BGRA)
    # Half the size of the default; 9 takes six times as long for 6% less.
    done, png = cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert done
    return data_uri(png.tobytes())


def data_uri(picture: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(picture).decode("ascii")
