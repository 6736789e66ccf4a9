"""The slices of a phantom in HU, before the scanner: body, organs, lungs, lesions and table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from drenet_jax.phantoms.anatomy import RIB_PITCH_MM, Chest, ellipse, smoothstep
from drenet_jax.phantoms.lesions import Lesion
from drenet_jax.phantoms.scanner import Frame, TubeShares

AIR_HU = -1000.0
FAT_HU = -95.0
MUSCLE_HU = 50.0
BLOOD_HU = 45.0
LIVER_HU = 62.0
MARROW_HU = 210.0
CALCIUM_HU = 420.0
BONE_HU = 600.0
AIRWAY_HU = -975.0
HALO_HU = -620.0

# How much lower a rib ends in front than it starts at the back.
RIB_FALL_MM = 100.0


class Section:
    """The fields of one slice, which everything painted on it shares. Arrays are [H, W]."""

    def __init__(self, chest: Chest, frame: Frame, index: int):
        self.chest = chest
        self.px_mm = frame.px_mm
        self.thickness_mm = frame.site.slice_spacing_mm
        self.z = np.float32(frame.z_mm[index])
        self.t = self.z / chest.height_mm  # 0 to 1 from the lungs' lowest to their highest slice
        self.x, self.y = frame.x(self.z), frame.y
        self.bumps, self.lumps, self.grain = (
            noise.plane(float(self.z) - chest.z_low_mm, frame.size_px)
            for noise in (chest.bumps, chest.lumps, chest.grain)
        )
        self.body = chest.body(self.x, self.y, self.z) + 0.8 * self.bumps
        self.cage = chest.cage(self.x, self.y, self.z) + 1.5 * self.bumps
        self.mediastinum = chest.mediastinum(self.x, self.y, self.z) + 1.5 * self.bumps
        self.above_diaphragm = chest.above_diaphragm(self.x, self.y, self.z) + 2.0 * self.bumps

    def lung_share(self) -> np.ndarray:
        """The share of each voxel that is lung."""
        if not 0.0 < self.z < self.chest.height_mm:
            return np.zeros_like(self.cage)
        share = _ramp(np.minimum(self.cage, -self.mediastinum), self.px_mm)
        # The domes lie nearly flat in the slice: its thickness blurs them, not its pixels.
        return share * _ramp(self.above_diaphragm, self.thickness_mm)


def paint_slice(
    section: Section, table: np.ndarray, tubes: TubeShares, lesions: Sequence[Lesion]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU before the scanner's blur and noise, lung mask and lesion numbers, each [H, W].

    Args:
      section: the slice.
      table: HU of what is there without a body.
      tubes: the shares of this slice.
      lesions: the person's, numbered from 1 in their order.
    """
    hu = table.copy()
    _paint_body(hu, section)
    _paint_inside(hu, section)
    lung_share = section.lung_share()
    lesion_mask = np.zeros(hu.shape, np.uint8)
    if lung_share.any():
        lung = _parenchyma(section)
        largest = np.full(hu.shape, 0.5, np.float32)
        for number, lesion in enumerate(lesions, start=1):
            weight = _paint_lesion(lung, section, lesion)
            if weight is not None:
                lesion_mask[weight > largest] = number
                np.maximum(largest, weight, out=largest)
        _blend(hu, lung_share, lung)
        _blend(hu, lung_share * tubes.vessels, BLOOD_HU)
        # Small airways stay dark in a consolidated lobe: air bronchograms.
        _blend(hu, lung_share * tubes.bronchi, AIRWAY_HU)
    _blend(hu, tubes.trachea, AIRWAY_HU)
    lung_mask = (lung_share > 0.5) & (np.maximum(tubes.bronchi, tubes.trachea) < 0.5)
    lesion_mask[~lung_mask] = 0
    return hu, lung_mask, lesion_mask


def _ramp(field: np.ndarray, width_mm: float) -> np.ndarray:
    """0 outside, 1 inside, rising over `width_mm` at a field's border."""
    return np.clip(field * (1.0 / width_mm) + 0.5, 0.0, 1.0)


