"""Plans of programs that are compiled ahead of time for GPUs and TPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import ahead_of_time as suite
from benchmarks import hlo
from benchmarks.targets import TARGETS
from drenet_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]

# A module as XLA:GPU prints it: a convolution by cuDNN, a fusion that reads one operand whole and a
# slice of another, a reduction over devices.
GPU = """HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[8,64], p.1: f32[1000]) -> bf16[8,64] {
  %p.0 = bf16[8,64]{1,0} parameter(0)
  %p.1 = f32[1000]{0} parameter(1)
  %bitcast.1 = f32[1000]{0} bitcast(%p.1)
  %slice.1 = f32[64]{0} slice(%bitcast.1), slice={[0:64]}
  ROOT %mul = bf16[8,64]{1,0} multiply(%p.0, %slice.1)
}

ENTRY %main.1 (Arg_0: bf16[8,64], /*index=1*/Arg_1: f32[1000]) -> bf16[8,64] {
  %Arg_0 = bf16[8,64]{1,0} parameter(0)
  %Arg_1 = f32[1000]{0} parameter(1)
  %conv.1 = (bf16[8,64]{1,0}, u8[16]{0}) custom-call(%Arg_0, %Arg_0), \
custom_call_target="__cudnn$convForward", backend_config={"a":"(1)"}
  %conv.2 = bf16[8,64]{1,0} get-tuple-element(%conv.1), index=0
  %reduce = f32[1000]{0} all-reduce-start(%Arg_1), to_apply=%add
  %done = f32[1000]{0} all-reduce-done(%reduce)
  ROOT %fusion.1 = bf16[8,64]{1,0} fusion(%conv.2, %done), kind=kLoop, calls=%fused
}
"""

# As XLA:TPU prints it: S(1) is on the chip.
TPU = """ENTRY %main (a: f32[4,100]) -> f32[4,100] {
  %a = f32[4,100]{1,0:T(8,128)} parameter(0)
  %s = ((f32[4,100]{1,0}), f32[4,10]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={}
  %s.1 = f32[4,10]{1,0:T(8,128)S(1)} slice-done(%s)
  %c = (f32[4,100]{1,0:T(8,128)S(1)}, f32[4,100]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %c.1 = f32[4,100]{1,0:T(8,128)S(1)} copy-done(%c)
  %k = f32[7,7]{1,0:S(1)} convolution(%c.1, %s.1), window={size=1}
  ROOT %f = f32[4,100]{1,0:T(8,128)} copy(%c.1)
}
"""


def test_traffic_is_what_kernels_read_and_write_and_a_slice_counts_as_itself():
    program = hlo.Program(GPU)
    convolution = 3 * 8 * 64 * 2 + 16
    reduction = 2 * 1000 * 4
    fusion = 2 * 8 * 64 * 2 + 64 * 4
    assert program.traffic_bytes() == convolution + reduction + fusion
    assert program.kernels() == 3
    assert program.all_reduces() == 1
    assert program.convolutions() == {"bf16": 1}
    assert program.custom_calls() == {"__cudnn$convForward": 1}


def test_a_tpus_traffic_leaves_out_what_stays_on_the_chip():
    program = hlo.Program(TPU)
    # The slice, the copy onto the chip and the copy from it.
    assert program.traffic_bytes() == 4 * 10 * 4 + 2 * 4 * 100 * 4
    assert program.convolutions() == {"f32": 1}


def _plan(program, **values):
    given = {"flops": 4e12, "traffic_bytes": 1e11, "memory_bytes": 12 << 30, "fixed_bytes": 2 << 30}
    return suite.Plan("h100", program, 16, "bfloat16", **given | values)


def test_a_roofline_is_bound_by_the_slower_of_compute_and_memory():
    by_memory, by_compute = _plan("prediction"), _plan("prediction", flops=989e12)
    assert by_memory.roofline_s() == pytest.approx(1e11 / 3.35e12)
    assert by_compute.roofline_s() == pytest.approx(1.0)
    # 78 GiB are free beside what is fixed, of which 16 slices take 10.
    assert by_memory.largest_batch() == 124


def test_a_program_stands_beside_its_bare_passes():
    step, bare = _plan("training step"), _plan("bare training passes", traffic_bytes=8e10)
    assert suite.bare_of(step, [step, bare]) is bare
    assert suite.bare_of(bare, [step, bare]) is None
    assert "| 1.000, 1.250 |" in suite.table([step, bare])
    (failure,) = suite.failures([step, bare])
    assert failure == (
        "h100: training step: 1.250 of the traffic of its bare passes; the target is 1.04."
    )


def test_a_compiler_that_aborts_is_reported_and_is_no_bare_pass():
    stderr = "W0 slow\nF0 1129 triton.cc:627] Check failed: x != y\n*** stack\n"
    child = subprocess.CompletedProcess([], -6, "", stderr)
    reason = suite._reason(child)
    assert reason == "SIGABRT in the compiler: F0 1129 triton.cc:627] Check failed: x != y"
    aborted = suite.Plan("h100", "bare training passes", 16, "bfloat16", error=reason)
    step = _plan("training step")
    assert suite.bare_of(step, [step, aborted]) is None
    assert suite.failures([step, aborted]) == [f"h100: bare training passes: {reason}"]
    rows = suite.table([aborted]).splitlines()
    assert reason in rows[2]
    assert {row.count("|") for row in rows} == {14}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_target_is_described_whole(target):
    assert target.platform in ("gpu", "tpu")
    assert bool(target.description) == (target.platform == "gpu")
    if target.description:
        # XLA's text format: each brace is closed.
        assert target.description.count("{") == target.description.count("}") == 3


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="XLA:GPU is installed"
)
def test_without_the_compiler_the_command_says_what_to_install(command):
    done = command("benchmark", "--suite=compile", "--target=h100", "--programs=prediction")
    assert done.returncode == 2, done.stderr
    assert "--target=h100: the compiler for it is not installed" in done.stderr
    assert "install drenet_jax[cuda12]" in done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--target=h1000", "--target=h1000 is not known"),
        ("--programs=speed", "--programs=speed is not known"),
        ("--suite=compile,ct", "--suite=compile measures nothing; name it alone"),
    ],
)
def test_flags_of_the_suite_are_checked(flag, message, command):
    done = command("benchmark", "--suite=compile", flag)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_page_holds_the_tables_of_the_results_beside_it():
    docs = REPOSITORY / "docs"
    results = [docs / "accelerators" / f"{name}.json" for name in ("gpu", "tpu")]
    text = (docs / "accelerators.md").read_text(encoding="utf-8")
    assert suite.page_tables(results) in text
    plans = [
        suite.Plan(**fields) for path in results for fields in json.loads(path.read_text())["plans"]
    ]
    assert {plan.program for plan in plans} == set(suite.PROGRAMS)
    assert not [plan for plan in plans if plan.error]


def test_a_page_without_marks_is_refused_and_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n")
    with pytest.raises(InputError, match="lacks the marks"):
        suite.write_page(page, [])
    assert page.read_text() == "# Nothing\n"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--gpu=h100", "--tpu="), ("--gpu=", "--tpu=v5e-4")])
def test_all_programs_compile_for_a_gpu_and_a_tpu(flags, tmp_path):
    # Makes the compilers' environments where they are missing: minutes, and some gigabytes.
    if shutil.disk_usage(Path.home()).free < 20e9:
        pytest.skip("less than 20 GB are free for the compilers' environments")
    done = subprocess.run(
        ["bash", "launch/compile_check.sh", f"--out={tmp_path}", *flags],
        cwd=REPOSITORY,
        # The programs that users run, not the hastily compiled ones of conftest.py.
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.glob("*.json")
    plans = [suite.Plan(**fields) for fields in json.loads(result.read_text())["plans"]]
    assert [plan.program for plan in plans] == list(suite.PROGRAMS)
    step = plans[0]
    if step.target == "h100":
        assert step.traffic_bytes < 90e9
        assert step.convolutions.keys() == {"bf16"}
