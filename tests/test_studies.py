"""The studies: docs/study.md agrees with the result files, and the harness runs."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.training.config_checks import check_groups
from studies import claims, collect, figures, intervals, page, runs
from studies.cohorts import COHORTS, SMALLER, _make_smaller, make_data
from studies.methods import METHODS, STEPS, method_config
from studies.predictions import RESULTS, Table, cohort_of, read_table
from studies.studies import SEEDS, STUDIES, Run, covid_ct_run, fine_tuned_run, phantom_run

# Digits that are no result: names, the settings that stand in the code beside the figures, and
# what was written down before the first run.
NOT_RESULTS = (
    r"COVID-19",
    r"ResNet\d+",
    r"VGG16",
    r"DenseNet121",
    r"Yang et al\. 2020; arXiv 2003\.13865",
    r"\b448 pixels",
    r"\b128 pixels",
    r"95%",
    r"f137654|6e7a853|c788340|99772c8",
    r"learning rate of 0\.002",
    r"\(0\.15\s+times the others'\)",
    r"studies/work/runs/drenet-on-covid_ct/0/run",
    r"\{\{[^{}]*\}\}",
)


def test_the_page_is_what_the_result_files_say():
    template = page.TEMPLATE.read_text(encoding="utf-8")
    assert page.render(template, RESULTS) == page.PAGE.read_text(encoding="utf-8")


def test_no_number_of_the_page_is_written_by_hand():
    text = page.TEMPLATE.read_text(encoding="utf-8")
    for pattern in NOT_RESULTS:
        text = re.sub(pattern, "", text)
    assert re.findall(r".*\d.*", text) == []


def test_the_figures_are_made_of_the_committed_predictions(tmp_path):
    # The pointing game and the two smallest tables: all of them take a minute.
    for test in ("site_a", "covid_ct"):
        for path in RESULTS.glob(f"{test}-*.csv"):
            shutil.copy(path, tmp_path)
    committed = figures.read(RESULTS / "figures.csv")
    figures.write(figures.compute(tmp_path), tmp_path / "figures.csv")
    again = figures.read(tmp_path / "figures.csv")
    assert again
    for key, row in again.items():
        assert row == committed[key], key


def test_results_stay_small_and_name_every_run():
    files = list(RESULTS.iterdir())
    assert sum(path.stat().st_size for path in files) < 4 << 20
    known = {run.name for runs in STUDIES.values() for run in runs}
    with (RESULTS / "runs.csv").open(encoding="utf-8", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} <= known


def test_the_main_table_has_five_seeds_of_the_paper_s_networks():
    table = read_table(RESULTS / "phantoms-persons.csv")
    for method in ("drenet", "resnet", "vgg", "densenet"):
        assert set(table.values[figures.main_arm(method)]) == set(SEEDS)


def test_a_figure_is_scikit_learns_and_its_interval_holds_it():
    table = read_table(RESULTS / "phantoms-persons.csv")
    arm = figures.main_arm("resnet")
    metrics = intervals.persons_figures(table, arm, "COVID-19")
    is_positive = table.label == "COVID-19"
    by_seed = [roc_auc_score(is_positive, table.values[arm][s]["COVID-19"]) for s in SEEDS]
    np.testing.assert_allclose(metrics["person_auc"].by_seed, by_seed)
    assert metrics["person_auc"].value == pytest.approx(np.mean(by_seed))
    rows = is_positive | (table.label == "healthy")
    p = table.values[arm][0]
    score = p["COVID-19"] / (p["COVID-19"] + p["healthy"])
    against_healthy = metrics["person_auc_healthy"].by_seed[0]
    assert against_healthy == pytest.approx(roc_auc_score(is_positive[rows], score[rows]))
    low, high = metrics["person_auc"].interval
    assert low < metrics["person_auc"].value < high


def test_intervals_are_paired_and_grow_with_the_spread_of_the_seeds():
    rng = np.random.default_rng(0)
    label = np.array(["COVID-19", "healthy"] * 40)
    persons = np.array([f"p{i}" for i in range(80)])

    def arm(parallel_map):
        seeds = {}
        for seed in range(5):
            shift = (label == "COVID-19") * (1 + parallel_map * (seed - 2))
            p = 1 / (1 + np.exp(-shift - rng.normal(size=80)))
            seeds[seed] = {"COVID-19": p, "healthy": 1 - p}
        return seeds

    table = Table(persons, label, {"alike": arm(0.0), "apart": arm(0.6)})
    alike, apart = (
        intervals.persons_figures(table, name, "COVID-19")["person_auc"]
        for name in ("alike", "apart")
    )
    assert np.ptp(apart.interval) > 1.3 * np.ptp(alike.interval)
    nothing = alike.less(alike)
    assert nothing.interval == (0, 0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "supported"),
        (-0.2, -0.01, "not supported"),
        (-0.2, 0.01, "not supported"),
        (-0.01, 0.03, "undecided"),
    ],
)
def test_the_rule_for_a_claim(low, high, expected):
    assert claims.verdict(low, high) == expected


def test_every_claim_is_about_figures_that_the_runs_can_give():
    arms = {run.arm for runs in STUDIES.values() for run in runs}
    for claim in (claim for section in claims.claims().values() for claim in section):
        for arm in claim.key[1].split(figures.LESS):
            assert arm in arms, claim.key


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_built_and_has_its_budget_in_steps(method):
    for slices in (97, 250, 480):
        config = method_config(method, seed=1, data_dir=Path("x"), train_slices=slices)
        check_groups(config)
        assert config.train.steps == METHODS[method].steps
        assert config.train.steps * config.data.batch_size <= config.train.epochs * slices
        warmup = config.optimizer.warmup_epochs * slices / config.data.batch_size
        assert warmup == pytest.approx(24)
    assert variable_shapes(build_model(config, 3))["params"]


def test_methods_change_what_they_say_and_nothing_else():
    base, *others = (
        method_config(method, seed=0, data_dir=Path("x"), train_slices=250).to_dict()
        for method in ("drenet", "k1", "no_ranking", "no_confidence_gradient", "fill_never")
    )
    for group, field, value, config in zip(
        ("model", "train", "model", "data"),
        ("top_k", "rank_factor", "context", "fill"),
        ((1,), 0.0, "weighted_detached", "never"),
        others,
        strict=True,
    ):
        assert config[group].pop(field) == value
        assert config[group] == {k: v for k, v in base[group].items() if k != field}
        assert {k: v for k, v in config.items() if k != group} == {
            k: v for k, v in base.items() if k != group
        }


def test_runs_that_start_from_others_come_after_them():
    for name, study in STUDIES.items():
        made = set()
        for run in study:
            assert name == "covid_ct" or run.start is None or run.start in made
            made.add(run)
    assert {run.start for run in STUDIES["covid_ct"] if run.start} <= set(STUDIES["phantoms"])
    assert set(STUDIES["smallest"]) <= set(STUDIES["phantoms"])


def test_a_fine_tuned_run_starts_from_the_weights_of_its_seed(tmp_path):
    config = runs.run_config(fine_tuned_run("drenet", 3, "site_b_10"), tmp_path, 50)
    assert config.init.weights.endswith("drenet-on-site_a/3/run")
    assert config.init.parts == "all"
    assert config.optimizer.learning_rate == pytest.approx(2e-4)
    config = runs.run_config(covid_ct_run("resnet", 2, pretrained=True), tmp_path, 400)
    assert config.init.weights.endswith("resnet-on-phantoms_50/2/run")
    assert config.init.parts == "backbone"


def test_smaller_training_sets_are_nested_and_keep_the_tested_persons():
    assert cohort_of("phantoms_50") == cohort_of("phantoms") == "phantoms"
    assert cohort_of("site_b_5") == "site_b"
    assert cohort_of("covid_ct") == "covid_ct"
    for name, (full, n) in SMALLER.items():
        assert name == f"{full}_{n}"
        assert n < COHORTS[full].train


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A tiny cohort, and a part of its training persons."""
    work = tmp_path_factory.mktemp("work")
    make_data(work, "tiny", 1)
    _make_smaller(work / "data" / "tiny", work / "data" / "tiny_3", 3)
    return work


