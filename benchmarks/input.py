"""What one core feeds: slices out of the records, decoded, shuffled and put into batches."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from benchmarks.ct import phantom_series
from benchmarks.timing import Row, Timing, interleaved_timings, plain_row
from drenet_jax.ct.settings import CtSettings

SUITE = "input"
PACKAGES = ("tensorflow-cpu", "tensorflow-datasets")

# Slices that a measurement takes, after as many that start the pipeline.
_SLICES = 256


def run(
    config: ml_collections.ConfigDict,
    settings: CtSettings,
    series: Sequence[Path],
    batch: int,
    rounds: int,
    seed: int,
) -> tuple[list[Row], list[str]]:
    """The pipeline on one core, compared with a training step on this machine's device.

    Args:
      config: of a model; its size is that of the crops.
      settings: of preprocessing.
      series: DICOM series that become records; fewer than two: phantoms'.
      batch: slices in a step.
      rounds: how often everything is measured.
      seed: of the phantoms and the shuffle.
    """
    from benchmarks.model import TrainingStep

    with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
        data = _records(Path(folder), config, settings, series, seed)
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(data), str(batch), str(rounds), str(seed)],
            check=True,
            capture_output=True,
            text=True,
        )
        report = json.loads(done.stdout.splitlines()[-1])
    times = {name: Timing(tuple(seconds)) for name, seconds in report["times"].items()}
    (step,) = interleaved_timings({"step": TrainingStep(config, batch)}, rounds).values()
    step, feed = step.per(batch), times["batches"]
    ratio = step.median / feed.median
    row = dataclasses.replace(
        plain_row(SUITE, "a slice from the records to a batch, one core", feed),
        reference=f"a training step here, per slice: {1e3 * step.median:.1f} ms",
        ratio=ratio,
        aim="≥ 3",
        reached=ratio >= 3,
    )
    stages = [plain_row(SUITE, f"{what}, per slice", times[what]) for what in times]
    return [row, *stages], [
        f"One core feeds {1 / feed.median:.0f} slices a second, of {report['kilobytes']:.0f} kB "
        f"each: three times what a device takes that trains on {1 / feed.median / 3:.0f} a second."
    ]


def _records(
    folder: Path,
    config: ml_collections.ConfigDict,
    settings: CtSettings,
    series: Sequence[Path],
    seed: int,
) -> Path:
    from drenet_jax.data.cohort_table import read_cohort
    from drenet_jax.data.preparation import prepare_cohort
    from drenet_jax.output_files import new_folder

    if len(series) < 2:  # a cohort has two labels at least
        series = [phantom_series(folder / f"phantom{i}", seed + i) for i in range(4)]
    cohort = folder / "cohort.csv"
    with cohort.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("patient_id", "path", "label", "site"))
        writer.writerows(
            (f"p{i}", path.resolve(), "ab"[i % 2], "") for i, path in enumerate(series)
        )
    with new_folder(folder / "data") as made:
        prepare_cohort(
            read_cohort(cohort),
            made,
            settings=dataclasses.replace(settings, image_size_px=config.model.image_size_px),
            seed=seed,
            fractions=(100, 0, 0),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
    return folder / "data"


def _measure(data_dir: Path, batch: int, rounds: int, seed: int) -> dict:
    """In a process that has one core: seconds a slice of the pipeline and of its stages."""
    import tensorflow as tf

    from drenet_jax.data.batches import train_batches
    from drenet_jax.data.prepared_data import open_data

    data = open_data(data_dir)
    endless = train_batches(
        data,
        batch_size=batch,
        micro_batches=1,
        first_step=0,
        fill="train",
        shuffle_buffer=4096,
        seed=seed,
    )
    read = data.builder.as_dataset(
        split="train",
        decoders={name: _skip() for name in ("image", "fill_map")},
    )
    records = [(record["image"].numpy(), record["fill_map"].numpy()) for record in read]
    batches = -(-_SLICES // batch)
    workloads = {
        "batches": (lambda: [next(endless) for _ in range(batches)], batches * batch),
        "read and parse": (lambda: [None for _ in read], len(records)),
        "decode the picture": (
            lambda: [tf.io.decode_png(image, channels=1) for image, _ in records],
            len(records),
        ),
        "decode the map of the fill": (
            lambda: [tf.io.decode_png(fill_map, channels=1) for _, fill_map in records],
            len(records),
        ),
    }
    times = interleaved_timings({name: work for name, (work, _) in workloads.items()}, rounds)
    return {
        "times": {name: times[name].per(n).seconds for name, (_, n) in workloads.items()},
        "kilobytes": sum(len(image) for image, _ in records) / len(records) / 1e3,
    }


def _skip():
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()


if __name__ == "__main__":
    # Before TensorFlow counts the cores.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(_measure(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
