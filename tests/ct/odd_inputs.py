"""Odd and broken inputs, as hospitals and attackers send them: a table of makers of files.

Each case is a function that writes into a folder and returns the path to give to `prepare`. Chests
are 128 pixels wide with lungs that are always found, in four slices unless said otherwise.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import gdcm
import numpy as np
import pydicom
import SimpleITK as sitk
from ct.conftest import draw_chest, draw_lungs, write_dicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    RLELossless,
    generate_uid,
)

from drenet_jax.ct.window import window

CHEST = draw_chest()
N = 4
OTHER_SERIES = generate_uid(entropy_srcs=["another series"])


@dataclasses.dataclass(frozen=True)
class Case:
    """An input and how it should be handled.

    Attributes:
      make: writes it; returns the path.
      n_kept: how many slices are kept; 0: it is refused.
      messages: texts of which each is in the refusal, in a note or in a reason.
    """

    make: Callable[[Path], Path]
    n_kept: int
    messages: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def handled(*messages: str, kept: int = N) -> Callable:
    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES[make.__name__] = Case(make, kept, messages)
        return make

    return add


def refused(*messages: str) -> Callable:
    return handled(*messages, kept=0)


def series(folder: Path, n: int = N, hu: np.ndarray = CHEST, **tags: object) -> Path:
    for i in range(n):
        write_dicom(folder / f"{i}.dcm", hu, 5.0 * i, **tags)
    return folder


def change(file: Path, **tags: object) -> None:
    dataset = pydicom.dcmread(file)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(file)


# Where the files are


@handled()
def nested_without_extensions(folder):
    for i in range(N):
        write_dicom(folder / "A" / f"B{i}" / "IM", CHEST, i)
    return folder


@handled("a directory of DICOM files (DICOMDIR)")
def a_dicomdir_beside(folder):
    series(folder / "DICOM")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory = Dataset()
    directory.file_meta = meta
    directory.FileSetID = "EXPORT"
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder


def zipped(folder: Path, name: str = "export.zip", within: str = "") -> Path:
    path = folder.with_name(name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, within + file.relative_to(folder).as_posix())
    return path


@handled()
def a_zip(folder):
    return zipped(series(folder / "in"))


@handled()
def a_zip_whose_names_lead_elsewhere(folder):
    return zipped(series(folder / "in"), within="../../../")


@handled()
def a_zip_made_on_a_mac(folder):
    series(folder / "in")
    (folder / "in" / "__MACOSX").mkdir()
    (folder / "in" / "__MACOSX" / "._0.dcm").write_bytes(b"\0\5\26\7")
    return zipped(folder / "in")


@handled()
def a_zip_of_a_volume(folder):
    volume(folder / "in" / "ct.nii.gz")
    return zipped(folder / "in")


@refused("a zip that cannot be opened")
def a_zip_cut_short(folder):
    path = zipped(series(folder / "in"))
    path.write_bytes(path.read_bytes()[:-300])
    return path


@handled("a damaged member of the zip", kept=N - 1)
def a_zip_with_a_damaged_member(folder):
    path = zipped(series(folder / "in"))
    data = bytearray(path.read_bytes())
    data[80:100] = bytes(20)
    path.write_bytes(data)
    return path


@refused("locked with a password")
def a_zip_with_a_password(folder):
    path = zipped(series(folder / "in"))
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    path.write_bytes(data)
    return path


@handled("a pipe, socket or device")
def a_pipe_in_the_folder(folder):
    series(folder)
    os.mkfifo(folder / "pipe.dcm")
    return folder


@handled()
def a_link_that_leads_round(folder):
    series(folder)
    (folder / "again").symlink_to(folder)
    return folder


@handled("a file that cannot be opened")
def a_link_that_leads_nowhere(folder):
    series(folder)
    (folder / "gone.dcm").symlink_to(folder / "nothing")
    return folder


@handled()
def names_of_markup_newlines_and_foreign_bytes(folder):
    names = (
        "<b>0.dcm",
        "1\n.dcm",
        "2\u00e9\U0001f600.dcm",
        b"3\xe9.dcm".decode(errors="surrogateescape"),
    )
    for i, name in enumerate(names):
        write_dicom(folder / "x.dcm", CHEST, i).rename(folder / name)
    return folder


@refused("an empty folder")
def an_empty_folder(folder):
    return folder


@refused("an empty file")
def files_of_no_bytes(folder):
    for i in range(3):
        (folder / f"{i}.dcm").touch()
    return folder


@refused("no DICOM file in spite of its name")
def text_called_dcm(folder):
    (folder / "1.dcm").write_text("seen on Monday\n" * 99)
    return folder


@handled("larger than 2 GiB", kept=N - 1)
def a_file_larger_than_memory_should_hold(folder):
    series(folder)
    os.truncate(folder / "1.dcm", 40 << 30)  # a hole; it takes no room
    return folder


# Order and place


@handled()
def from_head_to_feet_with_names_in_no_order(folder):
    for i, name in enumerate(("z", "10", "9", "a")):
        write_dicom(folder / name, CHEST, -5.0 * i, InstanceNumber=i)
    return folder


@handled()
def feet_first(folder):
    return series(folder, ImageOrientationPatient=[1, 0, 0, 0, -1, 0], hu=CHEST[::-1])


@handled()
def prone(folder):
    return series(folder, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], hu=CHEST[::-1, ::-1])


@handled()
def transposed(folder):
    return series(folder, ImageOrientationPatient=[0, 1, 0, 1, 0, 0], hu=CHEST.T)


@handled("the gantry is tilted by 20 degrees")
def a_tilted_gantry(folder):
    sin, cos = np.sin(np.radians(20)), np.cos(np.radians(20))
    return series(folder, ImageOrientationPatient=[1, 0, 0, 0, round(cos, 6), round(-sin, 6)])


@refused("a coronal slice")
def coronal(folder):
    return series(folder, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


@refused("a sagittal slice")
def sagittal(folder):
    return series(folder, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


@handled("at the same place as another slice: 1.dcm")
def two_slices_at_one_place(folder):
    series(folder)
    write_dicom(folder / "copy.dcm", CHEST, 5.0)
    return folder


@handled("2 slices missing (spacing 5.0 mm, up to 15.0 mm; first behind slice 3 of 5)", kept=5)
def missing_slices(folder):
    for i in (0, 1, 2, 5, 6):
        write_dicom(folder / f"{i}", CHEST, 5.0 * i)
    return folder


@handled("uneven spacing of slices: 4.0 to 6.0 mm")
def uneven_spacing(folder):
    for place in (0, 5, 11, 15):
        write_dicom(folder / f"{place}", CHEST, place)
    return folder


@handled("no known place")
def a_slice_without_position(folder):
    series(folder)
    write_dicom(folder / "lost.dcm", CHEST, ImagePositionPatient=None)
    return folder


@handled("orientation is none")
def an_orientation_of_zeros(folder):
    series(folder)
    write_dicom(folder / "odd.dcm", CHEST, 99, ImageOrientationPatient=[0, 0, 0, 0, 0, 0])
    return folder


@handled("header cannot be read")
def a_position_in_words(folder):
    series(folder)
    data = (folder / "3.dcm").read_bytes()
    (folder / "odd.dcm").write_bytes(data.replace(b"-150", b"left"))
    return folder


@handled("series 2 of 3 slices", "of another series than the one that is taken")
def two_series(folder):
    series(folder / "thick", 3, SeriesInstanceUID=OTHER_SERIES, SeriesNumber=2)
    return series(folder / "thin").parent


@handled("the files are of more than one patient")
def two_patients_in_one_folder(folder):
    series(folder / "first", 2, PatientID="A", SeriesInstanceUID=OTHER_SERIES)
    return series(folder / "second", PatientID="B").parent


@handled("of another size or orientation")
def slices_of_two_sizes(folder):
    series(folder)
    write_dicom(folder / "small.dcm", CHEST[::2, ::2], 99)
    return folder


# What is no slice


@handled("a localizer", "a secondary capture", "a dose report", "modality MR", "modality SR")
def what_comes_with_a_series(folder):
    series(folder)
    write_dicom(folder / "a", CHEST, 99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom(folder / "b", CHEST, 99, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_dicom(folder / "c", CHEST, 99, ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"])
    write_dicom(folder / "d", CHEST, 99, Modality="MR")
    write_dicom(folder / "e", CHEST, 99, Modality="SR", Rows=None)
    return folder


@refused("modality MR")
def another_modality(folder):
    return series(folder, Modality="MR")


@refused("its pixels are not grey")
def colour_dicom(folder):
    return series(folder, PhotometricInterpretation="RGB", SamplesPerPixel=3, hu=np.tile(CHEST, 3))


# Hounsfield units


@handled()
def monochrome1(folder):
    return series(folder, PhotometricInterpretation="MONOCHROME1")


@handled()
def signed_without_rescale(folder):
    series(folder)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.save_as(file)
    return folder


@refused("without RescaleIntercept: no HU")
def unsigned_without_rescale(folder):
    return series(
        folder, hu=CHEST + 1024, PixelRepresentation=0, RescaleSlope=None, RescaleIntercept=None
    )


@handled()
def without_slope_only(folder):
    return series(folder, hu=CHEST + 1024, RescaleSlope=None, RescaleIntercept=-1024)


@handled()
def a_slope_of_two(folder):
    return series(folder, hu=(CHEST + 1024) / 2, RescaleSlope=2, RescaleIntercept=-1024)


@refused("RescaleSlope of 0")
def a_slope_of_zero(folder):
    return series(folder, RescaleSlope=0)


@refused("no HU of a chest")
def a_window_kept_as_hu(folder):
    return series(folder, hu=window(CHEST, -600, 1500).astype(np.float32))


@refused("no HU of a chest")
def an_intercept_applied_twice(folder):
    return series(folder, hu=CHEST, RescaleIntercept=-1024)


def with_padding(value: int) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    return np.where((x - 64) ** 2 + (y - 64) ** 2 > 64**2, np.float32(value), CHEST)


@handled()
def padding_of_2000(folder):
    return series(folder, hu=with_padding(-2000))


@handled()
def padding_of_3024(folder):
    return series(folder, hu=with_padding(-3024))


@handled()
def bright_padding(folder):
    return series(folder, hu=with_padding(3000), PixelPaddingValue=3000)


@handled()
def twelve_bits_with_an_overlay_above(folder):
    stored = (CHEST + 1024).astype(np.uint16)
    stored[40:90] |= 0x4000
    return series(
        folder,
        PixelData=stored.tobytes(),
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        RescaleIntercept=-1024,
    )


@handled()
def twelve_bits_signed(folder):
    stored = CHEST.astype(np.int16).view(np.uint16) & 0x0FFF
    return series(folder, PixelData=stored.tobytes(), BitsStored=12, HighBit=11)


@handled()
def sixteen_bits_unsigned(folder):
    stored = (CHEST + 32768).astype(np.uint16)
    return series(
        folder, PixelData=stored.tobytes(), PixelRepresentation=0, RescaleIntercept=-32768
    )


# Transfer syntaxes


def compressed(folder: Path, syntax: str) -> Path:
    series(folder, hu=CHEST + 1024, RescaleIntercept=-1024, PixelRepresentation=0)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)
    return folder


@handled()
def run_lengths(folder):
    return compressed(folder, RLELossless)


@handled()
def jpeg_2000(folder):
    return compressed(folder, JPEG2000Lossless)


def compressed_by_gdcm(folder: Path, syntax: int) -> Path:
    series(folder, hu=CHEST + 1024, RescaleIntercept=-1024, PixelRepresentation=0)
    for file in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return folder


@handled()
def jpeg_ls(folder):
    return compressed_by_gdcm(folder, gdcm.TransferSyntax.JPEGLSLossless)


@handled()
def jpeg_lossless(folder):
    return compressed_by_gdcm(folder, gdcm.TransferSyntax.JPEGLosslessProcess14_1)


def resaved(folder: Path, syntax: str) -> Path:
    series(folder)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            file,
            dataset,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )
    return folder


@handled()
def implicit_vr(folder):
    return resaved(folder, ImplicitVRLittleEndian)


@handled()
def big_endian(folder):
    return resaved(folder, ExplicitVRBigEndian)


@handled()
def without_preamble(folder):
    for file in series(folder).iterdir():
        file.write_bytes(file.read_bytes()[132:])
    return folder


def deflated(folder: Path, body: Callable[[bytes], bytes] = lambda data: data) -> Path:
    for file in series(folder).iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        data = stream.getvalue()
        start = 144 + pydicom.dcmread(io.BytesIO(data)).file_meta.FileMetaInformationGroupLength
        file.write_bytes(data[:start] + body(data[start:]))
    return folder


@handled()
def a_deflated_file(folder):
    return deflated(folder)


@refused("unpacks to more than 256 MiB")
def a_deflated_bomb(folder):
    def bomb(data: bytes) -> bytes:
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return packer.compress(bytes(300 << 20)) + packer.flush()

    packed = bomb(b"")
    return deflated(folder, lambda data: packed)


@refused("cannot be decoded (compressed as JPEG Extended")
def a_compression_without_decoder(folder):
    compressed(folder, RLELossless)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        dataset.save_as(file)
    return folder


# Damage


@handled("cannot be decoded", kept=N - 1)
def one_slice_cut_short(folder):
    series(folder)
    os.truncate(folder / "1.dcm", 9000)
    return folder


@refused("cannot be decoded")
def every_slice_cut_short(folder):
    for file in series(folder).iterdir():
        os.truncate(file, 9000)
    return folder


@handled("1.dcm: a DICOM file that is no CT", kept=N - 1)
def one_header_cut_short(folder):
    series(folder)
    os.truncate(folder / "1.dcm", 460)
    return folder


@refused("cannot be decoded")
def compressed_pixels_overwritten(folder):
    for file in compressed(folder, JPEG2000Lossless).iterdir():
        data = file.read_bytes()
        file.write_bytes(data[:1600] + bytes(len(data) - 1600))
    return folder


@refused("more than 4096 rows or columns")
def a_claim_of_65535_rows(folder):
    return series(folder, Rows=65535, Columns=65535)


@refused("more than 20000 frames")
def a_claim_of_a_billion_frames(folder):
    return series(folder, NumberOfFrames=1_000_000_000)


def item_start(length: int = 0xFFFFFFFF) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, length)


def with_sequence(folder: Path, content: bytes) -> Path:
    """Puts a sequence of undefined length before the pixels' description."""
    head = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    for file in series(folder).iterdir():
        data = file.read_bytes()
        at = data.index(struct.pack("<HH2s", 0x0020, 0x000E, b"UI"))
        file.write_bytes(data[:at] + head + content + end + data[at:])
    return folder


