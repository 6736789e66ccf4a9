"""Volumes: slices, boxes and numbers are those of the array as stored; headers are read right."""

from __future__ import annotations

import gzip
import itertools
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from ct.conftest import draw_chest

from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.sources import CtError
from drenet_jax.ct.window import window
from drenet_jax.data.cohort_table import Person
from drenet_jax.data.transform import _example

# Between columns, rows and slices.
SPACING_MM = (2.0, 2.5, 4.0)
N_SLICES = 5

# A lesion in the person's right lung, below the middle: (z0, z1), (y0, y1), (x0, x1) in the chest.
LESION = ((1, 2), (50, 62), (30, 44))

# The axes of the array as stored are the patient's axes x, y, z in this order and these directions
# (1: to the left, the back, the head).
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def write_stored(path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """Writes the chest as a NIfTI file in an orientation that the sform says."""
    write_nifti(
        path,
        stored(chest(), order, signs).astype(np.int16),
        sform_mm=to_ras(steps_mm(order, signs)),
        pixdim=(1.0, *(SPACING_MM[p] for p in order)),
    )


def chest() -> np.ndarray:
    """float32 [z, y, x]: from the feet up, to the back, to the left; no two slices are alike."""
    scales = np.linspace(1.0, 0.8, N_SLICES)
    hu = np.stack([draw_chest(lung_scale=scale)[:120] for scale in scales])
    z, y, x = (slice(*ends) for ends in LESION)
    hu[z, y, x] = -100
    return hu


def stored(array: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An array [z, y, x] as [i, j, k] of a file."""
    turned = array.transpose(2, 1, 0).transpose(order)
    return turned[tuple(slice(None, None, sign) for sign in signs)]


def steps_mm(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """[3, 3]: column `a` is the step along the stored axis `a`, to the left, the back, the head."""
    steps = np.zeros((3, 3))
    for axis, (p, sign) in enumerate(zip(order, signs, strict=True)):
        steps[p, axis] = sign * SPACING_MM[p]
    return steps


def write_nifti(
    path,
    array: np.ndarray,
    *,
    sform_mm: np.ndarray | None = None,
    qform: tuple[float, float, float] | None = None,
    pixdim: tuple[float, ...] = (1.0, *SPACING_MM),
    scale: tuple[float, float] = (1.0, 0.0),
    order: str = "<",
    packed: bool | None = None,
) -> None:
    """Writes [i, j, k] by the letter of the NIfTI-1 standard, without any library.

    Args:
      sform_mm: [3, 3], the steps along i, j, k to the right, the front, the head; None: no sform.
      qform: the quaternion's b, c, d; None: no qform.
      scale: scl_slope, scl_inter.
      packed: by gzip; None: by the name.
    """
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "u2": 512}
    header = bytearray(352)
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, 3, *array.shape, 1, 1, 1, 1)
    struct.pack_into(order + "2h", header, 70, codes[array.dtype.str[1:]], 8 * array.itemsize)
    struct.pack_into(order + "4f", header, 76, *pixdim)
    struct.pack_into(order + "f", header, 108, 352)
    struct.pack_into(order + "2f", header, 112, *scale)
    struct.pack_into(order + "2h", header, 252, qform is not None, sform_mm is not None)
    struct.pack_into(order + "3f", header, 256, *(qform or (0, 0, 0)))
    if sform_mm is not None:
        for row in range(3):
            struct.pack_into(order + "3f", header, 280 + 16 * row, *sform_mm[row])
    header[344:348] = b"n+1\0"
    data = bytes(header) + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    packed = path.suffix == ".gz" if packed is None else packed
    path.write_bytes(gzip.compress(data, 1) if packed else data)


def to_ras(steps: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0]) @ steps


LPS = ((0, 1, 2), (1, 1, 1))


def write_chest(path, **options) -> None:
    options.setdefault("sform_mm", to_ras(steps_mm(*LPS)))
    array = options.pop("array", None)
    write_nifti(path, stored(chest(), *LPS).astype(np.int16) if array is None else array, **options)


def box_of(array: np.ndarray, picked, box) -> np.ndarray:
    """What `array[i, j, k]` holds in a box of a picked slice, as the documentation says."""
    y0, x0, y1, x1 = box
    at = [None] * 3
    at[picked.file_axes.index] = picked.file_index
    at[picked.file_axes.y] = slice(y0, y1)
    at[picked.file_axes.x] = slice(x0, x1)
    return array[tuple(at)]


def assert_places_are_of_the_file(person, array_of, order, signs) -> None:
    hu = chest()
    voxels = np.arange(hu.size).reshape(hu.shape)
    in_file = array_of(voxels)
    assert all(picked.pixel_aspect == pytest.approx(2.5 / 2.0) for picked in person.picked)
    assert [slice_.index for slice_ in person.kept] == list(range(N_SLICES))
    for slice_ in person.kept:
        np.testing.assert_array_equal(
            np.sort(slice_.source.ravel()), np.sort(_windowed(hu[slice_.index]))
        )
        np.testing.assert_array_equal(slice_.source.ravel(), _windowed(hu[slice_.index]))
        y0, x0, y1, x1 = slice_.source_box
        np.testing.assert_array_equal(
            np.sort(box_of(in_file, slice_, slice_.file_box).ravel()),
            voxels[slice_.index, y0:y1, x0:x1].ravel(),
        )
        along, y, x = slice_.file_axes
        assert order[along] == 2
        assert slice_.file_size == (in_file.shape[y], in_file.shape[x])
        assert x < y
        assert slice_.name.endswith(f"#{slice_.file_index + 1}")
    (z, _), (y0, y1), (x0, x1) = LESION
    slice_ = person.kept[z]
    box = slice_.orientation.stored_box((y0, x0, y1, x1), slice_.source.shape)
    np.testing.assert_array_equal(
        np.sort(box_of(in_file, slice_, box).ravel()), voxels[z, y0:y1, x0:x1].ravel()
    )
    # The way of the pointing game: from the file to the slice that is looked at.
    assert slice_.orientation.canonical_box(box, slice_.file_size) == (y0, x0, y1, x1)


def _windowed(hu: np.ndarray) -> np.ndarray:
    return window(np.maximum(hu.astype(np.int16).astype(np.float32), -1024), -600, 1500).ravel()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_places_in_a_nifti_are_those_of_the_array_as_stored(order, signs, tmp_path, ct_settings):
    def array_of(array):
        return stored(array, order, signs)

    path = tmp_path / "ct.nii"
    write_stored(path, order, signs)
    assert_places_are_of_the_file(prepare_person([path], ct_settings), array_of, order, signs)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_places_in_other_volumes_are_those_of_the_array_as_stored(
    order, signs, suffix, tmp_path, ct_settings
):
    steps = steps_mm(order, signs)
    array = stored(chest(), order, signs).astype(np.int16)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(np.linalg.norm(steps, axis=0).tolist())
    image.SetDirection((steps / np.linalg.norm(steps, axis=0)).ravel().tolist())
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(image, str(path))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0), array
    )
    assert_places_are_of_the_file(
        prepare_person([path], ct_settings), lambda array: stored(array, order, signs), order, signs
    )


def test_records_of_a_volume_have_its_own_places(tmp_path, ct_settings):
    order, signs = (1, 2, 0), (1, -1, 1)  # sagittal planes, stored from the head to the feet
    path = tmp_path / "ct.nii"
    write_nifti(
        path,
        stored(chest(), order, signs).astype(np.int16),
        sform_mm=to_ras(steps_mm(order, signs)),
    )
    person = Person("p", (path,), "a", "", "")
    for picked in prepare_person([path], ct_settings).kept:
        example = _example(person, picked, ct_settings, 0)
        assert example["slice_index"] == N_SLICES - 1 - picked.index
        assert example["slice_name"] == f"ct.nii#{N_SLICES - picked.index}"
        assert example["source_box"] == list(picked.file_box)
        assert example["source_size"] == [128, 120]


def sources(path, ct_settings) -> list[np.ndarray]:
    return [slice_.source for slice_ in prepare_person([path], ct_settings).kept]


def assert_is_the_chest(path, ct_settings) -> None:
    slices = sources(path, ct_settings)
    assert len(slices) == N_SLICES
    for slice_, hu in zip(slices, chest(), strict=True):
        np.testing.assert_array_equal(slice_.ravel(), _windowed(hu))


@pytest.mark.parametrize(
    ("name", "packed"), [("ct.nii.gz", False), ("ct.nii", True), ("ct.NII.GZ", True), ("ct", True)]
)
def test_a_nifti_is_read_whatever_its_name_says(name, packed, tmp_path, ct_settings):
    write_chest(tmp_path / name, packed=packed)
    assert_is_the_chest(tmp_path / name, ct_settings)


def test_a_nifti_of_the_other_byte_order(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", order=">")
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)


@pytest.mark.parametrize("scale", [(0.0, 0.0), (0.0, 500.0), (float("nan"), 7.0)])
def test_a_slope_of_zero_means_that_nothing_is_scaled(scale, tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", scale=scale)
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)


def test_slope_and_intercept_are_applied(tmp_path, ct_settings):
    array = (stored(chest(), *LPS) + 1024) * 2
    write_chest(tmp_path / "ct.nii", array=array.astype(np.uint16), scale=(0.5, -1024.0))
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)


HALF_TURN = (0.0, 0.0, 1.0)  # about the patient's long axis: to the left and to the back


def test_the_qform_is_taken_where_there_is_no_sform(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", sform_mm=None, qform=HALF_TURN)
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)
    assert prepare_person([tmp_path / "ct.nii"], ct_settings).notes == ()


def test_a_negative_qfac_turns_the_third_axis(tmp_path, ct_settings):
    array = stored(chest(), (0, 1, 2), (1, 1, -1)).astype(np.int16)
    write_nifti(tmp_path / "ct.nii", array, qform=HALF_TURN, pixdim=(-1.0, *SPACING_MM))
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)


def test_of_sform_and_qform_that_disagree_the_sform_is_taken_with_a_note(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", qform=(0.0, 0.0, 0.0))
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)
    (note,) = prepare_person([tmp_path / "ct.nii"], ct_settings).notes
    assert "qform and sform of the NIfTI file disagree by 180 degrees; the sform" in note


def test_sform_and_qform_that_agree_give_no_note(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", qform=HALF_TURN)
    assert prepare_person([tmp_path / "ct.nii"], ct_settings).notes == ()


def test_an_sform_of_zeros_is_not_used(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", sform_mm=np.zeros((3, 3)), qform=HALF_TURN)
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)
    (note,) = prepare_person([tmp_path / "ct.nii"], ct_settings).notes
    assert "the sform of the NIfTI file spans no volume" in note


def sheared(axis: int, towards: int, degrees: float) -> np.ndarray:
    """The sform of the chest with a stored axis turned to another of the patient's axes."""
    steps = steps_mm(*LPS)
    steps[towards, axis] = np.tan(np.radians(degrees)) * steps[axis, axis]
    return to_ras(steps)


def test_slices_shifted_as_by_a_tilted_gantry_are_read_with_a_note(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", sform_mm=sheared(2, 1, 20))
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)
    (note,) = prepare_person([tmp_path / "ct.nii"], ct_settings).notes
    assert "shifted against each other by 20 degrees (sheared axes" in note


def test_slices_that_are_sheared_themselves_are_refused_for_that(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", sform_mm=sheared(0, 1, 12))
    with pytest.raises(CtError, match="whose axes are sheared by 12 degrees in the axial slices"):
        prepare_person([tmp_path / "ct.nii"], ct_settings)


def test_a_little_shear_of_the_slices_is_noted(tmp_path, ct_settings):
    write_chest(tmp_path / "ct.nii", sform_mm=sheared(0, 1, 3))
    assert_is_the_chest(tmp_path / "ct.nii", ct_settings)
    (note,) = prepare_person([tmp_path / "ct.nii"], ct_settings).notes
    assert "the axial slices of the volume are sheared by 3 degrees" in note


def test_a_packed_nifti_whose_checksum_is_wrong_is_refused(tmp_path, ct_settings):
    path = tmp_path / "ct.nii.gz"
    write_chest(path)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(CtError, match="a volume that was cut off or damaged"):
        prepare_person([path], ct_settings)


def test_series_says_which_way_a_volume_is_stored(tmp_path):
    order, signs = (0, 2, 1), (-1, -1, 1)
    path = tmp_path / "ct.nii"
    write_nifti(
        path,
        stored(chest(), order, signs).astype(np.int16),
        sform_mm=to_ras(steps_mm(order, signs)),
    )
    series = open_series(path)
    assert tuple(series.axes) == (1, 2, 0)
    assert [series.stored_index(i) for i in range(N_SLICES)] == [4, 3, 2, 1, 0]
    assert series.names[0] == "ct.nii#5"
