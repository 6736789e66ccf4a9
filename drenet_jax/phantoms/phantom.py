"""Chest phantoms in HU with known lesions, written as DICOM series."""

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
from drenet_jax.phantoms.anatomy import RIB_PITCH_MM, Chest, Scalars, Tubes, ellipse, smoothstep

LABELS = ("COVID-19", "bacterial", "healthy")

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
    vessels, now and then a calcified nodule or a plate of atelectasis (DESIGN section 2).

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
    chest = Chest(_stream(root, _ANATOMY))
    lesions, severity = _draw_lesions(label, chest, _stream(root, _DISEASE))
    frame = _Frame(chest, size_px, SITES[site])
    noise = _stream(root, _SCANNER)

    tubes = _rasterise_tubes(chest, frame)
    table = _table(chest, frame)
    shape = (len(frame.z_mm), size_px, size_px)
    volume_hu = np.empty(shape, np.int16)
    lung_mask = np.empty(shape, bool)
    lesion_mask = np.empty(shape, np.uint8)
    for i in range(len(volume_hu)):
        section = _Section(chest, frame, i)
        hu, lung_mask[i], lesion_mask[i] = _paint_slice(section, table, tubes.of_slice(i), lesions)
        # More body in the beam, less light at the detector.
        shadow = 0.6 + 0.6 * float((section.body > 0).mean())
        image = _scan(hu, frame, chest.dose_noise * shadow, noise)
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


class _Frame:
    """Where the scanner's pixels lie in the body."""

    def __init__(self, chest: Chest, size_px: int, site: Site):
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

    def _lean(self, z: Scalars) -> Scalars:
        return self._chest.lean_mm * (z / self._chest.height_mm - 0.5)

    def x(self, z: Scalars) -> np.ndarray:
        """Body x of the pixels of the slice at z, float32 [H, W]."""
        return self._x - self._lean(z)

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


@dataclass(frozen=True, eq=False)
class _TubeShares:
    """The share of every voxel that tubes fill, 0 to 1: float32 [n, H, W], or [H, W] of a slice."""

    vessels: np.ndarray
    bronchi: np.ndarray
    trachea: np.ndarray

    def of_slice(self, index: int) -> _TubeShares:
        return _TubeShares(self.vessels[index], self.bronchi[index], self.trachea[index])


def _rasterise_tubes(chest: Chest, frame: _Frame) -> _TubeShares:
    """Fills tubes with points that each carry a piece of volume, and adds these up by voxel: thin
    vessels that run through a thick slice come out faint, as from a scanner."""
    shape = (len(frame.z_mm), frame.size_px, frame.size_px)
    voxel_mm3 = frame.px_mm**2 * frame.site.slice_spacing_mm

    def share(tubes: list[Tubes]) -> np.ndarray:
        filled = [_fill_tubes(tube, frame.px_mm, voxel_mm3 / 12.0) for tube in tubes]
        voxel = frame.voxels(np.concatenate([points for points, _ in filled]))
        volume = np.concatenate([volume for _, volume in filled])
        inside = voxel >= 0
        sums = np.bincount(voxel[inside], volume[inside], minlength=math.prod(shape))
        # A little more than full, so that the unevenness of the points does not show.
        return np.minimum(sums.astype(np.float32).reshape(shape) * (1.15 / voxel_mm3), 1.0)

    return _TubeShares(share(chest.vessels), share(chest.bronchi), share(chest.trachea))


def _fill_tubes(tubes: Tubes, px_mm: float, point_mm3: float) -> tuple[np.ndarray, np.ndarray]:
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


def _draw_lesions(
    label: str, chest: Chest, rng: np.random.Generator
) -> tuple[list[_Lesion], float]:
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


def _ground_glass(chest: Chest, rng: np.random.Generator, severity: float) -> list[_Lesion]:
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
            _Lesion(
                centre_mm=tuple(map(float, centre)),
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


def _consolidations(chest: Chest, rng: np.random.Generator, severity: float) -> list[_Lesion]:
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
) -> _Lesion:
    side = -1 if lobe.startswith("right") else 1
    points = _pleural_points(chest, rng, side, 1500)
    inside = points[chest.lobe(lobe, *points.T) > 0.9]
    centre = inside[rng.integers(len(inside))] if len(inside) else points[0]
    return _Lesion(
        centre_mm=tuple(map(float, centre)),
        depth_mm=0.0,
        mottle_hu=35.0 if hard else 12.0,
        radii_mm=tuple(float(r) for r in radius_mm * rng.uniform(0.85, 1.25, 3)),
        hu=float(rng.uniform(-350, -150) if hard else rng.uniform(-35, 45)),
        softness=float(rng.uniform(0.12, 0.30)),
        raggedness=float(rng.uniform(0.10, 0.20)),
        halo=float(rng.uniform(0.12, 0.3)) if rng.random() < 0.4 else 0.0,
        lobe=lobe,
    )


