"""Contenders take turns, a missing package is a row, and tables say what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import report, timing
from benchmarks.timing import Contender, NotInstalledError, compare, largest_deviation, ratio, turn

REFERENCE = np.random.default_rng(0).standard_normal((100, 3))


@pytest.mark.usefixtures("single_calls")
def test_contenders_take_turns_after_one_call_that_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, lambda: lambda: calls.append(name), 10, 2, "nothing")

    rows = compare([contender("a"), contender("b")], lambda states: states, REFERENCE, rounds=3)
    assert calls == ["a", "b", *["a", "b"] * 3]
    assert [row["rate"] for row in rows] == [20 / row["seconds"] for row in rows]
    assert [row["after"] for row in rows] == [row["seconds"] for row in rows]


def test_a_turn_repeats_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts how often it is read, and a call that reads it as often as the test says."""
    clock = itertools.count()
    monkeypatch.setattr(timing, "ENOUGH", 20)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert turn(lambda: [next(clock) for _ in range(3)][-1]) == ([4] * 4, 22)
    assert turn(lambda: [next(clock) for _ in range(30)][-1])[0] == [31]


def test_a_missing_package_is_a_row() -> None:
    def absent() -> Callable[[], None]:
        raise NotInstalledError("jax is not installed")

    rows = compare([Contender("peer", absent, 10, 2, "nothing")], lambda states: states, REFERENCE)
    assert rows == [
        {"name": "peer", "bound": "nothing", "trajectories": 10, "steps": 2, "missing": "jax is not installed"}
    ]
    assert "jax is not installed" in report.table(rows, {"peer": "peer"})
    assert np.isnan(ratio(rows, rows[0], "peer"))


def test_largest_deviation_counts_standard_errors() -> None:
    """The same numbers deviate by nothing, numbers that are shifted by 5 standard errors by 5/√2."""
    same, limit = largest_deviation(REFERENCE, REFERENCE)
    assert same == 0
    assert 5 < limit < 6
    shifted = REFERENCE + np.array([0, 5 * REFERENCE[:, 1].std(ddof=1) / 10, 0])
    assert largest_deviation(shifted, REFERENCE)[0] == pytest.approx(5 / np.sqrt(2))


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (1234.5, "1,230"), (9.999, "10.0"), (float("nan"), ""), (0, "0")]
)
def test_significant(value: float, text: str) -> None:
    assert report.significant(value, 3) == text
