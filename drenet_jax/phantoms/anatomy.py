"""The anatomy of phantom chests: shapes as fields, vessels and airways as tubes.

A field is a number in millimetres that is positive inside a shape and about the distance to its
border, so that one person can be had at any image size and from any scanner. Body coordinates: x to
the person's left, y to the back, z to the head, z = 0 where the lungs begin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

# From one rib, and one vertebra, to the next.
RIB_PITCH_MM = 27.0

# A NumPy scalar or array. The fields keep its type: float32 in, float32 out.
Scalars = np.floating | np.ndarray


def smoothstep(value: Scalars, low: float, high: float) -> Scalars:
    """0 below `low`, 1 above `high`, smooth between."""
    s = np.clip((value - low) / (high - low), 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def _smooth_max(a: np.ndarray, b: np.ndarray, radius_mm: float) -> np.ndarray:
    """The larger of two fields with the edge between them rounded off."""
    h = np.maximum(radius_mm - np.abs(a - b), 0.0)
    return np.maximum(a, b) + h * h * (0.25 / radius_mm)


def ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[Scalars | float, Scalars | float],
    radii: tuple[float, Any],
) -> np.ndarray:
    """Field of an ellipse [mm]; exact on the border."""
    dx, dy = (x - centre[0]) * (1.0 / radii[0]), (y - centre[1]) * (1.0 / radii[1])
    return (1.0 - np.sqrt(dx * dx + dy * dy)) * min(radii)


def _superellipse(
    x: np.ndarray, y: np.ndarray, width: Scalars, depth: Scalars, power: float
) -> np.ndarray:
    """Field of a superellipse around (0, 0): the distance to its border along the ray from it."""
    u, v = np.abs(x) * (1.0 / width), np.abs(y) * (1.0 / depth)
    r = (u**power + v**power) ** (1.0 / power) + 1e-4
    return np.sqrt(x * x + y * y) * (1.0 / r - 1.0)


class Noise:
    """Smooth random planes with a given correlation length, the same at any image size."""

    def __init__(self, rng: np.random.Generator, grain_mm: float, fov_mm: float, height_mm: float):
        columns = max(4, math.ceil(fov_mm / grain_mm))
        self._planes = rng.standard_normal(
            (math.ceil(height_mm / grain_mm) + 2, columns, columns), dtype=np.float32
        )
        self._grain_mm = grain_mm

    def plane(self, height_mm: float, size_px: int) -> np.ndarray:
        """Float32 [size_px, size_px], mean 0, deviation about 0.8, at a height above the lowest
        slice."""
        at = height_mm / self._grain_mm
        low = int(at)
        share = at - low
        mixed = (1 - share) * self._planes[low] + share * self._planes[low + 1]
        mixed *= 1.0 / math.hypot(share, 1 - share)
        return cv2.resize(mixed, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


@dataclass(frozen=True, eq=False)
class Tubes:
    """Vessels or airways of one calibre: bent pieces from `start` by `bend` to `end`, [m, 3] mm."""

    start: np.ndarray
    bend: np.ndarray
    end: np.ndarray
    radius_mm: float


class Chest:
    """One person's anatomy, without disease.

    The methods named after organs are fields [mm] of x, y and z [mm], which broadcast.
    """

    def __init__(self, rng: np.random.Generator):
        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        self.height_mm = float(np.clip(rng.normal(232.0, 16.0), 195.0, 270.0))
        self.half_width_mm = between(118.0, 142.0)
        self.half_depth_mm = between(80.0, 100.0)
        self.squareness = between(2.0, 2.4)
        self.gutter_mm = between(11.0, 19.0)
        self.wall_mm = between(13.0, 21.0)
        self.fat_mm = between(5.0, 26.0)
        self.breasts_mm = between(12.0, 34.0) if rng.random() < 0.45 else 0.0
        # Breath held well: large dark lungs over flat domes. Held badly: the opposite.
        self.breath = between(0.0, 1.0)
        self.lean_mm = between(-10.0, 10.0)
        self.roll_rad = math.radians(float(np.clip(rng.normal(0.0, 2.5), -6.0, 6.0)))
        self.offset_mm = (between(-10.0, 10.0), between(-16.0, 6.0))
        self.fov_mm = 2.0 * (self.half_width_mm + self.wall_mm + self.fat_mm) * between(1.02, 1.17)

        self.heart = (between(14.0, 26.0), -self.half_depth_mm * between(0.28, 0.40))
        self.heart_radii = (between(52.0, 66.0), between(38.0, 48.0), between(54.0, 68.0))
        self.heart_tilt_rad = between(-0.75, -0.35)
        self.upper_half_width_mm = between(23.0, 31.0)
        self.aorta_mm = between(10.0, 14.5)
        self.dome_mm = self.height_mm * (between(0.30, 0.36) + 0.10 * (1.0 - self.breath))
        self.left_dome_share = between(0.72, 0.90)
        self.stomach_gas_mm = between(-6.0, 26.0)
        self.rib_phase = between(0.0, 1.0)
        self.blankets_mm = [between(6.0, 40.0) for _ in range(int(rng.integers(0, 4)))]
        self.table_bend = between(0.0006, 0.0011)

        self.lung_hu = -820.0 - 60.0 * self.breath + float(rng.normal(0.0, 10.0))
        self.gravity_hu = between(20.0, 50.0) + 25.0 * (1.0 - self.breath)
        self.texture_hu = between(14.0, 28.0)
        self.dependent_hu = 30.0 + 190.0 * float(rng.beta(1.1, 2.5))
        self.dependent_depth_mm = between(6.0, 15.0)
        self.dose_noise = between(0.75, 1.35)

        self.z_low_mm = -between(0.04, 0.12) * self.height_mm
        self.z_high_mm = between(1.05, 1.12) * self.height_mm
        scan_mm = self.z_high_mm - self.z_low_mm
        self.bumps = Noise(rng, 34.0, self.fov_mm, scan_mm)
        self.lumps = Noise(rng, 11.0, self.fov_mm, scan_mm)
        self.grain = Noise(rng, 4.0, self.fov_mm, scan_mm)

        self.vessels: list[Tubes] = []
        self.bronchi: list[Tubes] = []
        # With the main bronchi: these run outside the lungs too.
        self.trachea: list[Tubes] = []
        self._grow_tubes(rng)
        self.nodules = self._scatter(rng, 0.30, 1)
        self.plates = self._scatter(rng, 0.40, 2)

    def cage_radii(self, z: Scalars) -> tuple[Scalars, Scalars, Scalars]:
        """Half width, half depth and centre y of the rib cage's inside."""
        t = z / self.height_mm
        s = np.clip((t - 0.3) / 0.7, 0.0, 1.0)
        taper = np.sqrt(1.0 - 0.93 * s**3) - 0.05 * np.clip(1.0 - t / 0.3, 0.0, 1.5) ** 2
        depth = self.half_depth_mm * taper
        return self.half_width_mm * taper, depth, 0.7 * (self.half_depth_mm - depth)

    def back(self, z: Scalars) -> Scalars:
        """y of the cage's back wall."""
        _, depth, centre = self.cage_radii(z)
        return centre + depth

    def cage(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Depth below the pleura of the chest wall [mm, radially]."""
        width, depth, centre = self.cage_radii(z)
        # On either side of the spine the ribs bow backwards: the lungs reach behind its front.
        gutter = np.clip(y * (1.0 / self.half_depth_mm), 0.0, 1.0) ** 2
        gutter = gutter * np.exp(-np.square((np.abs(x) - 0.40 * width) * (3.6 / width)))
        dy = y - centre - self.gutter_mm * gutter
        return _superellipse(x, dy, width, depth, self.squareness)

    def body(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Depth below the skin."""
        t = z / self.height_mm
        shoulder = smoothstep(t, 0.78, 1.06)
        wall = self.wall_mm + self.fat_mm
        waist = 1.0 - 0.04 * np.cos(2.0 * np.pi * t)
        width = (self.half_width_mm + wall) * waist + 75.0 * shoulder
        depth = (self.half_depth_mm + 0.75 * wall + 12.0) * (1.0 - 0.22 * shoulder)
        field = _superellipse(x, y - 8.0 - 14.0 * shoulder, width, depth, 2.4)
        if self.breasts_mm:
            bulge = self.breasts_mm * np.exp(-(((t - 0.45) / 0.17) ** 2))
            front = 8.0 - depth
            breasts = ellipse(
                np.abs(x),
                y,
                (0.55 * self.half_width_mm, front + 26.0),
                (0.45 * self.half_width_mm, 26.0 + bulge),
            )
            field = _smooth_max(field, breasts, 10.0)
        return field

    def mediastinum(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Heart, great vessels, spine and what lies between the lungs."""
        t = z / self.height_mm
        back = self.back(z)
        column = ellipse(x, y - back, (0.0, -20.0), (25.0, 33.0))
        great = ellipse(
            x - 2.0,
            y - 0.10 * back,
            (0.0, 0.0),
            (self.upper_half_width_mm, 0.54 * self.half_depth_mm),
        )
        # Great vessels thin out below the carina, where the heart takes their place.
        great = great - 18.0 * smoothstep(0.45 - t, 0.0, 0.2)
        cos, sin = math.cos(self.heart_tilt_rad), math.sin(self.heart_tilt_rad)
        dx, dy = x - self.heart[0], y - self.heart[1]
        along = (cos * dx + sin * dy) * (1.0 / self.heart_radii[0])
        across = (cos * dy - sin * dx) * (1.0 / self.heart_radii[1])
        up = (z - 0.30 * self.height_mm) * (1.0 / self.heart_radii[2])
        heart = (1.0 - np.sqrt(along * along + across * across + up * up)) * 45.0
        aorta = ellipse(x - 20.0, y - back, (0.0, -56.0), (self.aorta_mm, self.aorta_mm))
        aorta = aorta - 40.0 * smoothstep(t, 0.72, 0.76)
        # A wedge of fat and thymus that is thin behind the sternum.
        _, depth, middle = self.cage_radii(z)
        behind = np.clip(np.minimum(y - (middle - depth) - 6.0, 0.7 * (back - y)), 0.0, 40.0)
        septum = 3.0 + 0.34 * behind - np.abs(x - 3.0)
        field = _smooth_max(column, great, 10.0)
        field = _smooth_max(field, heart, 8.0)
        field = _smooth_max(field, aorta, 5.0)
        return _smooth_max(field, septum, 6.0)

    def above_diaphragm(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Height above the domes [mm, along z]."""
        back = self.half_depth_mm
        dx = (np.abs(x) - 0.50 * self.half_width_mm) * (1.0 / (0.80 * self.half_width_mm))
        dy = (y + 0.25 * back) * (1.0 / (1.24 * back))
        dome = self.dome_mm * (1.0 - dx * dx - dy * dy)
        dome = np.where(x < 0, dome, self.left_dome_share * dome)
        return z - np.maximum(dome, 0.0)

    def lungs(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Distance inside the lungs, for points."""
        field = np.minimum(self.cage(x, y, z), -self.mediastinum(x, y, z))
        return np.minimum(field, 0.6 * self.above_diaphragm(x, y, z))

    def lower_lobe(self, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Distance behind the oblique fissure [mm, along y]."""
        low, high = 0.12 * self.height_mm, 0.80 * self.height_mm
        front, back = -0.80 * self.half_depth_mm, self.half_depth_mm
        bow = 14.0 * ((np.abs(x) * (1.0 / self.half_width_mm)) - 0.5)
        return y + bow - (front + (back - front) * ((z - low) / (high - low)))

    def lobe(self, name: str, x: np.ndarray, y: np.ndarray, z: Scalars) -> np.ndarray:
        """Share of each point that belongs to a lobe, with the slight blur of thick slices."""
        lower = np.clip(self.lower_lobe(x, y, z) * 0.4 + 0.5, 0.0, 1.0)
        side = x < 0 if name.startswith("right") else x >= 0
        if name.endswith("lower"):
            return lower * side
        share = (1.0 - lower) * side
        if name.startswith("left"):
            return share
        above = np.clip((z - self._minor_fissure(x, y)) * 0.4 + 0.5, 0.0, 1.0)
        return share * (above if name.endswith("upper") else 1.0 - above)

    def _minor_fissure(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """z of the fissure between the right upper and middle lobes."""
        return 0.50 * self.height_mm + 8.0 * np.cos(x * 0.03) * np.cos(y * 0.025)

    def points_in_lungs(
        self, rng: np.random.Generator, count: int, margin_mm: float, side: int
    ) -> np.ndarray:
        """[count, 3] points (x, y, z), evenly spread; side -1 is the person's right, 1 the left."""
        points = np.empty((0, 3))
        while len(points) < count:
            tries = rng.random((8 * count, 3))
            tries[:, 0] *= side * self.half_width_mm
            tries[:, 1] = (2.0 * tries[:, 1] - 1.0) * self.half_depth_mm
            tries[:, 2] *= self.height_mm
            inside = self.lungs(*tries.T) > margin_mm
            points = np.concatenate([points, tries[inside]])
        return points[:count]

    def _scatter(
        self, rng: np.random.Generator, probability: float, most: int
    ) -> list[list[float]]:
        """Places [x, y, z] of harmless findings, none in most people."""
        k = int(rng.binomial(most, probability))
        sides = rng.choice([-1, 1], k)
        return [self.points_in_lungs(rng, 1, 6.0, int(side))[0].tolist() for side in sides]

    def _grow_tubes(self, rng: np.random.Generator) -> None:
        z = self.height_mm
        back = self.half_depth_mm
        carina = np.array([0.0, 0.22 * back, 0.62 * z])
        throat = np.array([0.0, -0.05 * back, 1.3 * z])
        self.trachea.append(_tube(rng, throat, carina, float(rng.uniform(7.5, 9.5)), 0.0))
        thickness = float(rng.uniform(0.85, 1.2))
        for side in (-1, 1):
            hilum = np.array([side * 38.0, 0.20 * back, (0.53 if side < 0 else 0.55) * z])
            lower = hilum + [side * 3.0, 10.0, -0.13 * z]
            trunk = np.array([side * 14.0, 0.02 * back, 0.54 * z])
            atrium = np.array([side * 18.0, 0.14 * back, 0.46 * z])
            self.trachea.append(_tube(rng, carina, hilum, 6.0, 0.05))
            self.trachea.append(_tube(rng, hilum, lower, 3.6, 0.05))
            self.vessels.append(_tube(rng, trunk, hilum + [side * 4.0, -7.0, 0.0], 9.0, 0.05))
            self.vessels.append(
                _tube(
                    rng, hilum + [side * 5.0, 2.0, 0.0], lower + [side * 7.0, 2.0, 0.0], 6.5, 0.05
                )
            )
            high, low = hilum + [side * 4.0, -4.0, 0.0], lower + [side * 3.0, 0.0, 0.0]
            vein = atrium + [side * 12.0, -4.0, 0.0]
            for root, leaf_mm in ((high, 0.60), (low, 0.60), (vein, 0.56)):
                artery = root is not vein
                leaves = self.points_in_lungs(rng, 1024, 3.0, side)
                if artery:
                    upper = leaves[:, 2] > 0.47 * z
                    near = upper if root is high else ~upper
                    leaves = leaves[np.argsort(~near, kind="stable")]
                branches = _tree(rng, root, leaves[:512], leaf_mm * thickness)
                self.vessels += branches
                if artery:
                    self._add_bronchi(branches, side)

    def _add_bronchi(self, arteries: list[Tubes], side: int) -> None:
        """An airway beside every artery that is thick enough, with its wall."""
        for artery in arteries:
            if artery.radius_mm < 0.70:
                continue
            radius = 0.70 * artery.radius_mm
            shift = np.array([-0.5 * side, -0.85, 0.0]) * (artery.radius_mm + radius)
            moved = (artery.start + shift, artery.bend + shift, artery.end + shift)
            self.bronchi.append(Tubes(*moved, radius))
            if radius > 0.9:
                self.vessels.append(Tubes(*moved, 1.1 * radius + 0.35))


def _tube(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, radius_mm: float, bend: float
) -> Tubes:
    middle = (start + end) / 2 + rng.normal(0.0, 1.0, 3) * bend * np.linalg.norm(end - start)
    return Tubes(start[None], middle[None], end[None], radius_mm)


def _tree(
    rng: np.random.Generator, root: np.ndarray, leaves: np.ndarray, leaf_radius_mm: float
) -> list[Tubes]:
    """A branching tree from `root` [3] to every one of `leaves` [2^k, 3], one entry a generation.

    The leaves are halved again and again along their longest axis; a branch goes part of the way to
    the middle of its half. Radii follow Murray's law: the cube of a parent's is the sum of its
    children's.
    """
    groups, nodes = leaves[None], root[None]
    tree = []
    while True:
        count, members, _ = groups.shape
        reach = 1.0 if members == 1 else 0.55
        # The first two halvings make no branch: a hilum sends out four, not one.
        if count >= 4:
            ends = nodes + reach * (groups.mean(axis=1) - nodes)
            length = np.linalg.norm(ends - nodes, axis=1, keepdims=True)
            bends = (nodes + ends) / 2 + rng.normal(0.0, 0.12, nodes.shape) * length
            tree.append(Tubes(nodes, bends, ends, leaf_radius_mm * members ** (1 / 3)))
        else:
            ends = nodes
        if members == 1:
            return tree
        axis = np.argmax(groups.var(axis=1) * rng.uniform(0.6, 1.4, (count, 3)), axis=1)
        along = np.take_along_axis(groups, axis[:, None, None], axis=2)[..., 0]
        order = np.argsort(along, axis=1)[..., None]
        groups = np.take_along_axis(groups, order, axis=1).reshape(2 * count, members // 2, 3)
        nodes = np.repeat(ends, 2, axis=0)
