"""Trains a model on what `prepare` wrote; called again, it goes on where it stopped.

The --workdir gets `checkpoints/` (the latest, and the best by the validation persons' AUC),
`metrics.jsonl` and `tensorboard/`. Every field of the config file can be set on the command line.

SIGTERM, as a scheduler sends it, saves the step under way and ends with exit code 75: call again to
go on. On several hosts call it alike on each, with a --workdir and data that all see: hosts of a
TPU pod and of a Slurm step (srun) find each other, others need the last three flags.

Examples:

  python -m drenet_jax.train --config=configs/drenet.py --config.data.dir=data/mine \\
      --workdir=runs/mine
  python -m drenet_jax.train --config=configs/demo.py --config.data.dir=data/phantoms \\
      --workdir=runs/demo --config.train.epochs=5 --config.seed=1
  python -m drenet_jax.train --config=configs/drenet.py --config.data.dir=/shared/data \\
      --workdir=/shared/run --coordinator=10.0.0.1:9911 --num_processes=2 --process_id=0
"""

from __future__ import annotations

import os
import sys

from absl import flags

from drenet_jax import cli

# Exit code of a run that received a stop signal: EX_TEMPFAIL of sysexits.h, which schedulers read
# as a temporary failure.
PREEMPTED = 75


def define_flags() -> None:
    cli.define_config("drenet", "the training")
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_bool("fresh", False, "Remove the run that --workdir holds and start over.")
    flags.DEFINE_string("coordinator", "", "host:port of the first of several processes.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, one on each host.")
    flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX and TensorFlow.
    from drenet_jax import parallel

    cli.use_compilation_cache()
    values = flags.FLAGS
    # Read when JAX initializes its devices.
    if "train" in values.config and "memory_fraction" in values.config.train:
        os.environ.setdefault(
            "XLA_PYTHON_CLIENT_MEM_FRACTION", str(values.config.train.memory_fraction)
        )
    parallel.start_hosts(values.coordinator, values.num_processes, values.process_id)

    from drenet_jax.training.loop import train_and_evaluate
    from drenet_jax.training.stopping import Preempted

    workdir = values.workdir
    try:
        metrics = train_and_evaluate(values.config, workdir, fresh=values.fresh)
    except Preempted as stop:
        if parallel.is_first_host():
            print(f"{stop} and saved it; call again to go on.", file=sys.stderr)
        sys.exit(PREEMPTED)
    if not parallel.is_first_host():
        return
    for name, value in metrics.items():
        print(f"validation {name}: {'none' if value is None else f'{value:.4f}'}")
    print(f"checkpoints: {workdir.rstrip('/')}/checkpoints")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir",), places={"workdir": None})