class _Section:
    """The fields of one slice, which everything painted on it shares. Arrays are [H, W]."""

    def __init__(self, chest: Chest, frame: _Frame, index: int):
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


def _paint_slice(
    section: _Section, table: np.ndarray, tubes: _TubeShares, lesions: Sequence[_Lesion]
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
    lesion = np.zeros(hu.shape, np.uint8)
    if lung_share.any():
        lung = _parenchyma(section)
        largest = np.full(hu.shape, 0.5, np.float32)
        for number, item in enumerate(lesions, start=1):
            weight = _paint_lesion(lung, section, item)
            if weight is not None:
                lesion[weight > largest] = number
                np.maximum(largest, weight, out=largest)
        _blend(hu, lung_share, lung)
        _blend(hu, lung_share * tubes.vessels, BLOOD_HU)
        # Small airways stay dark in a consolidated lobe: air bronchograms.
        _blend(hu, lung_share * tubes.bronchi, AIRWAY_HU)
    _blend(hu, tubes.trachea, AIRWAY_HU)
    lung_mask = (lung_share > 0.5) & (np.maximum(tubes.bronchi, tubes.trachea) < 0.5)
    lesion[~lung_mask] = 0
    return hu, lung_mask, lesion


def _ramp(field: np.ndarray, width_mm: float) -> np.ndarray:
    """0 outside, 1 inside, rising over `width_mm` at a field's border."""
    return np.clip(field * (1.0 / width_mm) + 0.5, 0.0, 1.0)


def _blend(hu: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> None:
    """Replaces a share of `hu`, in place."""
    hu += share * (value - hu)


def _paint_body(hu: np.ndarray, section: _Section) -> None:
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
        reach = (0.20 + 0.25 * min(t, 0.9)) * math.pi
        hu[blade & (around > 0.14 * math.pi) & (around < reach)] = BONE_HU
    if t > 0.92:
        head = ellipse(np.abs(x), y, (chest.half_width_mm + 28.0, 14.0), (25.0, 22.0))
        hu[head > 0] = MARROW_HU
        hu[(head > 0) & (head < 2.5)] = BONE_HU
        collar = ellipse(
            np.abs(x), y - 0.28 * np.abs(x), (50.0, -0.55 * chest.half_depth_mm), (32.0, 5.0)
        )
        hu[collar > 0] = BONE_HU


def _paint_inside(hu: np.ndarray, section: _Section) -> None:
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


def _paint_spine(hu: np.ndarray, section: _Section) -> None:
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


def _parenchyma(section: _Section) -> np.ndarray:
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


def _paint_lesion(lung: np.ndarray, section: _Section, lesion: _Lesion) -> np.ndarray | None:
    """Paints a lesion onto `lung` and returns its weight (0 to 1), or None if out of reach."""
    chest, x, y, z = section.chest, section.x, section.y, section.z
    centre_x, centre_y, centre_z = lesion.centre_mm
    into, along, to_canonical = lesion.radii_mm
    w = (z - centre_z) / to_canonical
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


def _table(chest: Chest, frame: _Frame) -> np.ndarray:
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


def _scan(
    hu: np.ndarray, frame: _Frame, noise_factor: float, rng: np.random.Generator
) -> np.ndarray:
    """The picture that a site's scanner makes of a slice, float32 HU [H, W]."""
    site = frame.site
    image = cv2.GaussianBlur(hu, (0, 0), max(0.35, site.kernel_sigma_mm / frame.px_mm))
    if site.sharpening:
        wide = cv2.GaussianBlur(image, (0, 0), 1.6 / frame.px_mm)
        image += site.sharpening * (image - wide)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.3, site.noise_grain_mm / frame.px_mm))
    noise *= site.noise_hu * noise_factor / float(noise.std())
    return image + noise + site.shift_hu
