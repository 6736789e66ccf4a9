"""The pages on which all patients can be seen, and the staged files behind them."""

from __future__ import annotations

import functools
import itertools
import random
import re

import pytest

from drenet_jax.data.cohort_table import Person
from drenet_jax.data.qc_page import PERSONS_A_PAGE, QcCounts, short, write_qc_pages
from drenet_jax.data.qc_summary import QcEntry, Thumbnail, empty_entry
from drenet_jax.data.staging import staging_file, write_staged
from drenet_jax.parallel_map import map_in_order


def _entry(patient_id, severity, **changes):
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


def _write_pages(tmp_path, entries):
    staging_folder = tmp_path / "staging"
    staging_folder.mkdir()
    for i, entry in enumerate(entries):
        write_staged(staging_file(staging_folder, i), entry, [])
    out = tmp_path / "out"
    out.mkdir()
    write_qc_pages(
        out,
        ((staging_file(staging_folder, i), "train") for i in range(len(entries))),
        QcCounts.of(entry.severity for entry in entries),
        functools.partial(map_in_order, workers=1),
    )
    return out


def test_few_persons_are_one_file_and_no_folder(tmp_path):
    out = _write_pages(tmp_path, [_entry("p1", 3.0), _entry("p2", 0.5)])
    assert [path.name for path in out.iterdir()] == ["qc.html"]
    page = (out / "qc.html").read_text()
    assert "<a " not in page
    assert page.index("p1") < page.index("p2")


def test_many_persons_are_pages_whose_links_lead_to_each_other(tmp_path):
    entries = [_entry(f"person-{i:04d}.", 5 - i / 100) for i in range(2 * PERSONS_A_PAGE + 1)]
    out = _write_pages(tmp_path, entries)
    pages = [out / "qc.html", out / "qc" / "002.html", out / "qc" / "003.html"]
    assert sorted(path for path in out.rglob("*.html")) == sorted(pages)
    shown = [re.findall(r"<h3>(person-\d+\.)", page.read_text()) for page in pages]
    assert [len(persons) for persons in shown] == [PERSONS_A_PAGE, PERSONS_A_PAGE, 1]
    assert list(itertools.chain(*shown)) == [entry.patient_id for entry in entries]

    reached, todo = set(), [pages[0]]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r'href="([^"]+)"', page.read_text())
            todo += [(page.parent / link).resolve() for link in links]
    assert reached == set(pages)


def test_the_pages_do_not_depend_on_the_number_of_workers(tmp_path):
    entries = [_entry(f"person-{i:04d}", 0.0) for i in range(PERSONS_A_PAGE + 1)]
    out = _write_pages(tmp_path, entries)
    again = tmp_path / "again"
    again.mkdir()
    write_qc_pages(
        again,
        ((staging_file(tmp_path / "staging", i), "train") for i in range(len(entries))),
        QcCounts.of(entry.severity for entry in entries),
        functools.partial(map_in_order, workers=2),
    )
    for page in ("qc.html", "qc/002.html"):
        assert (out / page).read_bytes() == (again / page).read_bytes()


def test_persons_are_grouped_and_counted_by_concern(tmp_path):
    gone = empty_entry(Person("gone", (), "ill", "", ""), "no CT slice (notes.txt: a text)")
    entries = [gone, _entry("odd", 3.2, qc_flags=("gap between kept slices",)), _entry("good", 0.4)]
    page = (_write_pages(tmp_path, entries) / "qc.html").read_text()
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


def test_names_of_files_and_persons_are_escaped(tmp_path):
    bad = "<script>alert('x')</script>\"&"
    entry = _entry(
        bad,
        1.0,
        label=bad,
        thumbnails=(Thumbnail(bad, b"jpeg", 0.2, f"{bad}: {bad}"),),
        qc_flags=(bad,),
        notes=(bad,),
    )
    page = (_write_pages(tmp_path, [entry]) / "qc.html").read_text()
    assert "<script" not in page


def test_a_page_needs_nothing_from_elsewhere(prepared):
    page = (prepared / "qc.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/jpeg;base64,") == 12 * 15


@pytest.mark.parametrize(
    ("why", "counted_as"),
    [
        ("small lung area: 12.3% of the largest", "small lung area"),
        ("a file that cannot be opened (No such file)", "a file that cannot be opened"),
        ("no lungs found", "no lungs found"),
    ],
)
def test_a_reason_is_counted_without_what_concerns_one_file(why, counted_as):
    assert short(why) == counted_as


def test_a_staged_file_may_be_written_twice_but_not_after_its_run(tmp_path):
    staging_folder = tmp_path / "staging"
    staging_folder.mkdir()
    numbers = random.Random(0).sample(range(10_000), 3)
    for number in numbers + numbers:
        write_staged(staging_file(staging_folder, number), _entry("p", 0.0), [])
    files = [path for path in staging_folder.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(staging_file(staging_folder, number) for number in numbers)
    with pytest.raises(FileNotFoundError):
        write_staged(staging_file(tmp_path / "gone", 0), _entry("p", 0.0), [])