def _blend(hu: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> None:
    """Replaces a share of `hu`, in place."""
    hu += share * (value - hu)


def _paint_body(hu: np.ndarray, section: Section) -> None:
    """Blankets, fat, muscle, ribs, sternum and the bones of the shoulder."""
    chest, x, y, t = section.chest, section.x, section.y, section.t
    body, cage, lumps, bumps = section.body, section.cage, section.lumps, section.bumps
    for gap_mm in chest.blankets_mm:
        sheet = _ramp(0.4 - np.abs(body + gap_mm + 7.0 * bumps), section.px_mm) * (y < 30.0)
        _blend(hu, 0.25 * sheet, -600.0)
    _blend(hu, _ramp(body, section.px_mm), FAT_HU + 8.0 * lumps)
    hu[(body > 0) & (body < 1.8)] = 10.0

    behind = np.clip(y * (1.0 / chest.half_depth_mm), 0.0, 1.0)
    wall_mm = chest.wall_mm + 16.0 * behind**3 + 75.0 * float(smoothstep(t, 0.70, 1.0))
    muscle = np.minimum(cage + wall_mm, body - 0.7 * chest.fat_mm - 3.0)
    # Sheets of fat between the muscles.
    muscle = np.minimum(muscle, 14.0 * (np.abs(bumps + 0.4 * lumps) - 0.10 + (cage > -7.0)))
    _blend(hu, _ramp(muscle, section.px_mm), MUSCLE_HU)

    _, depth, centre = chest.cage_radii(section.z)
    # Ribs come down from the back (angle 0) to the front (pi), so a slice cuts several.
    _, around = cv2.cartToPolar(y - np.float32(centre), np.abs(x))
    fall = (section.z + RIB_FALL_MM / math.pi * around) * (1.0 / RIB_PITCH_MM) + chest.rib_phase
    rib = np.cos(2.0 * np.pi * fall) - 0.15 - np.square((cage + 5.0) * (1.0 / 3.6))
    hu[(rib > 0) & (around < 0.86 * math.pi) & (body > 3.0)] = BONE_HU
    if 0.28 < t < 0.9:
        sternum = ellipse(x, y, (0.0, centre - depth - 7.0), (19.0, 5.5))
        hu[sternum > 0] = MARROW_HU
        hu[(sternum > 0) & (sternum < 1.2)] = BONE_HU
    if t > 0.55:
        blade = (np.abs(cage + 22.0 + 6.0 * np.cos(4.0 * around)) < 2.2) & (body > 6.0)
        reach = (0.20 + 0.25 * min(float(t), 0.9)) * math.pi
        hu[blade & (around > 0.14 * math.pi) & (around < reach)] = BONE_HU
    if t > 0.92:
        head = ellipse(np.abs(x), y, (chest.half_width_mm + 28.0, 14.0), (25.0, 22.0))
        hu[head > 0] = MARROW_HU
        hu[(head > 0) & (head < 2.5)] = BONE_HU
        collar = ellipse(
            np.abs(x), y - 0.28 * np.abs(x), (50.0, -0.55 * chest.half_depth_mm), (32.0, 5.0)
        )
        hu[collar > 0] = BONE_HU


def _paint_inside(hu: np.ndarray, section: Section) -> None:
    """All that the rib cage holds, as if there were no lungs, and the spine."""
    chest, x, y, t = section.chest, section.x, section.y, section.t
    cage, lumps = section.cage, section.lumps
    inside = _ramp(cage, section.px_mm)
    if t < 1.0:
        pads = (section.bumps > 0.2) & (section.mediastinum < 6.0 + 3.0 * lumps) & (y < 10.0)
        _blend(hu, inside, np.where(pads, FAT_HU, BLOOD_HU + 10.0 * lumps))
    else:
        _blend(hu, inside, np.where(lumps > 0.5, FAT_HU, MUSCLE_HU))
    if t < 0.5:
        # Right: liver. Left: spleen, bowel in fat, a bubble of gas at the top of the stomach.
        belly = np.where(lumps > 0.35, FAT_HU, 38.0)
        liver = _ramp(14.0 - x + 0.3 * y, 4.0)
        spleen = _ramp(ellipse(x, y, (74.0, 30.0), (50.0, 44.0)), 2.0)
        _blend(belly, np.maximum(liver, spleen), LIVER_HU)
        _blend(hu, _ramp(-section.above_diaphragm, section.thickness_mm) * inside, belly)
        if chest.stomach_gas_mm > 0.0:
            radii = (1.4 * chest.stomach_gas_mm, 0.8 * chest.stomach_gas_mm)
            gas = ellipse(x + 6.0 * lumps, y, (52.0, -0.42 * chest.half_depth_mm), radii)
            gas = gas - abs(section.z - 0.05 * chest.height_mm) * 0.3
            _blend(hu, _ramp(gas, section.px_mm) * (section.above_diaphragm < -6.0), AIRWAY_HU)
    _paint_spine(hu, section)


def _paint_spine(hu: np.ndarray, section: Section) -> None:
    chest, x, y = section.chest, section.x, section.y
    # 1 in the middle of a disc, -1 in the middle of a vertebra; each vertebra has its ribs.
    disc = math.cos(2.0 * math.pi * (section.z / RIB_PITCH_MM + chest.rib_phase))
    middle = float(chest.back(section.z)) - 27.0
    vertebra = ellipse(x, y, (0.0, middle), (19.0, 15.5))
    core = (95.0 if disc > 0.6 else MARROW_HU) + 30.0 * section.lumps
    _blend(hu, _ramp(vertebra, section.px_mm), core)
    if disc <= 0.6:
        hu[(vertebra > 0) & (vertebra < 2.0)] = BONE_HU
    arch = ellipse(x, y, (0.0, middle + 24.0), (13.0, 12.0))
    hu[(arch > 0) & (y > middle + 12.0)] = BONE_HU
    hu[ellipse(x, y, (0.0, middle + 23.0), (9.0, 8.0)) > 0] = 25.0
    if disc > -0.4:
        hu[ellipse(x, y, (0.0, middle + 43.0), (3.2, 13.0)) > 0] = BONE_HU
    if disc < 0.2:
        wing = ellipse(np.abs(x), y - 0.35 * np.abs(x), (20.0, middle + 13.0), (15.0, 4.5))
        hu[wing > 0] = BONE_HU


def _parenchyma(section: Section) -> np.ndarray:
    """HU [H, W] of lung tissue without vessels, with what any lung may show."""
    chest, x, y, z = section.chest, section.x, section.y, section.z
    share = y * (1.0 / chest.half_depth_mm)
    lung = chest.lung_hu + chest.gravity_hu * share
    lung += chest.texture_hu * (section.grain + 0.4 * section.lumps)
    # Lung lies on itself at the back, most of all low down.
    lying = _ramp(chest.dependent_depth_mm / 2 - section.cage, chest.dependent_depth_mm)
    lying *= np.clip(1.6 * share - 0.55, 0.0, 1.0) * (0.9 + 0.3 * section.lumps)
    lung += chest.dependent_hu * (1.0 - 0.6 * section.t) * lying
    # The oblique fissure: a faint band in a thick slice.
    fissure = np.abs(chest.lower_lobe(x, y, z) + 3.0 * section.lumps)
    lung += 55.0 * np.clip(1.0 - 0.5 * fissure, 0.0, 1.0)
    for nodule_x, nodule_y, nodule_z in chest.nodules:
        if abs(z - nodule_z) < 6.0:
            nodule = ellipse(x, y, (nodule_x, nodule_y), (3.4, 3.0))
            _blend(lung, _ramp(nodule, 1.0), CALCIUM_HU)
    for plate_x, plate_y, plate_z in chest.plates:
        if abs(z - plate_z) < 9.0:
            along = x - plate_x
            across = 0.8 * (y - plate_y + 0.004 * along * along) + 0.6 * along + section.lumps
            plate = _ramp(1.1 - np.abs(across), 1.2) * _ramp(20.0 - np.abs(along), 8.0)
            _blend(lung, plate, -380.0)
    return lung


def _paint_lesion(lung: np.ndarray, section: Section, lesion: Lesion) -> np.ndarray | None:
    """Paints a lesion onto `lung` and returns its weight (0 to 1), or None if out of reach."""
    chest, x, y, z = section.chest, section.x, section.y, section.z
    centre_x, centre_y, centre_z = lesion.centre_mm
    into, along, up = lesion.radii_mm
    w = (z - centre_z) / up
    if abs(w) > 1.0 + lesion.halo + 2.5 * lesion.raggedness:
        return None
    # Depth below the pleura and place along it, so that the lesion bends with the chest wall.
    _, _, middle = chest.cage_radii(z)
    out_x, out_y = centre_x, centre_y - middle
    norm = math.hypot(out_x, out_y)
    dx, dy = x - centre_x, y - centre_y
    u = (section.cage - lesion.depth_mm) * (1.0 / into)
    v = (dy * out_x - dx * out_y) * (1.0 / (norm * along))
    outline = section.bumps + 0.5 * section.lumps
    inner = 1.0 - np.sqrt(u * u + v * v + w * w) + lesion.raggedness * outline
    # The same depth and place are found again on the far side of the chest.
    near = ((x < 0) == (centre_x < 0)) & (dx * out_x + dy * out_y > -1.3 * norm * into)
    held = near * (1.0 if lesion.lobe is None else chest.lobe(lesion.lobe, x, y, z))
    if lesion.halo:
        haze = np.clip((inner + lesion.halo) * (0.5 / lesion.halo), 0.0, 1.0) * held
        _blend(lung, 0.8 * haze, HALO_HU + 30.0 * section.grain)
    weight = smoothstep(inner, -0.5 * lesion.softness, 0.5 * lesion.softness) * held
    value = lesion.hu + lesion.mottle_hu * (section.lumps + section.grain)
    if lesion.paving_hu:
        # Lines where a random field crosses zero form a net of small polygons.
        value += lesion.paving_hu * np.clip(1.0 - 4.0 * np.abs(section.grain), 0.0, 1.0)
    _blend(lung, weight, value)
    return weight


def table_hu(chest: Chest, frame: Frame) -> np.ndarray:
    """Air with the table, as float32 HU [H, W]: two thin shells with foam between, and a pad."""
    hu = np.full((frame.size_px, frame.size_px), AIR_HU, np.float32)
    depth = chest.half_depth_mm + 0.75 * (chest.wall_mm + chest.fat_mm) + 20.0
    below = frame.scan_y - (chest.offset_mm[1] + depth + 7.0)
    below += chest.table_bend * np.square(frame.scan_x)
    _blend(hu, _ramp(7.0 - np.abs(below + 5.0), 3.0), -945.0)
    _blend(hu, _ramp(11.0 - np.abs(below - 12.0), frame.px_mm), -930.0)
    for shell_mm in (1.0, 24.0):
        _blend(hu, _ramp(0.9 - np.abs(below - shell_mm), frame.px_mm), -250.0)
    return hu
