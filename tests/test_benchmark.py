"""The benchmark's table holds what was measured, beside its reference."""

from __future__ import annotations

import json
import time

import pytest

from drenet_jax.benchmarks import timing


def test_works_are_timed_in_turn_after_a_round_unmeasured():
    calls = []
    times = timing.side_by_side(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3
    )
    assert calls == ["a", "b"] * 4
    assert [len(one.seconds) for one in times.values()] == [3, 3]


def test_a_ratio_is_of_rounds_with_their_own_reference():
    row = timing.ratio_row(
        "ct", "work", timing.Timing((2.0, 9.0, 3.0)), "rest", timing.Timing((1.0, 3.0, 1.0)), 2.5
    )
    assert row.ratio == 3.0
    assert not row.reached
    assert (row.value, row.low, row.high) == (3000.0, 2000.0, 9000.0)


def test_time_is_measured_in_seconds():
    (slept,) = timing.side_by_side({"sleep": lambda: time.sleep(0.01)}, rounds=1).values()
    assert slept.median >= 0.01


def test_the_command_writes_the_table_it_prints(command, phantoms, tmp_path):
    series = next((phantoms / "dicom").iterdir())
    out = tmp_path / "speed.json"
    done = command("benchmark", "--suite=ct", f"--series={series}", "--rounds=1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"processor", "cores", "versions"} <= found["machine"].keys()
    whole = found["rows"][0]
    assert whole["what"] == f"{series.name}: the whole transform"
    assert whole["ratio"] > 1
    assert whole["reached"] == (whole["ratio"] <= 2.5)
    assert f"{whole['value']:.1f} ms" in done.stdout


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--suite=speed", "--suite=speed is not known"), ("--out=.", "exists already")],
)
def test_what_cannot_be_measured_is_refused(flag, said, command):
    done = command("benchmark", flag)
    assert done.returncode == 2
    assert said in done.stderr
