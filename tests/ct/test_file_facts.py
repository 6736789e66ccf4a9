from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from drenet_jax.ct.file_facts import FileFacts, jpeg_quality, picture_facts
from drenet_jax.ct.preprocess import prepare_person


def _jpeg(quality, mode="L"):
    noise = np.random.default_rng(0).integers(0, 255, (32, 40), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [25, 30, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_that_at_which_it_was_saved(quality):
    assert picture_facts(_jpeg(quality)).jpeg_quality == pytest.approx(quality, abs=1)


def test_the_coarsest_and_the_finest_tables_have_the_ends_of_the_scale():
    assert jpeg_quality([255] * 64) == pytest.approx(11.3, abs=0.1)
    assert jpeg_quality([1] * 64) == pytest.approx(99, abs=1)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_jpeg_has_8_bits_and_its_channels(mode, channels):
    data = _jpeg(80, mode)
    facts = picture_facts(data)
    assert (facts.format, facts.bits, facts.channels) == ("JPEG", 8, channels)
    assert facts.n_bytes == len(data)


def test_a_damaged_jpeg_has_no_quality():
    assert picture_facts(b"\xff\xd8\xff") == FileFacts(format="JPEG", n_bytes=3, bits=8)


@pytest.mark.parametrize(
    ("shape", "dtype", "bits", "channels"),
    [((9, 8), "u1", 8, 1), ((9, 8), "u2", 16, 1), ((9, 8, 3), "u1", 8, 3), ((9, 8, 4), "u1", 8, 4)],
)
def test_a_png_has_the_bits_and_channels_of_its_header(shape, dtype, bits, channels):
    data = cv2.imencode(".png", np.zeros(shape, dtype))[1].tobytes()
    assert picture_facts(data) == FileFacts(
        format="PNG", n_bytes=len(data), bits=bits, channels=channels
    )


def test_a_dicom_slice_has_the_facts_of_its_header(phantoms, ct_settings):
    (folder, *_) = sorted((phantoms / "dicom").iterdir())
    slice_ = prepare_person([folder], ct_settings).kept[0]
    facts = slice_.file_facts
    assert facts.format == "DICOM, Explicit VR Little Endian"
    assert facts.n_bytes == (folder / slice_.name).stat().st_size
    assert facts.thickness_mm > 0
    assert facts.spacing_mm > 0
    assert (facts.channels, facts.jpeg_quality) == (None, None)
