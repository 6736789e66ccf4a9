"""Programs compiled ahead of time for accelerators that are not here, and what the compilers plan.

Each program is compiled in a process of its own: a fault of XLA ends its process (SIGABRT) and
raises no exception.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from benchmarks.targets import GIB, TARGETS, Target, compiler_environment
from drenet_jax.errors import InputError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "jax-cuda12-plugin", "nvidia-cudnn-cu12", "libtpu")

# The bare programs are the ResNet passes that the others need, with nothing else.
BARE = {
    "training step": "bare training passes",
    "prediction": "bare passes",
    "explanation": "bare passes",
}
PROGRAMS = (*BARE, "bare training passes", "bare passes")

# Exit code of a child whose input cannot be used.
_BAD_INPUT = 2

# Most that a program may need of its bare passes: traffic, operations.
_AIMS = (1.04, 1.02)

_PAGE_BEGIN, _PAGE_END = "<!-- compiled: begin -->\n", "<!-- compiled: end -->\n"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler plans for one program on one device of a target.

    Attributes:
      target, program: their names.
      per_device: slices on each device.
      dtype: of the convolutions.
      flops: operations of the program as written, before the compiler changes it.
      traffic_bytes: what its kernels read from and write to the device's main memory
        (`hlo.Program.traffic_bytes`).
      accessed_bytes: the compiler's own figure of that, on TPU, where it counts on-chip memory too;
        0 on GPU, where it has none.
      estimated_cycles: the compiler's own estimate of the time, on TPU; 0 on GPU.
      memory_bytes: of arguments, results and temporary arrays.
      fixed_bytes: the part of it that does not grow with the batch (weights, optimiser).
      kernels: instructions of the entry computation.
      custom_calls: library function -> calls.
      all_reduces: how many.
      convolutions: type of the operands -> how many.
      compile_s: seconds in the compiler, on the machine that compiled it.
      error: why there is no plan; ''.
    """

    target: str
    program: str
    per_device: int
    dtype: str
    flops: float = 0.0
    traffic_bytes: float = 0.0
    accessed_bytes: float = 0.0
    estimated_cycles: int = 0
    memory_bytes: int = 0
    fixed_bytes: int = 0
    kernels: int = 0
    custom_calls: dict[str, int] = dataclasses.field(default_factory=dict)
    all_reduces: int = 0
    convolutions: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_s: float = 0.0
    error: str = ""

    def compute_s(self) -> float:
        """Seconds at the device's peak rate for bfloat16, the fastest type."""
        return self.flops / TARGETS[self.target].bf16_flops

    def memory_s(self) -> float:
        """Seconds at the memory's full bandwidth."""
        return self.traffic_bytes / TARGETS[self.target].bandwidth

    def roofline_s(self) -> float:
        """The larger of the two: no run is faster."""
        return max(self.compute_s(), self.memory_s())

    def largest_batch(self) -> int:
        """Slices on a device that fit its memory, if what is not fixed grows as the batch does."""
        free = TARGETS[self.target].memory_bytes - self.fixed_bytes
        return int(self.per_device * free / (self.memory_bytes - self.fixed_bytes))


def plan(target: Target, program: str, config: ml_collections.ConfigDict, per_device: int) -> Plan:
    """Compiles one program for one target, in this process.

    Args:
      target: for which.
      program: one of `PROGRAMS`.
      config: of a DRENet.
      per_device: slices on each device.

    Raises:
      InputError: the config describes no model.
    """
    # Imported here: the parent of these processes needs no JAX.
    import jax
    import numpy as np

    from benchmarks import hlo, programs
    from drenet_jax.parallel import AXIS

    made = programs.make_program(program, config, target.platform, per_device)
    lowered = made.lower(target.mesh())
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    # A GPU's compiler counts no operations, so those of the program as written count everywhere.
    here = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), (AXIS,))
    text = hlo.Program(compiled.as_text())
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return Plan(
        target=target.name,
        program=program,
        per_device=per_device,
        dtype=config.model.dtype,
        flops=made.lower(here).cost_analysis()["flops"],
        traffic_bytes=text.traffic_bytes(),
        accessed_bytes=cost.get("bytes accessed", 0.0),
        estimated_cycles=text.estimated_cycles(),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        fixed_bytes=made.fixed_bytes,
        kernels=text.kernels(),
        custom_calls=dict(text.custom_calls()),
        all_reduces=text.all_reduces(),
        convolutions=dict(text.convolutions()),
        compile_s=seconds,
    )


