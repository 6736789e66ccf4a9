"""`facts.csv`, and the warning of facts that separate the labels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.feature import local_binary_pattern
from sklearn.metrics import roc_auc_score

from drenet_jax.data.facts import CATEGORICAL, COLUMNS, NUMERIC, FactsTable, PersonFacts, texture
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.prepare import _warn_of_facts


@given(seed=st.integers(0, 99), height=st.integers(3, 12), width=st.integers(3, 12))
def test_textures_are_those_of_scikit_image(seed, height, width):
    random = np.random.default_rng(seed)
    # Grey values that no interpolation confuses: ties of samples and centres are decided by
    # rounding errors there.
    image = random.choice(256, (height, width)).astype(np.uint8)
    inside = random.random((height, width)) < 0.7
    codes = local_binary_pattern(image, 8, 1, "nri_uniform")[1:-1, 1:-1]
    seen = inside[1:-1, 1:-1]
    counts = np.bincount(codes[seen].astype(int), minlength=59)
    shares = texture(image, inside, height)
    # Both give each uniform pattern a bin and the others the last one, in orders of their own.
    np.testing.assert_allclose(
        np.sort(shares[:-1]), np.sort(counts[:-1]) / max(seen.sum(), 1), atol=1e-12
    )
    assert shares[-1] == pytest.approx(counts[-1] / max(seen.sum(), 1))


def test_a_flat_area_has_one_texture():
    image = np.full((9, 9), 93, np.uint8)
    shares = texture(image, np.ones(image.shape, bool), 9)
    assert sorted(shares)[-1] == 1


def test_textures_of_every_fourth_row_are_about_those_of_all_rows():
    random = np.random.default_rng(0)
    image = cv2.GaussianBlur(random.integers(0, 255, (512, 512)).astype(np.uint8), (5, 5), 1)
    inside = np.ones(image.shape, bool)
    all_rows, some_rows = texture(image, inside, 512), texture(image, inside, 128)
    np.testing.assert_allclose(some_rows, all_rows, atol=0.003)
    assert not np.array_equal(some_rows, all_rows)


def test_every_kept_slice_has_a_row(prepared):
    data = open_data(prepared)
    table = FactsTable.read(prepared)
    assert len(table.keys) == sum(data.n_slices.values())
    assert {key[0] for key in table.keys} == set(data.diagnoses)
    numbers = dict(zip(NUMERIC, table.numeric.T, strict=True))
    assert set(numbers["width_px"]) == {96}
    assert np.isnan(numbers["jpeg_quality"]).all()
    np.testing.assert_allclose(table.texture.sum(axis=1), 1, atol=1e-3)
    some = table.of(table.keys[3:1:-1])
    np.testing.assert_array_equal(some.numeric, table.numeric[3:1:-1])


def _slice(**changes):
    values = dict.fromkeys(COLUMNS) | dict.fromkeys(CATEGORICAL, "") | {"slice_name": "a.png"}
    return values | changes


def test_kernels_are_numbers_in_the_order_of_their_appearance():
    facts = PersonFacts()
    kernel = COLUMNS.index("kernel")
    rows = [
        facts.add(name, [_slice(kernel=value)])[0][kernel]
        for name, value in (("a", "LUNG MUELLER"), ("b", ""), ("c", "B30"), ("d", "LUNG MUELLER"))
    ]
    assert rows == ["1", "", "2", "1"]


def test_a_fact_that_separates_the_labels_is_found_with_its_auc():
    random = np.random.default_rng(0)
    facts, label_of, sizes = PersonFacts(), {}, {}
    for i in range(60):
        label = "ill" if i % 2 else "well"
        size = float(random.normal(300 + 60 * (i % 2), 40))
        format_ = "JPEG" if i % 2 and i % 10 else "PNG"
        values = {"bytes": size, "width_px": 512, "mean": float(random.normal()), "format": format_}
        facts.add(f"p{i}", [_slice(**values), _slice(**values)])
        label_of[f"p{i}"], sizes[f"p{i}"] = label, size
    truth = [label_of[person] == "ill" for person in sizes]
    found = facts.separating(label_of, least_auc=0.65, most_p_value=0.001)
    aucs = {fact.fact: fact.auc for fact in found}
    assert set(aucs) == {"bytes", "format JPEG", "format PNG"}
    assert aucs["bytes"] == pytest.approx(roc_auc_score(truth, list(sizes.values())))
    # Of a few persons any fact separates the labels by chance.
    few = dict(list(label_of.items())[:8])
    assert not facts.separating(few, least_auc=0.65, most_p_value=0.001)
    assert not facts.separating({"p1": "ill"}, least_auc=0.65, most_p_value=0.001)


def test_a_folder_without_facts_is_to_be_prepared_again(tmp_path):
    with pytest.raises(InputError, match=r"has no facts\.csv, .*; prepare the data again"):
        FactsTable.read(tmp_path)
    (tmp_path / "facts.csv").write_text(",".join(COLUMNS) + "\n" + "x," * (len(COLUMNS) - 1) + "x")
    with pytest.raises(InputError, match=r"facts\.csv is damaged"):
        FactsTable.read(tmp_path)


@pytest.mark.parametrize("is_planted", [True, False])
def test_prepare_warns_of_a_format_that_gives_the_label_away(is_planted, capsys):
    facts, labels = PersonFacts(), {f"p{i}": "covid" if i % 2 else "other" for i in range(40)}
    for person, label in labels.items():
        is_jpeg = is_planted and label == "covid"
        facts.add(person, [_slice(format="JPEG" if is_jpeg else "PNG", width_px=512)])
    summary = SimpleNamespace(
        facts=facts, persons={"train": list(labels), "validation": [], "test": []}
    )
    _warn_of_facts(summary, labels, Path("data/mine"))
    warning = capsys.readouterr().err
    assert bool(warning) == is_planted
    if is_planted:
        assert warning.startswith("warning: facts of the files separate the labels")
        assert "format JPEG (covid: AUC 1.00)" in warning
        assert "python -m drenet_jax.audit --data=data/mine" in warning
