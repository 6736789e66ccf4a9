"""Boxes and heat maps hit planted landmarks of the originals, for every kind of input.

In each slice a bright square is planted in a lung. In place of the network stands a search for the
brightest blob of the prepared picture, so that all that lies between a file and the network, and
between the network and the report, is what `predict` runs.
"""

from __future__ import annotations

import dataclasses
import runpy
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct.conftest import draw_chest, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from drenet_jax.ct.window import window
from drenet_jax.evaluation.overlays import layers
from drenet_jax.evaluation.pipeline import PersonPipeline
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.slice_scorer import SliceScorer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "drenet.py"
SQUARE_HU = 900
# 2 would do for a reader; what was measured is 0.41 at most.
TOLERANCE_PX = 1.0
RED = (255, 40, 40, 255)
INPUT_PX = 448
HEAT_CELLS = 28

# Upper left corner and sides of each slice's square, in shares of the slice.
SQUARES = ((0.36, 0.27, 0.09, 0.06), (0.52, 0.65, 0.05, 0.08), (0.44, 0.29, 0.07, 0.07))


def chests(size_px: int = 256, shape: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Upright slices, each with its square; stretched to `shape`."""
    height, width = shape or (size_px, size_px)
    slices_hu = []
    for y, x, h, w in SQUARES:
        hu = cv2.resize(draw_chest(size_px), (width, height), interpolation=cv2.INTER_NEAREST)
        rows, columns = (round(y * height), round((y + h) * height)), (x * width, (x + w) * width)
        hu[slice(*rows), slice(*map(round, columns))] = SQUARE_HU
        slices_hu.append(hu)
    return slices_hu


def square_of(hu: np.ndarray) -> np.ndarray:
    """y0, x0, y1, x1 of the square, half open."""
    places = np.argwhere(hu == SQUARE_HU)
    return np.array([*places.min(axis=0), *(places.max(axis=0) + 1)])


@dataclasses.dataclass(frozen=True)
class Case:
    """An input kind.

    Attributes:
      write: writes slices as stored, from the feet up, into a folder; returns the path to give.
      upright: the slices as looked at.
      store: an upright slice to the slice as stored.
    """

    write: Callable[[Path, Sequence[np.ndarray]], Path | list[Path]]
    to_canonical: Sequence[np.ndarray]
    store: Callable[[np.ndarray], np.ndarray] = np.asarray


def dicoms(**tags: object) -> Callable[[Path, Sequence[np.ndarray]], Path]:
    def write(folder: Path, slices: Sequence[np.ndarray]) -> Path:
        for i, hu in enumerate(slices):
            write_dicom(folder / f"{i}.dcm", hu, 5.0 * i, **tags)
        return folder

    return write


def zipped(folder: Path, slices: Sequence[np.ndarray]) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(dicoms()(folder, slices).iterdir()):
            archive.write(file, f"a/b/{file.name}")
    return path


def single_dicoms(folder: Path, slices: Sequence[np.ndarray]) -> list[Path]:
    return sorted(dicoms()(folder, slices).iterdir())


def enhanced(folder: Path, slices: Sequence[np.ndarray]) -> Path:
    file = write_dicom(
        folder / "ct.dcm",
        slices[0],
        NumberOfFrames=len(slices),
        SOPClassUID=EnhancedCTImageStorage,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        PixelData=(np.stack(slices) + 1024).astype(np.int16).tobytes(),
    )
    dataset = pydicom.dcmread(file)
    orientation, values = Dataset(), Dataset()
    # Prone: the frames are stored turned by 180 degrees.
    orientation.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    shared = Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for i in range(len(slices)):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [150, 150, 5.0 * i]
        frame.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    dataset.save_as(file)
    return file


def pictures(suffix: str, values: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def write(folder: Path, slices: Sequence[np.ndarray]) -> Path:
        for i, hu in enumerate(slices):
            assert cv2.imwrite(str(folder / f"im{i}{suffix}"), values(hu))
        return folder

    return write


def in_window(hu: np.ndarray) -> np.ndarray:
    return window(hu, -600, 1500)


def in_16_bits(hu: np.ndarray) -> np.ndarray:
    return (hu + 1024).astype(np.uint16)


def volume(
    name: str, orientation: str = "LPS", spacing: tuple[float, float, float] = (1.2, 1.2, 5.0)
) -> Callable[[Path, Sequence[np.ndarray]], Path]:
    def write(folder: Path, slices: Sequence[np.ndarray]) -> Path:
        image = sitk.GetImageFromArray(np.stack(slices).astype(np.int16))
        image.SetSpacing(spacing)
        sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(folder / name))
        return folder / name

    return write


CUT = slice(32, 224)  # rows of a slice that is wider than high
CASES = {
    "DICOM files": Case(dicoms(), chests()),
    "prone": Case(
        dicoms(ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]), chests(), lambda hu: hu[::-1, ::-1]
    ),
    "feet first": Case(
        dicoms(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), chests(), lambda hu: hu[:, ::-1]
    ),
    "rows upside down": Case(
        dicoms(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]), chests(), lambda hu: hu[::-1]
    ),
    "transposed": Case(
        dicoms(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), chests(), lambda hu: hu.T
    ),
    "transposed and turned": Case(
        dicoms(ImageOrientationPatient=[0, -1, 0, 1, 0, 0]),
        [hu[CUT] for hu in chests()],
        lambda hu: hu[::-1].T,
    ),
    "wider than high": Case(dicoms(), [hu[64:448] for hu in chests(512)]),
    "anisotropic pixels": Case(dicoms(PixelSpacing=[0.7, 1.12]), chests(512, (512, 320))),
    "anisotropic pixels, transposed": Case(
        dicoms(PixelSpacing=[1.12, 0.7], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        chests(512, (512, 320)),
        lambda hu: hu.T,
    ),
    "1024 pixels": Case(dicoms(), chests(1024)),
    "a zip": Case(zipped, chests()),
    "an enhanced CT, prone": Case(enhanced, chests(), lambda hu: hu[::-1, ::-1]),
    "one DICOM file": Case(lambda *args: single_dicoms(*args)[0], chests()[:1]),
    "single DICOM files": Case(single_dicoms, chests()),
    "PNG files": Case(pictures(".png", in_window), chests()),
    "PNG files, wider than high": Case(pictures(".png", in_window), [hu[CUT] for hu in chests()]),
    "JPEG files": Case(pictures(".jpg", in_window), chests()),
    "PNG files of 16 bits": Case(pictures(".png", in_16_bits), chests()),
    # For volumes the array in the file is asked, whatever its orientation.
    "NIfTI": Case(volume("ct.nii"), chests()),
    "NIfTI as RAS": Case(volume("ct.nii.gz", "RAS"), chests()),
    "NIfTI of sagittal planes, anisotropic": Case(
        volume("ct.nii", "PIR", (1.6, 1.0, 2.0)), chests(512, (512, 320))
    ),
    "MetaImage": Case(volume("ct.mha"), [hu[CUT] for hu in chests()]),
    "NRRD": Case(volume("ct.nrrd", "LAS"), chests()),
    "NRRD from the head to the feet": Case(volume("ct.nrrd", "RPI"), chests()),
    "MetaImage of coronal planes": Case(volume("ct.mha", "RIP"), [hu[CUT] for hu in chests()]),
}


def brightest_blob(image: np.ndarray) -> np.ndarray:
    """float32 [S, S]: from 0 to 1, how much of each pixel is the brightest blob."""
    lung = np.median(image[image > 0])
    _, blobs = cv2.connectedComponents((image > (lung + 255) / 2).astype(np.uint8))
    counts = np.bincount(blobs[image > 250])
    counts[0] = 0
    blob = cv2.dilate((blobs == counts.argmax()).astype(np.uint8), np.ones((9, 9)))
    return (blob * np.clip((image - lung) / (255 - lung), 0, 1)).astype(np.float32)


def box_of(blob: np.ndarray) -> list[float]:
    """Edges of a rectangle of blurred edges, between the pixels."""
    edges = []
    for axis in (1, 0):
        profile = blob.sum(axis=axis)
        centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        half = profile.sum() / profile.max() / 2
        edges.append((centre - half, centre + half))
    (y0, y1), (x0, x1) = edges
    return [y0, x0, y1, x1]


class StandIn(SliceScorer):
    """Finds the square instead of applying a network."""

    batch_size = 1

    def __init__(self) -> None: ...

    def compile(self) -> None: ...

    def __call__(self, variables: dict, images: np.ndarray) -> dict[str, np.ndarray]:
        return point_at_blobs(images)


def point_at_blobs(images: np.ndarray) -> dict[str, np.ndarray]:
    """What `SliceScorer` returns, for labels of which the second is the answer."""
    n = len(images)
    blobs = np.stack([brightest_blob(image) for image in images])
    px = INPUT_PX // HEAT_CELLS
    heat = blobs.reshape(n, HEAT_CELLS, px, HEAT_CELLS, px).mean(axis=(2, 4))
    sure = np.tile(np.float32([0.01, 0.99]), (n, 1))
    return {
        "probabilities": sure,
        "logits": np.log(sure),
        "raw_logits": np.log(sure),
        "boxes": np.float32([[box_of(blob)] for blob in blobs]),
        "scores": np.ones((n, 1), np.float32),
        "part_probabilities": np.tile(np.float32([0, 1]), (n, 1, 1)),
        # The map of the other label would be found at the wrong place.
        "heat_maps": np.stack((heat[:, ::-1, ::-1], heat), axis=1),
        "crop_heat_maps": np.ones((n, 2, 1, 7, 7), np.float32),
    }


@pytest.fixture(scope="module")
def pipeline(ct_settings) -> PersonPipeline:
    meta = Meta(
        config=runpy.run_path(str(CONFIG))["get_config"](),
        labels=("healthy", "COVID-19"),
        ct=dataclasses.replace(ct_settings, image_size_px=INPUT_PX),
        fill_seed=0,
        data_fingerprint="",
        version="0.1.0",
    )
    predictor = Predictor(meta, 1, Path("run"), StandIn(), variables={"none": np.zeros(1)})
    return PersonPipeline(predictor)


def red_box(marks: np.ndarray) -> np.ndarray:
    """y0, x0, y1, x1 of the middle of the red lines, in pixels of the layer."""
    red = (marks == RED).all(axis=-1)
    middle = np.median(np.argwhere(red), axis=0).astype(int)
    edges = []
    for line in (red[:, middle[1]], red[middle[0]]):
        first, second = np.split(np.flatnonzero(line) + 0.5, 2)
        edges.append((first.mean(), second.mean()))
    (y0, y1), (x0, x1) = edges
    return np.array([y0, x0, y1, x1])


def heat_centre(heat: np.ndarray) -> np.ndarray:
    opacity = heat[..., 3].astype(float)
    rows, columns = np.indices(opacity.shape) + 0.5
    return np.array([(opacity * rows).sum(), (opacity * columns).sum()]) / opacity.sum()


def is_volume(path: Path | list[Path]) -> bool:
    return isinstance(path, Path) and path.name.endswith((".nii", ".nii.gz", ".mha", ".nrrd"))


def slice_of_volume(path: Path, row: dict) -> np.ndarray:
    """The slice [y, x] of a row of `result.json`, taken from the array as the file stores it."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    axes = row["axes"]
    assert row["name"] == f"{path.name}#{row['index'] + 1}"
    return np.moveaxis(array, [axes[name] for name in ("index", "y", "x")], [0, 1, 2])[row["index"]]


@pytest.mark.parametrize("kind", CASES)
def test_boxes_and_heat_hit_the_planted_square(kind, pipeline, tmp_path):
    case = CASES[kind]
    stored = [np.ascontiguousarray(case.store(hu)) for hu in case.to_canonical]
    folder = tmp_path / "person"
    folder.mkdir()
    path = case.write(folder, stored)
    prediction = pipeline.predict(path)
    if is_volume(path):
        stored = [slice_of_volume(path, row) for row in prediction.result["slices"]]
    else:
        assert all(row["axes"] is None for row in prediction.result["slices"])
    assert len(prediction.pictures) == len(stored)
    by_slice = zip(prediction.result["slices"], prediction.pictures, strict=True)
    for (row, picture), to_canonical, as_stored in zip(
        by_slice, case.to_canonical, stored, strict=True
    ):
        (box,) = row["boxes"]
        edges = np.array([box[edge] for edge in ("y0", "x0", "y1", "x1")])
        assert np.abs(edges - square_of(as_stored)).max() <= TOLERANCE_PX

        wanted = square_of(to_canonical)
        drawn = layers(picture)
        by = np.array(drawn.slice.shape) / to_canonical.shape
        got = red_box(drawn.marks) / [*by, *by]
        assert np.abs(got - wanted).max() <= TOLERANCE_PX
        centre = (wanted[:2] + wanted[2:]) / 2
        assert np.abs(heat_centre(drawn.heat) / by - centre).max() <= TOLERANCE_PX
