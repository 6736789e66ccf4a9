"""A series in a bucket is the same as on a disk, read by ranges."""

from __future__ import annotations

import dataclasses
import zipfile

import numpy as np
import pytest

from drenet_jax.ct.discovery import open_series, require_images
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.sources import HEAD_BYTES, CtError, UnreadableSlice
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import objects

pytestmark = pytest.mark.cloud


def _upload(local, address):
    files = [path for path in sorted(local.rglob("*")) if path.is_file()]
    names = [objects.child(address, path.relative_to(local).as_posix()) for path in files]
    objects.each(objects.upload, files, names)


@pytest.fixture(scope="module")
def person(phantoms):
    """The DICOM series of one person."""
    return read_cohort(phantoms / "cohort.csv").persons[0].paths[0]


def _same(local, remote, at):
    assert remote.names == local.names
    assert [dataclasses.replace(e) for e in remote.excluded] == list(local.excluded)
    assert str(remote.path) == at
    for i in range(len(local)):
        np.testing.assert_array_equal(remote.read(i), local.read(i))


def test_a_dicom_series(person, folder):
    _upload(person, folder)
    _same(open_series(person), open_series(objects.as_path(folder)), folder)


def test_a_zip(person, folder, tmp_path):
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in person.iterdir():
            archive.write(file, f"series/{file.name}")
    address = objects.child(folder, path.name)
    objects.upload(path, address)
    _same(open_series(path), open_series(objects.as_path(address)), address)
    require_images(objects.as_path(address))


def test_a_volume_and_a_picture(person, folder, tmp_path):
    import cv2
    import nibabel

    path = tmp_path / "volume.nii.gz"
    voxels = np.random.default_rng(0).integers(-1000, 400, (40, 32, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 5.0, 1.0])), path)
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), voxels[..., 0].astype(np.uint8))
    for file in (path, picture):
        address = objects.child(folder, file.name)
        objects.upload(file, address)
        _same(open_series(file), open_series(objects.as_path(address)), address)
        assert open_series(objects.as_path(address)).is_single_image == (file == picture)


def test_what_is_no_series(folder, tmp_path):
    address = objects.as_path(folder)
    with pytest.raises(CtError, match=rf"{folder} does not exist or may not be read"):
        open_series(address)
    # As consoles make a folder.
    objects.write(f"{folder}/", b"")
    objects.write(f"{folder}/empty.dcm", b"")
    with pytest.raises(CtError, match=r"empty.dcm: an empty file"):
        open_series(address)
    objects.write(f"{folder}/notes.txt", b"some text")
    with pytest.raises(UnreadableSlice, match=rf"{folder}/notes.txt is not DICOM"):
        open_series(objects.as_path(f"{folder}/notes.txt"))


def test_only_heads_are_read_to_find_a_series(store, folder, person, tmp_path):
    # As large as real slices: what follows a data set is not read.
    for file in person.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _upload(tmp_path, folder)
    before = store.proxy.n_bytes_read
    series = open_series(objects.as_path(folder))
    n_files = len(list(person.iterdir()))
    n_bytes = sum(min(file.stat().st_size, HEAD_BYTES) for file in person.iterdir())
    # Beside it a list of the folder, of some 1 kB a file.
    assert n_bytes <= store.proxy.n_bytes_read - before < n_bytes + 2000 * n_files
    before = store.proxy.n_requests
    series.read(0)
    assert store.proxy.n_requests - before == 1


def test_a_store_that_is_away_is_no_damaged_file(store, folder, person, ct_settings, monkeypatch):
    _upload(person, folder)
    settings = dataclasses.replace(ct_settings, image_size_px=96)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def fail(address, *args):
        raise StorageError(f"{address} cannot be used (it is away); call again.")

    paths = [objects.as_path(folder)]
    whole = prepare_person(paths, settings)
    with Reader() as reader:
        np.testing.assert_array_equal(
            [slice_.image for slice_ in reader.prepare(paths, settings).kept],
            [slice_.image for slice_ in whole.kept],
        )
        with store.proxy.with_faults(denied=True), pytest.raises(StorageError, match=r"is denied"):
            reader.prepare(paths, settings)
    for name in ("sizes", "read_range"):
        with monkeypatch.context() as patch:
            patch.setattr(objects, name, fail)
            with pytest.raises(StorageError):
                prepare_person(paths, settings)


def _prepare(cohort, folder, ct_settings):
    folder.mkdir()
    prepare_cohort(
        cohort,
        folder,
        settings=dataclasses.replace(ct_settings, image_size_px=96),
        seed=0,
        fractions=(50, 25, 25),
        workers=1,
        progress=lambda summaries, n: summaries,
    )


def test_a_cohort_in_a_bucket_gives_the_same_data(
    folder, phantoms, prepared, ct_settings, tmp_path
):
    _upload(phantoms, folder)
    cohort = read_cohort(f"{folder}/cohort.csv")
    assert str(cohort.persons[0].paths[0]).startswith(f"{folder}/dicom/")
    _prepare(cohort, tmp_path / "data", ct_settings)
    ours, theirs = open_data(tmp_path / "data"), open_data(prepared)
    assert (ours.path / "excluded.csv").read_text() == (theirs.path / "excluded.csv").read_text()
    assert ours.fingerprint == theirs.fingerprint
    for name in ("excluded.csv", "notes.csv", "facts.csv", "lesions.csv", "split.json"):
        assert (tmp_path / "data" / name).read_bytes() == (prepared / name).read_bytes()
    for split in ("train", "validation", "test"):
        files = [
            [path.read_bytes() for path in data.builder.info.splits[split].filepaths]
            for data in (ours, theirs)
        ]
        assert files[0] == files[1]


def test_a_local_cohort_may_name_series_in_a_bucket(folder, phantoms, tmp_path):
    _upload(phantoms / "dicom", folder)
    text = (phantoms / "cohort.csv").read_text().replace("dicom/", f"{folder}/")
    (tmp_path / "cohort.csv").write_text(text)
    persons = read_cohort(tmp_path / "cohort.csv").persons
    assert len(persons) == 12
    assert all(str(path).startswith(folder) for person in persons for path in person.paths)


def test_odd_rows_of_a_cohort_in_a_bucket_are_refused(folder):
    objects.write(f"{folder}/a/1.dcm", b"x")
    objects.write(f"{folder}/a/b/2.dcm", b"x")
    for rows, why in (
        ("1,none,x\n2,a,y", rf"line 2: {folder}/none does not exist"),
        ("1,a,x\n2,./a,y", r"line 3: ./a is in line 2 already"),
        ("1,a,x\n2,a/b,y", r"line 3: a/b of person '2' lies within a of person '1' \(line 2\)"),
    ):
        objects.write(f"{folder}/cohort.csv", f"patient_id,path,label\n{rows}\n".encode())
        with pytest.raises(InputError, match=why):
            read_cohort(f"{folder}/cohort.csv")
    with pytest.raises(InputError, match=rf"--cohort={folder}/none.csv cannot be read"):
        read_cohort(f"{folder}/none.csv")
