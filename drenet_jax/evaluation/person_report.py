"""The HTML report of `predict`: one file with embedded images."""

from __future__ import annotations

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
from drenet_jax.html_images import base64_text, grey_uri, packed, rgba_uri
from drenet_jax.html_templates import render

PACKAGE = "drenet_jax.evaluation"

# Paper, Fig. 3: the top 3 slices of a person.
_SHOWN_SLICES = 3

# Until the reader moves the slider.
_HEAT_PERCENT = round(100 * HEAT_OPACITY)

# Longer side of a thumbnail: twice its size on the page, for high-resolution screens.
_THUMBNAIL_PX = 176

# Windows of the viewer beside the model's: level and width in HU.
_WINDOWS_HU = {"Lung": (-600.0, 1500.0), "Mediastinal": (40.0, 400.0)}

# Pixels of all slices in the viewer: 128 slices of 512 x 512, some 40 MB of the page. Further
# slices, those with the lowest probability, are left out.
_VIEWER_MAX_PX = 32 << 20

_STYLE = "\n".join(
    (
        "",
        render(PACKAGE, "base.css.j2"),
        render(PACKAGE, "person.css.j2", heat_percent=_HEAT_PERCENT),
        render(PACKAGE, "viewer.css.j2"),
        "",
    )
)
_SCRIPT = "\n".join(
    (
        "",
        *(render(PACKAGE, f"{name}.js.j2") for name in ("person", "viewer_layers", "viewer")),
        "",
    )
)


def _source(text: str) -> str:
    return f"'sha256-{base64_text(hashlib.sha256(text.encode('utf-8')).digest())}'"


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
    viewed = _viewed(pictures, label)
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
        strip=_strip(pictures, left_out, label, ranks, viewed),
        viewer=json.dumps(_viewer(viewed, label, ranks, result["model"]["ct"]), allow_nan=False),
        windows=list(_windows(result["model"]["ct"])),
        n_viewed=len(viewed),
        has_left_out=bool(left_out),
        shown=shown,
        heat_scale=rgba_uri(heat_scale((12, 96))),
        has_heat=any(picture.peak_location for picture in viewed),
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
    return _by_probability(pictures, label)[:_SHOWN_SLICES]


def _by_probability(pictures: Sequence[SlicePicture], label: str) -> list[int]:
    return sorted(
        range(len(pictures)), key=lambda i: (-pictures[i].probabilities[label], pictures[i].index)
    )


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
    viewed: Sequence[SlicePicture],
) -> list[dict]:
    """A thumbnail of each sampled slice, in the order of the series."""
    tiles = [
        {
            "uri": grey_uri(_thumbnail(picture.source)),
            "alt": f"Slice {picture.index}: {label} {picture.probabilities[label]:.2f}",
            "index": picture.index,
            "probability": picture.probabilities[label],
            "rank": ranks.get((picture.index, picture.name)),
            "at": viewed.index(picture) if picture in viewed else None,
        }
        for picture in pictures
    ]
    tiles += [
        {
            "uri": grey_uri(_thumbnail(skipped.source)),
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
    boxes, peak_location = _lesion_boxes(picture), _peak(picture)
    probability = picture.probabilities[label]
    return {
        "index": picture.index,
        "name": picture.name,
        "probability": probability,
        **_images(drawn),
        "marks": rgba_uri(drawn.marks),
        "alt": f"CT slice {picture.index}, file {picture.name}: {label} {probability:.2f}",
        "heat_alt": f"Heat map, peak: {peak_location}",
        "marks_alt": (
            _listed(boxes) if boxes else "No lesion box; the thin grey box is the lung crop"
        ),
        "is_cold": picture.heat_map is not None and drawn.heat is None,
        "peak_location": peak_location,
        "boxes": boxes,
        "crops": [_shown_crop(picture, k, label) for k in range(len(picture.boxes))],
    }


def _lesion_boxes(picture: SlicePicture) -> list[dict]:
    return [
        {"probability": box.probability, "place": _place(*box.centre, picture.source.shape)}
        for box in picture.lesion_boxes
    ]


def _listed(boxes: Sequence[Mapping]) -> str:
    listed = "; ".join(f"{box['probability']:.2f} {box['place']}" for box in boxes)
    return f"Red box{'es' if len(boxes) > 1 else ''}: {listed}"


def _peak(picture: SlicePicture) -> str | None:
    """Where the maximum of the heat map is, in words."""
    return picture.peak_location and _place(*picture.peak_location, picture.source.shape)


def _viewed(pictures: Sequence[SlicePicture], label: str) -> list[SlicePicture]:
    """The slices in the viewer, in their order: all, as far as `_VIEWER_MAX_PX` allows."""
    kept: set[int] = set()
    n_px = 0
    for place in _by_probability(pictures, label):
        n_px += pictures[place].source.size
        if kept and n_px > _VIEWER_MAX_PX:
            break
        kept.add(place)
    return [pictures[place] for place in sorted(kept)]


def _windows(ct: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Level and width of the viewer's windows by name, the model's among them."""
    own = ct["window_level_hu"], ct["window_width_hu"]
    return _WINDOWS_HU if own in _WINDOWS_HU.values() else {"Model": own, **_WINDOWS_HU}


def _viewer(
    viewed: Sequence[SlicePicture], label: str, ranks: Mapping, ct: Mapping[str, float]
) -> dict:
    """What the script of the viewer needs."""
    windows = _windows(ct)
    own = ct["window_level_hu"], ct["window_width_hu"]
    slices = [_viewer_slice(picture, label, ranks) for picture in viewed]
    return {
        "first": next(i for i, slice_ in enumerate(slices) if slice_["rank"] == 1),
        "windows": [
            {"name": name, "level": level, "width": width}
            for name, (level, width) in windows.items()
        ],
        "chosen": list(windows.values()).index(own),
        "colours": base64_text(heat_scale((1, 256))[0, :, :3].tobytes()),
        "slices": slices,
    }


def _viewer_slice(picture: SlicePicture, label: str, ranks: Mapping) -> dict:
    heat = None
    if picture.heat_map is not None and picture.peak_location:
        cells = np.rint(picture.heat_map / picture.heat_map.max() * 255).astype(np.uint8)
        heat = {
            "rows": len(cells),
            "columns": len(cells[0]),
            "values": base64_text(cells.tobytes()),
        }
    boxes, peak = _lesion_boxes(picture), _peak(picture)
    height, width = picture.source.shape
    return {
        "title": f"slice {picture.index}, {label} {picture.probabilities[label]:.3f}",
        "name": picture.name,
        "text": (f"{_listed(boxes)}." if boxes else "No lesion box.")
        + (f" Heat map peak: {peak}." if peak else ""),
        "rank": ranks.get((picture.index, picture.name)),
        "width": width,
        "height": height,
        "aspect": picture.pixel_aspect,
        "hu": picture.hu is not None,
        "values": packed(picture.source if picture.hu is None else picture.hu),
        "crop": [float(edge) for edge in picture.source_box],
        "boxes": [[float(edge) for edge in box] for box in picture.lesion_boxes],
        "heat": heat,
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
        "slice": grey_uri(drawn.slice),
        "heat": None if drawn.heat is None else rgba_uri(drawn.heat),
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
