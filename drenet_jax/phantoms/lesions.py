"""Which lesions a patient has, drawn at random for a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drenet_jax.phantoms.anatomy import Chest


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid that follows the pleura.

    Attributes:
      centre_mm: (x, y, z).
      depth_mm: how far below the pleura its middle lies.
      radii_mm: (into the lung, along the pleura, along z).
      hu: what the lung becomes in its middle.
      softness: width of its border as a share of its radius.
      raggedness: how far the border wanders, as a share of its radius.
      paving_hu: contrast of the crazy-paving lines, 0 for none.
      mottle_hu: how much its density varies.
      halo: how far a ground-glass halo reaches, as a share of its radius, 0 for none.
      lobe: the lobe that holds it, or None.
    """

    centre_mm: tuple[float, float, float]
    depth_mm: float
    radii_mm: tuple[float, float, float]
    hu: float
    softness: float
    raggedness: float
    mottle_hu: float
    paving_hu: float = 0.0
    halo: float = 0.0
    lobe: str | None = None


def draw_lesions(label: str, chest: Chest, rng: np.random.Generator) -> tuple[list[Lesion], float]:
    """A person's lesions and severity."""
    if label == "healthy":
        return [], 0.0
    severity = float(rng.beta(1.6, 1.5))
    draw = _ground_glass if label == "COVID-19" else _consolidations
    return draw(chest, rng, severity), severity


def _pleural_points(
    chest: Chest, rng: np.random.Generator, side: int, count: int = 400
) -> np.ndarray:
    """Points of one lung within 14 mm of the chest wall, away from its very top and bottom."""
    points = chest.points_in_lungs(rng, count, 2.0, side)
    t = points[:, 2] / chest.height_mm
    return points[(chest.cage(*points.T) < 14.0) & (t > 0.14) & (t < 0.85)]


def _ground_glass(chest: Chest, rng: np.random.Generator, severity: float) -> list[Lesion]:
    count = int(np.clip(round(3.0 + 8.5 * severity + rng.uniform(-1.0, 1.0)), 3, 12))
    first = int(rng.choice([-1, 1]))
    lesions = []
    for i in range(count):
        # The first two lie on either side: both lungs are always ill.
        side = first * (1 if i == 0 else -1 if i == 1 else int(rng.choice([-1, 1])))
        points = _pleural_points(chest, rng, side)
        weight = 1.0 + 2.5 * (1.0 - points[:, 2] / chest.height_mm)
        weight *= 1.0 + 1.2 * (points[:, 1] > 0)
        centre = points[rng.choice(len(points), p=weight / weight.sum())]
        radius = (16.0 + 12.0 * severity) * rng.uniform(0.75, 1.3)
        lesions.append(
            Lesion(
                centre_mm=_triple(centre),
                depth_mm=float(rng.uniform(0.0, 5.0) if rng.random() < 0.8 else 16.0),
                radii_mm=(0.85 * radius, radius * float(rng.uniform(1.0, 1.6)), 1.1 * radius),
                hu=float(np.clip(-650 + 190 * severity + rng.uniform(-50, 50), -700, -400)),
                softness=float(rng.uniform(0.5, 0.9)),
                raggedness=float(rng.uniform(0.12, 0.24)),
                mottle_hu=42.0,
                paving_hu=float(rng.uniform(90, 170)) if rng.random() < 0.35 else 0.0,
            )
        )
    return lesions


def _consolidations(chest: Chest, rng: np.random.Generator, severity: float) -> list[Lesion]:
    lobes = ("right upper", "right middle", "right lower", "left upper", "left lower")
    lobe = str(rng.choice(lobes, p=(0.18, 0.14, 0.28, 0.14, 0.26)))
    hard = rng.random() < 0.12
    size = 0.2 * severity if hard else severity
    lesions = [_consolidation(chest, rng, lobe, 32.0 + 36.0 * size, hard)]
    if rng.random() < 0.3:
        side = lobe.split()[0] if rng.random() < 0.7 else str(rng.choice(["left", "right"]))
        second = f"{side} {rng.choice(['upper', 'lower'])}"
        lesions.append(_consolidation(chest, rng, second, 12.0 + 8.0 * size, hard))
    return lesions


def _consolidation(
    chest: Chest, rng: np.random.Generator, lobe: str, radius_mm: float, hard: bool
) -> Lesion:
    side = -1 if lobe.startswith("right") else 1
    points = _pleural_points(chest, rng, side, 1500)
    inside = points[chest.lobe(lobe, *points.T) > 0.9]
    centre = inside[rng.integers(len(inside))] if len(inside) else points[0]
    return Lesion(
        centre_mm=_triple(centre),
        depth_mm=0.0,
        mottle_hu=35.0 if hard else 12.0,
        radii_mm=_triple(radius_mm * rng.uniform(0.85, 1.25, 3)),
        hu=float(rng.uniform(-350, -150) if hard else rng.uniform(-35, 45)),
        softness=float(rng.uniform(0.12, 0.30)),
        raggedness=float(rng.uniform(0.10, 0.20)),
        halo=float(rng.uniform(0.12, 0.3)) if rng.random() < 0.4 else 0.0,
        lobe=lobe,
    )


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z