@refused("header cannot be read")
def sequences_nested_ten_thousand_deep(folder):
    inner = item_start() + struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    return with_sequence(folder, inner * 10_000)


@handled()
def a_sequence_of_ten_thousand_items(folder):
    return with_sequence(folder, item_start(0) * 10_000)


@handled()
def a_long_private_element(folder):
    series(folder)
    for file in folder.iterdir():
        change(file, LongCodeValue="long " * 100_000)
    return folder


# Files with several frames


def enhanced(folder: Path, *, places: bool = True) -> Path:
    file = write_dicom(
        folder / "ct.dcm",
        CHEST,
        NumberOfFrames=N,
        SOPClassUID=EnhancedCTImageStorage,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        PixelData=np.stack([CHEST + 1024] * N).astype(np.int16).tobytes(),
    )
    if not places:
        return file
    dataset = pydicom.dcmread(file)
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelValueTransformationSequence = Sequence([Dataset()])
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -1024
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for i in range(N):
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [-150, -150, -5.0 * i]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.save_as(file)
    return file


@handled()
def an_enhanced_ct(folder):
    return enhanced(folder)


@handled()
def an_enhanced_ct_in_run_lengths(folder):
    file = enhanced(folder)
    dataset = pydicom.dcmread(file)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(file)
    return folder


