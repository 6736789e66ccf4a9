"""What makes a person doubtful, and the pages on which all persons can be seen."""

from __future__ import annotations

import functools
import itertools
import random
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.ct.discovery import RENAMED
from drenet_jax.ct.orientation import Orientation
from drenet_jax.ct.prepared_series import PreparedPerson, SampledSlice
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data.cohort_table import Person, read_cohort
from drenet_jax.data.qc_checks import qc_flags
from drenet_jax.data.qc_page import PERSONS_A_PAGE, QcCounts, short, write_qc_pages
from drenet_jax.data.qc_summary import THUMBNAIL_PX, QcEntry, Thumbnail, empty_entry, qc_entry
from drenet_jax.data.staging import staging_file, write_staged
from drenet_jax.parallel_map import map_in_order

SIZE_PX = 128
# As in a real series, from the feet to the head.
AREAS = (0.05, 0.2, 0.4, 0.75, 0.85, 0.9, 1.0, 0.97, 0.9, 0.8, 0.6, 0.45, 0.2)


def _slice(index, area, *, right=1.0, left=1.0, shift_px=0, kept=None):
    """A drawn slice with two lungs, `area` of the largest; `right` and `left` are their shares."""
    source = np.full((SIZE_PX, SIZE_PX), 0, np.uint8)
    cv2.ellipse(source, (64, 64), (60, 46), 0, 0, 360, 180, -1)
    mask = np.zeros_like(source)
    for x, share in ((42, right), (86, left)):
        axes = [round(length * np.sqrt(area * share)) for length in (18, 30)]
        if min(axes) > 0:
            cv2.ellipse(mask, (x + shift_px, 64), axes, 0, 0, 360, 1, -1)
    source[mask > 0] = 20
    box = None
    if mask.any():
        x, y, width, height = cv2.boundingRect(mask)
        box = (y, x, y + height, x + width)
    if kept is None:
        kept = area >= 0.5
    why = "" if kept else "no lungs found" if box is None else "small lung area: 1% of the largest"
    return SampledSlice(
        index=index,
        name=f"{index}.dcm",
        source=source,
        source_mask=mask.astype(bool),
        source_box=box,
        orientation=Orientation(),
        why_excluded=why,
    )


def _series(areas=AREAS, **odd):
    """Slices of these areas; `odd` gives other arguments for single slices, as `at3={...}`."""
    return [_slice(i, area, **odd.get(f"at{i}", {})) for i, area in enumerate(areas)]


def _reasons(picked, *, in_order=True, n_unreadable=0):
    return [flag.why for flag in qc_flags(picked, in_order=in_order, n_unreadable=n_unreadable)]


def test_nothing_is_odd_about_a_good_series():
    assert _reasons(_series()) == []


@pytest.mark.parametrize("person", ["CAP/cap001", "COVID-19/P001", "Normal/normal001"])
def test_nothing_is_odd_about_the_real_series(person, shared_data, ct_settings):
    paths = (shared_data / "covid_ct_md" / person,)
    prepared = prepare_person(paths, ct_settings)
    look = qc_entry(Person("p", paths, "", "", ""), prepared, ct_settings, why_left_out="")
    assert look.qc_flags == ()
    assert look.concern == 2


def test_nothing_is_odd_about_phantoms(phantoms, ct_settings):
    for person in read_cohort(phantoms / "cohort.csv").persons:
        picked = prepare_person(person.paths, ct_settings).picked
        assert _reasons(picked) == [], person.patient_id


@pytest.mark.parametrize(
    ("picked", "reason"),
    [
        (_series(at6={"kept": False}), "gap between kept slices"),
        (_series(areas=(*AREAS[:6], 0.7, *AREAS[7:])), "lung area jumps between neighbours"),
        (_series(areas=(0.0, 0.1, 0.9, 1.0, 0.9, 0.6)), "lung area jumps between neighbours"),
        (_series(areas=(0.1, 0.2, 0.3, 0.4, 0.9)), "only 1 of 5 slices kept"),
        (_series(at5={"left": 0.2}), "one lung small or missing in 1 slice"),
        (_series(at5={"right": 0.0}, at6={"right": 0.0}), "one lung small or missing in 2 slices"),
        (_series(at6={"shift_px": 40}), "lungs touch the picture's edge in 1 slice"),
    ],
)
def test_what_is_odd_is_said_in_words(picked, reason):
    assert reason in _reasons(picked)


