"""Trains and scores the runs of the study that are not there yet.

    python -m studies.runs DATA [--work=FOLDER] [--workers=N] [--arms=NAME,...]

Each worker is one process on one core, and makes run after run: results do not depend on how many
cores the machine has, and compiled programs are shared. A run that is there is not made again; one
that was stopped goes on at its last checkpoint.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

from studies.arms import ARMS, training_config
from studies.cohorts import COHORTS, FOLDS, CovidCt, data_folder, make_data

# The account of a run that is done, in its folder.
DONE = "done.json"
SLICES = "slices.csv"
HITS = "explain.csv"
WORK = Path(__file__).resolve().parent / "work"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of an arm, and its scores of the persons who were not in it.

    Attributes:
      arm: of `arms.ARMS`.
      seed: of first weights, order and augmentation.
      fold: of the data, if it has folds.
    """

    arm: str
    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.arm}-seed{self.seed}{fold}"

    def folder(self, work: Path) -> Path:
        return work / "runs" / self.name


def runs_of(arm: str) -> list[Run]:
    folded = isinstance(COHORTS[ARMS[arm].data], CovidCt)
    folds = range(FOLDS) if folded else (None,)
    return [Run(arm, seed, fold) for seed in ARMS[arm].seeds for fold in folds]


def make_runs(runs: list[Run], work: Path, workers: int) -> None:
    """Makes all runs, seed by seed."""
    left = [run for run in runs if not (run.folder(work) / DONE).is_file()]
    for name in dict.fromkeys(ARMS[run.arm].data for run in left):
        make_data(work, name, workers)
    print(f"{len(runs)} runs, of which {len(left)} are to be made", flush=True)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0))
    for i in range(workers):
        cores.put(available[i % len(available)])
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (cores, str(work))
    ) as pool:
        futures = []
        for run in sorted(left, key=lambda run: run.seed):
            futures.append(pool.submit(make_run, run, work))
            futures[-1].add_done_callback(functools.partial(_report, run))
        for future in futures:
            future.result()


def _report(run: Run, future: concurrent.futures.Future) -> None:
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
    from drenet_jax import cli

    cli.use_compilation_cache()


def make_run(run: Run, work: Path, steps: int = 0) -> float:
    """Trains a run, scores its training and test slices, and returns its processor seconds."""
    import jax
    from sklearn.metrics import roc_auc_score

    from drenet_jax.data.prepared_data import open_data
    from drenet_jax.evaluation.decisions import positive_class
    from drenet_jax.evaluation.predictor import Predictor
    from drenet_jax.training.loop import train_and_evaluate

    folder = run.folder(work)
    data = open_data(data_folder(work, ARMS[run.arm].data, run.fold))
    config = training_config(
        ARMS[run.arm],
        seed=run.seed,
        data_dir=str(data.path),
        train_slices=data.n_slices["train"],
        steps=steps,
    )
    began = time.process_time()
    train_and_evaluate(config, folder / "run")
    trained = time.process_time()
    predictor = Predictor.load(folder / "run", latest=True)
    _score_test(predictor, data, folder)
    in_training = _score(predictor, data, "train")
    is_positive = in_training.label == positive_class(data.labels, "")
    positive = in_training.probabilities[:, positive_class(data.labels, "")]
    log = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    last = json.loads(log.splitlines()[-1])
    account = {
        "run": run.name,
        "steps": last["step"],
        "training_cpu_seconds": round(trained - began, 1),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(predictor.variables["params"])),
        "training_slice_auc": round(float(roc_auc_score(is_positive, positive)), 4),
        "rank_ratio": _rounded(last["train"].get("rank_ratio")),
        "rank_agreement": _rounded(last["train"].get("rank_agreement")),
    }
    (folder / DONE).write_text(json.dumps(account) + "\n", encoding="utf-8")
    # Checkpoints of all runs would fill the disk.
    shutil.rmtree(folder / "run" / "checkpoints")
    return time.process_time() - began


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def _score(predictor, data, split: str, watch=None):
    from drenet_jax.evaluation.evaluator import score_split

    slices, _ = score_split(
        predictor.scorer,
        predictor.variables,
        data,
        split,
        predictor.meta.config.data.fill,
        watch=watch,
    )
    return slices


def _score_test(predictor, data, folder: Path) -> None:
    """Writes the predictions, and where lesions are known, the hits of the pointing game."""
    from drenet_jax.data.batches import crop_geometries
    from drenet_jax.data.lesions import LESIONS_FILE, read_lesions
    from drenet_jax.evaluation.pointing_game import Points, play, write_hits

    points: list[Points] = []
    slices = _score(
        predictor,
        data,
        "test",
        lambda batch, scored: points.append(Points.of(scored, batch["image"].shape[-1])),
    )
    slices.to_csv(folder / SLICES)
    lesions = data.records / LESIONS_FILE
    if lesions.is_file():
        places = crop_geometries(data, "test")
        write_hits(folder / HITS, play(slices, Points.join(points), places, read_lesions(lesions)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", choices=sorted({arm.data for arm in ARMS.values()}))
    parser.add_argument("--work", type=Path, default=WORK, help="the folder of data and runs")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--arms", default="", help="of the data; none: all")
    values = parser.parse_args()
    values.work.mkdir(parents=True, exist_ok=True)
    arms = values.arms.split(",") if values.arms else list(ARMS)
    runs = [run for arm in arms if ARMS[arm].data in values.data for run in runs_of(arm)]
    make_runs(runs, values.work.resolve(), values.workers)


if __name__ == "__main__":
    main()
