"""Timing: contenders checked on the same moments, warmed up, then timed in turn, round after round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t
from torch import Tensor

ROUNDS = 5
ENOUGH = 0.5  # seconds of calls in each turn
FALSE_ALARM = 1e-6
CHECKED = 200_000

States = np.ndarray  # θ at the end, shape (trajectory, parameter)
Moments = Callable[[States], np.ndarray]


class NotInstalledError(Exception):
    """A peer's package is absent; the message names it."""


@dataclass(frozen=True)
class Contender:
    """One way to do a workload.

    Parameters
    ----------
    name : str
    build : callable
        Prepares everything that a user prepares once, and returns the call that is timed.
    trajectories, steps : int
        Of one call.
    bound : str
        What limits its speed.
    states : callable, optional
        Returns θ at the end, shape (trajectory, parameter), from what the call returns; None for a limit, which does
        only a part of the work and has no result to check.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    trajectories: int
    steps: int
    bound: str
    states: Callable[[Any], Tensor | np.ndarray] | None = None


def moments_about(center: np.ndarray, loss: Callable[[States], np.ndarray]) -> Moments:
    """Return a function from states to samples of moments, shape (trajectory, moment).

    The moments are L, ‖θ‖², ‖θ − center‖², which pools the variances of all parameters, and every θ_j.
    """

    def moments(states: States) -> np.ndarray:
        spread = np.square(states - center).sum(-1)
        return np.column_stack([loss(states), np.square(states).sum(-1), spread, states])

    return moments


def largest_deviation(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the largest |z| between the means of two samples of moments, and the limit that it must not pass.

    The limit is the two-sided quantile of Student's t at `FALSE_ALARM` for all moments together (Bonferroni).
    """
    error = np.sqrt(sum(part.var(0, ddof=1) / len(part) for part in (samples, reference)))
    # Rounding alone moves a mean of float32 numbers by this much.
    floor = 1e-5 * (np.abs(reference.mean(0)) + reference.std(0))
    z = np.abs(samples.mean(0) - reference.mean(0)) / np.maximum(error, floor)
    return float(z.max()), float(t.isf(FALSE_ALARM / 2 / samples.shape[1], len(samples) - 1))


def as_states(values: Tensor | np.ndarray) -> States:
    """Return states, of as many trajectories as a check needs, as a float64 array on the host."""
    values = values[:CHECKED]
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def turn(call: Callable[[], Any]) -> tuple[list[float], Any]:
    """Return the seconds of each of the calls of one turn, and what the last one returned.

    Short calls are repeated: the first one after other work finds no page, no cache and no branch as it left them.
    """
    times: list[float] = []
    end = time.perf_counter() + ENOUGH
    while not times or time.perf_counter() < end:
        result = None  # what is kept is in the way of the next call
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return times, result


def compare(
    contenders: Sequence[Contender], moments: Moments, reference: np.ndarray, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Check all contenders, time them in turn, and return one row of numbers for each.

    Parameters
    ----------
    contenders : sequence of Contender
    moments : callable
        From states to samples of moments.
    reference : array, shape=(trajectory, moment)
        Of the reference solution.
    rounds : int
        Of which medians are taken.

    Returns
    -------
    list of dict
        `seconds` (median), `after` (median of the first calls of turns, after those of others), `rate`
        (trajectory-steps a second), `first` (seconds that the first call of all took longer: compilation, caches), `z`
        and `limit` of the check; `missing` where a package is absent.

    Raises
    ------
    RuntimeError
        If a contender disagrees with the reference.
    """
    rows: list[dict[str, Any]] = []
    calls: dict[int, Callable[[], Any]] = {}
    for index, contender in enumerate(contenders):
        row: dict[str, Any] = {name: getattr(contender, name) for name in ("name", "bound", "trajectories", "steps")}
        rows.append(row)
        try:
            start = time.perf_counter()
            call = contender.build()
            result = call()
            row["first"] = time.perf_counter() - start
        except NotInstalledError as absent:
            row["missing"] = str(absent)
            continue
        if contender.states is not None:
            row["z"], row["limit"] = largest_deviation(moments(as_states(contender.states(result))), reference)
            if not row["z"] < row["limit"]:
                raise RuntimeError(f"{contender.name}: moments deviate by {row['z']:.1f} > {row['limit']:.1f} errors")
        calls[index] = call
    turns: dict[int, list[list[float]]] = {index: [] for index in calls}
    for _ in range(rounds):
        gc.collect()
        for index, call in calls.items():
            turns[index].append(turn(call)[0])
    for index, times in turns.items():
        row = rows[index]
        row["seconds"] = statistics.median(statistics.median(seconds) for seconds in times)
        row["after"] = statistics.median(seconds[0] for seconds in times)
        row["rate"] = row["trajectories"] * row["steps"] / row["seconds"]
        row["first"] = max(0.0, row["first"] - row["seconds"])
    return rows


def ratio(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], name: str) -> float:
    """Return the rate of a row over that of the row called `name`; NaN where either was not timed."""
    rates = {other["name"]: other.get("rate", math.nan) for other in rows}
    return float(row.get("rate", math.nan) / rates.get(name, math.nan))
