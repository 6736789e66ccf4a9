"""Runs the benchmarks of a checkout (`benchmarks/`): `python -m drenet_jax.benchmark --help`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    if not (REPOSITORY / "benchmarks" / "__main__.py").is_file():
        print(
            "error: the benchmarks are not part of the installed package; run "
            "`python -m drenet_jax.benchmark` in a checkout of the repository.",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.path.insert(0, str(REPOSITORY))
    # For the processes that the benchmarks start.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    )
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