def plan_in_child(
    target: Target, program: str, config: ml_collections.ConfigDict, per_device: int
) -> Plan:
    """As `plan`, in a process of its own; if that ends in a fault, the plan has an `error`."""
    with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
        out = Path(folder) / "plan.json"
        arguments = [target.name, program, config.to_dict(), per_device, str(out)]
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.ahead_of_time", json.dumps(arguments)],
            env=os.environ | compiler_environment(target),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if child.returncode == 0:
            return Plan(**json.loads(out.read_text(encoding="utf-8")))
    if child.returncode == _BAD_INPUT:
        raise InputError(child.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return Plan(target.name, program, per_device, config.model.dtype, error=_reason(child))


def _reason(child: subprocess.CompletedProcess) -> str:
    lines = [line for line in child.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if "Check failed" in line]
    result = (fatal or lines or ["nothing was printed"])[-1].strip()[:300]
    if child.returncode < 0:
        return f"{signal.Signals(-child.returncode).name} in the compiler: {result}"
    return f"exit code {child.returncode}: {result}"


# --- tables ------------------------------------------------------------------------------------


_COLUMNS = (
    "target",
    "program, slices a device",
    "TFLOP",
    "traffic, GB",
    "roofline, ms (compute, memory)",
    "slices a second, at most",
    "memory, GiB",
    "largest batch",
    "kernels",
    "all-reduces",
    "float32 convolutions",
    "relative to bare passes: operations, traffic",
    "compiler's own count (relative to bare passes)",
)


def table(plans: Sequence[Plan]) -> str:
    """The plans in Markdown, each relative to its bare passes."""
    rows = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for plan in plans:
        row = [plan.target, f"{plan.program}, {plan.per_device} {plan.dtype}"]
        row += [plan.error] if plan.error else _cells(plan, bare_of(plan, plans))
        rows.append(row + [""] * (len(_COLUMNS) - len(row)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(plan: Plan, bare: Plan | None) -> list[str]:
    cells = [
        f"{plan.flops / 1e12:.2f}",
        f"{plan.traffic_bytes / 1e9:.1f}",
        f"{1e3 * plan.roofline_s():.1f} "
        f"({1e3 * plan.compute_s():.1f}, {1e3 * plan.memory_s():.1f})",
        f"{plan.per_device / plan.roofline_s():.0f}",
        f"{plan.memory_bytes / GIB:.1f}",
        f"{plan.largest_batch()}",
        f"{plan.kernels}",
        f"{plan.all_reduces}",
        f"{plan.convolutions.get('f32', 0)} of {sum(plan.convolutions.values())}",
        "",
        "",
    ]
    if bare is not None:
        cells[-2] = f"{plan.flops / bare.flops:.3f}, {plan.traffic_bytes / bare.traffic_bytes:.3f}"
    if plan.accessed_bytes:
        cells[-1] = f"{plan.accessed_bytes / 1e9:.1f} GB, {plan.estimated_cycles / 1e6:.1f} Mcycles"
        if bare is not None:
            bytes_ratio = plan.accessed_bytes / bare.accessed_bytes
            cycles_ratio = plan.estimated_cycles / bare.estimated_cycles
            cells[-1] += f" ({bytes_ratio:.3f}, {cycles_ratio:.3f})"
    return cells


def bare_of(plan: Plan, plans: Sequence[Plan]) -> Plan | None:
    """The plan of the bare passes of a program, compiled in the same way."""
    for other in plans:
        if (other.target, other.program, other.error) == (plan.target, BARE.get(plan.program), ""):
            return other
    return None


def failures(plans: Sequence[Plan]) -> list[str]:
    """The programs that were not compiled or miss their targets."""
    shortfalls = []
    for plan in plans:
        if plan.error:
            shortfalls.append(f"{plan.target}: {plan.program}: {plan.error}")
            continue
        bare = bare_of(plan, plans)
        if bare is None:
            continue
        ratios = plan.traffic_bytes / bare.traffic_bytes, plan.flops / bare.flops
        for ratio, aim, what in zip(ratios, _AIMS, ("traffic", "operations"), strict=True):
            if ratio > aim:
                shortfalls.append(
                    f"{plan.target}: {plan.program}: {ratio:.3f} of the {what} of its bare passes; "
                    f"the target is {aim}."
                )
    return shortfalls


def calls(plans: Sequence[Plan]) -> str:
    """Which library functions each program calls, in Markdown."""
    lines = ["| target | program | library calls |", "| --- | --- | --- |"]
    for plan in plans:
        if not plan.error:
            named = ", ".join(
                f"{count} {name.removeprefix('__')}"
                for name, count in sorted(plan.custom_calls.items())
            )
            lines.append(f"| {plan.target} | {plan.program} | {named or 'none'} |")
    return "\n".join(lines) + "\n"


def write_page(page: Path, results: Sequence[Path]) -> None:
    """Puts the tables of several results of this suite (`--out`) between the marks of a page.

    Raises:
      InputError: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if _PAGE_BEGIN not in text or _PAGE_END not in text:
        marks = f"{_PAGE_BEGIN.strip()} and {_PAGE_END.strip()}"
        raise InputError(f"--page={page} lacks the marks {marks} between which the tables go.")
    before, _, rest = text.partition(_PAGE_BEGIN)
    after = rest.partition(_PAGE_END)[2]
    page.write_text(
        before + _PAGE_BEGIN + page_tables(results) + _PAGE_END + after, encoding="utf-8"
    )


def page_tables(results: Sequence[Path]) -> str:
    """The tables of several results, one after the other."""
    plans, versions = [], []
    for path in results:
        data = json.loads(path.read_text(encoding="utf-8"))
        plans += [Plan(**fields) for fields in data["plans"]]
        named = ", ".join(
            f"{name} {version}" for name, version in data["machine"]["versions"].items()
        )
        targets = dict.fromkeys(plan["target"] for plan in data["plans"])
        versions.append(f"- {', '.join(targets)}: {named}")
    return "\n".join([table(plans), *versions, "", calls(plans)])


def _main() -> None:
    target, program, config, per_device, out = json.loads(sys.argv[1])
    try:
        result = plan(TARGETS[target], program, ml_collections.ConfigDict(config), per_device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    Path(out).write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


if __name__ == "__main__":
    _main()