@refused("several frames, but without the place of each")
def frames_without_places(folder):
    return enhanced(folder, places=False)


# Volumes


def image(dtype: type = np.int16, voxels: np.ndarray | None = None) -> sitk.Image:
    """Slices from the feet up, rows to the back, columns to the left: LPS, as DICOM."""
    voxels = np.stack([CHEST] * N).astype(dtype) if voxels is None else voxels
    volume_image = sitk.GetImageFromArray(voxels)
    volume_image.SetSpacing((2.5, 2.5, 5.0))
    return volume_image


def volume(path: Path, volume_image: sitk.Image | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image() if volume_image is None else volume_image, str(path))
    return path


@handled()
def nifti(folder):
    return volume(folder / "ct.nii")


@handled()
def nifti_packed(folder):
    return volume(folder / "ct.nii.gz")


@handled()
def metaimage(folder):
    return volume(folder / "ct.mha")


@handled()
def metaimage_beside_its_voxels(folder):
    return volume(folder / "ct.mhd")


@handled()
def nrrd(folder):
    return volume(folder / "ct.nrrd")


@handled("not DICOM")
def a_volume_with_notes_beside(folder):
    volume(folder / "ct.mha")
    (folder / "notes.json").write_text("{}")
    return folder


@handled()
def a_volume_stored_from_sagittal_planes(folder):
    return volume(folder / "ct.nii.gz", sitk.DICOMOrient(image(), "PIR"))