@pytest.mark.slow
def test_a_run_is_made_scored_and_collected(work, tmp_path):
    from drenet_jax.data.prepared_data import open_data

    full, small = (open_data(work / "data" / name) for name in ("tiny", "tiny_3"))
    assert set(small.persons["train"]) < set(full.persons["train"])
    assert small.persons["test"] == full.persons["test"]
    labels = [small.diagnoses[person][0] for person in small.persons["train"]]
    assert sorted(labels) == sorted(["COVID-19", "bacterial", "healthy"])

    run = Run("resnet", "tiny_3", 0, tests=(("tiny", "test"),), steps=2)
    runs.make_run(run, work)
    other = phantom_run("drenet", 0)
    missing = collect.collect(work, tmp_path, [run, other])
    assert missing == [other]
    table = read_table(tmp_path / "tiny-persons.csv")
    assert list(table.patient_id) == list(dict.fromkeys(table.patient_id))
    p = table.values["resnet-on-tiny_3"][0]
    np.testing.assert_allclose(sum(p.values()), 1, atol=2e-4)
    pointed = read_table(tmp_path / "tiny-pointed.csv")
    hits = pointed.values["resnet-on-tiny_3"][0]
    assert set(hits) == {"heat_map"}  # a ResNet has no boxes
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        (account,) = csv.DictReader(file)
    assert account["run"] == "resnet-on-tiny_3/0"
    assert int(account["steps"]) == 2 < STEPS


def test_a_comparison_tells_what_is_apart(tmp_path, capsys):
    rows = [list(figures.COLUMNS), ["phantoms", "a", "person_auc", "0.5", "0.4", "0.6", "0.5"]]
    for name, value in (("old", "0.5000"), ("same", "0.5000"), ("other", "0.5100")):
        rows[1][3] = value
        (tmp_path / f"{name}.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert collect.compare(tmp_path / "same.csv", tmp_path / "old.csv")
    assert "1 of 1 figures agree" in capsys.readouterr().out
    assert not collect.compare(tmp_path / "other.csv", tmp_path / "old.csv")
    assert "0.0100 apart: phantoms, a, person_auc" in capsys.readouterr().out