def test_slices_that_could_not_be_read_are_a_doubt():
    assert _reasons(_series(), n_unreadable=2) == ["2 slices could not be read"]


def test_single_images_need_no_order():
    picked = _series(areas=(1.0, 0.55, 0.95, 0.6), at2={"kept": False})
    assert "gap between kept slices" in _reasons(picked)
    assert _reasons(picked, in_order=False) == []


def test_two_series_of_a_person_are_not_neighbours():
    assert _reasons(_series() + _series()) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=6
    )
)
def test_doubts_take_any_slices(figures):
    picked = [
        _slice(i, area, left=left, right=right, kept=kept and area * (left + right) > 0.1)
        for i, (area, left, right, kept) in enumerate(figures)
    ]
    found = qc_flags(picked, in_order=True, n_unreadable=0)
    assert [one.weight for one in found] == sorted((one.weight for one in found), reverse=True)


def test_a_thumbnail_shows_lungs_and_box_in_colour(ct_settings):
    picked = _slice(0, 1.0)
    prepared = PreparedPerson((picked,), (), (), 1)
    person = Person("p", (), "", "", "")
    (thumbnail,) = qc_entry(person, prepared, ct_settings, why_left_out="").thumbnails
    image = cv2.imdecode(np.frombuffer(thumbnail.jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert image.shape[:2] == (THUMBNAIL_PX, THUMBNAIL_PX)
    blue, green, red = np.moveaxis(image, -1, 0)
    y0, _, y1, _ = (edge * THUMBNAIL_PX / SIZE_PX for edge in picked.source_box)
    greenish = np.flatnonzero((green - red > 50).any(axis=1))
    assert abs(greenish.min() - y0) <= 2
    assert abs(greenish.max() - y1) <= 2
    assert (blue - red > 50).any()


def test_harmless_notes_are_shown_but_are_no_doubt(ct_settings):
    def concern(*notes):
        prepared = PreparedPerson(tuple(_series()), (), notes, len(AREAS))
        person = Person("p", ("folder",), "", "", "")
        return qc_entry(person, prepared, ct_settings, why_left_out="").concern

    assert concern() == 2
    assert concern("39 slices missing (spacing 2.0 mm)") == 1
    assert concern(RENAMED) == 2


# The pages.


def _look(patient_id, severity, **changes):
    values = {
        "patient_id": patient_id,
        "label": "ill",
        "n_slices": 40,
        "thumbnails": (Thumbnail("1.dcm", b"jpeg of " + patient_id.encode(), 1.0, ""),),
        "qc_flags": (),
        "notes": (),
        "why_left_out": "",
        "severity": severity,
    }
    return QcEntry(**(values | changes))


def _write_pages(tmp_path, looks):
    staging_folder = tmp_path / "spools"
    staging_folder.mkdir()
    for i, look in enumerate(looks):
        write_staged(staging_file(staging_folder, i), look, [])
    out = tmp_path / "out"
    out.mkdir()
    write_qc_pages(
        out,
        ((staging_file(staging_folder, i), "train") for i in range(len(looks))),
        QcCounts.of(look.severity for look in looks),
        functools.partial(map_in_order, workers=1),
    )
    return out


def test_few_persons_are_one_file_and_no_folder(tmp_path):
    out = _write_pages(tmp_path, [_look("p1", 3.0), _look("p2", 0.5)])
    assert [path.name for path in out.iterdir()] == ["qc.html"]
    page = (out / "qc.html").read_text()
    assert "<a " not in page
    assert page.index("p1") < page.index("p2")


def test_many_persons_are_pages_whose_links_lead_to_each_other(tmp_path):
    looks = [_look(f"person-{i:04d}.", 5 - i / 100) for i in range(2 * PERSONS_A_PAGE + 1)]
    out = _write_pages(tmp_path, looks)
    pages = [out / "qc.html", out / "qc" / "002.html", out / "qc" / "003.html"]
    assert sorted(path for path in out.rglob("*.html")) == sorted(pages)
    shown = [re.findall(r"<h3>(person-\d+\.)", page.read_text()) for page in pages]
    assert [len(persons) for persons in shown] == [PERSONS_A_PAGE, PERSONS_A_PAGE, 1]
    assert list(itertools.chain(*shown)) == [look.patient_id for look in looks]

    reached, todo = set(), [pages[0]]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r'href="([^"]+)"', page.read_text())
            todo += [(page.parent / link).resolve() for link in links]
    assert reached == set(pages)


def test_the_pages_do_not_depend_on_the_number_of_workers(tmp_path):
    looks = [_look(f"person-{i:04d}", 0.0) for i in range(PERSONS_A_PAGE + 1)]
    out = _write_pages(tmp_path, looks)
    again = tmp_path / "again"
    again.mkdir()
    write_qc_pages(
        again,
        ((staging_file(tmp_path / "spools", i), "train") for i in range(len(looks))),
        QcCounts.of(look.severity for look in looks),
        functools.partial(map_in_order, workers=2),
    )
    for page in ("qc.html", "qc/002.html"):
        assert (out / page).read_bytes() == (again / page).read_bytes()


def test_persons_are_grouped_and_counted_by_concern(tmp_path):
    gone = empty_entry(Person("gone", (), "ill", "", ""), "no CT slice (notes.txt: a text)")
    looks = [gone, _look("odd", 3.2, qc_flags=("gap between kept slices",)), _look("good", 0.4)]
    page = (_write_pages(tmp_path, looks) / "qc.html").read_text()
    assert "3 persons: 1 left out, 1 flagged for review, 1 without flags" in page
    titles = (
        "Left out (1)",
        ">gone ",
        "Flagged for review (1)",
        ">odd ",
        "Nothing odd found (1)",
        ">good ",
    )
    places = [page.index(text) for text in titles]
    assert places == sorted(places)
    assert "left out: no CT slice (notes.txt: a text)" in page
    assert "gap between kept slices" in page


def test_what_files_and_persons_are_called_is_escaped(tmp_path):
    bad = "<script>alert('x')</script>\"&"
    look = _look(
        bad,
        1.0,
        label=bad,
        thumbnails=(Thumbnail(bad, b"jpeg", 0.2, f"{bad}: {bad}"),),
        qc_flags=(bad,),
        notes=(bad,),
    )
    page = (_write_pages(tmp_path, [look]) / "qc.html").read_text()
    assert "<script" not in page


def test_a_page_needs_nothing_from_elsewhere(prepared):
    page = (prepared / "qc.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/jpeg;base64,") == 12 * 15


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("small lung area: 12.3% of the largest", "small lung area"),
        ("a file that cannot be opened (No such file)", "a file that cannot be opened"),
        ("no lungs found", "no lungs found"),
    ],
)
def test_a_reason_is_counted_without_what_concerns_one_file(why, said):
    assert short(why) == said


def test_a_spool_may_be_written_twice_but_not_after_its_run(tmp_path):
    staging_folder = tmp_path / "spools"
    staging_folder.mkdir()
    numbers = random.Random(0).sample(range(10_000), 3)
    for number in numbers + numbers:
        write_staged(staging_file(staging_folder, number), _look("p", 0.0), [])
    files = [path for path in staging_folder.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(staging_file(staging_folder, number) for number in numbers)
    with pytest.raises(FileNotFoundError):
        write_staged(staging_file(tmp_path / "gone", 0), _look("p", 0.0), [])
