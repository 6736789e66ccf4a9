"""The project's speeds beside their references, measured in turn in one run (DESIGN section 6).

Suites:
  ct   `prepare`'s transform of a series beside the decoding of its picked files

Examples:

  python -m drenet_jax.benchmark --suite=ct
  python -m drenet_jax.benchmark --suite=ct --series=exports/p001,exports/p002 --out=speed.json

Prints a table; --out gets the same as JSON, with the machine and the versions.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.ct.settings import CtSettings
from drenet_jax.errors import InputError

SUITES = ("ct",)


def define_flags() -> None:
    flags.DEFINE_list("suite", list(SUITES), f"What to measure: {', '.join(SUITES)}.")
    flags.DEFINE_string("out", "", "A JSON file to write; it must not exist yet.")
    flags.DEFINE_list("series", [], "DICOM series for the suite ct; none: a phantom's.")
    flags.DEFINE_integer("rounds", 7, "How often each piece of work is timed.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of phantoms and fills.", lower_bound=0)
    cli.define_prepare_config()


def main() -> None:
    from drenet_jax.benchmarks import ct, timing

    values = flags.FLAGS
    unknown = sorted(set(values.suite) - set(SUITES))
    if unknown:
        raise InputError(f"--suite={unknown[0]} is not known; use {', '.join(SUITES)}.")
    if values.out and os.path.lexists(values.out):
        raise InputError(f"--out={values.out} exists already; name a new file.")
    rows, packages = [], []
    if "ct" in values.suite:
        series = [Path(one) for one in values.series]
        rows += ct.run(
            series, CtSettings.from_dict(values.config.to_dict()), values.seed, values.rounds
        )
        packages += ct.PACKAGES
    machine = timing.machine(packages)
    print(timing.table(rows))
    print(
        f"\n{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1_min']}"
    )
    if values.out:
        found = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
        Path(values.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=())
