"""How much of the cost of a step replicates share: 8 in one call against single calls.

``python -m benchmarks.replicates`` times SGD with B = 1 on 8 bootstrap samples of the diabetes data, each with its own
learning rate, 256 trajectories each, interleaved, and prints medians and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import sdebias as sb

ROOT = Path(__file__).parents[1]
REPLICATES, TRAJECTORIES, STEPS, ROUNDS = 8, 256, 2000, 9


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Time both, and print a row of the results table."""
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
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"one call {1e3 * one:.0f} ms, {REPLICATES} replicates in one call {1e3 * eight:.0f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
