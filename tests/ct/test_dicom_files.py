"""DICOM files that say something wrong of their pixels give the right HU, or none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct.conftest import draw_chest, write_dicom
from ct.odd_inputs import enhanced
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.sources import CtError

CHEST = draw_chest()
# Bone and metal reach 12 bits' end.
CHEST[80:90, 60:68] = np.linspace(900, 3000, 80).reshape(10, 8).round()
# Outside the scanned field.
CHEST[:, :4] = -1024


def written(folder: Path, **tags: object) -> Path:
    return write_dicom(folder / "a.dcm", CHEST, **tags)


def assert_right(path: Path) -> None:
    series = open_series(path)
    np.testing.assert_array_equal(series.read(0), CHEST)


# Transfer syntaxes

UIDS = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
}


def write_as(file: Path, actual: str, meta: dict[int, str], start: bytes) -> None:
    """Writes the file again in an encoding, with the elements of group 0002 that are given."""
    dataset = pydicom.dcmread(file)
    if actual == "big":
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset["PixelData"].VR = "OW"
    body = pydicom.filebase.DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = actual == "implicit", actual != "big"
    pydicom.filewriter.write_dataset(body, dataset)
    elements = b""
    for tag, text in meta.items():
        value = (text + "\0" * (len(text) % 2)).encode()
        elements += struct.pack("<HH2sH", 2, tag, b"UI", len(value)) + value
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) if elements else b""
    file.write_bytes(start + length + elements + body.getvalue())


@pytest.mark.parametrize("claimed", UIDS)
@pytest.mark.parametrize("actual", UIDS)
def test_a_transfer_syntax_that_is_not_that_of_the_file_shifts_no_pixel(tmp_path, claimed, actual):
    file = written(tmp_path)
    write_as(file, actual, {0x10: UIDS[claimed]}, bytes(128) + b"DICM")
    assert_right(file)


@pytest.mark.parametrize("actual", ["implicit", "explicit"])
@pytest.mark.parametrize("start", [bytes(128) + b"DICM", bytes(128), b""])
@pytest.mark.parametrize("meta", [{}, {0x02: "1.2.840.10008.5.1.4.1.1.2"}])
def test_a_file_without_meta_information_is_read(tmp_path, actual, start, meta):
    file = written(tmp_path)
    write_as(file, actual, meta, start)
    assert_right(file)
    assert_right(tmp_path)


@pytest.mark.parametrize("claim", [JPEGLosslessSV1, RLELossless])
def test_a_compression_that_is_none_is_refused(tmp_path, claim):
    file = written(tmp_path)
    write_as(file, "explicit", {0x10: claim}, bytes(128) + b"DICM")
    with pytest.raises(CtError, match="cannot be decoded"):
        open_series(file).read(0)


def test_a_compression_that_is_not_named_is_refused(tmp_path):
    file = written(tmp_path)
    dataset = pydicom.dcmread(file)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    with pytest.raises(CtError, match="cannot be"):
        open_series(file).read(0)


@pytest.mark.parametrize("n_bytes", [2, 4, 256, 2 * 128 * 128])
def test_more_pixels_than_rows_and_columns_say_are_refused(tmp_path, n_bytes):
    file = written(tmp_path, PixelData=bytes(n_bytes) + CHEST.astype(np.int16).tobytes())
    with pytest.raises(CtError, match="cannot be decoded"):
        open_series(file).read(0)


# Signs and padding


def test_signed_values_that_are_called_unsigned_are_read(tmp_path):
    assert_right(written(tmp_path, PixelRepresentation=0))


def test_signed_values_that_are_called_unsigned_with_the_usual_intercept_are_read(tmp_path):
    stored = (CHEST + 1024 - 1000).astype(np.int16)
    assert_right(
        written(tmp_path, PixelData=stored.tobytes(), PixelRepresentation=0, RescaleIntercept=-24)
    )


def test_unsigned_values_of_12_bits_that_are_called_signed_are_read(tmp_path):
    stored = (CHEST + 1024).astype(np.uint16)
    assert stored.max() > 2047
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024}
    assert_right(written(tmp_path, PixelData=stored.tobytes(), **tags))


@pytest.mark.parametrize("syntax", ["", RLELossless, JPEG2000Lossless])
def test_noise_below_air_in_signed_12_bits_stays_there(tmp_path, syntax):
    stored = (CHEST + 1024).clip(0, 2047).astype(np.int16)
    stored[10:14] = np.arange(-60, 4 * 128 - 60).reshape(4, 128) % 60 - 60
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024}
    file = written(tmp_path, PixelData=stored.tobytes(), **tags)
    if syntax:
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)
    np.testing.assert_array_equal(
        open_series(file).read(0), np.maximum(stored.astype(np.float32) - 1024, -1024)
    )


def test_metal_at_the_end_of_16_bits_stays_bright(tmp_path):
    stored = (CHEST + 1024).astype(np.uint16)
    stored[84:88, 60:66] = 65535
    tags = {"PixelRepresentation": 0, "RescaleIntercept": -1024}
    hu = open_series(written(tmp_path, PixelData=stored.tobytes(), **tags)).read(0)
    np.testing.assert_array_equal(hu, stored.astype(np.float32) - 1024)


def test_padding_of_signed_12_bits_stays_air(tmp_path):
    stored = (CHEST + 1024).clip(0, 2047).astype(np.int16)
    stored[:, :4] = -2000
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024}
    file = written(tmp_path, PixelData=stored.tobytes(), **tags)
    np.testing.assert_array_equal(open_series(file).read(0), CHEST.clip(-1024, 1023))


@pytest.mark.parametrize("vr", ["US", "SS", "OW", "UN", "SH"])
@pytest.mark.parametrize("signed", [True, False])
def test_padding_of_any_value_representation_is_air(tmp_path, vr, signed):
    # 63536 without a sign is -2000 with it.
    value = (63536).to_bytes(2, "little")
    if vr == "SH":
        value = b"-2000 " if signed else b"63536 "
    if vr in ("OW", "UN"):
        element = b"\x28\x00\x20\x01" + vr.encode() + b"\0\0" + (2).to_bytes(4, "little") + value
    else:
        element = b"\x28\x00\x20\x01" + vr.encode() + len(value).to_bytes(2, "little") + value
    if signed:
        stored = CHEST.astype(np.int16)
        stored[:, :4] = -2000
        file = written(tmp_path, PixelData=stored.tobytes())
    else:
        stored = (CHEST + 32768).astype(np.uint16)
        stored[:, :4] = 63536
        tags = {"PixelRepresentation": 0, "RescaleIntercept": -32768}
        file = written(tmp_path, PixelData=stored.tobytes(), **tags)
    data = file.read_bytes()
    at = data.index(b"\x28\x00\x52\x10")  # before RescaleIntercept
    file.write_bytes(data[:at] + element + data[at:])
    assert_right(file)


# What makes HU


def test_a_modality_lookup_table_is_refused(tmp_path):
    file = written(tmp_path)
    dataset = pydicom.dcmread(file)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.ModalityLUTType = "HU"
    table.LUTData = np.arange(4096, dtype=np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    dataset.ModalityLUTSequence = Sequence([table])
    dataset.save_as(file)
    with pytest.raises(CtError, match="a modality lookup table: no HU"):
        open_series(file)


@pytest.mark.parametrize("kind", ["OD", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "MGML"])
def test_a_rescale_to_something_else_than_hu_is_refused(tmp_path, kind):
    with pytest.raises(CtError, match=f"values are no HU \\(RescaleType {kind}\\)"):
        open_series(written(tmp_path, RescaleType=kind))


@pytest.mark.parametrize("kind", ["HU", "US", "hu ", "UNSPECIFIED", "Hounsfield"])
def test_a_rescale_to_hu_or_unspecified_is_read(tmp_path, kind):
    assert_right(written(tmp_path, RescaleType=kind))


@pytest.mark.parametrize(
    "keyword", ["Modality", "PhotometricInterpretation", "SamplesPerPixel", "BitsStored"]
)
def test_a_tag_that_can_be_done_without_may_be_missing(tmp_path, keyword):
    assert_right(written(tmp_path, **{keyword: None}))


@pytest.mark.parametrize(
    "tags",
    [{"RescaleIntercept": 0}, {"RescaleSlope": 0.5}, {"RescaleIntercept": -24}],
)
def test_slices_of_a_wrong_scale_among_others_are_found(tmp_path, ct_settings, tags):
    for i in range(9):
        stored = (CHEST + 1024).astype(np.int16).tobytes()
        wrong = tags if i % 3 == 1 else {}
        file = tmp_path / "in" / f"{i}.dcm"
        scale = {"RescaleIntercept": -1024, **wrong}
        write_dicom(file, CHEST, 5.0 * i, PixelData=stored, InstanceNumber=i, **scale)
    with pytest.raises(CtError, match="slices of different scales, of which some have values from"):
        prepare_person([tmp_path / "in"], ct_settings)


BLANK = {
    "slope": (b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10DS\x04\x00    "),
    "intercept": (b"\x28\x00\x52\x10DS\x04\x000.0 ", b"\x28\x00\x52\x10DS\x04\x00    "),
    "modality": (b"\x08\x00\x60\x00CS\x02\x00CT", b"\x08\x00\x60\x00CS\x02\x00  "),
    "photometric": (b"CS\x0c\x00MONOCHROME2 ", b"CS\x0c\x00            "),
}


def blank(file: Path, *names: str) -> Path:
    """Overwrites elements by spaces, which are no value (PS3.5 6.2)."""
    data = file.read_bytes()
    for name in names:
        assert data.count(BLANK[name][0]) == 1
        data = data.replace(*BLANK[name])
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    "names", [("slope",), ("slope", "intercept"), ("modality",), ("photometric",)]
)
def test_a_blank_element_that_can_be_done_without_is_a_missing_one(tmp_path, names):
    assert_right(blank(written(tmp_path), *names))


@pytest.mark.parametrize(
    ("names", "tags"),
    [(("intercept",), {}), (("slope", "intercept"), {"PixelRepresentation": 0})],
)
def test_a_blank_intercept_that_is_needed_is_refused(tmp_path, names, tags):
    with pytest.raises(CtError, match="without RescaleIntercept: no HU"):
        open_series(blank(written(tmp_path, **tags), *names))


def test_values_that_needed_a_blank_intercept_are_refused(tmp_path, ct_settings):
    for i in range(5):
        stored = (CHEST + 1024).astype(np.int16).tobytes()
        file = write_dicom(tmp_path / "in" / f"{i}.dcm", CHEST, 5.0 * i, PixelData=stored)
        blank(file, "slope", "intercept")
    with pytest.raises(CtError, match="no HU of a chest"):
        prepare_person([tmp_path / "in"], ct_settings)


def test_a_blank_modality_of_another_class_is_refused(tmp_path):
    file = written(tmp_path, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    with pytest.raises(CtError, match="no CT \\(modality not given\\)"):
        open_series(blank(file, "modality"))


def test_a_long_element_of_undefined_length_hides_none_of_those_behind_it(tmp_path):
    stored = (CHEST + 1024).astype(np.int16).tobytes()
    file = written(tmp_path, PixelData=stored, RescaleIntercept=-1024, RescaleSlope=None)
    data = file.read_bytes()
    at = data.index(b"\x28\x00\x52\x10")  # before RescaleIntercept
    start = struct.pack("<HH2sHI", 0x0028, 0x1041, b"OB", 0, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    file.write_bytes(data[:at] + start + b"\1" * 40_000 + end + data[at:])
    assert_right(file)


# Files with several frames


@pytest.mark.parametrize("frames", ["1", None])
def test_an_enhanced_file_of_one_frame_is_read(tmp_path, frames):
    file = enhanced(tmp_path)
    dataset = pydicom.dcmread(file)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:1]
    dataset.PixelData = dataset.PixelData[: 2 * dataset.Rows * dataset.Columns]
    del dataset.NumberOfFrames
    if frames:
        dataset.NumberOfFrames = frames
    dataset.save_as(file)
    series = open_series(file)
    assert series.names == ("ct.dcm#1",)
    np.testing.assert_array_equal(series.read(0), draw_chest())


def test_a_rescale_for_the_whole_file_holds_for_its_frames(tmp_path):
    file = enhanced(tmp_path)
    dataset = pydicom.dcmread(file)
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.save_as(file)
    np.testing.assert_array_equal(open_series(file).read(0), draw_chest())


def test_a_scout_among_the_frames_costs_that_frame(tmp_path):
    file = enhanced(tmp_path)
    dataset = pydicom.dcmread(file)
    scout = Dataset()
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.PerFrameFunctionalGroupsSequence[0].PlaneOrientationSequence = Sequence([scout])
    dataset.save_as(file)
    series = open_series(file)
    assert series.names == ("ct.dcm#4", "ct.dcm#3", "ct.dcm#2")
    assert [(file.name, file.why) for file in series.excluded] == [("ct.dcm#1", "a coronal slice")]


def test_frames_of_two_temporal_positions_are_parted(tmp_path):
    file = enhanced(tmp_path)
    dataset = pydicom.dcmread(file)
    frames = dataset.PerFrameFunctionalGroupsSequence
    for i, frame in enumerate(frames):
        frame.PlanePositionSequence[0].ImagePositionPatient = [-150, -150, 5.0 * (i % 2)]
        frame.FrameContentSequence = Sequence([Dataset()])
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + i // 2
    dataset.save_as(file)
    series = open_series(file)
    assert series.names == ("ct.dcm#1", "ct.dcm#2")
    assert {file.name for file in series.excluded} == {"ct.dcm#3", "ct.dcm#4"}
    assert all("another temporal position" in file.why for file in series.excluded)


# Files beside


def test_one_slice_without_position_beside_other_files_is_read(tmp_path):
    written(tmp_path, ImagePositionPatient=None)
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert_right(tmp_path)


def test_slices_without_positions_are_refused_together(tmp_path):
    for i in range(3):
        write_dicom(tmp_path / f"{i}.dcm", CHEST, ImagePositionPatient=None)
    with pytest.raises(CtError, match="3 DICOM files without position and orientation"):
        open_series(tmp_path)
