"""Finds the series under a path: which files are slices, of which format."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from drenet_jax.ct import image_files, volumes
from drenet_jax.ct.dicom import elements, headers
from drenet_jax.ct.loaders import Listing, NoSuchSeries, load_dicom, load_pictures, load_volume
from drenet_jax.ct.opening import is_zip, open_source
from drenet_jax.ct.series import Series
from drenet_jax.ct.sources import (
    KINDS,
    CtError,
    Excluded,
    Guard,
    Source,
    UnreadableSlice,
    no_guard,
)
from drenet_jax.storage import objects
from drenet_jax.storage.objects import AnyPath

# More pictures than these beside a DICOM slice are no previews of it.
_MOST_PICTURES_A_SLICE = 2
# The note on files that are called by numbers.
RENAMED = (
    "names of files hold what identifies the patient, so files are called by their numbers in "
    "natural order"
)


def open_series(path: AnyPath, series_uid: str = "", *, guard: Guard = no_guard) -> Series:
    """Finds the slices under `path` and orders them, reading DICOM headers only.

    DICOM slices are ordered by ImagePositionPatient along the normal of the image plane; file names
    and InstanceNumber play no part. Of several series the axial one with most slices
    is taken. Pictures are ordered by name, with 2 before 10.

    Args:
      path: a folder (nested, or without extensions, too) or a zip of DICOM files (of one slice or
        several each), of PNG/JPEG pictures, or with one NIfTI, MetaImage or NRRD volume; or a
        single file of any kind.
      series_uid: takes the DICOM series with this SeriesInstanceUID instead.
      guard: called before a file is opened; see `sources.Guard`.

    Raises:
      StorageError: the bucket cannot be read.
      CtError: `path` does not exist or holds no CT slice (an UnreadableSlice if it is a
        file); no series has the `series_uid`; there are several volumes.
    """
    path = objects.as_path(path)
    source = open_source(path)
    if not source.names and not source.excluded:
        raise CtError(
            f"{path} is an empty folder; name one with a CT series in {KINDS}.", "an empty folder"
        )
    listing = _listed(path, source, guard)
    is_renamed = headers.names_identify(source.names, listing.identifiers)
    if is_renamed:
        listing = _renamed(listing)
    is_file = source.is_file
    if listing.dicom and len(listing.pictures) > _MOST_PICTURES_A_SLICE * len(listing.dicom):
        why = f"{len(listing.pictures)} pictures beside {len(listing.dicom)} DICOM slices"
        raise CtError(f"{path} holds {why}; name the pictures or the DICOM files.", why)
    if listing.dicom:
        series = load_dicom(listing, series_uid)
    elif series_uid:
        raise NoSuchSeries.of(path, "no DICOM series at all")
    elif len(listing.volumes) > 1:
        why = (
            f"{len(listing.volumes)} volumes ({listing.volumes[0]} and {listing.volumes[1]} first)"
        )
        raise CtError(f"{path} holds {why}; name one of them.", why)
    elif listing.volumes:
        series = load_volume(listing)
    elif listing.pictures:
        series = load_pictures(listing)
    elif is_file:
        raise UnreadableSlice.of(
            path, listing.excluded[0].why, f"name a CT slice or series in {KINDS}"
        )
    else:
        raise _no_slices(path, listing.excluded)
    return dataclasses.replace(
        series,
        is_single_image=is_file and len(series) == 1 and not listing.volumes,
        is_renamed=is_renamed,
        notes=(*series.notes, RENAMED) if is_renamed and not is_file else series.notes,
    )


def require_images(path: AnyPath) -> None:
    """Checks cheaply that at least one file may be a slice.

    It finds mistakes of the caller, such as a folder of something else. Damage, as of a zip, is
    reported when the file is read.

    Args:
      path: as for `open_series`.

    Raises:
      CtError: `path` does not exist, or no file there begins like a CT slice or volume.
    """
    path = objects.as_path(path)
    if is_zip(path):
        return
    files = open_source(path)
    for name in files.names:
        with contextlib.suppress(OSError, ValueError):
            head = files.head(name)
            if (
                image_files.is_picture(head)
                or elements.is_dicom(head)
                or volumes.is_volume(name, head)
            ):
                return
    open_series(path)  # which says what is wrong


def _no_slices(folder: AnyPath, excluded: Sequence[Excluded]) -> CtError:
    """Says why files are no slices, by the three commonest reasons."""
    reasons: dict[str, list[str]] = {}
    for file in excluded:
        reasons.setdefault(file.why, []).append(file.name)
    most = sorted(reasons.items(), key=lambda reason: -len(reason[1]))[:3]
    text = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
        for why, names in most
    )
    why = f"no CT slice ({text})"
    return CtError(f"{folder} holds {why}; name a CT series in {KINDS}.", why, excluded)


def _listed(path: AnyPath, source: Source, guard: Guard) -> Listing:
    listing = Listing(path, source, guard, list(source.excluded))
    excluded = listing.excluded
    for name in source.names:
        why = guard(str(source.place(name)), "header")
        if why:
            excluded.append(Excluded(name, why))
            continue
        try:
            head = source.head(name)
        except OSError as error:
            excluded.append(Excluded(name, f"a file that cannot be opened ({error.strerror})"))
            continue
        except ValueError as error:
            excluded.append(Excluded(name, str(error)))
            continue
        if image_files.is_picture(head):
            listing.pictures.append(name)
        elif volumes.is_volume(name, head):
            listing.volumes.append(name)
        elif elements.is_dicom(head):
            slices, others = headers.read_header(
                name,
                head,
                functools.partial(source.read, name),
                identifiers=listing.identifiers,
            )
            listing.dicom.extend(slices)
            excluded.extend(others)
        else:
            excluded.append(Excluded(name, _what_it_is(name, head)))
    return listing


def _renamed(listing: Listing) -> Listing:
    """The listing with numbers in place of names that identify the patient."""
    numbered = listing.source.numbered()
    number_of = dict(zip(listing.source.names, numbered.names, strict=True))
    return dataclasses.replace(
        listing,
        source=numbered,
        # What could not be read has no number; its name may identify the patient, too.
        excluded=[
            Excluded(number_of.get(file.name, "(not named)"), file.why) for file in listing.excluded
        ],
        dicom=[
            dataclasses.replace(slice_, name=number_of[slice_.name]) for slice_ in listing.dicom
        ],
        volumes=[number_of[name] for name in listing.volumes],
        pictures=[number_of[name] for name in listing.pictures],
    )


def _what_it_is(name: str, head: bytes) -> str:
    suffix = Path(name).suffix.lower()
    if not head:
        return "an empty file"
    if suffix in (".dcm", ".dicom", ".ima"):
        return f"no DICOM file in spite of its name ({suffix})"
    if head.startswith(b"PK\x03\x04"):
        return "a zip inside a folder or a zip (unpack it first)"
    return f"not {KINDS}"
