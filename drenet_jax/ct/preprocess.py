"""From a person's files to lung crops: the one path that prepare, predict and serve share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from drenet_jax.ct import hu_checks, image_files, lung_crops, sampling
from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.prepared_series import PreparedPerson, SampledSlice
from drenet_jax.ct.series import Series
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.sources import (
    CtError,
    Excluded,
    Guard,
    UnreadableSlice,
    no_guard,
    printable,
)
from drenet_jax.storage import objects
from drenet_jax.storage.objects import AnyPath

# A series of which less is kept is one of the abdomen, the neck or the whole body; then so many
# others are tried.
_LEAST_KEPT_SHARE = 0.5
_MOST_OTHER_SERIES = 6


def prepare_person(
    paths: Sequence[AnyPath],
    settings: CtSettings,
    *,
    series_uid: str = "",
    with_instances: bool = False,
    with_hu: bool = False,
    guard: Guard = no_guard,
) -> PreparedPerson:
    """Picks a person's slices, finds the lungs in them and crops to the lungs (paper 2.2.1).

    A folder, a zip, a volume or a file of several frames is a series:
    `settings.slices_per_person` slices are picked, and those are kept whose lung area is at least
    `settings.min_area_share` of the largest among them. Files of one slice each are single images:
    all in which lungs are found are kept. What cannot be read is excluded, and the
    rest goes on; a person may end with nothing kept.

    Args:
      paths: one or more series or single images; at least one.
      settings: how slices are picked and cropped.
      series_uid: takes the DICOM series with this SeriesInstanceUID, in every path.
      with_instances: also say from which DICOM instances the slices come, which identifies the
        patient.
      with_hu: also return the kept slices in HU.
      guard: called before a file is opened; see `sources.Guard`.

    Raises:
      CtError: a path does not exist, or the only path cannot be used; instances are asked for, but
        a kept slice is no DICOM, or not all are of one study.
    """
    assert paths
    paths = [objects.as_path(path) for path in paths]
    person = _prepare_paths(paths, settings, series_uid, with_instances, with_hu, guard)
    if with_instances:
        _require_one_study(paths[0], person.kept)
    return person


def _require_one_study(path: AnyPath, kept: Sequence[SampledSlice]) -> None:
    """Refuses slices that no DICOM object could refer to, one by one and in one study."""
    instances = [picked.instance for picked in kept if picked.instance is not None]
    if len(instances) < len(kept):
        why = "slices that are no DICOM, whose patient and study are not known"
        raise CtError(
            f"{path} holds {why}; give DICOM files, or ask for no results for the PACS.", why
        )
    for keyword, what in (("PatientID", "patient"), ("StudyInstanceUID", "study")):
        if len({instance.study.get(keyword) for instance in instances}) > 1:
            why = f"slices of more than one {what}"
            raise CtError(
                f"{path} holds {why}, and results for the PACS are filed under one; give one.", why
            )
    references = {(instance.sop_instance_uid, instance.frame_number) for instance in instances}
    if len(references) < len(kept):
        why = "slices with the same SOPInstanceUID, which results for the PACS could not tell apart"
        raise CtError(f"{path} holds {why}; export the series anew.", why)


def _prepare_paths(
    paths: Sequence[AnyPath],
    settings: CtSettings,
    series_uid: str,
    with_instances: bool,
    with_hu: bool,
    guard: Guard,
) -> PreparedPerson:
    if len(paths) == 1:
        opened = open_series(paths[0], series_uid, guard=guard)
        if not opened.is_single_image:
            return _prepare_best_series(opened, "", settings, with_instances, with_hu)
        return _prepare_single_images([opened], opened.names, [], settings, with_instances, with_hu)

    above = os.path.commonpath([path.parent for path in paths])
    singles, names, parts, excluded = [], [], [], []
    for i, path in enumerate(paths):
        name = printable(os.path.relpath(path, above))
        try:
            opened = open_series(path, series_uid, guard=guard)
            if opened.is_single_image:
                singles.append(opened)
                names.append(f"file {i + 1:04d}" if opened.is_renamed else name)
            else:
                # Not the folder's name, which may be the patient's.
                parts.append(
                    _prepare_best_series(opened, f"{i + 1}/", settings, with_instances, with_hu)
                )
        except CtError as error:
            if not objects.path_exists(path):
                raise
            excluded.append(Excluded(name, error.why))
    if singles or not parts:
        parts.append(
            _prepare_single_images(singles, names, excluded, settings, with_instances, with_hu)
        )
        excluded = []
    return PreparedPerson(
        picked=tuple(slice_ for part in parts for slice_ in part.picked),
        excluded=(*excluded, *(file for part in parts for file in part.excluded)),
        notes=tuple(note for part in parts for note in part.notes),
        n_slices=sum(part.n_slices for part in parts),
    )


def _prepare_best_series(
    series: Series, prefix: str, settings: CtSettings, with_instances: bool, with_hu: bool
) -> PreparedPerson:
    """Prepares one series, or a further one of the folder if the first does not show the lungs."""
    first: PreparedPerson | CtError
    try:
        first = _prepare_series(series, prefix, settings, with_instances, with_hu)
    except CtError as error:
        first = error
    other = series
    for _ in range(_MOST_OTHER_SERIES):
        if isinstance(first, PreparedPerson) and _shows_lungs(first):
            return first
        try:
            following = other.next_best()
        except CtError:
            break
        if following is None:
            break
        other = following
        try:
            prepared = _prepare_series(other, prefix, settings, with_instances, with_hu)
        except CtError:
            continue
        if _shows_lungs(prepared):
            note = "another series of more slices, or better ones, does not show the lungs"
            return dataclasses.replace(prepared, notes=(*prepared.notes, note))
    if isinstance(first, CtError):
        raise first
    return first


def _shows_lungs(person: PreparedPerson) -> bool:
    return len(person.kept) >= _LEAST_KEPT_SHARE * len(person.picked) > 0


def _prepare_series(
    series: Series, prefix: str, settings: CtSettings, with_instances: bool, with_hu: bool
) -> PreparedPerson:
    """Prepares one series; `prefix` is put before all names."""
    excluded = [Excluded(prefix + file.name, file.why) for file in series.excluded]
    indices: list[int] = []
    images: list[np.ndarray] = []
    instances: list[SourceInstance | None] = []
    for index in sampling.sample_uniform(len(series), settings.slices_per_person):
        name = series.names[index]
        try:
            image = series.read(index)
        except UnreadableSlice as error:
            excluded.append(Excluded(prefix + name, error.why))
            continue
        if images and image.shape != images[0].shape:
            why = f"pictures of different sizes ({series.names[indices[0]]} and {name})"
            raise CtError(
                f"{series.path} holds {why}, so they are no series; "
                "give them as single images, each in a row.",
                why,
            )
        indices.append(index)
        images.append(image)
        instances.append(_instance(series, index, prefix) if with_instances else None)
    scales = [series.scale(index) for index in indices]
    images, value_notes = _checked_values(series, images, excluded, scales)
    masks = segmentation.find_lungs_in_series(images, from_feet=not series.are_pictures)
    value_notes += _checked_lungs(series, images, masks)
    picked = [
        SampledSlice(
            index=index,
            name=prefix + series.names[index],
            source=lung_crops.windowed(image, settings),
            source_mask=mask,
            orientation=series.orientation_of(index),
            instance=instance,
            stored_index=series.stored_index(index),
            file_axes=series.axes,
            file_facts=series.file_facts(index),
            hu=_whole_hu(image) if with_hu else None,
        )
        for index, image, mask, instance in zip(indices, images, masks, instances, strict=True)
    ]
    turned = sum(slice_.orientation != series.orientation for slice_ in picked)
    notes = (*series.notes, *value_notes, *_reoriented_notes(turned))
    notes = tuple(f"{prefix}: {note}" if prefix else note for note in notes)
    return _person(picked, excluded, notes, len(series), settings.min_area_share, settings)


def _instance(series: Series, index: int, prefix: str) -> SourceInstance | None:
    try:
        return series.instance(index)
    except UnreadableSlice as error:
        # Not the file's own name: below the folder that was given it may be the patient's.
        name = prefix + series.names[index]
        raise CtError(
            f"{series.path} holds {error.why} ({name}), to which no results for the PACS can "
            "refer; export the series anew.",
            error.why,
        ) from None


def _why_no_hu_of_some(images: Sequence[np.ndarray], scales: Sequence[object]) -> str:
    """Why slices of one way to make HU cannot be HU, where a series has several ways."""
    if len(set(scales)) > 1:
        for scale in dict.fromkeys(scales):
            some = [image for image, own in zip(images, scales, strict=True) if own == scale]
            if why := hu_checks.reason_not_hu(some):
                return f"slices of different scales, of which some have {why}"
    return ""


def _checked_values(
    series: Series,
    images: list[np.ndarray],
    excluded: Sequence[Excluded],
    scales: Sequence[object] = (),
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The slices in HU or in a window, and notes on their values; refuses what is neither."""
    why, note = "", ""
    if len({image.dtype for image in images}) > 1:
        why = "pictures of 8 bits and pictures of 16 bits in HU"
    elif images and any(file.why == image_files.NEITHER for file in excluded):
        why = "pictures of 16 bits of which some are neither HU nor in a window"
    elif images and images[0].dtype != np.uint8:
        if series.are_pictures:
            images, note = hu_checks.restored_hu(images)
        why = hu_checks.reason_not_hu(images) or _why_no_hu_of_some(images, scales)
    if why:
        raise _wrong_values(series, why)
    return images, (note,) if note else ()


