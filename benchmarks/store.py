"""A million trajectories: in memory, as statistics, and in a run directory, in a process of its own on all cores."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import sdebias as sb

from . import machine, processes
from .report import markdown, significant
from .workloads import WORKLOADS

TRAJECTORIES, STEPS, SAVES, ROUNDS = 10**6, 1_000, 20, 3
KEPT = ["predictor", "loss"]
STATISTICS = ["mean", "covariance", "quantiles"]
MEMORY, VALUES, ONLINE, STORED = (
    "in memory: predictor and loss at the end",
    "in memory: predictor and loss at 20 saves",
    "in memory: their statistics",
    "run directory: their statistics",
)


def measure_one(
    name: str, trajectories: int = TRAJECTORIES, steps: int = STEPS, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Return median seconds, peak memory above what was there before, and MiB written, of one way in this process."""
    workload = WORKLOADS["W1"]()
    model = workload.problem(), workload.dynamics()
    arguments: dict[str, Any] = {"trajectories": trajectories, "steps": steps, "save_every": steps // SAVES}
    arguments |= {"save": KEPT, "compile": True, "progress": False}
    if name == MEMORY:
        arguments["save_every"] = steps
    if name in (ONLINE, STORED):
        arguments["statistics"] = STATISTICS
    written = 0
    with tempfile.TemporaryDirectory() as folder:

        def call(number: int, **sizes: int) -> float:
            start = time.perf_counter()
            if name == STORED:
                sb.run(*model, Path(folder) / str(number), **(arguments | sizes))
            else:
                sb.simulate(*model, **(arguments | sizes))
            return time.perf_counter() - start

        call(0, trajectories=min(trajectories, 10_000))  # compiles
        before = machine.settle()
        times = [call(number) for number in range(1, rounds + 1)]
        peak = machine.resident("VmHWM") - before
        if name == STORED:
            written = sum(file.stat().st_size for file in (Path(folder) / "1").iterdir())
    return {"name": name, "seconds": statistics.median(times), "peak": peak, "written": written / machine.MIB}


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the numbers of each way."""
    rows = []
    for name in (MEMORY, VALUES, ONLINE, STORED):
        with processes.worker(allowed, len(allowed)) as process:
            rows.append(process.submit(measure_one, name).result())
    return {"rows": rows, "cores": len(allowed)}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    base = next(row["seconds"] for row in data["rows"] if row["name"] == VALUES)
    rows = [
        [
            row["name"],
            f"{significant(row['seconds'], 3)} s",
            significant(base / row["seconds"]),
            f"{row['peak']:.0f} MiB",
            f"{row['written']:.1f} MiB" if row["written"] else "–",
        ]
        for row in data["rows"]
    ]
    head = ["W1, float32", "time", "rate, over in memory at 20 saves", "peak memory", "written"]
    return (
        f"## A million trajectories\n\n{TRAJECTORIES:,} trajectories × {STEPS:,} steps of W1 on {data['cores']} cores, "
        f"medians of {ROUNDS}; statistics are means, covariances and quantiles at {SAVES} saves. A run directory holds "
        f"the states, too, from which it can be extended.\n\n{markdown(head, rows)}"
    )
