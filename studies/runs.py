"""Trains and scores the runs of a study that are not there yet.

    python -m studies.runs STUDY [--work=FOLDER] [--workers=N]

Each worker is one process on one core, and makes run after run: results do not depend on how many
cores the machine has, and compiled programs are shared. A run that is there is not made again; one
that was stopped goes on at its last checkpoint.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import time
from pathlib import Path

from drenet_jax import cli
from studies.studies import STUDIES, Run

# The account of a run that is done, in its folder.
DONE = "done.json"
WORK = Path(__file__).resolve().parent / "work"


def run_folder(work: Path, run: Run) -> Path:
    return work / "runs" / run.name


def slices_file(work: Path, run: Run, test: str, weights: str = "last") -> Path:
    """The scores of a test set; beside it `<test>-<weights>-pointed.csv`, if lesions are known."""
    return run_folder(work, run) / f"{test}-{weights}-slices.csv"


def pointed_file(work: Path, run: Run, test: str) -> Path:
    return run_folder(work, run) / f"{test}-last-pointed.csv"


def make_runs(runs: list[Run], work: Path, workers: int) -> None:
    """Makes all runs, and those that they start from, in order."""
    from studies.cohorts import make_data

    wanted = list(dict.fromkeys(item for run in runs for item in (run.start, run) if item))
    left = [run for run in wanted if not (run_folder(work, run) / DONE).is_file()]
    for data in dict.fromkeys(
        name for run in left for name in (run.train, *(test for test, _ in run.tests))
    ):
        make_data(work, data, workers)
    print(f"{len(wanted)} runs, of which {len(left)} are to be made", flush=True)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0))
    for i in range(workers):
        cores.put(available[i % len(available)])
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (cores, str(work))
    ) as pool:
        futures: dict[Run, concurrent.futures.Future] = {}
        for run in left:
            if run.start in futures:
                futures[run.start].result()
            futures[run] = pool.submit(make_run, run, work)
            futures[run].add_done_callback(functools.partial(_tell, run))
        for future in futures.values():
            future.result()


def _tell(run: Run, future: concurrent.futures.Future) -> None:
    if not future.cancelled() and not future.exception():
        now = time.strftime("%H:%M:%S")
        print(f"{now} {run.name}: {future.result():.0f} processor seconds", flush=True)


def _start_worker(cores: multiprocessing.Queue, work: str) -> None:
    """Before JAX and TensorFlow are imported, which count the cores then."""
    core = cores.get()
    os.sched_setaffinity(0, {core})
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Progress bars of several processes would run into each other.
    log = os.open(f"{work}/worker-{core}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    cli.use_compilation_cache()


def make_run(run: Run, work: Path) -> float:
    """Trains and scores a run, and returns its processor seconds."""
    from drenet_jax.data.prepared_data import open_data
    from drenet_jax.evaluation.predictor import Predictor
    from drenet_jax.training.loop import train_and_evaluate
    from studies.cohorts import data_folder

    folder = run_folder(work, run)
    began = time.process_time()
    config = run_config(run, work, open_data(data_folder(work, run.train)).n_slices["train"])
    train_and_evaluate(config, folder / "run")
    trained = time.process_time()
    for weights in run.weights:
        predictor = Predictor.load(folder / "run", latest=weights == "last")
        for test, split in run.tests:
            pointed = pointed_file(work, run, test) if weights == "last" else None
            data = open_data(data_folder(work, test))
            score(predictor, data, split, slices_file(work, run, test, weights), pointed)
    account = {
        "run": run.name,
        "steps": config.train.steps,
        "training_cpu_seconds": round(trained - began, 1),
        "cpu_seconds": round(time.process_time() - began, 1),
        "parameters": _parameters(predictor.variables),
    }
    (folder / DONE).write_text(json.dumps(account) + "\n", encoding="utf-8")
    return account["cpu_seconds"]


def run_config(run: Run, work: Path, train_slices: int):
    """The training configuration of a run."""
    from studies.cohorts import data_folder
    from studies.methods import method_config

    config = method_config(
        run.method,
        seed=run.seed,
        data_dir=data_folder(work, run.train),
        train_slices=train_slices,
        steps=run.steps,
    )
    config.optimizer.learning_rate *= run.learning_rate_factor
    if run.start is not None:
        config.init.weights = str(run_folder(work, run.start) / "run")
        config.init.parts = run.parts
    if run.validates:
        config.train.validate_every_epochs = 2
    return config


def score(predictor, data, split: str, slices_csv: Path, pointed_csv: Path | None) -> None:
    """Scores a split, whatever data the model was trained on, and plays the pointing game."""
    from drenet_jax.data.batches import crop_geometries
    from drenet_jax.data.lesions import LESIONS_FILE, read_lesions
    from drenet_jax.evaluation.evaluator import score_split
    from drenet_jax.evaluation.pointing_game import Points, play, write_hits

    assert data.ct == predictor.meta.ct, "prepared in another way"
    points: list[Points] = []
    slices, _ = score_split(
        predictor.scorer,
        predictor.variables,
        data,
        split,
        predictor.meta.config.data.fill,
        watch=lambda batch, scored: points.append(Points.of(scored, batch["image"].shape[-1])),
    )
    slices.to_csv(slices_csv)
    lesions = data.records / LESIONS_FILE
    if pointed_csv is not None and lesions.is_file():
        places = crop_geometries(data, split)
        write_hits(pointed_csv, play(slices, Points.join(points), places, read_lesions(lesions)))


def _parameters(variables: dict) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="+", choices=STUDIES)
    parser.add_argument("--work", type=Path, default=WORK, help="the folder of data and runs")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    values = parser.parse_args()
    values.work.mkdir(parents=True, exist_ok=True)
    runs = [run for study in values.study for run in STUDIES[study]]
    make_runs(runs, values.work.resolve(), values.workers)


if __name__ == "__main__":
    main()
