"""For odd inputs the server answers as `predict` does, notes and refusals included."""

from __future__ import annotations

import json
import random
import shutil
import zipfile

import cv2
import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from serving.servers import FORM_HEADERS, form_of

import drenet_jax
from drenet_jax.ct.sources import CtError


@pytest.fixture(scope="module")
def pipeline(trained):
    return drenet_jax.load(trained)


@pytest.fixture
def two(phantoms):
    return sorted((phantoms / "dicom").iterdir())[:2]


def _with_litter(folder, two):
    shutil.copytree(two[0], folder / "ct")
    (folder / "ct" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "ct" / "read me.txt").write_text("hello")
    files = sorted((folder / "ct").glob("*.dcm"))
    files[2].write_bytes(files[2].read_bytes()[:2000])
    return folder / "ct"


def _shuffled(folder, two):
    (folder / "ct").mkdir()
    files = sorted(two[0].iterdir())
    random.Random(1).shuffle(files)
    for i, path in enumerate(files):
        shutil.copy(path, folder / "ct" / f"Größe {i} ×.dcm")
    return folder / "ct"


def _with_a_gap(folder, two):
    shutil.copytree(two[0], folder / "ct")
    for path in sorted((folder / "ct").iterdir())[5:8]:
        path.unlink()
    return folder / "ct"


def _of_two_patients(folder, two):
    (folder / "ct").mkdir()
    for letter, source in zip("ab", two, strict=True):
        for path in source.iterdir():
            shutil.copy(path, folder / "ct" / f"{path.stem}{letter}.dcm")
    return folder / "ct"


def _two_series(folder, two):
    shutil.copytree(two[0], folder / "ct" / "thin")
    (folder / "ct" / "thick").mkdir()
    for i, path in enumerate(sorted(two[0].iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3.4"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{i}"
        if i % 2:
            dataset.save_as(folder / "ct" / "thick" / path.name)
    return folder / "ct"


def _volume(folder, two):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(two[0])))
    sitk.WriteImage(reader.Execute(), str(folder / "ct.nii.gz"))
    return folder / "ct.nii.gz"


def _zip(folder, two):
    with zipfile.ZipFile(folder / "ct.zip", "w") as archive:
        for path in two[0].iterdir():
            archive.write(path, f"export/{path.name}")
        archive.writestr("__MACOSX/._a", b"x")
        archive.writestr("export/notes.txt", b"x")
    return folder / "ct.zip"


def _cut_zip(folder, two):
    path = _zip(folder, two)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _text(folder, two):
    (folder / "ct").mkdir()
    for name in ("a.dcm", "b.dcm"):
        (folder / "ct" / name).write_text("This is no DICOM file.\n" * 30)
    return folder / "ct"


def _photo(folder, two):
    y, x = np.mgrid[:200, :300].astype(np.float32)
    cv2.imwrite(str(folder / "ct.png"), np.uint8(127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 30)))
    return folder / "ct.png"


def _colours(folder, two):
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    cv2.imwrite(str(folder / "ct.png"), pixels)
    return folder / "ct.png"


def _slices_of_other_sizes(folder, two):
    (folder / "ct").mkdir()
    for i, side in enumerate((96, 96, 120)):
        cv2.imwrite(str(folder / "ct" / f"{i}.png"), np.full((side, side), 90, np.uint8))
    return folder / "ct"


ANSWERED = [_with_litter, _shuffled, _with_a_gap, _two_series, _volume, _zip]
REFUSED = [_cut_zip, _text, _photo, _colours, _slices_of_other_sizes]


def _send(stage, pipeline, path):
    limits = {"work_seconds": 120.0}
    files = form_of(path) if path.is_dir() else [("files", (path.name, path.read_bytes()))]
    with httpx.Client(base_url=stage(pipeline.predict, **limits).url, timeout=120) as client:
        return client.post("/api/predict", files=files)


def _predicted(pipeline, path):
    """What `predict` writes, or why it refuses."""
    try:
        return json.loads(json.dumps(pipeline.predict(path).result))
    except CtError as error:
        return error


@pytest.mark.parametrize("make", [*ANSWERED, *REFUSED, _of_two_patients])
def test_an_odd_input_gets_the_answer_of_predict(make, stage, pipeline, two, tmp_path):
    (tmp_path / "given").mkdir()
    path = make(tmp_path / "given", two)
    wanted = _predicted(pipeline, path)
    answer = _send(stage, pipeline, path)
    if isinstance(wanted, CtError):
        assert make not in ANSWERED
        assert answer.status_code == 422
        assert answer.json() == {"error": f"invalid input: {wanted.why.rstrip('.')}."}
        assert str(tmp_path) not in answer.text
    else:
        assert make not in REFUSED
        assert answer.status_code == 200, answer.text
        # To the last bit: notes, names, boxes, what was left out, and by which rule.
        assert answer.json() == wanted
        assert set(wanted) == {
            "person", "slices", "excluded", "notes", "model", "runtime", "decision",
        }  # fmt: skip


