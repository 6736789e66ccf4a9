"""Whether two results of `predict` are the same but for the rounding of floats."""

from __future__ import annotations

import pytest


def assert_same(given: dict, expected: dict) -> None:
    """Floats within 1e-4, all else equal; the runtimes' names do not count."""
    given, expected = ({**result, "runtime": ""} for result in (given, expected))
    assert _floats(given) == pytest.approx(_floats(expected), abs=1e-4)
    assert _without_floats(given) == _without_floats(expected)


def _floats(result: object) -> list[float]:
    if isinstance(result, dict):
        return [number for value in result.values() for number in _floats(value)]
    if isinstance(result, list):
        return [number for value in result for number in _floats(value)]
    return [result] if isinstance(result, float) else []


def _without_floats(result: object) -> object:
    if isinstance(result, dict):
        return {name: _without_floats(value) for name, value in result.items()}
    if isinstance(result, list):
        return [_without_floats(value) for value in result]
    return float if isinstance(result, float) else result
