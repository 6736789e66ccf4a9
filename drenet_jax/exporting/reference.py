"""Predicts a person with an exported ONNX model, without JAX: the reference for other programs.

It needs onnxruntime, numpy, opencv-python-headless and `pip install --no-deps drenet_jax`, and
gives what `predict` gives for the same slices. --model is a folder that `export --format=onnx`
wrote. --volume is a NumPy file of one axial series in HU, [slices, rows, columns], of 16-bit
integers or floating-point values: slices from the feet to the head, rows from the front to the
back, columns from the patient's right to left. Prints JSON. For research only, not for clinical
use.

Example:

  python -m drenet_jax.exporting.reference --model=exported/onnx --volume=person7.npy
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drenet_jax.ct import hu_checks, lung_crops, neighbours, sampling
from drenet_jax.ct.arrays import PADDING_HU
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.orientation import Orientation
from drenet_jax.ct.prepared_series import SampledSlice, input_image
from drenet_jax.ct.settings import CtSettings
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.exporting.description import read_description
from drenet_jax.exporting.onnx_scorer import OnnxScorer

# From uint8 [N, S, S] to the outputs by name.
Score = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def predict_volume(
    folder: str | os.PathLike[str],
    volume_hu: np.ndarray,
    *,
    name: str = "the volume",
    score: Score | None = None,
) -> dict[str, Any]:
    """The diagnosis of one person.

    Args:
      folder: of the exported model.
      volume_hu: [slices, rows, columns], an axial series in HU (int16 or wider, or float; NaN is
        air): slices from the feet to the head, rows from the front to the back, columns from the
        patient's right to left.
      name: of the volume, in errors.
      score: gives the graph's outputs of images, from a server, say; `probabilities`, `boxes` and
        `part_probabilities` are needed, the last two where the model has boxes. None: runs the file
        here.

    Returns:
      as `result.json` of `predict`, fit for JSON: `person` (label, probabilities by label and the
      number of slices), `slices` (index in the volume, probabilities, boxes y0, x0, y1, x1 in its
      pixels, half open, with their scores for the person's label), `excluded` (sampled slices that
      were left out: index and why), `notes`, `decision`.

    Raises:
      InputError: the folder holds no exported ONNX model, or the volume does not look like a chest
        CT in HU with this orientation.
    """
    file, description = read_description(Path(folder))
    settings = CtSettings.from_dict(description["ct"])
    labels = description["labels"]
    rule = DecisionRule.from_dict(labels, description["decision"])
    if score is None:
        score = functools.partial(OnnxScorer(file), None)

    sampled, notes = _sample(volume_hu, settings, name)
    kept = [slice_ for slice_ in sampled if slice_.kept]
    if not kept:
        raise InputError(f"no lungs were found in {name}; give axial chest CT slices in HU.")
    images = [
        input_image(slice_, description["fill"], settings, description["fill_seed"])
        for slice_ in kept
    ]
    scored = score(np.stack(images))
    person = rule.person(scored["probabilities"])
    label = rule.label_of(person)
    return {
        "person": {
            "label": labels[label],
            "probabilities": _by_label(labels, person),
            "n_slices": len(kept),
        },
        "slices": [
            {
                "index": slice_.index,
                "probabilities": _by_label(labels, scored["probabilities"][i]),
                "boxes": _boxes(
                    slice_,
                    scored["boxes"][i],
                    scored["part_probabilities"][i, :, label],
                    settings.image_size_px,
                )
                if "boxes" in scored
                else [],
            }
            for i, slice_ in enumerate(kept)
        ],
        "excluded": [
            {"index": slice_.index, "why": slice_.why_excluded}
            for slice_ in sampled
            if not slice_.kept
        ],
        "notes": notes,
        "decision": rule.to_dict(),
    }


def _sample(
    volume_hu: np.ndarray, settings: CtSettings, name: str
) -> tuple[tuple[SampledSlice, ...], list[str]]:
    """The sampled slices, cropped to the lungs, and notes; as `preprocess` does with a series."""
    if volume_hu.ndim != 3 or volume_hu.dtype.kind not in "iuf" or volume_hu.dtype.itemsize < 2:
        raise InputError(
            f"{name} is {volume_hu.dtype} {list(volume_hu.shape)}; give HU as integers of 16 "
            "bits or floating-point values, [slices, rows, columns]."
        )
    if not volume_hu.size:
        raise InputError(f"{name} is empty {list(volume_hu.shape)}; give at least one slice.")
    n, rows, columns = volume_hu.shape
    # Slices of a CT are square; where they are cut, their sides are not as long as the stack.
    if rows != columns and n in (rows, columns):
        raise InputError(
            f"{name} has shape {list(volume_hu.shape)}: the first axis does not seem to be the "
            "slice axis; give [slices, rows, columns]."
        )
    if why := neighbours.reason_not_in_order([hu_checks.volume_hu(image) for image in volume_hu]):
        raise _wrong(name, why)
    indices = sampling.sample_uniform(len(volume_hu), settings.slices_per_person)
    images = [np.maximum(hu_checks.volume_hu(volume_hu[i]), PADDING_HU) for i in indices]
    if why := hu_checks.reason_not_hu(images):
        raise _wrong(name, why)
    masks = segmentation.find_lungs_in_series(images, from_feet=True)
    verdict = lung_crops.judge(images, masks)
    if verdict.why:
        raise _wrong(name, verdict.why)
    slices = [
        SampledSlice(
            index=index,
            name=f"slice {index}",
            source=lung_crops.windowed(image, settings),
            source_mask=mask,
            orientation=Orientation(),
        )
        for index, image, mask in zip(indices, images, masks, strict=True)
    ]
    cropped = lung_crops.crop_to_lungs(slices, settings, min_area_share=settings.min_area_share)
    return cropped, [verdict.note] if verdict.note else []


def _wrong(name: str, why: str) -> InputError:
    return InputError(f"{name} holds {why}; export the series anew.")


def _by_label(labels: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, values.tolist(), strict=True))


def _boxes(
    slice_: SampledSlice, boxes: np.ndarray, scores: np.ndarray, image_size_px: int
) -> list[dict[str, float]]:
    """A slice's boxes [K, 4] of the crop, with their scores [K], in pixels of the volume."""
    assert slice_.source_box is not None  # a kept slice shows lungs
    edges = lung_crops.to_source(boxes, slice_.source_box, image_size_px)
    return [
        {**dict(zip(("y0", "x0", "y1", "x1"), box, strict=True)), "score": score}
        for box, score in zip(edges.tolist(), scores.tolist(), strict=True)
    ]


def _read_volume(path: Path) -> np.ndarray:
    try:
        # Mapped: only the sampled slices are read.
        volume = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"--volume={path} is no NumPy file that can be read; write it with numpy.save."
        ) from error
    if not isinstance(volume, np.ndarray):
        raise InputError(f"--volume={path} holds several arrays; write one with numpy.save.")
    return volume


def main(arguments: Sequence[str] | None = None) -> int:
    # argparse, not absl: that would be one more package to install.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="The folder of the export.")
    parser.add_argument("--volume", type=Path, required=True, help="The series, a NumPy file.")
    values = parser.parse_args(arguments)
    try:
        volume = _read_volume(values.volume)
        result = predict_volume(values.model, volume, name=f"--volume={values.volume}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