def test_what_is_odd_is_said(pipeline, two, tmp_path):
    """The inputs above are odd: else the test above would say little."""
    for make in (_with_litter, _with_a_gap, _two_series):
        (tmp_path / make.__name__).mkdir()
        result = pipeline.person(make(tmp_path / make.__name__, two))
        assert result["notes"] or result["excluded"], make


@pytest.mark.parametrize(
    "flags", [{"threshold": 0.001}, {"threshold": 0.999}, {"aggregate": "noisy_or"}, {}]
)
def test_the_server_decides_as_predict_does(flags, stage, trained_on_two_labels, two):
    pipeline = drenet_jax.load(trained_on_two_labels, **flags)
    wanted = _predicted(pipeline, two[0])
    answer = _send(stage, pipeline, two[0]).json()
    assert answer == wanted
    p = answer["person"]["probabilities"]["COVID-19"]
    threshold = flags.get("threshold", 0.37)
    assert answer["decision"] == {
        "rule": "threshold",
        "threshold": threshold,
        "positive": "COVID-19",
        "aggregate": flags.get("aggregate", "top3_mean"),
    }
    assert answer["person"]["label"] == ("COVID-19" if p >= threshold else "healthy")


def _body(*parts):
    """A form of parts with the given Content-Disposition."""
    lines = []
    for disposition, content in parts:
        lines.append(
            b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"
        )
    return b"".join(lines) + b"--x--\r\n"


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (b"filename*=UTF-8''na%C3%AFve%20%E2%82%AC%20{}.dcm", "naïve € {}.dcm"),
        (b"filename*=utf-8''{}.dcm", "{}.dcm"),
        (b"filename*=ISO-8859-1'de'Gr%F6%DFe%20{}.dcm", "Größe {}.dcm"),
        (b"filename=\"fallback{}.dcm\"; filename*=UTF-8''%C3%A9{}.dcm", "é{}.dcm"),
        (b"filename*=UTF-8''%2E%2E%2Fct%2F{}.dcm", "{}.dcm"),
        (b'filename*0="a b"; filename*1="{}.dcm"', "a b{}.dcm"),
        ('filename="Grüße {}.dcm"'.encode(), "Grüße {}.dcm"),
    ],
)
def test_names_in_every_form_are_taken(parameter, name, stage, pipeline, two, tmp_path):
    files = sorted(two[0].iterdir())
    (tmp_path / "ct").mkdir()
    parts = []
    for i, path in enumerate(files):
        number = f"{i:03d}"
        shutil.copy(path, tmp_path / "ct" / name.format(number))
        disposition = b'form-data; name="files"; ' + parameter.replace(b"{}", number.encode())
        parts.append((disposition, path.read_bytes()))
    at = stage(pipeline.predict, work_seconds=120.0)
    answer = httpx.post(
        f"{at.url}/api/predict", content=_body(*parts), headers=FORM_HEADERS, timeout=120
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == _predicted(pipeline, tmp_path / "ct")


def test_a_part_without_a_name_is_refused_still(stage, pipeline):
    at = stage(pipeline.predict)
    content = _body((b'form-data; name="files"', b"x"))
    answer = httpx.post(f"{at.url}/api/predict", content=content, headers=FORM_HEADERS)
    assert answer.status_code == 400
    assert "more than files in the field 'files'" in answer.json()["error"]


def test_head_has_the_headers_of_get_and_no_body(served):
    with httpx.Client(base_url=served.url, timeout=60) as client:
        static = [f"/static/{name}" for name in ("serve.js", "serve.css")]
        for page in ("/", "/healthz", "/docs", "/openapi.json", "/api/status", *static):
            got, asked = client.get(page), client.head(page)
            assert got.status_code == asked.status_code == 200, page
            assert asked.content == b""
            for name in ("content-length", "content-type", "content-security-policy"):
                assert asked.headers[name] == got.headers[name], (page, name)
            assert int(asked.headers["content-length"]) == len(got.content) > 0
        assert client.head("/nothing").status_code == client.get("/nothing").status_code == 404
        assert client.head("/api/predict").status_code == 405
        # The connection can be used on.
        assert client.get("/healthz").json()["status"] == "ok"


def test_head_needs_the_token_where_get_does(stage, pipeline):
    at = stage(pipeline.predict, token="0123456789abcdef-of-the-tests")
    assert httpx.head(f"{at.url}/api/status").status_code == 401
    assert httpx.head(f"{at.url}/").status_code == 200
