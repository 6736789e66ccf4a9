"""Chest phantoms in HU with known lesions, written as DICOM series.

A phantom is drawn slice by slice from fields in millimetres (positive inside, about the distance to
the border), so that the same person can be had at any image size and from any scanner. Body
coordinates: x to the person's left, y to the back, z to the head, z = 0 where the lungs begin.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from drenet_jax.errors import InputError

LABELS = ("COVID-19", "bacterial", "healthy")

AIR_HU = -1000.0
FAT_HU = -95.0
MUSCLE_HU = 50.0
BLOOD_HU = 45.0
BONE_HU = 550.0
AIRWAY_HU = -975.0

# Random streams of one person. Anatomy comes before disease and knows nothing of it, so the same
# seed gives the same chest with another label; the scanner's noise is apart from both.
_ANATOMY, _DISEASE, _SCANNER, _FILE_NAMES = range(4)


@dataclass(frozen=True)
class Site:
    """What a scanner and its protocol add. A site never changes the body or the disease.

    Attributes:
      slice_spacing_mm: distance and thickness of the slices.
      kernel_sigma_mm: blur of the reconstruction kernel.
      sharpening: how much of the difference to a blurred copy is added back (0: none).
      noise_hu: standard deviation of the noise in an average chest.
      noise_grain_mm: correlation length of the noise.
      shift_hu: calibration error.
    """

    slice_spacing_mm: float
    kernel_sigma_mm: float
    sharpening: float
    noise_hu: float
    noise_grain_mm: float
    shift_hu: float


SITES = {
    # A standard dose with a soft-tissue kernel.
    "A": Site(
        slice_spacing_mm=6.5,
        kernel_sigma_mm=0.75,
        sharpening=0.0,
        noise_hu=16.0,
        noise_grain_mm=0.9,
        shift_hu=0.0,
    ),
    # A low dose with an edge-enhancing lung kernel and thinner slices: grainy, crisp, a little off.
    "B": Site(
        slice_spacing_mm=5.0,
        kernel_sigma_mm=0.6,
        sharpening=0.9,
        noise_hu=34.0,
        noise_grain_mm=0.55,
        shift_hu=14.0,
    ),
}


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
    vessels, now and then a calcified nodule or a plate of atelectasis (DESIGN section 2 and 3).

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
    chest = _Chest(_stream(root, _ANATOMY))
    lesions, severity = _draw_lesions(label, chest, _stream(root, _DISEASE))
    frame = _Frame(chest, size_px, SITES[site])
    noise = _stream(root, _SCANNER)

    tissue, air = _rasterise_tubes(chest, frame)
    table = _table(chest, frame)
    n = len(frame.z_mm)
    volume_hu = np.empty((n, size_px, size_px), np.int16)
    lung_mask = np.empty((n, size_px, size_px), bool)
    lesion_mask = np.empty((n, size_px, size_px), np.uint8)
    for i in range(n):
        hu, lung_mask[i], lesion_mask[i] = _paint_slice(
            chest, frame, i, table, tissue[i], air[i], lesions
        )
        hu = _scan(hu, frame, noise)
        volume_hu[i] = np.clip(np.rint(hu), -1024, 3071)
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
        for lesion, found in enumerate(ndimage.find_objects(mask), start=1):
            if found is not None:
                rows, columns = found
                boxes.append((index, lesion, rows.start, columns.start, rows.stop, columns.stop))
    return boxes


def write_dicom(
    phantom: Phantom,
    folder: Path,
    *,
    patient_id: str,
    seed: int | np.random.SeedSequence,
) -> list[str]:
    """Writes one CT Image Storage file a slice, as a hospital's export might look.

    InstanceNumber runs from head to feet, against the slice normal, and the file names are in no
    order: both are common in real exports (data/README.md), and only the position can be trusted.

    Args:
      phantom: what to write.
      folder: an existing, empty folder.
      patient_id: goes into PatientID and PatientName.
      seed: decides the file names and, with the pixels, all UIDs.

    Returns:
      File names in anatomical order (along the slice normal, feet to head).
    """
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    n, height, width = phantom.volume_hu.shape
    spacing_z, spacing_y, spacing_x = phantom.spacing_mm
    stored = (phantom.volume_hu.astype(np.int32) + 1024).astype("<u2")
    source = [patient_id, str(root.entropy), str(root.spawn_key), str(zlib.crc32(stored))]

    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*source, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*source, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*source, "frame"])
    ds.PositionReferenceIndicator = ""
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.Modality = "CT"
    ds.Manufacturer = "drenet_jax"
    ds.StudyDescription = "synthetic chest phantom"
    ds.PatientID = patient_id
    ds.PatientName = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.PatientPosition = "HFS"
    ds.StudyDate = "20200101"
    ds.StudyTime = "000000"
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.SeriesNumber = 1
    ds.AcquisitionNumber = 1
    ds.KVP = 120
    ds.SliceThickness = round(spacing_z, 4)
    ds.PixelSpacing = [round(spacing_y, 6), round(spacing_x, 6)]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.Rows, ds.Columns = height, width
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500

    corner_x = round(-spacing_x * (width - 1) / 2, 4)
    corner_y = round(-spacing_y * (height - 1) / 2, 4)
    numbers = _stream(root, _FILE_NAMES).permutation(n) + 1
    names = [f"IM_{number:04d}.dcm" for number in numbers]
    for i, name in enumerate(names):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[*source, str(i)])
        ds.InstanceNumber = n - i
        ds.ImagePositionPatient = [corner_x, corner_y, round(i * spacing_z, 4)]
        ds.SliceLocation = round(i * spacing_z, 4)
        ds.PixelData = stored[i].tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / name, ds, enforce_file_format=True)
    return names


def _stream(root: np.random.SeedSequence, number: int) -> np.random.Generator:
    # Not root.spawn(): that counts, so a second call with the same object would differ.
    return np.random.default_rng(
        np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, number))
    )


def _smoothstep(value, low: float, high: float):
    """0 below `low`, 1 above `high`, smooth between."""
    s = np.clip((value - low) / (high - low), 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def _smooth_max(a, b, radius_mm: float):
    """The larger of two fields with the edge between them rounded off."""
    h = np.maximum(radius_mm - np.abs(a - b), 0.0)
    return np.maximum(a, b) + h * h * (0.25 / radius_mm)


def _ellipse(x, y, centre: tuple[float, float], radii: tuple[float, float]):
    """Field of an ellipse [mm]; exact on the border."""
    dx, dy = (x - centre[0]) * (1.0 / radii[0]), (y - centre[1]) * (1.0 / radii[1])
    return (1.0 - np.sqrt(dx * dx + dy * dy)) * min(radii)


class _Noise:
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
class _Tubes:
    """Vessels or airways of one calibre: bent pieces from `start` by `bend` to `end`, [m, 3] mm."""

    start: np.ndarray
    bend: np.ndarray
    end: np.ndarray
    radius_mm: float


class _Chest:
    """One person's anatomy, without disease. All lengths in mm, all methods take broadcasting x, y
    [mm] and z (a number or an array) and return fields that are positive inside."""

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
        self.bumps = _Noise(rng, 34.0, self.fov_mm, scan_mm)
        self.lumps = _Noise(rng, 11.0, self.fov_mm, scan_mm)
        self.grain = _Noise(rng, 4.0, self.fov_mm, scan_mm)

        self.tissue: list[_Tubes] = []
        self.airways: list[_Tubes] = []
        self._grow_tubes(rng)
        self.nodules = self._scatter(rng, 0.30, 1)
        self.plates = self._scatter(rng, 0.40, 2)

    def cage_radii(self, z) -> tuple:
        """Half width, half depth and centre y of the rib cage's inside."""
        t = z / self.height_mm
        s = np.clip((t - 0.3) / 0.7, 0.0, 1.0)
        taper = np.sqrt(1.0 - 0.93 * s**3) - 0.05 * np.clip(1.0 - t / 0.3, 0.0, 1.5) ** 2
        depth = self.half_depth_mm * taper
        return self.half_width_mm * taper, depth, 0.7 * (self.half_depth_mm - depth)

    def back(self, z):
        """y of the cage's back wall."""
        _, depth, centre = self.cage_radii(z)
        return centre + depth

    def cage(self, x, y, z):
        """Depth below the pleura of the chest wall [mm, radially]."""
        width, depth, centre = self.cage_radii(z)
        # On either side of the spine the ribs bow backwards: the lungs reach behind its front.
        gutter = np.clip(y * (1.0 / self.half_depth_mm), 0.0, 1.0) ** 2
        gutter = gutter * np.exp(-np.square((np.abs(x) - 0.40 * width) * (3.6 / width)))
        dy = y - centre - self.gutter_mm * gutter
        return self._superellipse(x, dy, width, depth, self.squareness)

    def body(self, x, y, z):
        """Depth below the skin."""
        t = z / self.height_mm
        shoulder = _smoothstep(t, 0.78, 1.06)
        wall = self.wall_mm + self.fat_mm
        waist = 1.0 - 0.04 * np.cos(2.0 * np.pi * t)
        width = (self.half_width_mm + wall) * waist + 75.0 * shoulder
        depth = (self.half_depth_mm + 0.75 * wall + 12.0) * (1.0 - 0.22 * shoulder)
        field = self._superellipse(x, y - 8.0 - 14.0 * shoulder, width, depth, 2.4)
        if self.breasts_mm:
            bulge = self.breasts_mm * np.exp(-(((t - 0.45) / 0.17) ** 2))
            front = 8.0 - depth
            breasts = _ellipse(
                np.abs(x),
                y,
                (0.55 * self.half_width_mm, front + 26.0),
                (0.45 * self.half_width_mm, 26.0 + bulge),
            )
            field = _smooth_max(field, breasts, 10.0)
        return field

    @staticmethod
    def _superellipse(x, y, width, depth, power):
        u, v = np.abs(x) * (1.0 / width), np.abs(y) * (1.0 / depth)
        r = (u**power + v**power) ** (1.0 / power) + 1e-4
        return np.sqrt(x * x + y * y) * (1.0 / r - 1.0)

    def mediastinum(self, x, y, z):
        """Heart, great vessels, spine and what lies between the lungs."""
        t = z / self.height_mm
        back = self.back(z)
        column = _ellipse(x, y - back, (0.0, -20.0), (25.0, 33.0))
        great = _ellipse(
            x - 2.0,
            y - 0.10 * back,
            (0.0, 0.0),
            (self.upper_half_width_mm, 0.54 * self.half_depth_mm),
        )
        # Great vessels thin out below the carina, where the heart takes their place.
        great = great - 18.0 * _smoothstep(0.45 - t, 0.0, 0.2)
        cos, sin = math.cos(self.heart_tilt_rad), math.sin(self.heart_tilt_rad)
        dx, dy = x - self.heart[0], y - self.heart[1]
        along = (cos * dx + sin * dy) * (1.0 / self.heart_radii[0])
        across = (cos * dy - sin * dx) * (1.0 / self.heart_radii[1])
        upright = (z - 0.30 * self.height_mm) * (1.0 / self.heart_radii[2])
        heart = (1.0 - np.sqrt(along * along + across * across + upright * upright)) * 45.0
        aorta = _ellipse(x - 20.0, y - back, (0.0, -56.0), (self.aorta_mm, self.aorta_mm))
        aorta = aorta - 40.0 * _smoothstep(t, 0.72, 0.76)
        # A wedge of fat and thymus that is thin behind the sternum.
        _, depth, middle = self.cage_radii(z)
        behind = np.clip(np.minimum(y - (middle - depth) - 6.0, 0.7 * (back - y)), 0.0, 40.0)
        septum = 3.0 + 0.34 * behind - np.abs(x - 3.0)
        field = _smooth_max(column, great, 10.0)
        field = _smooth_max(field, heart, 8.0)
        field = _smooth_max(field, aorta, 5.0)
        return _smooth_max(field, septum, 6.0)

    def above_diaphragm(self, x, y, z):
        """Height above the domes [mm, along z]."""
        back = self.half_depth_mm
        height = np.where(x < 0, self.dome_mm, self.dome_mm * self.left_dome_share)
        dx = (np.abs(x) - 0.50 * self.half_width_mm) * (1.0 / (0.80 * self.half_width_mm))
        dy = (y + 0.25 * back) * (1.0 / (1.24 * back))
        dome = height * (1.0 - dx * dx - dy * dy)
        return z - np.maximum(dome, 0.0)

    def lungs(self, x, y, z):
        """Distance inside the lungs, for points."""
        field = np.minimum(self.cage(x, y, z), -self.mediastinum(x, y, z))
        return np.minimum(field, 0.6 * self.above_diaphragm(x, y, z))

    def lower_lobe(self, x, y, z):
        """Distance behind the oblique fissure [mm, along y]."""
        low, high = 0.12 * self.height_mm, 0.80 * self.height_mm
        front, back = -0.80 * self.half_depth_mm, self.half_depth_mm
        bow = 14.0 * ((np.abs(x) * (1.0 / self.half_width_mm)) - 0.5)
        return y + bow - (front + (back - front) * ((z - low) / (high - low)))

    def lobe(self, name: str, x, y, z):
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

    def _minor_fissure(self, x, y):
        return 0.50 * self.height_mm + 8.0 * np.cos(x * 0.03) * np.cos(y * 0.025)

    def points_in_lungs(
        self, rng: np.random.Generator, count: int, margin_mm: float, side: int
    ) -> np.ndarray:
        """[count, 3] points (x, y, z), evenly spread; side -1 is the person's right, 1 the left."""
        found = np.empty((0, 3))
        while len(found) < count:
            tries = rng.random((8 * count, 3))
            tries[:, 0] *= side * self.half_width_mm
            tries[:, 1] = (2.0 * tries[:, 1] - 1.0) * self.half_depth_mm
            tries[:, 2] *= self.height_mm
            inside = self.lungs(*tries.T) > margin_mm
            found = np.concatenate([found, tries[inside]])
        return found[:count]

    def _scatter(self, rng: np.random.Generator, chance: float, most: int) -> np.ndarray:
        """[k, 3] places of harmless findings; k is 0 for most people."""
        k = int(rng.binomial(most, chance))
        sides = rng.choice([-1, 1], k)
        places = [self.points_in_lungs(rng, 1, 6.0, int(side)) for side in sides]
        return np.concatenate([np.empty((0, 3)), *places])

    def _grow_tubes(self, rng: np.random.Generator) -> None:
        z = self.height_mm
        back = self.half_depth_mm
        carina = np.array([0.0, 0.22 * back, 0.62 * z])
        throat = np.array([0.0, -0.05 * back, 1.3 * z])
        self.airways.append(_tube(rng, throat, carina, float(rng.uniform(7.5, 9.5)), 0.0))
        thickness = float(rng.uniform(0.85, 1.2))
        for side in (-1, 1):
            hilum = np.array([side * 38.0, 0.20 * back, (0.53 if side < 0 else 0.55) * z])
            lower = hilum + [side * 3.0, 10.0, -0.13 * z]
            trunk = np.array([side * 14.0, 0.02 * back, 0.54 * z])
            atrium = np.array([side * 18.0, 0.14 * back, 0.46 * z])
            self.airways.append(_tube(rng, carina, hilum, 6.0, 0.05))
            self.airways.append(_tube(rng, hilum, lower, 3.6, 0.05))
            self.tissue.append(_tube(rng, trunk, hilum + [side * 4.0, -7.0, 0.0], 9.0, 0.05))
            self.tissue.append(
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
                self.tissue += branches
                if artery:
                    self._add_bronchi(branches, side)

    def _add_bronchi(self, arteries: list[_Tubes], side: int) -> None:
        """An airway beside every artery that is thick enough, with its wall."""
        for artery in arteries:
            if artery.radius_mm < 0.75:
                continue
            radius = 0.70 * artery.radius_mm
            shift = np.array([-0.5 * side, -0.85, 0.0]) * (artery.radius_mm + radius)
            moved = (artery.start + shift, artery.bend + shift, artery.end + shift)
            self.airways.append(_Tubes(*moved, radius))
            if radius > 0.9:
                self.tissue.append(_Tubes(*moved, 1.1 * radius + 0.35))


def _tube(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, radius_mm: float, bend: float
) -> _Tubes:
    middle = (start + end) / 2 + rng.normal(0.0, 1.0, 3) * bend * np.linalg.norm(end - start)
    return _Tubes(start[None], middle[None], end[None], radius_mm)


def _tree(
    rng: np.random.Generator, root: np.ndarray, leaves: np.ndarray, leaf_radius_mm: float
) -> list[_Tubes]:
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
            tree.append(_Tubes(nodes, bends, ends, leaf_radius_mm * members ** (1 / 3)))
        else:
            ends = nodes
        if members == 1:
            return tree
        axis = np.argmax(groups.var(axis=1) * rng.uniform(0.6, 1.4, (count, 3)), axis=1)
        along = np.take_along_axis(groups, axis[:, None, None], axis=2)[..., 0]
        order = np.argsort(along, axis=1)[..., None]
        groups = np.take_along_axis(groups, order, axis=1).reshape(2 * count, members // 2, 3)
        nodes = np.repeat(ends, 2, axis=0)


class _Frame:
    """Where the scanner's pixels lie in the body."""

    def __init__(self, chest: _Chest, size_px: int, site: Site):
        self.site = site
        self.size_px = size_px
        self.px_mm = round(chest.fov_mm / size_px, 6)
        spacing = site.slice_spacing_mm
        n = int((chest.z_high_mm - chest.z_low_mm) / spacing)
        self.z_mm = chest.z_low_mm + spacing * (np.arange(n) + 0.5)
        self._chest = chest
        line = ((np.arange(size_px) - (size_px - 1) / 2) * self.px_mm).astype(np.float32)
        self.scan_x, self.scan_y = np.meshgrid(line, line)
        cos, sin = math.cos(chest.roll_rad), math.sin(chest.roll_rad)
        dx, dy = self.scan_x - chest.offset_mm[0], self.scan_y - chest.offset_mm[1]
        self._x, self.y = cos * dx + sin * dy, cos * dy - sin * dx

    def _lean(self, z):
        return self._chest.lean_mm * (z / self._chest.height_mm - 0.5)

    def x(self, z: float) -> np.ndarray:
        """Body x of the pixels of the slice at z, float32 [H, W]."""
        return self._x - np.float32(self._lean(z))

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """[m, 3] body points -> flat voxel numbers [m], -1 outside the scan."""
        chest, half = self._chest, (self.size_px - 1) / 2
        x, y, z = points.T
        x = x + self._lean(z)
        cos, sin = math.cos(chest.roll_rad), math.sin(chest.roll_rad)
        column = np.rint((cos * x - sin * y + chest.offset_mm[0]) / self.px_mm + half)
        row = np.rint((sin * x + cos * y + chest.offset_mm[1]) / self.px_mm + half)
        plane = np.rint((z - self.z_mm[0]) / self.site.slice_spacing_mm)
        inside = (
            (np.minimum(np.minimum(row, column), plane) >= 0)
            & (np.maximum(row, column) < self.size_px)
            & (plane < len(self.z_mm))
        )
        flat = (plane * self.size_px + row) * self.size_px + column
        return np.where(inside, flat, -1).astype(np.int64)


def _rasterise_tubes(chest: _Chest, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    """The share of every voxel that vessels and bronchial walls fill, and that airways fill.

    Both float32 [n, H, W], 0 to 1. Tubes are filled with points which each carry a piece of volume:
    thin vessels that run through a thick slice come out faint, as in a scanner.
    """
    shape = (len(frame.z_mm), frame.size_px, frame.size_px)
    voxel_mm3 = frame.px_mm**2 * frame.site.slice_spacing_mm
    shares = []
    for tubes in (chest.tissue, chest.airways):
        voxels, volumes = [], []
        for tube in tubes:
            points, volume = _fill_tubes(tube, frame.px_mm, voxel_mm3 / 12.0)
            voxels.append(frame.voxels(points))
            volumes.append(volume)
        voxel, volume = np.concatenate(voxels), np.concatenate(volumes)
        inside = voxel >= 0
        filled = np.bincount(voxel[inside], volume[inside], minlength=math.prod(shape))
        # A little more than full, so that the unevenness of the points does not show.
        share = filled.astype(np.float32).reshape(shape) * np.float32(1.15 / voxel_mm3)
        shares.append(np.minimum(share, 1.0))
    return shares[0], shares[1]


def _fill_tubes(tubes: _Tubes, px_mm: float, point_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [k, 3] spread evenly through tubes and the volume [k] of each, in mm³."""
    chord = tubes.end - tubes.start
    length = np.linalg.norm(chord, axis=1) + 1e-6
    area = math.pi * tubes.radius_mm**2
    per_mm = max(area / point_mm3, 2.0 / px_mm)
    count = math.ceil(float(length.mean()) * per_mm)
    # A low-discrepancy sequence in (along, radius, angle): far more even than random points.
    k = np.arange(count)
    along = (k + 0.5) / count
    reach = tubes.radius_mm * np.sqrt((k * 0.7548776662466927) % 1.0)
    angle = 2.0 * np.pi * ((k * 0.5698402909980532) % 1.0)
    axis = chord / length[:, None]
    helper = np.where(np.abs(axis[:, 2:]) < 0.8, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    across = np.cross(axis, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    upward = np.cross(axis, across)
    s = along[:, None]
    curve = [(1 - s) ** 2, 2 * s * (1 - s), s**2]
    points = sum(
        weight[None] * place[:, None]
        for weight, place in zip(curve, (tubes.start, tubes.bend, tubes.end), strict=True)
    )
    points = points + (reach * np.cos(angle))[None, :, None] * across[:, None]
    points += (reach * np.sin(angle))[None, :, None] * upward[:, None]
    volume = np.repeat(length * area / count, count)
    return points.reshape(-1, 3), volume


@dataclass(frozen=True)
class _Lesion:
    """An ellipsoid that follows the pleura.

    Attributes:
      centre_mm: (x, y, z).
      depth_mm: how far below the pleura its middle lies.
      radii_mm: (into the lung, along the pleura, along z).
      hu: what the lung becomes in its middle.
      softness: width of its border as a share of its radius.
      raggedness: how far the border wanders, as a share of its radius.
      paving_hu: contrast of the crazy-paving lines, 0 for none.
      halo: how far a ground-glass halo reaches, as a share of its radius, 0 for none.
      lobe: the lobe that holds it, or None.
    """

    centre_mm: tuple[float, float, float]
    depth_mm: float
    radii_mm: tuple[float, float, float]
    hu: float
    softness: float
    raggedness: float
    paving_hu: float = 0.0
    halo: float = 0.0
    lobe: str | None = None


HALO_HU = -620.0


def _draw_lesions(
    label: str, chest: _Chest, rng: np.random.Generator
) -> tuple[list[_Lesion], float]:
    """A person's lesions and severity."""
    if label == "healthy":
        return [], 0.0
    severity = float(rng.beta(1.6, 1.5))
    draw = _ground_glass if label == "COVID-19" else _consolidations
    return draw(chest, rng, severity), severity


def _pleural_points(
    chest: _Chest, rng: np.random.Generator, side: int, count: int = 400
) -> np.ndarray:
    """Points of one lung within 14 mm of the chest wall, away from its very top and bottom."""
    points = chest.points_in_lungs(rng, count, 2.0, side)
    t = points[:, 2] / chest.height_mm
    return points[(chest.cage(*points.T) < 14.0) & (t > 0.14) & (t < 0.85)]


def _ground_glass(chest: _Chest, rng: np.random.Generator, severity: float) -> list[_Lesion]:
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
        radius = (14.0 + 13.0 * severity) * rng.uniform(0.75, 1.3)
        lesions.append(
            _Lesion(
                centre_mm=tuple(map(float, centre)),
                depth_mm=float(rng.uniform(0.0, 5.0) if rng.random() < 0.8 else 16.0),
                radii_mm=(0.85 * radius, radius * float(rng.uniform(1.0, 1.6)), 1.1 * radius),
                hu=float(np.clip(-670 + 200 * severity + rng.uniform(-60, 60), -700, -400)),
                softness=float(rng.uniform(0.5, 0.9)),
                raggedness=float(rng.uniform(0.12, 0.24)),
                paving_hu=float(rng.uniform(90, 170)) if rng.random() < 0.35 else 0.0,
            )
        )
    return lesions


def _consolidations(chest: _Chest, rng: np.random.Generator, severity: float) -> list[_Lesion]:
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
    chest: _Chest, rng: np.random.Generator, lobe: str, radius_mm: float, hard: bool
) -> _Lesion:
    side = -1 if lobe.startswith("right") else 1
    points = _pleural_points(chest, rng, side, 1500)
    inside = points[chest.lobe(lobe, *points.T) > 0.9]
    centre = inside[rng.integers(len(inside))] if len(inside) else points[0]
    return _Lesion(
        centre_mm=tuple(map(float, centre)),
        depth_mm=0.0,
        radii_mm=tuple(float(r) for r in radius_mm * rng.uniform(0.85, 1.25, 3)),
        hu=float(rng.uniform(-350, -150) if hard else rng.uniform(-35, 45)),
        softness=float(rng.uniform(0.12, 0.30)),
        raggedness=float(rng.uniform(0.10, 0.20)),
        halo=float(rng.uniform(0.12, 0.3)) if rng.random() < 0.4 else 0.0,
        lobe=lobe,
    )


def _paint_slice(
    chest: _Chest,
    frame: _Frame,
    index: int,
    table: np.ndarray,
    tissue: np.ndarray,
    air: np.ndarray,
    lesions: Sequence[_Lesion],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU before the scanner's blur and noise, lung mask and lesion numbers, each [H, W]."""
    z = float(frame.z_mm[index])
    x, y = frame.x(z), frame.y
    above_mm = z - chest.z_low_mm
    bumps = chest.bumps.plane(above_mm, frame.size_px)
    lumps = chest.lumps.plane(above_mm, frame.size_px)

    cage = chest.cage(x, y, z) + 1.5 * bumps
    hu = table.copy()
    _paint_body(hu, chest, frame, x, y, z, cage, lumps, bumps)
    lung_share = np.zeros_like(hu)
    lesion = np.zeros(hu.shape, np.uint8)
    above = chest.above_diaphragm(x, y, z) + 2.0 * bumps
    mediastinum = chest.mediastinum(x, y, z) + 1.5 * bumps
    _paint_inside(hu, chest, frame, x, y, z, cage, mediastinum, above, lumps, bumps)
    if 0.0 < z < chest.height_mm:
        lung_share = _ramp(np.minimum(cage, -mediastinum), frame.px_mm)
        lung_share *= np.clip(above * (1.0 / frame.site.slice_spacing_mm) + 0.5, 0.0, 1.0)
        grain = chest.grain.plane(above_mm, frame.size_px)
        lung = _parenchyma(chest, x, y, z, cage, lumps, grain)
        outline = bumps + 0.6 * lumps
        best = np.full(hu.shape, 0.5, np.float32)
        for number, item in enumerate(lesions, start=1):
            weight = _paint_lesion(lung, item, chest, x, y, z, cage, outline, lumps, grain)
            if weight is not None:
                larger = weight > best
                lesion[larger] = number
                best[larger] = weight[larger]
        hu += lung_share * (lung - hu)
        hu += (tissue * lung_share) * (BLOOD_HU - hu)
    hu += air * (AIRWAY_HU - hu)
    lung_mask = (lung_share > 0.5) & (air < 0.5)
    lesion[~lung_mask] = 0
    return hu, lung_mask, lesion


def _ramp(field: np.ndarray, px_mm: float) -> np.ndarray:
    """The share of each pixel that lies inside a field's border."""
    return np.clip(field * (1.0 / px_mm) + 0.5, 0.0, 1.0)


def _blend(hu: np.ndarray, share: np.ndarray, value) -> None:
    hu += share * (value - hu)


def _paint_body(hu, chest, frame, x, y, z, cage, lumps, bumps) -> None:
    """Blankets, fat, muscle, ribs, sternum and the bones of the shoulder, onto `hu`."""
    px = frame.px_mm
    t = z / chest.height_mm
    body = chest.body(x, y, z) + 0.8 * bumps
    for gap_mm in chest.blankets_mm:
        sheet = _ramp(0.4 - np.abs(body + gap_mm + 7.0 * bumps), px) * (y < 30.0)
        _blend(hu, 0.25 * sheet, -600.0)
    _blend(hu, _ramp(body, px), FAT_HU + 8.0 * lumps)
    hu[(body > 0) & (body < 2.0)] = 10.0

    behind = np.clip(y * (1.0 / chest.half_depth_mm), 0.0, 1.0)
    shoulder = float(_smoothstep(t, 0.70, 1.0))
    wall = chest.wall_mm + 16.0 * behind**3 + 75.0 * shoulder
    muscle = np.minimum(cage + wall, body - 0.7 * chest.fat_mm - 3.0)
    # Sheets of fat between the muscles.
    muscle = np.minimum(muscle, 14.0 * (np.abs(bumps + 0.4 * lumps) - 0.10 + (cage > -7.0)))
    _blend(hu, _ramp(muscle, px), MUSCLE_HU)

    _, depth, centre = chest.cage_radii(z)
    _, around = cv2.cartToPolar(y - np.float32(centre), np.abs(x))  # 0 at the back, pi in front
    fall = (z + 100.0 / math.pi * around) * (1.0 / 27.0) + chest.rib_phase
    rib = np.cos(2.0 * np.pi * fall) - 0.15 - np.square((cage + 5.0) * (1.0 / 3.6))
    rib = (rib > 0) & (around < 0.86 * math.pi) & (body > 3.0)
    hu[rib] = BONE_HU
    if 0.28 < t < 0.9:
        sternum = _ellipse(x, y, (0.0, centre - depth - 7.0), (19.0, 5.5))
        hu[sternum > 0] = 220.0
        hu[(sternum > 0) & (sternum < 1.2)] = BONE_HU
    if t > 0.55:
        reach = 0.20 + 0.25 * min(t, 0.9)
        blade = (np.abs(cage + 22.0 + 6.0 * np.cos(4.0 * around)) < 2.2) & (body > 6.0)
        hu[blade & (around > 0.14 * math.pi) & (around < reach * math.pi)] = BONE_HU
    if t > 0.92:
        head = _ellipse(np.abs(x), y, (chest.half_width_mm + 28.0, 14.0), (25.0, 22.0))
        hu[head > 0] = 250.0
        hu[(head > 0) & (head < 2.5)] = 700.0
        collar = _ellipse(
            np.abs(x), y - 0.28 * np.abs(x), (50.0, -0.55 * chest.half_depth_mm), (32.0, 5.0)
        )
        hu[collar > 0] = BONE_HU


def _paint_inside(hu, chest, frame, x, y, z, cage, mediastinum, above, lumps, bumps) -> None:
    """Mediastinum, belly and spine, onto `hu`: all inside the cage, as if there were no lungs."""
    px = frame.px_mm
    t = z / chest.height_mm
    inside = _ramp(cage, px)
    if t < 1.0:
        soft = BLOOD_HU + 10.0 * lumps
        pads = (bumps > 0.2) & (mediastinum < 6.0 + 3.0 * lumps) & (y < 10.0)
        _blend(hu, inside, np.where(pads, FAT_HU, soft))
    else:
        _blend(hu, inside, np.where(lumps > 0.5, FAT_HU, MUSCLE_HU))
    if t < 0.45:
        # Right: liver. Left: fat, bowel and spleen, a bubble of gas at the top of the stomach.
        under = _ramp(-above, frame.site.slice_spacing_mm) * inside
        liver = _ramp(14.0 - x + 0.3 * y, 4.0)
        belly = np.where(lumps > 0.35, FAT_HU, 38.0)
        organ = np.maximum(liver, _ramp(_ellipse(x, y, (74.0, 30.0), (50.0, 44.0)), 2.0))
        _blend(hu, under, belly + organ * (62.0 - belly))
        if chest.stomach_gas_mm > 6.0:
            gas = _ellipse(
                x + 6.0 * lumps,
                y,
                (52.0, -0.42 * chest.half_depth_mm),
                (1.4 * chest.stomach_gas_mm, 0.8 * chest.stomach_gas_mm),
            )
            gas = gas - abs(z - 0.05 * chest.height_mm) * 0.3
            _blend(hu, _ramp(gas, px) * (above < -6.0), AIRWAY_HU)

    back = float(chest.back(z))
    joint = math.cos(2.0 * math.pi * z / 27.0 + 2.0 * math.pi * chest.rib_phase)
    spine_y = back - 27.0
    vertebra = _ellipse(x, y, (0.0, spine_y), (19.0, 15.5))
    core = 200.0 if joint < 0.6 else 95.0
    _blend(hu, _ramp(vertebra, px), core + 30.0 * lumps)
    if joint < 0.6:
        hu[(vertebra > 0) & (vertebra < 2.0)] = BONE_HU
    canal = _ellipse(x, y, (0.0, spine_y + 24.0), (13.0, 12.0))
    hu[(canal > 0) & (y > spine_y + 12.0)] = BONE_HU
    hu[_ellipse(x, y, (0.0, spine_y + 23.0), (9.0, 8.0)) > 0] = 25.0
    if joint > -0.4:
        spine = _ellipse(x, y, (0.0, spine_y + 43.0), (3.2, 13.0))
        hu[spine > 0] = BONE_HU
    if joint < 0.2:
        wing = _ellipse(np.abs(x), y - 0.35 * np.abs(x), (20.0, spine_y + 13.0), (15.0, 4.5))
        hu[wing > 0] = BONE_HU


def _parenchyma(chest, x, y, z, cage, lumps, grain) -> np.ndarray:
    """HU of lung tissue without vessels, with what any lung may show."""
    share = y * (1.0 / chest.half_depth_mm)
    lung = chest.lung_hu + chest.gravity_hu * share + chest.texture_hu * grain
    lung += 0.4 * chest.texture_hu * lumps
    # Lung lies on itself at the back, most of all low down.
    low = 1.0 - 0.6 * z / chest.height_mm
    lying = np.clip(1.0 - cage * (1.0 / chest.dependent_depth_mm), 0.0, 1.0)
    lying *= np.clip(1.6 * share - 0.55, 0.0, 1.0)
    lung += (chest.dependent_hu * low) * lying * (0.9 + 0.3 * lumps)
    # The oblique fissure: a faint band in a thick slice.
    fissure = chest.lower_lobe(x, y, z) + 3.0 * lumps
    lung += 55.0 * np.clip(1.0 - np.abs(fissure) * 0.5, 0.0, 1.0)
    for cx, cy, cz in chest.nodules:
        if abs(z - cz) < 6.0:
            _blend(lung, _ramp(_ellipse(x, y, (cx, cy), (3.4, 3.0)), 1.0), 420.0)
    for cx, cy, cz in chest.plates:
        if abs(z - cz) < 9.0:
            along, across = x - cx, y - cy + 0.004 * (x - cx) ** 2
            across = 0.8 * across + 0.6 * along
            plate = _ramp(1.1 - np.abs(across + lumps), 1.2) * _ramp(20.0 - np.abs(along), 8.0)
            _blend(lung, plate, -380.0)
    return lung


def _paint_lesion(
    lung, lesion: _Lesion, chest, x, y, z, cage, outline, lumps, grain
) -> np.ndarray | None:
    """Paints a lesion onto `lung` [H, W] and returns its weight (0 to 1), or None if out of reach."""
    cx, cy, cz = lesion.centre_mm
    into, along, upright = lesion.radii_mm
    w = (z - cz) / upright
    if abs(w) > 1.4 + lesion.halo:
        return None
    _, _, middle = chest.cage_radii(z)
    norm = math.hypot(cx, cy - middle)
    tangent_x, tangent_y = -(cy - middle) / norm, cx / norm
    u = (cage - lesion.depth_mm) * (1.0 / into)
    v = ((x - cx) * tangent_x + (y - cy) * tangent_y) * (1.0 / along)
    # Depth and tangent alone would come back on the far side of the chest.
    near = ((x < 0) == (cx < 0)) & ((x - cx) * cx + (y - cy) * (cy - middle) > -norm * 1.3 * into)
    inner = 1.0 - np.sqrt(u * u + v * v + w * w) + lesion.raggedness * outline
    inner = np.where(near, inner, -9.0)
    held = 1.0 if lesion.lobe is None else chest.lobe(lesion.lobe, x, y, z)
    if lesion.halo:
        haze = np.clip((inner + lesion.halo) * (0.5 / lesion.halo), 0.0, 1.0) * held
        _blend(lung, 0.8 * haze, HALO_HU + 30.0 * grain)
    weight = _smoothstep(inner, -0.5 * lesion.softness, 0.5 * lesion.softness) * held
    value = lesion.hu + (45.0 * lumps + 40.0 * grain if lesion.hu < -380 else 14.0 * grain)
    if lesion.paving_hu:
        # Lines where a random field crosses zero form a net of small polygons.
        value = value + lesion.paving_hu * np.clip(1.0 - np.abs(grain) * 4.0, 0.0, 1.0)
    _blend(lung, weight, value)
    return weight


def _table(chest: _Chest, frame: _Frame) -> np.ndarray:
    """Air with the table, as float32 HU [H, W]: two thin shells with foam between, and a pad."""
    hu = np.full((frame.size_px, frame.size_px), AIR_HU, np.float32)
    x, y = frame.scan_x, frame.scan_y
    depth = chest.half_depth_mm + 0.75 * (chest.wall_mm + chest.fat_mm) + 20.0
    top = chest.offset_mm[1] + depth + 7.0 - chest.table_bend * x * x
    below = y - top
    _blend(hu, _ramp(7.0 - np.abs(below + 5.0), 3.0), -945.0)
    _blend(hu, _ramp(11.0 - np.abs(below - 12.0), frame.px_mm), -930.0)
    for shell in (1.0, 24.0):
        _blend(hu, _ramp(0.9 - np.abs(below - shell), frame.px_mm), -250.0)
    return hu


def _scan(hu: np.ndarray, frame: _Frame, rng: np.random.Generator) -> np.ndarray:
    """The picture that a site's scanner makes of a slice, float32 HU [H, W]."""
    site, chest = frame.site, frame._chest
    blurred = cv2.GaussianBlur(hu, (0, 0), max(0.35, site.kernel_sigma_mm / frame.px_mm))
    if site.sharpening:
        wide = cv2.GaussianBlur(blurred, (0, 0), 1.6 / frame.px_mm)
        blurred += site.sharpening * (blurred - wide)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.3, site.noise_grain_mm / frame.px_mm))
    # More body in the beam, less light at the detector.
    shadow = 0.75 + 0.5 * float((hu > -200).mean())
    noise *= site.noise_hu * chest.dose_noise * shadow / float(noise.std())
    return blurred + noise + site.shift_hu