@handled()
def a_volume_stored_as_ras(folder):
    return volume(folder / "ct.nii", sitk.DICOMOrient(image(), "RAS"))


@handled("the volume is tilted by 10 degrees")
def a_tilted_volume(folder):
    volume_image = image()
    sin, cos = np.sin(np.radians(10)), np.cos(np.radians(10))
    volume_image.SetDirection([1, 0, 0, 0, cos, -sin, 0, sin, cos])
    return volume(folder / "ct.mha", volume_image)


@handled()
def a_volume_of_floats_with_nan(folder):
    voxels = np.stack([CHEST] * N)
    voxels[:, :6] = np.nan
    return volume(folder / "ct.nii", image(voxels=voxels))


@handled()
def a_volume_of_8_bits(folder):
    voxels = np.stack([window(CHEST, -600, 1500)] * N)
    return volume(folder / "ct.nii.gz", image(voxels=voxels))


@refused("no HU of a chest")
def a_volume_from_zero_to_one(folder):
    voxels = np.stack([(CHEST + 1000) / 1500] * N)
    return volume(folder / "ct.nii.gz", image(voxels=voxels))


@refused("no grey volume of three dimensions")
def a_volume_in_time(folder):
    joined = sitk.JoinSeries([image(), image()])
    return volume(folder / "ct.nii", joined)


