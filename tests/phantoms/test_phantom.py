"""Phantoms: what is drawn where, and that it survives DICOM."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from drenet_jax.errors import InputError
from drenet_jax.phantoms.dicom import write_dicom
from drenet_jax.phantoms.phantom import LABELS, Phantom, lesion_boxes, make_phantom
from drenet_jax.phantoms.scanner import SITES

SIZE_PX = 96
SEEDS = range(8)


@pytest.fixture(scope="module")
def covid() -> list[Phantom]:
    return [make_phantom("COVID-19", seed, SIZE_PX, "A") for seed in SEEDS]


@pytest.fixture(scope="module")
def bacterial() -> list[Phantom]:
    return [make_phantom("bacterial", seed, SIZE_PX, "A") for seed in SEEDS]


@pytest.fixture(scope="module")
def healthy() -> list[Phantom]:
    return [make_phantom("healthy", seed, SIZE_PX, "A") for seed in SEEDS]


def sides(phantom: Phantom) -> np.ndarray:
    """How many lesion voxels lie left and right of the middle between the lungs, in the picture."""
    columns = np.nonzero(phantom.lung_mask.any(axis=(0, 1)))[0]
    middle = (columns[0] + columns[-1]) // 2
    lesion = phantom.lesion_mask > 0
    return np.array([lesion[:, :, :middle].sum(), lesion[:, :, middle:].sum()])


@pytest.mark.parametrize("label", LABELS)
def test_the_same_arguments_give_the_same_phantom(label):
    first = make_phantom(label, np.random.SeedSequence(3), 64, "B")
    second = make_phantom(label, 3, 64, "B")

    np.testing.assert_array_equal(first.volume_hu, second.volume_hu)
    np.testing.assert_array_equal(first.lesion_mask, second.lesion_mask)
    assert first.severity == second.severity
    assert first.spacing_mm == second.spacing_mm


def test_a_seed_sequence_can_be_used_twice():
    seed = np.random.SeedSequence(3, spawn_key=(5,))
    first, second = (make_phantom("COVID-19", seed, 64, "A") for _ in range(2))

    np.testing.assert_array_equal(first.volume_hu, second.volume_hu)


def test_persons_differ(healthy):
    assert len({phantom.volume_hu.tobytes() for phantom in healthy}) == len(healthy)
    assert len({phantom.spacing_mm[1] for phantom in healthy}) == len(healthy)


def test_arrays_have_the_promised_types_and_shapes(covid):
    for phantom in covid:
        shape = phantom.volume_hu.shape
        assert phantom.volume_hu.dtype == np.int16
        assert phantom.lung_mask.dtype == bool
        assert phantom.lesion_mask.dtype == np.uint8
        assert shape == phantom.lung_mask.shape == phantom.lesion_mask.shape
        assert shape[1:] == (SIZE_PX, SIZE_PX)
        assert 35 <= shape[0] <= 52
        assert phantom.volume_hu.min() >= -1024
        assert phantom.volume_hu.max() <= 3071


def test_a_label_changes_the_lesions_and_nothing_else(covid, bacterial, healthy):
    for ill, other, well in zip(covid, bacterial, healthy, strict=True):
        np.testing.assert_array_equal(ill.lung_mask, well.lung_mask)
        np.testing.assert_array_equal(other.lung_mask, well.lung_mask)
        # Noise and all: away from the lungs and their blurred borders the pictures are one.
        far = ndimage.binary_dilation(well.lung_mask, np.ones((3, 9, 9)))
        np.testing.assert_array_equal(ill.volume_hu[~far], well.volume_hu[~far])
        assert (ill.volume_hu != well.volume_hu).any()


def test_a_site_changes_the_picture_and_not_the_disease():
    volumes_ml = {}
    noise_hu = {}
    for site in SITES:
        phantom = make_phantom("COVID-19", 6, 128, site)
        volumes_ml[site] = (phantom.lesion_mask > 0).sum() * np.prod(phantom.spacing_mm) / 1000
        # Air, in the corners above the chest.
        noise_hu[site] = np.median(phantom.volume_hu[:, :6, :6].std(axis=(1, 2)))
        assert phantom.spacing_mm[0] == SITES[site].slice_spacing_mm

    assert volumes_ml["B"] == pytest.approx(volumes_ml["A"], rel=0.1)
    assert noise_hu["B"] > 1.3 * noise_hu["A"]


def test_lungs_are_as_large_at_any_size():
    litres = [
        make_phantom("healthy", 4, size, "A").lung_mask.sum()
        * np.prod(make_phantom("healthy", 4, size, "A").spacing_mm)
        / 1e6
        for size in (64, 128)
    ]

    assert litres[0] == pytest.approx(litres[1], rel=0.03)
    assert 2.0 < litres[1] < 8.0


def test_lungs_are_dark_two_and_smaller_at_both_ends(healthy):
    for phantom in healthy:
        area = phantom.lung_mask.sum(axis=(1, 2))
        assert area[0] == area[-1] == 0
        largest = int(area.argmax())
        assert len(area) // 4 < largest < 3 * len(area) // 4
        assert 0.12 < area.max() / SIZE_PX**2 < 0.36
        assert -900 < np.median(phantom.volume_hu[phantom.lung_mask]) < -740
        parts, _ = ndimage.label(ndimage.binary_opening(phantom.lung_mask[largest]))
        sizes = np.sort(np.bincount(parts.ravel())[1:])
        assert sizes[-2] > 0.3 * sizes[-1], "the two lungs should not be joined"


def test_the_outside_is_air_and_the_body_is_not(healthy):
    for phantom in healthy:
        middle = phantom.volume_hu[len(phantom.volume_hu) // 2]
        corners = np.concatenate([middle[:4, :4], middle[:4, -4:]])
        assert corners.mean() == pytest.approx(-1000, abs=15)
        assert (middle > -200).mean() > 0.2
        assert (middle > 300).mean() > 0.005, "there should be bone"


def test_healthy_persons_have_no_lesions(healthy):
    for phantom in healthy:
        assert not phantom.lesion_mask.any()
        assert phantom.severity == 0.0
        assert lesion_boxes(phantom) == []


def test_lesions_lie_in_the_lungs(covid, bacterial):
    for phantom in covid + bacterial:
        assert phantom.lesion_mask.any()
        assert not phantom.lesion_mask[~phantom.lung_mask].any()


def test_covid_is_several_ground_glass_patches_in_both_lungs(covid):
    for phantom in covid:
        lesions = np.unique(phantom.lesion_mask[phantom.lesion_mask > 0])
        assert 2 <= len(lesions) <= 12
        assert -720 < np.median(phantom.volume_hu[phantom.lesion_mask > 0]) < -400
        assert sides(phantom).min() > 0


def test_covid_is_peripheral(covid):
    for phantom in covid:
        slices = phantom.lesion_mask.any(axis=(1, 2))
        depth = np.stack(
            [ndimage.distance_transform_edt(lung) for lung in phantom.lung_mask[slices]]
        )
        lesion = phantom.lesion_mask[slices] > 0
        # The chest wall is only one of the borders, so the test is against the lung as a whole.
        assert np.median(depth[lesion]) <= np.median(depth[phantom.lung_mask[slices]]) + 1.0


def test_bacterial_is_one_dense_lobe_mostly_on_one_side(bacterial):
    medians = np.array(
        [np.median(phantom.volume_hu[phantom.lesion_mask > 0]) for phantom in bacterial]
    )
    shares = np.array([sides(phantom).max() / sides(phantom).sum() for phantom in bacterial])

    assert all(phantom.lesion_mask.max() <= 2 for phantom in bacterial)
    assert medians.min() > -400, "the hard cases"
    assert np.mean((medians > -70) & (medians < 70)) >= 0.6
    assert shares.min() > 0.65
    assert shares.mean() > 0.9


def test_severe_covid_fills_more_of_the_lungs(covid):
    severity = [phantom.severity for phantom in covid]
    share = [(p.lesion_mask > 0).sum() / p.lung_mask.sum() for p in covid]

    assert np.corrcoef(severity, share)[0, 1] > 0.6


@given(
    mask=arrays.arrays(np.uint8, (3, 7, 9), elements=st.integers(0, 3), fill=st.just(0)),
)
@settings(deadline=None, max_examples=50)
def test_boxes_hold_each_lesion_of_each_slice_tightly(mask):
    phantom = Phantom(
        volume_hu=mask.astype(np.int16),
        lung_mask=mask > 0,
        lesion_mask=mask,
        spacing_mm=(1.0, 1.0, 1.0),
        label="COVID-19",
        severity=0.5,
    )
    expected = []
    for index in range(3):
        for lesion in (1, 2, 3):
            rows, columns = np.nonzero(mask[index] == lesion)
            if len(rows):
                box = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
                expected.append((index, lesion, *box))

    assert lesion_boxes(phantom) == expected


def test_dicom_gives_back_volume_and_geometry(tmp_path, covid):
    phantom = covid[0]
    names = write_dicom(phantom, tmp_path, patient_id="phantom-0007", seed=0)
    files = [pydicom.dcmread(tmp_path / name) for name in names]

    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    normal = np.cross(*np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float))
    along = [float(np.dot(normal, ds.ImagePositionPatient)) for ds in files]
    np.testing.assert_allclose(np.diff(along), phantom.spacing_mm[0], atol=1e-3)
    for ds, hu in zip(files, phantom.volume_hu, strict=True):
        stored = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
        np.testing.assert_array_equal(stored, hu)
        np.testing.assert_allclose(ds.PixelSpacing, phantom.spacing_mm[1:], atol=1e-5)
        assert ds.SliceThickness == pytest.approx(phantom.spacing_mm[0])
        assert (ds.Modality, ds.PatientID) == ("CT", "phantom-0007")
        assert ds.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
        assert ds.SOPClassUID.name == "CT Image Storage"
    assert len({ds.SOPInstanceUID for ds in files}) == len(files)
    assert len({ds.SeriesInstanceUID for ds in files}) == 1
    assert not any(str(label) in str(files[0]) for label in LABELS)


def test_only_the_position_tells_the_order_of_the_files(tmp_path, covid):
    names = write_dicom(covid[0], tmp_path, patient_id="phantom-0001", seed=0)
    numbers = [
        int(pydicom.dcmread(tmp_path / name, stop_before_pixels=True).InstanceNumber)
        for name in names
    ]

    assert names != sorted(names)
    assert names != sorted(names, reverse=True)
    assert numbers == list(range(len(names), 0, -1))


def test_dicom_files_are_the_same_again_and_differ_between_persons(tmp_path, covid):
    for folder in ("first", "again", "other"):
        (tmp_path / folder).mkdir()
    seed, other_seed = (np.random.SeedSequence(0, spawn_key=(i,)) for i in range(2))
    first = write_dicom(covid[0], tmp_path / "first", patient_id="a", seed=seed)
    again = write_dicom(covid[0], tmp_path / "again", patient_id="a", seed=seed)
    other = write_dicom(covid[0], tmp_path / "other", patient_id="a", seed=other_seed)

    assert first == again
    for name in first:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert first != other
    uids = [
        pydicom.dcmread(tmp_path / folder / names[0]).SOPInstanceUID
        for folder, names in (("first", first), ("other", other))
    ]
    assert uids[0] != uids[1]


def test_an_unknown_label_or_site_is_refused():
    with pytest.raises(InputError, match="'viral' is not known; use one of COVID-19"):
        make_phantom("viral", 0, 64, "A")
    with pytest.raises(InputError, match="'C' is not known; use one of A, B"):
        make_phantom("healthy", 0, 64, "C")
