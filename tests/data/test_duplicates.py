"""The same pictures under two persons: what is found, in which files, and what is not."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile

import cv2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.duplicates import (
    SharedSlices,
    SliceDigests,
    require_together,
    slice_digests,
)
from drenet_jax.data.folds import persons_of_records, site_folds, stratified_folds
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError

# Digests


@pytest.fixture(scope="module")
def series(phantoms):
    return sorted((phantoms / "dicom").iterdir())


def _in_order(folder):
    def place(file):
        return float(pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient[2])

    return sorted(folder.iterdir(), key=place)


def _digests(path, settings):
    digests = slice_digests(prepare_person([path], settings).picked)
    return [digests[i : i + 8] for i in range(0, len(digests), 8)]


def _as_other_names(folder, out):
    out.mkdir()
    for number, file in enumerate(reversed(_in_order(folder))):
        shutil.copy(file, out / f"{number:04d}")
    return out


def _as_zip(folder, out):
    with zipfile.ZipFile(out.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"export/{file.name}")
    return out.with_suffix(".zip")


def _as_hard_links(folder, out):
    out.mkdir()
    for file in folder.iterdir():
        os.link(file, out / file.name)
    return out


def _as_links(folder, out):
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).symlink_to(file)
    return out


def _in_syntax(uid):
    def save(folder, out):
        out.mkdir()
        for file in folder.iterdir():
            dataset = pydicom.dcmread(file)
            if uid in (RLELossless, JPEG2000Lossless):
                dataset.compress(uid)
            dataset.file_meta.TransferSyntaxUID = uid
            dataset.SOPInstanceUID = pydicom.uid.generate_uid()
            dataset.PatientID = "somebody"
            dataset.save_as(out / file.name)
        return out

    return save


def _volume(suffix, *, flip=(False, False, False)):
    def save(folder, out):
        image = sitk.ReadImage([str(file) for file in _in_order(folder)])
        sitk.WriteImage(sitk.Flip(image, flip), str(out.with_suffix(suffix)))
        return out.with_suffix(suffix)

    return save


COPIES = {
    "other names": _as_other_names,
    "a zip": _as_zip,
    "hard links": _as_hard_links,
    "links": _as_links,
    "RLE": _in_syntax(RLELossless),
    "JPEG 2000": _in_syntax(JPEG2000Lossless),
    "deflated": _in_syntax(DeflatedExplicitVRLittleEndian),
    "implicit": _in_syntax(ImplicitVRLittleEndian),
    "NIfTI": _volume(".nii.gz"),
    "NIfTI, stored from the head": _volume(".nii.gz", flip=(False, False, True)),
    "NIfTI, stored from the left": _volume(".nii.gz", flip=(True, True, False)),
    "MetaImage": _volume(".mha"),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_in_another_form_has_the_same_digests(name, series, tmp_path, ct_settings):
    copy = COPIES[name](series[0], tmp_path / "copy")
    expected = _digests(series[0], ct_settings)
    assert len(expected) > 5
    assert _digests(copy, ct_settings) == expected


def test_pictures_of_the_picked_slices_have_their_digests(series, tmp_path, ct_settings):
    picked = [slice_ for slice_ in prepare_person([series[0]], ct_settings).picked if slice_.kept]
    for number, slice_ in enumerate(picked):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), slice_.source)
    assert _digests(tmp_path, ct_settings) == _digests_of(picked)


def _digests_of(picked):
    digests = slice_digests(picked)
    return [digests[i : i + 8] for i in range(0, len(digests), 8)]


def test_other_persons_have_other_digests_and_a_person_no_two_alike(series, ct_settings):
    digests = [digest for folder in series[:4] for digest in _digests(folder, ct_settings)]
    assert len(set(digests)) == len(digests)


def test_one_grey_value_more_is_another_digest_and_so_is_another_shape(series, ct_settings):
    shown = next(
        slice_ for slice_ in prepare_person([series[0]], ct_settings).picked if slice_.kept
    )
    before = slice_digests([shown])
    shown.source[5, 7] ^= 1
    assert slice_digests([shown]) != before
    shown.source[5, 7] ^= 1
    assert slice_digests([shown]) == before
    object.__setattr__(shown, "source", shown.source.reshape(2, -1))
    assert slice_digests([shown]) != before


def test_a_slice_without_lungs_has_none(series, ct_settings):
    shown = next(
        slice_ for slice_ in prepare_person([series[0]], ct_settings).picked if slice_.kept
    )
    shown.source_mask[:] = False
    assert slice_digests([shown]) == b""


@pytest.mark.parametrize(
    "part", [slice(None, None, 2), slice(1, None), slice(None, -1), slice(5, -5)]
)
def test_a_part_of_a_series_shares_slices_with_it(part, series, tmp_path, ct_settings):
    for file in _in_order(series[0])[part]:
        shutil.copy(file, tmp_path)
    assert len(set(_digests(tmp_path, ct_settings)) & set(_digests(series[0], ct_settings))) >= 3


# Their table


def _bytes(numbers):
    return b"".join(int(number).to_bytes(8, "little") for number in numbers)


people = st.dictionaries(
    st.text("abcd", min_size=1, max_size=2), st.lists(st.integers(0, 12), max_size=6), max_size=6
)


@given(people)
def test_shared_slices_are_those_of_sets(slices):
    digests = SliceDigests.of({person: _bytes(numbers) for person, numbers in slices.items()})
    order = list(slices)
    first = {}
    expected = {}
    for person in order:
        for number in sorted(set(slices[person])):
            other = first.setdefault(number, person)
            if other != person:
                pair = order.index(other), order.index(person)
                expected[pair] = expected.get(pair, 0) + 1
    assert digests.shared() == [
        SharedSlices(order[a], order[b], n) for (a, b), n in sorted(expected.items())
    ]
    assert digests.repeated() == {
        person: len(numbers) - len(set(numbers))
        for person, numbers in slices.items()
        if len(numbers) > len(set(numbers))
    }


@given(people, st.data())
def test_known_slices_are_those_of_sets(slices, data):
    digests = SliceDigests.of({person: _bytes(numbers) for person, numbers in slices.items()})
    some = data.draw(st.lists(st.sampled_from(sorted(slices)))) if slices else []
    of_some = {number for person in some for number in slices[person]}
    known = digests.of_persons(some)
    assert known.dtype == np.uint64
    assert known.tolist() == sorted(of_some)
    requested = data.draw(st.lists(st.sampled_from(sorted(slices)))) if slices else []
    expected = {person: sum(n in of_some for n in slices[person]) for person in requested}
    assert digests.known(known, requested) == {person: n for person, n in expected.items() if n}


def test_a_table_is_read_as_it_was_written_and_no_other_in_its_place(tmp_path):
    digests = SliceDigests.of({"b": _bytes([3, 2**64 - 1]), "a": _bytes([3])})
    checksum = digests.write(tmp_path)
    again = SliceDigests.read(tmp_path, ["b", "a"], checksum)
    assert again.shared() == [SharedSlices("b", "a", 1)]
    assert again.of_persons(["b"]).tolist() == [3, 2**64 - 1]
    with pytest.raises(InputError, match="run prepare again"):
        SliceDigests.read(tmp_path, ["b", "a"], "0" * 16)
    (tmp_path / "digests.npy").unlink()
    with pytest.raises(InputError, match="run prepare again"):
        SliceDigests.read(tmp_path, ["b", "a"], checksum)


def test_only_pairs_that_are_not_treated_alike_are_refused():
    shared = [SharedSlices("a", "b", 3), SharedSlices("a", "c", 1)]
    require_together(shared, {"a": ("train",), "b": ("train",)}, "x", "y")
    require_together(shared, {"b": ("train",), "c": ("test",)}, "x", "y")
    with pytest.raises(InputError) as caught:
        require_together(shared, {"a": ("train",), "b": ("train",), "c": ("test",)}, "x", "Do.")
    assert str(caught.value) == (
        "x has the same pictures under two persons: 'a' (train) and 'c' (test) share 1 slice. Do."
    )


def test_a_long_list_is_cut():
    groups = {f"p{i}": (str(i),) for i in range(30)}
    shared = [SharedSlices("p0", f"p{i}", 1) for i in range(1, 30)]
    with pytest.raises(InputError, match="and 19 more"):
        require_together(shared, groups, "x", "y")


# In `prepare`, with files as a user has them


@pytest.fixture(scope="module")
def rows(phantoms):
    """patient_id -> (path, label) of a few phantoms, two of each label."""
    persons = read_cohort(phantoms / "cohort.csv").persons
    chosen = {}
    for label in dict.fromkeys(person.label for person in persons):
        for person in [person for person in persons if person.label == label][:2]:
            chosen[person.patient_id] = (person.paths[0], label)
    return chosen


def _write(folder, rows, *more):
    lines = ["patient_id,path,label,split"]
    lines += [f"{patient_id},{path},{label},train" for patient_id, (path, label) in rows.items()]
    (folder / "cohort.csv").write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return folder / "cohort.csv"


@pytest.mark.parametrize("name", ["a zip", "NIfTI", "RLE"])
def test_a_copy_in_another_split_is_refused_by_the_command(name, rows, series, tmp_path, command):
    patient_id, (path, label) = next(iter(rows.items()))
    copy = COPIES[name](path, tmp_path / "copy")
    cohort = _write(tmp_path, rows, f"z-new,{copy.name},{label},test")
    out = tmp_path / "out" / "data"
    done = command("prepare", f"--cohort={cohort}", f"--out={out}", "--workers=1")
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert f"'{patient_id}' (train, {label}) and 'z-new' (test, {label}) share" in message
    assert "one patient_id if they are one person" in message
    assert not out.parent.exists()


def test_one_slice_of_another_person_is_enough(rows, tmp_path, ct_settings):
    patient_id, (path, label) = next(iter(rows.items()))
    picked = next(slice_ for slice_ in prepare_person([path], ct_settings).picked if slice_.kept)
    shutil.copy(path / picked.name, tmp_path / "single.dcm")
    cohort = _write(tmp_path, rows, f"z-new,single.dcm,{label},validation")
    with pytest.raises(InputError, match=rf"'{patient_id}' .* and 'z-new' .* share 1 slice\."):
        _prepare(cohort, tmp_path / "data", ct_settings)


def test_a_copy_under_another_label_is_refused(rows, tmp_path, ct_settings):
    patient_id, (path, label) = next(iter(rows.items()))
    other = next(name for _, name in rows.values() if name != label)
    _as_other_names(path, tmp_path / "copy")
    cohort = _write(tmp_path, rows, f"z-new,copy,{other},train")
    with pytest.raises(
        InputError, match=rf"'{patient_id}' \(train, {label}\) and 'z-new' \(train, {other}\)"
    ):
        _prepare(cohort, tmp_path / "data", ct_settings)


def test_a_copy_within_a_split_is_noted_for_both(rows, tmp_path, ct_settings, capsys):
    patient_id, (path, label) = next(iter(rows.items()))
    _as_other_names(path, tmp_path / "copy")
    cohort = _write(tmp_path, rows, f"z-new,copy,{label},train")
    account = _prepare(cohort, tmp_path / "data", ct_settings)
    n = len(_digests(path, ct_settings))
    assert account.n_pairs_sharing == 1
    assert account.n_notes == 2
    assert _notes(tmp_path / "data") == [
        (patient_id, f"{n} slices are also those of 'z-new', in the same split"),
        ("z-new", f"{n} slices are also those of {patient_id!r}, in the same split"),
    ]
    # Folds draw anew: sooner or later they would part the two.
    data = open_data(tmp_path / "data")
    persons = persons_of_records(data)
    with pytest.raises(InputError, match=rf"a fold of .*'{patient_id}' \(.*\) and 'z-new' \("):
        [stratified_folds(data, persons, 2, seed) for seed in range(8)]


def test_folds_of_sites_do_not_part_copies(rows, tmp_path, ct_settings):
    (patient_id, (path, label)), *others = rows.items()
    _as_other_names(path, tmp_path / "copy")
    lines = ["patient_id,path,label,split,site", f"{patient_id},{path},{label},train,A"]
    lines += [f"z-new,copy,{label},train,B"]
    lines += [
        f"{patient_id},{p},{lab},train,{'AB'[i % 2]}"
        for i, (patient_id, (p, lab)) in enumerate(others)
    ]
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    _prepare(tmp_path / "cohort.csv", tmp_path / "data", ct_settings)
    data = open_data(tmp_path / "data")
    with pytest.raises(InputError, match=rf"'{patient_id}' \(test\) and 'z-new' \(train\)"):
        site_folds(data, persons_of_records(data), 0)


def test_a_cohort_without_copies_has_no_note(rows, tmp_path, ct_settings):
    account = _prepare(_write(tmp_path, rows), tmp_path / "data", ct_settings)
    assert (account.n_notes, account.n_pairs_sharing) == (0, 0)


def test_copies_of_one_person_are_noted(rows, tmp_path, ct_settings):
    patient_id, (path, label) = next(iter(rows.items()))
    _as_other_names(path, tmp_path / "copy")
    cohort = _write(tmp_path, rows, f"{patient_id},copy,{label},train")
    _prepare(cohort, tmp_path / "data", ct_settings)
    n = len(_digests(path, ct_settings))
    assert _notes(tmp_path / "data") == [
        (patient_id, f"{n} slices are there twice, so the person's files hold copies")
    ]


def _prepare(cohort, out, settings):
    out.mkdir()
    return prepare_cohort(
        read_cohort(cohort),
        out,
        settings=settings,
        seed=0,
        fractions=(60, 10, 30),
        workers=1,
        progress=lambda reports, n: reports,
    )


def _notes(folder):
    with (folder / "notes.csv").open(newline="") as file:
        return [(row["patient_id"], row["note"]) for row in csv.DictReader(file)]