def _checked_lungs(
    series: Series, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """Notes on what the slices show; refuses lungs without texture and chests that lie wrongly."""
    verdict = lung_crops.judge(images, masks)
    if verdict.why:
        raise _wrong_values(series, verdict.why)
    return (verdict.note,) if verdict.note else ()


def _wrong_values(series: Series, why: str) -> CtError:
    return CtError(f"{series.path} holds {why}; export the series anew.", why)


def _prepare_single_images(
    singles: Sequence[Series],
    names: Sequence[str],
    excluded: Sequence[Excluded],
    settings: CtSettings,
    with_instances: bool,
    with_hu: bool,
) -> PreparedPerson:
    excluded, picked, notes, turned = list(excluded), [], [], 0
    for index, (single, name) in enumerate(zip(singles, names, strict=True)):
        try:
            (image,), value_notes = _checked_values(single, [single.read(0)], [])
            mask = segmentation.find_lungs(image)
            value_notes += _checked_lungs(single, [image], [mask])
        except CtError as error:
            if len(singles) == 1 and not excluded:
                raise
            excluded.append(Excluded(name, error.why))
            continue
        instance = single.instance(0) if with_instances else None
        orientation = single.orientation_of(0)
        turned += orientation != single.orientation
        picked.append(
            SampledSlice(
                index=index,
                name=name,
                source=lung_crops.windowed(image, settings),
                source_mask=mask,
                orientation=orientation,
                instance=instance,
                file_facts=single.file_facts(0),
                hu=_whole_hu(image) if with_hu else None,
            )
        )
        notes += [*single.notes, *value_notes]
    all_notes = (*dict.fromkeys(notes), *_reoriented_notes(turned))
    return _person(picked, excluded, all_notes, len(singles) + len(excluded), 0.0, settings)


def _reoriented_notes(count: int) -> tuple[str, ...]:
    """The note on so many pictures that their EXIF turned."""
    if not count:
        return ()
    what = "1 picture was" if count == 1 else f"{count} pictures were"
    return (f"{what} turned as EXIF says; boxes are in pixels as the files store them",)


def _whole_hu(image: np.ndarray) -> np.ndarray | None:
    if image.dtype == np.uint8:
        return None
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(image), limits.min, limits.max).astype(np.int16)


def _person(
    slices: Sequence[SampledSlice],
    excluded: Sequence[Excluded],
    notes: tuple[str, ...],
    n_slices: int,
    min_area_share: float,
    settings: CtSettings,
) -> PreparedPerson:
    picked = lung_crops.crop_to_lungs(slices, settings, min_area_share=min_area_share)
    not_kept = [Excluded(slice_.name, slice_.why_excluded) for slice_ in picked if not slice_.kept]
    return PreparedPerson(picked, (*excluded, *not_kept), notes, n_slices)
