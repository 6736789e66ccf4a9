"""Times training, inference and preprocessing, alternating with references, in one run.

Suites:
  model    a training step and a prediction, compared with their bare ResNet passes and, if torch
           and tests/oracles are available, with the published model in PyTorch
  input    slices per second that one core reads, compared with a training step
  ct       `prepare`'s transform of a series, compared with the decoding of its sampled files
  predict  `predict` of one patient, cold and warm, compared with its forward passes
  runtime  a prediction in XLA (twice), ONNX Runtime, OpenVINO and PyTorch, on the CPU
  lite     EfficientNet-Lite0, compared with the PyTorch package of its weights, on the CPU
  parity   a device's results, compared with those of the CPU in float32
  compile  (only alone) prediction, explanation and training step, compiled ahead of time for GPUs
           and TPUs (--target), compared with their bare ResNet passes; nothing is run

--profile breaks down the time of a training step, --memory prints the memory of a step by batch
size, --grow shows how the cost scales, with a plot for each in --plots.

Examples:

  python -m drenet_jax.benchmark --suite=model,input,ct,predict --out=speed.json
  python -m drenet_jax.benchmark --suite=ct --series=exports/p001,exports/p002
  CUDA_VISIBLE_DEVICES=0 python -m drenet_jax.benchmark --suite=model --profile --device=gpu \\
      --batch=16 --dtype=bfloat16 --out=h100.json
  python -m drenet_jax.benchmark --suite= --memory --grow=size,k,batch,persons --plots=plots
  python -m drenet_jax.benchmark --suite=compile --target=h100,a100 --out=gpu.json
  python -m drenet_jax.benchmark --suite=compile --target=v5e-4 --programs=prediction,"bare passes"

Prints a table; --out gets the same as JSON, with the machine and the versions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
from pathlib import Path

from absl import flags

from benchmarks.ahead_of_time import PROGRAMS
from benchmarks.targets import TARGETS
from drenet_jax import cli
from drenet_jax.ct.settings import CtSettings
from drenet_jax.errors import InputError

SUITES = ("model", "input", "ct", "predict")
RUNTIME = "runtime"
LITE = "lite"
PARITY = "parity"
COMPILE = "compile"
GROW = ("size", "k", "batch", "persons")
DEVICES = ("cpu", "gpu")
DTYPES = ("", "float32", "bfloat16")

_MODEL_CONFIG = cli.CONFIGS / "drenet.py"


def define_flags() -> None:
    flags.DEFINE_list(
        "suite",
        list(SUITES),
        f"What to measure: {', '.join(SUITES)}, {RUNTIME}, {LITE}, {PARITY}; or {COMPILE} alone.",
    )
    flags.DEFINE_list(
        "target", ["h100"], f"Of --suite={COMPILE}, the devices: {', '.join(TARGETS)}."
    )
    flags.DEFINE_list("programs", list(PROGRAMS), f"Of --suite={COMPILE}: {', '.join(PROGRAMS)}.")
    flags.DEFINE_string("page", "", f"Of --suite={COMPILE}: a page to write the tables to.")
    flags.DEFINE_list("results", [], "Files of --out whose tables are written to --page.")
    flags.DEFINE_bool("profile", False, "Break down the time of a training step.")
    flags.DEFINE_bool("memory", False, "Print the memory of a training step by batch size.")
    flags.DEFINE_list("grow", [], f"How the cost scales with: {', '.join(GROW)}.")
    flags.DEFINE_string("plots", "", "A new folder for the plots of --grow.")
    flags.DEFINE_enum("device", "cpu", DEVICES, "Where the network runs.")
    flags.DEFINE_integer(
        "batch",
        None,
        "Slices in a training step and a forward pass on one device; if not given, 2, or 16 for "
        f"--suite={COMPILE}.",
        lower_bound=1,
    )
    flags.DEFINE_enum("dtype", "", DTYPES, "Of the convolutions; empty: that of the config.")
    flags.DEFINE_string("model", str(_MODEL_CONFIG), "The config of a DRENet to measure.")
    flags.DEFINE_string("out", "", "A JSON file to write; it must not exist yet.")
    flags.DEFINE_list("series", [], "DICOM series; none: a phantom's.")
    flags.DEFINE_integer("rounds", 7, "How often each workload is timed.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of phantoms and fills.", lower_bound=0)
    cli.define_config("prepare", "the preprocessing")


def main() -> None:
    from benchmarks import timing

    values = flags.FLAGS
    suites = [suite for suite in values.suite if suite]
    _check(suites, values)
    if suites == [COMPILE]:
        _compile(values)
        return
    batch = values.batch or 2
    rows, notes, packages, device, config = [], [], [], "", None
    if set(suites) - {"ct"} or values.profile or values.memory or values.grow:
        device = _use_device(values.device)
        config = _model_config(values)
        from benchmarks.model import PACKAGES

        packages += PACKAGES
    series = [Path(path) for path in values.series]
    settings = CtSettings.from_dict(values.config.to_dict())
    rounds, seed = values.rounds, values.seed

    def add(rows_and_notes: tuple) -> None:
        rows.extend(rows_and_notes[0])
        notes.extend(rows_and_notes[1])

    if "model" in suites:
        from benchmarks import model

        add(model.run(config, batch, rounds, values.device))
    if RUNTIME in suites:
        from benchmarks import runtimes

        add(runtimes.run(config, batch, rounds))
        packages += runtimes.PACKAGES
    if LITE in suites:
        from benchmarks import lite

        add(lite.run(batch, rounds))
        packages += lite.PACKAGES
    if PARITY in suites:
        from benchmarks import parity

        add(parity.run(config, batch, values.device))
    if values.profile:
        from benchmarks import profile

        add(profile.run(config, batch, rounds, values.device))
    if "input" in suites:
        from benchmarks import input as feeding

        add(feeding.run(config, settings, series, batch, rounds, seed))
        packages += feeding.PACKAGES
    if "ct" in suites:
        from benchmarks import ct

        rows += ct.run(series, settings, seed, rounds)
        packages += ct.PACKAGES
    if "predict" in suites:
        from benchmarks import person

        add(person.run(config, settings, series, rounds, seed, values.device))
        packages += person.PACKAGES
    if values.memory:
        from benchmarks import memory

        add(memory.run(config))
    if values.grow:
        from benchmarks import grow
        from drenet_jax.output_files import new_folder

        if values.plots:
            with new_folder(values.plots) as folder:
                add(grow.run(values.grow, config, rounds, folder))
        else:
            add(grow.run(values.grow, config, rounds, None))
    machine = timing.machine(sorted(set(packages)), device)
    print(timing.table(rows))
    print(
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['device']}, "
        f"load {machine['load_average_1_min']}"
    )
    for note in notes:
        print(note)
    if values.out:
        result = {
            "machine": machine,
            "rows": [dataclasses.asdict(row) for row in rows],
            "notes": notes,
        }
        Path(values.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _compile(values: flags.FlagValues) -> None:
    from benchmarks import ahead_of_time, timing

    config = _model_config(values)
    config.model.dtype = values.dtype or "bfloat16"
    plans = []
    for target in filter(None, values.target):
        for program in values.programs:
            print(f"{target}: {program} ...", file=sys.stderr, flush=True)
            plans.append(
                ahead_of_time.plan_in_child(TARGETS[target], program, config, values.batch or 16)
            )
    if plans:
        print(ahead_of_time.table(plans))
        print(ahead_of_time.calls(plans))
        for failure in ahead_of_time.failures(plans):
            print(failure)
    if values.out:
        machine = timing.machine(ahead_of_time.PACKAGES, ", ".join(values.target))
        result = {"machine": machine, "plans": [dataclasses.asdict(plan) for plan in plans]}
        Path(values.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if values.page:
        ahead_of_time.write_page(Path(values.page), [Path(path) for path in values.results])
    if any(plan.error for plan in plans):
        sys.exit(1)


def _check(suites: list[str], values: flags.FlagValues) -> None:
    if COMPILE in suites and suites != [COMPILE]:
        raise InputError(f"--suite={COMPILE} measures nothing; name it alone.")
    for flag, given, known in (
        ("suite", suites, (*SUITES, RUNTIME, LITE, PARITY, COMPILE)),
        ("grow", values.grow, GROW),
        ("target", filter(None, values.target), TARGETS),
        ("programs", values.programs, PROGRAMS),
    ):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"--{flag}={unknown[0]} is not known; use {', '.join(known)}.")
    for suite in (RUNTIME, LITE):
        if suite in suites and values.device != "cpu":
            raise InputError(f"--suite={suite} measures on the CPU; leave out --device.")
    if COMPILE in suites:
        for target in filter(None, values.target):
            TARGETS[target].check_compiler()
    if values.out and os.path.lexists(values.out):
        raise InputError(f"--out={values.out} exists already; name a new file.")
    if not Path(values.model).is_file():
        raise InputError(f"--model={values.model} is no file; name a config like drenet.py.")


def _model_config(values: flags.FlagValues):
    config = runpy.run_path(values.model)["get_config"]()
    if config.model.name != "drenet":
        raise InputError(f"--model={values.model} is not of a DRENet.")
    if values.dtype:
        config.model.dtype = values.dtype
    return config


def _use_device(device: str) -> str:
    """Selects the device for JAX; returns its name."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu"}[device]
    # PyTorch, and `predict` in a separate process, take their share of the same memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise InputError(
            f"--device={device}: JAX finds none here; install drenet_jax[cuda12] on a machine "
            "with an NVIDIA GPU, or use --device=cpu."
        ) from error
    if len(devices) > 1:
        raise InputError(
            f"--device={device}: {len(devices)} devices are visible, but the benchmarks "
            "measure one; set CUDA_VISIBLE_DEVICES=0."
        )
    return devices[0].device_kind


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=())
