"""Every odd or broken input is handled with a note or refused with a sentence; none hangs."""

from __future__ import annotations

import signal
import tempfile

import numpy as np
import pytest
from ct import odd_inputs

from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.sources import CtError


@pytest.fixture(scope="module")
def reader():
    with Reader() as reader:
        yield reader


@pytest.fixture
def no_hang():
    """Ends a test that hangs: longer than it takes to give a file up, on a busy machine."""

    def stop(signum, frame):
        raise TimeoutError("more than 90 seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(90)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def _messages(prepared) -> str:
    return "\n".join([*prepared.notes, *(f"{file.name}: {file.why}" for file in prepared.excluded)])


@pytest.mark.parametrize("name", odd_inputs.CASES)
def test_an_odd_input_is_handled_or_refused(name, tmp_path, reader, ct_settings, no_hang):
    case = odd_inputs.CASES[name]
    path = odd_inputs.make(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    try:
        prepared = reader.prepare([path], ct_settings)
        n_kept, report, why = len(prepared.kept), _messages(prepared), ""
    except CtError as error:
        n_kept, report, why = 0, str(error), error.why
    assert n_kept == case.n_kept, report
    assert str(tmp_path) not in why
    if why:
        assert len(report.splitlines()) == 1
    for message in case.messages:
        assert message in report
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_has_more_than_forty_cases():
    assert len(odd_inputs.CASES) > 40
    assert sum(not case.n_kept for case in odd_inputs.CASES.values()) > 20


_SAME = (
    "feet_first",
    "prone",
    "transposed",
    "monochrome1",
    "signed_without_rescale",
    "without_slope_only",
    "twelve_bits_with_an_overlay_above",
    "twelve_bits_signed",
    "sixteen_bits_unsigned",
    "run_lengths",
    "jpeg_2000",
    "jpeg_ls",
    "jpeg_lossless",
    "implicit_vr",
    "big_endian",
    "a_deflated_file",
    "an_enhanced_ct",
    "an_enhanced_ct_in_run_lengths",
    "a_zip",
    "nifti",
    "nifti_packed",
    "metaimage",
    "nrrd",
    "a_volume_stored_from_sagittal_planes",
    "a_volume_stored_as_ras",
    "hu_in_pngs_of_16_bits",
    "a_nifti_called_packed_that_is_not",
    "a_packed_nifti_called_nii",
    "a_nifti_with_a_slope_of_zero",
    "a_nifti_whose_qform_and_sform_disagree",
    "a_nifti_sheared_as_by_a_tilted_gantry",
    "a_volume_whose_hu_lost_their_sign",
    "hu_in_pngs_that_lost_their_sign",
    "hu_and_1000_in_pngs",
)


@pytest.mark.parametrize("name", _SAME)
def test_one_chest_is_the_same_slice_however_it_is_stored(name, tmp_path, ct_settings):
    plain = prepare_person(
        [odd_inputs.make("from_head_to_feet_with_names_in_no_order", tmp_path)], ct_settings
    )
    other = prepare_person([odd_inputs.make(name, tmp_path)], ct_settings)
    for expected, slice_ in zip(plain.kept, other.kept, strict=True):
        np.testing.assert_array_equal(expected.source, slice_.source)
        np.testing.assert_array_equal(expected.image, slice_.image)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, ct_settings, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prepare_person([odd_inputs.make("a_zip_of_a_volume", tmp_path)], ct_settings)
    assert not list((tmp_path / "temporary").iterdir())
