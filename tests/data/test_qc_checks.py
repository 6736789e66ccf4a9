"""Which patients are flagged for review, and what the QC page shows of them."""

from __future__ import annotations

from pathlib import Path

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
from drenet_jax.data.qc_summary import (
    THUMBNAIL_PX,
    concern,
    qc_entry,
)

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
    entry = qc_entry(Person("p", paths, "", "", ""), prepared, ct_settings, why_left_out="")
    assert entry.qc_flags == ()
    assert concern(entry.severity) == 2


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
def test_what_is_odd_is_flagged(picked, reason):
    assert reason in _reasons(picked)


def test_slices_that_could_not_be_read_are_flagged():
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
def test_flags_are_made_of_any_slices(shapes):
    picked = [
        _slice(i, area, left=left, right=right, kept=kept and area * (left + right) > 0.1)
        for i, (area, left, right, kept) in enumerate(shapes)
    ]
    weights = [flag.weight for flag in qc_flags(picked, in_order=True, n_unreadable=0)]
    assert weights == sorted(weights, reverse=True)


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


def test_harmless_notes_are_shown_but_are_no_flag(ct_settings):
    def concern_with(*notes):
        prepared = PreparedPerson(tuple(_series()), (), notes, len(AREAS))
        person = Person("p", (Path("folder"),), "", "", "")
        return concern(qc_entry(person, prepared, ct_settings, why_left_out="").severity)

    assert concern_with() == 2
    assert concern_with("39 slices missing (spacing 2.0 mm)") == 1
    assert concern_with(RENAMED) == 2
