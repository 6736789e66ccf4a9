"""Chest phantoms in HU with known lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from drenet_jax.errors import InputError
from drenet_jax.phantoms.anatomy import Chest
from drenet_jax.phantoms.lesions import draw_lesions
from drenet_jax.phantoms.painting import Section, paint_slice, table_hu
from drenet_jax.phantoms.scanner import SITES, Frame, rasterise_tubes, scan

LABELS = ("COVID-19", "bacterial", "healthy")

# Random streams of one person. Anatomy comes before disease and knows nothing of it, so the same
# seed gives the same chest with another label; the scanner's noise is apart from both.
_ANATOMY, _DISEASE, _SCANNER, FILE_NAMES_STREAM = range(4)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One person's scan and what is true of it. Arrays run feet to head, front to back, right to
    left of the person.

    Attributes:
      volume_hu: int16 [n, H, W], -1024 to 3071 HU.
      lung_mask: bool [n, H, W], lungs with their lesions and vessels, without the airways.
      lesion_mask: uint8 [n, H, W], 0 or the lesion's number (1, 2, ...); lies inside `lung_mask`.
      spacing_mm: distance of voxels along (slices, rows, columns).
      label: one of `LABELS`.
      severity: 0 (barely ill, and every healthy person) to 1.
    """

    volume_hu: np.ndarray
    lung_mask: np.ndarray
    lesion_mask: np.ndarray
    spacing_mm: tuple[float, float, float]
    label: str
    severity: float


def make_phantom(
    label: str, seed: int | np.random.SeedSequence, size_px: int, site: str
) -> Phantom:
    """A chest phantom; a function of its arguments alone.

    COVID-19: 3 to 12 ground-glass patches along the pleura of both lungs, -700 to -400 HU, soft and
    irregular, more of them low and at the back, some with crazy paving. Bacterial: one consolidated
    lobe or part of it at about 0 HU with air bronchograms, cut off at the fissure; sometimes a halo
    or a second, smaller focus. About one bacterial case in eight is small and only -350 to -150 HU.
    All labels have what a reader must look past: opacity where the lung lies on itself, hilar
    vessels, now and then a calcified nodule or a plate of atelectasis (docs/method.md).

    Args:
      label: one of `LABELS`.
      seed: the person; the same seed gives the same anatomy for every label, size and site.
      size_px: height and width of the slices.
      site: a key of `SITES`.

    Raises:
      InputError: unknown label or site.
    """
    if label not in LABELS:
        raise InputError(f"the label {label!r} is not known; use one of {', '.join(LABELS)}.")
    if site not in SITES:
        raise InputError(f"the site {site!r} is not known; use one of {', '.join(SITES)}.")
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    chest = Chest(random_stream(root, _ANATOMY))
    lesions, severity = draw_lesions(label, chest, random_stream(root, _DISEASE))
    frame = Frame(chest, size_px, SITES[site])
    noise = random_stream(root, _SCANNER)

    tubes = rasterise_tubes(chest, frame)
    table = table_hu(chest, frame)
    shape = (len(frame.z_mm), size_px, size_px)
    volume_hu = np.empty(shape, np.int16)
    lung_mask = np.empty(shape, bool)
    lesion_mask = np.empty(shape, np.uint8)
    for i in range(len(volume_hu)):
        section = Section(chest, frame, i)
        hu, lung_mask[i], lesion_mask[i] = paint_slice(section, table, tubes.of_slice(i), lesions)
        # More body in the beam, less light at the detector.
        shadow = 0.6 + 0.6 * float((section.body > 0).mean())
        image = scan(hu, frame, chest.dose_noise * shadow, noise)
        volume_hu[i] = np.clip(np.rint(image), -1024, 3071)
    return Phantom(
        volume_hu=volume_hu,
        lung_mask=lung_mask,
        lesion_mask=lesion_mask,
        spacing_mm=(SITES[site].slice_spacing_mm, frame.px_mm, frame.px_mm),
        label=label,
        severity=severity,
    )


def lesion_boxes(phantom: Phantom) -> list[tuple[int, int, int, int, int, int]]:
    """(slice, lesion, y0, x0, y1, x1) for every lesion on every slice that it touches.

    Pixels of the slice, half open. Ordered by slice, then lesion.
    """
    boxes = []
    for index, mask in enumerate(phantom.lesion_mask):
        for lesion, find_object in enumerate(ndimage.find_objects(mask), start=1):
            if find_object is not None:
                rows, columns = find_object
                boxes.append((index, lesion, rows.start, columns.start, rows.stop, columns.stop))
    return boxes


def random_stream(root: np.random.SeedSequence, number: int) -> np.random.Generator:
    # Not root.spawn(): that counts, so a second call with the same object would differ.
    return np.random.default_rng(
        np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, number))
    )
