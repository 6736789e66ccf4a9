"""Timings side by side, and the table that shows them."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work over several rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def per(self, count: int) -> Timing:
        """The same for one of `count` things that the work does."""
        return Timing(tuple(seconds / count for seconds in self.seconds))


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a measurement, its reference and its target.

    Attributes:
      suite: of the row.
      what: is measured.
      value: the figure.
      low, high: its extremes over the rounds.
      unit: of the three.
      reference: what it is compared with, measured in the same rounds; '' if nothing.
      ratio: the figure over the reference's, or None.
      aim: the target of the ratio or the measurement, in words; '' if there is none.
      reached: whether it is, or None.
    """

    suite: str
    what: str
    value: float
    low: float
    high: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    aim: str = ""
    reached: bool | None = None


def interleaved_timings(
    workloads: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Timing]:
    """Times pieces of work in turn, so that a busy moment of the machine hits all of them.

    Args:
      workloads: name -> the work, which waits for its own result.
      rounds: how often. Each time a work is run twice and the second is measured: what another one
        gave back to the system, a virtual machine hands to its host, and the next to ask for it
        waits, as it would not in a loop of its own.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(rounds):
        for name, work in workloads.items():
            gc.collect()
            work()
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio_row(
    suite: str, what: str, timing: Timing, reference: str, baseline: Timing, at_most: float
) -> Row:
    """A row whose target is a ratio of two times, compared round by round."""
    ratios = np.array(timing.seconds) / np.array(baseline.seconds)
    ratio = float(np.median(ratios))
    return Row(
        suite=suite,
        what=what,
        value=1e3 * timing.median,
        low=1e3 * min(timing.seconds),
        high=1e3 * max(timing.seconds),
        unit="ms",
        reference=f"{reference}: {1e3 * baseline.median:.1f} ms",
        ratio=ratio,
        aim=f"≤ {at_most:g}",
        reached=ratio <= at_most,
    )


def faster_row(
    suite: str, what: str, timing: Timing, reference: str, baseline: Timing, at_least: float
) -> Row:
    """As `ratio_row`, but how many times as long the reference takes, at least `at_least` times."""
    row = ratio_row(suite, what, timing, reference, baseline, 1 / at_least)
    ratio = float(np.median(np.array(baseline.seconds) / np.array(timing.seconds)))
    return dataclasses.replace(row, ratio=ratio, aim=f"≥ {at_least:g}", reached=ratio >= at_least)


def plain_row(suite: str, what: str, timing: Timing) -> Row:
    """A row of a time without a reference."""
    seconds = timing.seconds
    return Row(suite, what, 1e3 * timing.median, 1e3 * min(seconds), 1e3 * max(seconds), "ms")


def machine(packages: Sequence[str], device: str = "") -> dict[str, object]:
    """What the figures depend on: processor, cores, versions.

    Args:
      packages: names of packages whose versions matter, if they are installed.
      device: the accelerator; "": there is none.
    """
    return {
        "processor": _processor(),
        "device": device or "cpu",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        # Huge pages make a training step on CPU 15% faster.
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages if _version(name)},
    }


def _version(package: str) -> str:
    """'' of a package that is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| suite | what | median (min to max) | reference | ratio | target | reached |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        measured = f"{row.value:.1f} {row.unit} ({row.low:.1f} to {row.high:.1f})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        lines.append(
            f"| {row.suite} | {row.what} | {measured} | {row.reference} | {ratio} | {row.aim} "
            f"| {reached} |"
        )
    return "\n".join(lines)