@refused("a coronal volume of thick slices")
def a_coronal_volume(folder):
    volume_image = image(voxels=np.zeros((60, 5, 60), np.int16))
    volume_image.SetSpacing((1.0, 8.0, 1.0))
    return volume(folder / "ct.mha", volume_image)


def cut_volume(path: Path) -> Path:
    os.truncate(volume(path), 20_000 if path.suffix in (".nii", ".mha") else 2000)
    return path


@refused("a volume that was cut off or damaged")
def a_packed_nifti_cut_short(folder):
    return cut_volume(folder / "ct.nii.gz")


@refused("a volume that was cut off or damaged")
def a_nifti_cut_short(folder):
    return cut_volume(folder / "ct.nii")


@refused("a volume that cannot be read")
def a_metaimage_cut_short(folder):
    return cut_volume(folder / "ct.mha")


@refused("a volume that cannot be read")
def a_nrrd_cut_short(folder):
    return cut_volume(folder / "ct.nrrd")


@refused("more than 2 GiB")
def a_volume_that_claims_too_much(folder):
    path = volume(folder / "ct.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<4h", data, 40, 3, 30_000, 30_000, 30_000)
    path.write_bytes(data)
    return path


@refused("whose voxels are in another place")
def a_metaimage_that_points_elsewhere(folder):
    path = volume(folder / "ct.mhd")
    text = path.read_text().replace("ct.raw", "/etc/hostname")
    path.write_text(text)
    return path


def nifti_with(folder: Path, name: str, sform_mm: np.ndarray, **options) -> Path:
    """The chest from the right to the left, from the back to the front, and from the feet up."""
    from ct.test_volumes import write_nifti

    voxels = np.stack([CHEST] * N).transpose(2, 1, 0)[::-1, ::-1].astype(np.int16)
    write_nifti(folder / name, np.ascontiguousarray(voxels), sform_mm=sform_mm, **options)
    return folder / name


RAS_MM = np.diag([2.5, 2.5, 5.0])


@handled()
def a_nifti_called_packed_that_is_not(folder):
    return nifti_with(folder, "ct.nii.gz", RAS_MM, packed=False)


@handled()
def a_packed_nifti_called_nii(folder):
    return nifti_with(folder, "ct.nii", RAS_MM, packed=True)


@handled()
def a_nifti_with_a_slope_of_zero(folder):
    return nifti_with(folder, "ct.nii", RAS_MM, scale=(0.0, -1024.0))


@handled("qform and sform of the NIfTI file disagree by 180 degrees")
def a_nifti_whose_qform_and_sform_disagree(folder):
    return nifti_with(folder, "ct.nii", RAS_MM, qform=(0.0, 0.0, 1.0))


@handled("shifted against each other by 15 degrees (sheared axes")
def a_nifti_sheared_as_by_a_tilted_gantry(folder):
    sform_mm = RAS_MM.copy()
    sform_mm[1, 2] = 5.0 * np.tan(np.radians(15))
    return nifti_with(folder, "ct.nii", sform_mm)


@refused("whose axes are sheared by 20 degrees in the axial slices")
def a_nifti_sheared_in_its_slices(folder):
    sform_mm = RAS_MM.copy()
    sform_mm[1, 0] = 2.5 * np.tan(np.radians(20))
    return nifti_with(folder, "ct.nii", sform_mm)


@refused("the chest is upside down")
def a_nifti_whose_affine_lies(folder):
    return nifti_with(folder, "ct.nii", np.diag([2.5, -2.5, 5.0]))


