"""The main table at full size: the configurations of the paper's networks, 448 pixels, for a GPU.

    python -m studies.full_size [--steps=2] [--methods=drenet,resnet50]

Trains every configuration on phantoms of 448 pixels with each seed and evaluates it, lesions and
all; DRENet and NTS-Net use per-pass batch norm. Then the paper's tables are made by
`python -m drenet_jax.compare --runs=... --out=...`. With --steps it is a trial: so many steps, one
seed, and a cohort of few persons.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from drenet_jax import cli
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.output_files import new_folder
from drenet_jax.training.loop import train_and_evaluate
from studies.cohorts import make_data
from studies.runs import WORK
from studies.studies import SEEDS

METHODS = ("drenet", "resnet50", "densenet121", "vgg16", "nts_net")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--workers", type=int, default=1, help="for drawing and preparing")
    parser.add_argument("--steps", type=int, default=0, help="a trial of so many steps")
    parser.add_argument("--methods", default=",".join(METHODS))
    values = parser.parse_args()
    cli.use_compilation_cache()
    data = make_data(
        values.work, "full_size_trial" if values.steps else "full_size", values.workers
    )
    for seed in SEEDS[:1] if values.steps else SEEDS:
        for method in values.methods.split(","):
            config = importlib.import_module(f"drenet_jax.configs.{method}").get_config()
            config.seed = seed
            config.data.dir = str(data)
            config.train.steps = values.steps
            if config.model.name == "drenet":
                # Of published weights NTS-Net has one set; trained anew, it shall not be worse off.
                config.model.batch_statistics = "per_pass"
            # There is no validation split: the last weights count.
            config.train.validate_every_epochs = config.train.epochs
            folder = values.work / data.name / method / str(seed)
            began = time.time()
            train_and_evaluate(config, folder / "run")
            if not (folder / "test").exists():
                with new_folder(folder / "test") as test:
                    evaluate_split(folder / "run", "test", test, explain=True)
            print(f"{method}, seed {seed}: {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
