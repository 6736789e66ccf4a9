"""The study: docs/study.md agrees with the result files, and the harness runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drenet_jax.configs import covid_ct
from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.training.config_checks import check_groups
from studies import claims, intervals, page, results, runs
from studies.arms import ARMS, SEEDS, training_config
from studies.claims import CLAIMS
from studies.cohorts import COHORTS, FOLDS, CovidCt, Phantoms, data_folder, make_data, read_csv
from studies.results import RESULTS, Table, read_table

# Digits that are no result: names, and settings that stand in the code.
NOT_RESULTS = (
    r"COVID-19",
    r"ResNet(18|50)|DenseNet121|EfficientNet-Lite0",
    r"Yang et al\.\s+2020; arXiv 2003\.13865",
    r"(68|20) anchors|enlarged 2 to 4 times|(160|224|448) pixels",
    r"covid_ct_160",
    r"95%",
    r"above 0",
    r"image_size_px=224",
    r"5536ab0|e9ea65a|639c8f7",
    r"\{\{[^{}]*\}\}",
)


def test_the_page_shows_the_numbers_of_the_result_files():
    template = page.TEMPLATE.read_text(encoding="utf-8")
    assert page.render(template, RESULTS) == page.PAGE.read_text(encoding="utf-8")


def test_no_number_of_the_page_is_written_by_hand():
    text = page.TEMPLATE.read_text(encoding="utf-8")
    for pattern in NOT_RESULTS:
        text = re.sub(pattern, "", text)
    assert re.findall(r".*\d.*", text) == []


def test_no_table_of_the_page_has_more_than_six_rows():
    lines = page.PAGE.read_text(encoding="utf-8").splitlines()
    is_row = "".join("|" if line.startswith("|") else " " for line in lines)
    # A header and a rule.
    assert max(map(len, is_row.split())) <= 6 + 2


def test_results_stay_small_and_name_known_runs():
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 4 << 20
    known = {run.name for arm in ARMS for run in runs.runs_of(arm)}
    made = [row["run"] for row in read_csv(RESULTS / "runs.csv")]
    assert len(set(made)) == len(made)
    assert set(made) <= known


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-persons.csv")), ids=lambda path: path.stem)
def test_an_estimate_is_scikit_learns_and_its_interval_holds_it(path):
    data = path.stem.removesuffix("-persons")
    table, slices = read_table(path), read_table(RESULTS / f"{data}-slices.csv")
    positive = page.POSITIVE[data]
    arm, seeds = next(iter(table.values.items()))
    estimate = intervals.person_auc(table, arm, positive)
    expected = [roc_auc_score(table.label == positive, seeds[s][positive]) for s in sorted(seeds)]
    np.testing.assert_allclose(estimate.by_seed, expected)
    assert estimate.value == pytest.approx(np.mean(expected))
    low, high = estimate.interval
    assert low < estimate.value < high
    # The mean of the slices is the person's score.
    of_person = slices.patient_id == table.patient_id[0]
    seed = min(seeds)
    mean = slices.values[arm][seed][""][of_person].mean()
    assert table.values[arm][seed][positive][0] == pytest.approx(mean, abs=2e-4)


def test_intervals_are_paired_and_grow_with_the_spread_of_the_seeds():
    rng = np.random.default_rng(0)
    label = np.array(["COVID-19", "healthy"] * 40)
    persons = np.array([f"p{i}" for i in range(80)])

    def arm(spread):
        seeds = {}
        for seed in range(5):
            shift = (label == "COVID-19") * (1 + spread * (seed - 2))
            p = 1 / (1 + np.exp(-shift - rng.normal(size=80)))
            seeds[seed] = {"COVID-19": p, "healthy": 1 - p}
        return seeds

    table = Table(persons, label, {"alike": arm(0.0), "apart": arm(0.6)})
    alike, apart = (intervals.person_auc(table, name, "COVID-19") for name in ("alike", "apart"))
    assert np.ptp(apart.interval) > 1.3 * np.ptp(alike.interval)
    assert alike.minus(alike).interval == (0, 0)


def test_hits_above_chance_are_those_of_the_slices():
    table = Table(
        np.array(["a", "a", "b"]),
        np.array(["0.1", "0.2", "0.3"]),
        {"arm": {0: {"box": np.array([1.0, 0.0, 1.0])}}},
    )
    assert intervals.hits_above_chance(table, "arm", "box").value == pytest.approx((2 - 0.6) / 3)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.10, 0.01, 0.20, claims.SUPPORTED),
        (-0.10, -0.20, -0.01, claims.CONTRADICTED),
        # Above 0, but by less than would matter.
        (0.010, 0.001, 0.019, claims.NO_DIFFERENCE),
        (-0.010, -0.019, -0.001, claims.NO_DIFFERENCE),
        (0.015, 0.001, 0.030, claims.UNDECIDED),
        (-0.10, -0.20, 0.01, claims.UNDECIDED),
        (0.01, -0.01, 0.03, claims.UNDECIDED),
    ],
)
def test_the_rule_is_alike_in_both_directions(value, low, high, expected):
    assert claims.verdict(value, low, high) == expected
    mirror = {
        claims.SUPPORTED: claims.CONTRADICTED,
        claims.CONTRADICTED: claims.SUPPORTED,
    }
    assert claims.verdict(-value, -high, -low) == mirror.get(expected, expected)


def test_every_claim_compares_arms_of_one_data_set_and_the_primary_one_has_five_seeds():
    assert len(CLAIMS) <= 10
    for claim in CLAIMS:
        arms = [ARMS[name] for name in (claim.arm, claim.other) if name]
        assert {arm.data for arm in arms} == {claim.data}, claim
        assert len({arm.seeds for arm in arms}) == 1, claim
        assert bool(claim.other) == (claim.metric == "person_auc"), claim
    assert ARMS[CLAIMS[0].arm].seeds == SEEDS
    assert len(SEEDS) >= 5


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_can_be_built_for_its_data_and_has_its_schedule(name):
    arm = ARMS[name]
    config = training_config(arm, seed=1, data_dir="x", train_slices=411)
    check_groups(config)
    assert config.model.image_size_px == COHORTS[arm.data].image_size_px
    slices = 411 * config.train.epochs
    if arm.steps:
        assert config.train.steps == arm.steps
        assert 0 <= slices - arm.steps * config.data.batch_size < 411
        warmup = config.optimizer.warmup_epochs * 411 / config.data.batch_size
        assert warmup == pytest.approx(50)
    assert config.train.validate_every_epochs == config.train.epochs
    assert variable_shapes(build_model(config, 3))["params"]


def _differences(first: str, second: str) -> set[str]:
    flat = []
    for name in (first, second):
        config = training_config(ARMS[name], seed=0, data_dir="x", train_slices=411).to_dict()
        flat.append(
            {
                f"{group}.{field}": value
                for group, fields in config.items()
                if isinstance(fields, dict)
                for field, value in fields.items()
            }
        )
    return {key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key)}


def test_arms_differ_in_the_named_thing_alone():
    assert _differences("drenet", "random_boxes") == {"model.proposals"}
    assert _differences("drenet_lite", "drenet_lite_random_boxes") == {"model.proposals"}
    assert _differences("imagenet_strong", "imagenet_strong_lungs") == {"data.fill"}
    assert _differences("imagenet_strong", "imagenet_strong_filled") == {"data.fill"}
    assert _differences("imagenet_strong", "scratch_strong") == {"init.weights"}
    for first, second in (("drenet", "backbone"), ("drenet_lite", "imagenet_strong")):
        assert {key.split(".")[0] for key in _differences(first, second)} == {"model"}
    augmentation = {key.split(".")[0] for key in _differences("imagenet_strong", "imagenet")}
    assert augmentation == {"augment", "data"}
    for name, changed in (
        ("no_label_smoothing", {"train.label_smoothing"}),
        ("ema", {"train.ema_decay"}),
        ("mixup", {"augment.mixup"}),
    ):
        assert _differences("imagenet_strong", name) == changed
    assert {key.split(".")[0] for key in _differences("imagenet_strong", "sgd")} == {"optimizer"}
    assert _differences("backbone", "backbone_equal_compute") == {
        "train.steps",
        "train.epochs",
        "train.validate_every_epochs",
    }


def test_boxes_are_in_the_proportions_of_the_paper():
    from drenet_jax.models.build import build_model
    from drenet_jax.models.proposals import anchor_boxes

    for name in ("drenet", "drenet_lite"):
        config = training_config(ARMS[name], seed=0, data_dir="x", train_slices=411)
        model = build_model(config, 2)
        boxes = anchor_boxes(model.levels, config.model.image_size_px)
        assert len(boxes) >= 60
        sides = boxes[:, 2] - boxes[:, 0]
        assert (config.model.crop_size_px / sides >= 2).all()


@pytest.fixture
def tiny_arm(monkeypatch):
    monkeypatch.setitem(COHORTS, "tiny", Phantoms(seed=14, train=6, test=6, size_px=96))
    arm = dataclasses.replace(ARMS["backbone"], data="tiny", seeds=(0,), steps=2)
    monkeypatch.setitem(ARMS, "tiny_arm", arm)
    return "tiny_arm"


@pytest.mark.slow
def test_a_run_is_made_scored_and_collected(tiny_arm, tmp_path):
    from drenet_jax.data.prepared_data import open_data

    make_data(tmp_path, "tiny", 1)
    data = open_data(data_folder(tmp_path, "tiny"))
    for split in ("train", "test"):
        labels = [data.diagnoses[person][0] for person in data.persons[split]]
        assert sorted(labels) == sorted(["COVID-19", "bacterial", "healthy"] * 2)
    (run,) = runs.runs_of(tiny_arm)
    assert results.collect(tmp_path, tmp_path / "results", [tiny_arm]) == ["tiny_arm/0"]
    runs.make_run(run, tmp_path)
    assert results.collect(tmp_path, tmp_path / "results", [tiny_arm]) == []
    table = read_table(tmp_path / "results" / "tiny-persons.csv")
    assert sorted(table.patient_id) == sorted(data.persons["test"])
    p = table.values[tiny_arm][0]
    np.testing.assert_allclose(sum(p.values()), 1, atol=2e-4)
    hits = read_table(tmp_path / "results" / "tiny-hits.csv").values[tiny_arm][0]
    assert set(hits) == {"heat_map"}  # a ResNet has no boxes
    (account,) = read_csv(tmp_path / "results" / "runs.csv")
    assert account["run"] == run.name
    assert int(account["steps"]) == 2
    assert 0 <= float(account["training_slice_auc"]) <= 1


def test_a_table_keeps_the_columns_of_runs_that_are_no_longer_there(tmp_path):
    path = tmp_path / "data-slices.csv"
    rows = [("a", "covid", "0.5000"), ("b", "non_covid", "0.2500")]
    table = results._Columns(path, "label")
    table.add(rows, "imagenet/0")
    table.write()

    table = results._Columns(path, "label")
    table.add([(*row[:2], "0.1000") for row in rows], "scratch/0")
    table.add([(*row[:2], "0.9000") for row in rows], "imagenet/0")
    table.write()

    values = read_table(path).values
    assert list(values) == ["scratch", "imagenet"]  # in the order of the arms
    assert values["imagenet"][0][""].tolist() == [0.9, 0.9]
    with pytest.raises(AssertionError, match="scored on other cases"):
        results._Columns(path, "label").add(rows[:1], "ema/0")


@pytest.mark.slow
def test_every_person_of_covid_ct_is_tested_in_one_fold(tmp_path, monkeypatch):
    from drenet_jax.data.prepared_data import open_data
    from studies import cohorts

    if not cohorts.COVID_CT.is_file():
        pytest.skip("COVID-CT is not there (../shared/data/covid_ct)")
    monkeypatch.setitem(COHORTS, "covid_ct_small", CovidCt(64))
    make_data(tmp_path, "covid_ct_small", 2)
    folds = [open_data(data_folder(tmp_path, "covid_ct_small", i)) for i in range(FOLDS)]
    whole = open_data(data_folder(tmp_path, "covid_ct_small"))
    tested = [person for fold in folds for person in fold.persons["test"]]
    assert sorted(tested) == sorted(whole.diagnoses)
    for fold in folds:
        assert not fold.persons["validation"]
        assert set(fold.persons["train"]) == set(whole.diagnoses) - set(fold.persons["test"])


def test_a_run_that_is_done_is_not_made_again(tmp_path, capsys):
    done = runs.runs_of("backbone")
    for run in done:
        folder: Path = run.folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / runs.DONE).write_text("{}")
    runs.make_runs(done, tmp_path, 1)
    assert "5 runs, of which 0 are to be made" in capsys.readouterr().out


def test_the_recipe_that_is_shipped_is_the_best_arm():
    assert ARMS["best"].config().to_dict() == covid_ct.get_config().to_dict()
    assert covid_ct.get_config().init.weights == "imagenet"
