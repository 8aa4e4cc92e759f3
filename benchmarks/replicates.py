"""How much of the cost of a step replicates share: 8 in one call against single calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import sdebias as sb

from . import processes
from .report import markdown, significant

ROOT = Path(__file__).parents[1]
REPLICATES, TRAJECTORIES, STEPS, ROUNDS = 8, 256, 2000, 9


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times() -> dict[str, float]:
    """Return the medians of one call and of all replicates in one call, and the median of their ratio."""
    rng = np.random.default_rng(0)
    with xr.open_dataset(ROOT / "data" / "diabetes.nc") as data:
        n = data.sizes["sample"]
        rows = rng.integers(0, n, (REPLICATES, n))
        X, y = data["X"].values[rows], data["y"].values[rows]
    rates = [1e-3 * (r + 1) for r in range(REPLICATES)]
    symmetry = sb.symmetry.Rescaling("p", "q")
    together = sb.problems.HadamardRegression(X, y)
    single = sb.problems.HadamardRegression(X[0], y[0])

    def run(problem: sb.Problem, rate: float | list[float]) -> None:
        sb.simulate(
            problem,
            sb.SGD(learning_rate=rate),
            symmetry=symmetry,
            trajectories=TRAJECTORIES,
            steps=STEPS,
            save_every=STEPS // 20,
            progress=False,
        )

    rounds = [(timed(lambda: run(single, rates[0])), timed(lambda: run(together, rates))) for _ in range(ROUNDS)]
    one, eight = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    return {"one": one, "eight": eight, "ratio": ratio}


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the medians with one thread and with two."""
    rows = []
    for threads in range(1, min(2, len(allowed)) + 1):
        with processes.worker(allowed, threads) as process:
            rows.append({"threads": threads, **process.submit(times).result()})
    return {"rows": rows}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    head = ["threads", "one call", f"{REPLICATES} replicates in one call", f"ratio ({REPLICATES} separate calls: 8)"]
    rows = [
        [
            str(row["threads"]),
            *(f"{significant(1e3 * row[name], 3)} ms" for name in ("one", "eight")),
            significant(row["ratio"], 3),
        ]
        for row in data["rows"]
    ]
    return (
        "## Replicates share the overhead of a step\n\n"
        "SGD with B = 1 on bootstrap samples of the diabetes data (n = 442, 10 features, float64), "
        f"{TRAJECTORIES} trajectories each, {STEPS:,} updates, 21 saves; {REPLICATES} replicates with their own data "
        f"and learning rates in one call against one call for one of them, in turn, medians of {ROUNDS}.\n\n"
        f"{markdown(head, rows)}\n\n"
        "Bound: dispatch of operators for each update, whatever the number of rows; passes over memory for the rows."
    )
