"""Trains a model on what `prepare` wrote; called again, it goes on where it stopped.

The --workdir gets `checkpoints/` (the latest, and the best by the validation persons' AUC) and
`metrics.jsonl`. Every field of the config file can be set on the command line.

Examples:

  python -m drenet_jax.train --config=configs/drenet.py --config.data.dir=data/mine \\
      --workdir=runs/mine
  python -m drenet_jax.train --config=configs/demo.py --config.data.dir=data/phantoms \\
      --workdir=runs/demo --config.train.epochs=5 --config.seed=1
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from drenet_jax import cli


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_bool("fresh", False, "Remove the run that --workdir holds and start over.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax.training.loop import train_and_evaluate

    cli.use_compilation_cache()
    values = flags.FLAGS
    workdir = Path(values.workdir)
    figures = train_and_evaluate(values.config, workdir, fresh=values.fresh)
    for name, value in figures.items():
        print(f"validation {name}: {'none' if value is None else f'{value:.4f}'}")
    print(f"checkpoints: {workdir / 'checkpoints'}")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("config", "workdir"))