@refused("the chest lies on its side")
def a_nifti_whose_affine_is_transposed(folder):
    return nifti_with(folder, "ct.nii", RAS_MM[[1, 0, 2]])


@refused("no HU of a chest")
def a_volume_of_hu_and_1000_with_padding(folder):
    return volume(folder / "ct.mha", image(voxels=np.stack([with_padding(-3000) + 1000] * N)))


@handled()
def a_volume_whose_hu_lost_their_sign(folder):
    voxels = np.stack([CHEST] * N).astype(np.int16).view(np.uint16)
    return volume(folder / "ct.nrrd", image(voxels=voxels))


@refused("2 volumes (ct.nii and mask.nii first)")
def two_volumes(folder):
    volume(folder / "ct.nii")
    volume(folder / "mask.nii")
    return folder


# Pictures


def picture(path: Path, image: np.ndarray) -> Path:
    done, data = cv2.imencode(path.suffix, image)
    assert done
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.tobytes())
    return path


WINDOWED = window(CHEST, -600, 1500)


@handled()
def jpegs(folder):
    for i in range(N):
        picture(folder / f"im{i}.jpg", WINDOWED)
    return folder


@handled(kept=1)
def one_picture(folder):
    return picture(folder / "a.png", WINDOWED)


@handled()
def hu_in_pngs_of_16_bits(folder):
    for i in range(N):
        picture(folder / f"im{i}.png", (CHEST + 1024).astype(np.uint16))
    return folder


@refused("8 bits and pictures of 16 bits")
def pngs_of_8_and_of_16_bits(folder):
    picture(folder / "0.png", WINDOWED)
    picture(folder / "1.png", (CHEST + 1024).astype(np.uint16))
    return folder


@refused("pictures of different sizes (0.png and 1.png)")
def pictures_of_two_sizes(folder):
    picture(folder / "0.png", WINDOWED)
    picture(folder / "1.png", WINDOWED[4:])
    return folder


@handled("a picture beside a DICOM series")
def a_picture_beside_a_series(folder):
    picture(folder / "key.jpg", WINDOWED)
    return series(folder)


@refused("a colour picture")
def colour_photographs(folder):
    photograph = np.zeros((128, 128, 3), np.uint8)
    photograph[:64], photograph[64:] = (235, 180, 120), (60, 160, 90)
    for i in range(N):
        picture(folder / f"{i}.jpg", photograph)
    return folder


@handled("cannot be decoded", kept=N - 1)
def a_picture_cut_short(folder):
    jpegs(folder)
    os.truncate(folder / "im1.jpg", 700)
    return folder


@refused("more than 8192 rows or columns")
def a_picture_of_30000_pixels(folder):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(30_001) * 300)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return folder


@handled("4 pictures were turned as EXIF says")
def pictures_turned_by_exif(folder):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    for i in range(N):
        Image.fromarray(np.rot90(WINDOWED)).save(folder / f"{i}.png", exif=exif)
    return folder


@refused("the chest lies on its side")
def pictures_saved_transposed(folder):
    for i in range(N):
        picture(folder / f"{i}.png", np.ascontiguousarray(WINDOWED.T))
    return folder


@refused("the chest is upside down")
def pictures_saved_upside_down(folder):
    for i in range(N):
        picture(folder / f"{i}.png", np.ascontiguousarray(WINDOWED[::-1]))
    return folder


@handled()
def hu_in_pngs_that_lost_their_sign(folder):
    for i in range(N):
        picture(folder / f"{i}.png", CHEST.astype(np.int16).view(np.uint16))
    return folder


@handled("the pictures hold HU + 1000")
def hu_and_1000_in_pngs(folder):
    for i in range(N):
        picture(folder / f"{i}.png", (CHEST + 1000).astype(np.uint16))
    return folder


@refused("in a soft-tissue window")
def pictures_in_a_soft_tissue_window(folder):
    for i in range(N):
        picture(folder / f"{i}.png", window(CHEST, 40, 400))
    return folder


@refused("greys are inverted")
def pictures_with_inverted_greys(folder):
    for i in range(N):
        picture(folder / f"{i}.png", 255 - WINDOWED)
    return folder


@refused("no lungs found")
def a_chest_without_lungs(folder):
    return series(folder, hu=np.where(draw_lungs(), np.float32(40), CHEST))


def make(name: str, folder: Path) -> Path:
    """Writes a case into a new folder below `folder`."""
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return CASES[name].make(place)
