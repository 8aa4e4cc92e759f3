"""A million trajectories: in memory, as statistics, and in a run directory, each in a process of its own, in turn."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sdebias as sb

from . import machine, processes
from .report import markdown, significant
from .workloads import WORKLOADS

TRAJECTORIES, STEPS, SAVES, ROUNDS = 10**6, 1_000, 20, 5
KEPT = ["predictor", "loss"]
STATISTICS = ["mean", "covariance", "quantiles"]
MEMORY, VALUES, ONLINE, STORED = (
    "in memory: predictor and loss at the end",
    "in memory: predictor and loss at 20 saves",
    "in memory: their statistics",
    "run directory: their statistics",
)
WAYS = (MEMORY, VALUES, ONLINE, STORED)


class Way:
    """One way of keeping the ensemble, in this process."""

    def __init__(self, name: str, trajectories: int, steps: int) -> None:
        workload = WORKLOADS["W1"]()
        self.name, self.model = name, (workload.problem(), workload.dynamics())
        self.arguments: dict[str, Any] = {"trajectories": trajectories, "steps": steps, "save_every": steps // SAVES}
        self.arguments |= {"save": KEPT, "compile": True, "progress": False}
        if name == MEMORY:
            self.arguments["save_every"] = steps
        if name in (ONLINE, STORED):
            self.arguments["statistics"] = STATISTICS

    def seconds(self, **sizes: int) -> tuple[float, int]:
        """Return what one call takes, and the bytes that it leaves on the disk."""
        with tempfile.TemporaryDirectory() as name:
            folder, arguments = Path(name) / "run", self.arguments | sizes
            start = time.perf_counter()
            if self.name == STORED:
                sb.run(*self.model, folder, **arguments)
            else:
                sb.simulate(*self.model, **arguments)
            taken = time.perf_counter() - start
            return taken, sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0


@functools.cache
def _prepared(name: str, trajectories: int, steps: int) -> tuple[Way, float]:
    """Return a way that has compiled what it needs, kept in this process, and the memory that is there then."""
    way = Way(name, trajectories, steps)
    way.seconds(trajectories=min(trajectories, 10_000))
    return way, machine.settle()


def measure_one(name: str, trajectories: int = TRAJECTORIES, steps: int = STEPS) -> dict[str, Any]:
    """Return seconds of one call in this process, peak memory above what was there before, and MiB written."""
    way, before = _prepared(name, trajectories, steps)
    seconds, written = way.seconds()
    return {"seconds": seconds, "peak": machine.resident("VmHWM") - before, "written": written / machine.MIB}


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the numbers of each way, each in a process of its own, measured in turn."""
    with ExitStack() as stack:
        ways = {name: stack.enter_context(processes.worker(allowed, len(allowed))) for name in WAYS}
        rounds = [{n: way.submit(measure_one, n).result() for n, way in ways.items()} for _ in range(ROUNDS)]
    rows = []
    for name in ways:
        each = [taken[name] for taken in rounds]
        peak, written = (max(taken[what] for taken in each) for what in ("peak", "written"))
        seconds = statistics.median(taken["seconds"] for taken in each)
        rows.append({"name": name, "seconds": seconds, "peak": peak, "written": written})
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
        f"medians of {ROUNDS}, taken in turn; statistics are means, covariances and quantiles at {SAVES} saves. A run "
        f"directory holds the states, too, from which it can be extended.\n\n{markdown(head, rows)}"
    )
