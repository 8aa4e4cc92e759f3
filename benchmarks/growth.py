"""W6: time per trajectory-step and peak memory as steps, trajectories and parameters grow, through `simulate`.

Each point has a process of its own on one core, and the points of a curve take turns. The first call compiles; the
next ones give time and peak.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

import sdebias as sb

from . import machine, processes
from .report import markdown, significant
from .timing import turn
from .workloads import WORKLOADS, Hadamard

FIGURE = Path(__file__).parent / "growth.png"
AXES = {"steps": "steps", "trajectories": "trajectories", "parameters": "parameters d"}
CASES = {"W1": "W1: toy, isotropic noise", "W2": "W2: Hadamard regression, n = 64, minibatch noise"}
FLAT = {"steps": (10**3, 10**5), "trajectories": (10**4, 10**6)}  # where the time per trajectory-step shall be flat
ROUNDS = 5

Point = tuple[str, int, int, int]  # case, trajectories, steps, parameters


def points() -> dict[str, list[Point]]:
    """Return the points of each sweep; what does not grow is as in W1 and W2."""
    steps = [10**k for k in (2, 3, 4, 5)]
    many = [10**k for k in (2, 3, 4, 5, 6)]
    wide = [4**k for k in range(1, 7)]
    return {
        "steps": [*(("W1", 10_000, count, 2) for count in steps), *(("W2", 1_000, count, 64) for count in steps)],
        "trajectories": [*(("W1", count, 500, 2) for count in many), *(("W2", count, 100, 64) for count in many)],
        "parameters": [("W2", 1_000, max(20, 4_000 // size), size) for size in wide],
    }


@functools.cache
def problem(case: str, parameters: int) -> tuple[sb.Problem, sb.SGDSDE]:
    """Return problem and dynamics of a case; Hadamard regression has as many features as the parameters need."""
    workload = WORKLOADS[case]()
    if case == "W1":
        return workload.problem(), workload.dynamics()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((Hadamard.size, parameters // 2)) / math.sqrt(parameters // 2)
    y = rng.standard_normal(Hadamard.size)
    data = (torch.tensor(values, dtype=torch.float32) for values in (X, y))
    return sb.problems.HadamardRegression(*data, initial={"p": 0.7, "q": 0.4}), workload.dynamics()


def call(case: str, trajectories: int, steps: int, parameters: int) -> dict[str, float]:
    """Return the seconds of a call in this process, the median of a turn, and in MiB its peak memory and its result."""
    model, dynamics = problem(case, parameters)
    options: dict[str, Any] = {"compile": True, "save_every": steps, "save": ["loss"], "progress": False}
    before = machine.settle()
    times, ensemble = turn(lambda: sb.simulate(model, dynamics, trajectories=trajectories, steps=steps, **options))
    peak, result = machine.resident("VmHWM") - before, ensemble.nbytes / machine.MIB
    return {"seconds": statistics.median(times), "peak": peak, "result": result}


def sweep(cases: Sequence[Point], allowed: list[int]) -> list[dict[str, Any]]:
    """Return the numbers of points that take turns, each in a process of its own."""
    with ExitStack() as stack:
        workers = [stack.enter_context(processes.worker(allowed, 1)) for _ in cases]
        calls = [
            [worker.submit(call, *case).result() for worker, case in zip(workers, cases, strict=True)]
            for _ in range(1 + ROUNDS)
        ]
    found = []
    for case, (first, *later) in zip(cases, zip(*calls, strict=True), strict=True):
        point: dict[str, Any] = dict(zip(("case", "trajectories", "steps", "parameters"), case, strict=True))
        point |= {"seconds": statistics.median(one["seconds"] for one in later), "result": first["result"]}
        point |= {"peak": max(one["peak"] for one in later)}
        found.append(point | {"first": first["seconds"], "first_peak": first["peak"]})
    return found


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return all points of all sweeps, and draw the figure."""
    sweeps = {
        axis: [point for case in CASES for point in sweep([one for one in cases if one[0] == case], allowed)]
        for axis, cases in points().items()
    }
    draw(sweeps)
    return {"sweeps": sweeps}


def nanoseconds(point: dict[str, Any]) -> float:
    """Return the time per trajectory-step in ns."""
    return 1e9 * point["seconds"] / (point["trajectories"] * point["steps"])


def flatness(axis: str, found: Sequence[dict[str, Any]]) -> str:
    """Return how much the time per trajectory-step varies where it shall be flat."""
    low, high = FLAT[axis]
    parts = []
    for case in CASES:
        costs = [nanoseconds(point) for point in found if point["case"] == case and low <= point[axis] <= high]
        change = 100 * (costs[-1] / costs[0] - 1)
        parts.append(f"{case}: {change:+.0f} %, largest over smallest {max(costs) / min(costs):.2f}")
    return f"Time per trajectory-step from {low:,} to {high:,} {axis}: {'; '.join(parts)}."


def draw(sweeps: dict[str, list[dict[str, Any]]]) -> None:
    """Draw time per trajectory-step and peak memory over each size."""
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        panels = figure.subplots(2, len(sweeps), sharex="col", sharey="row")
        for column, (axis, found) in enumerate(sweeps.items()):
            for number, (case, label) in enumerate(CASES.items()):
                line = [point for point in found if point["case"] == case]
                sizes = [point[axis] for point in line]
                style = {"marker": "os"[number], "color": f"C{number}", "label": label}
                panels[0, column].loglog(sizes, [nanoseconds(point) for point in line], **style)
                panels[1, column].semilogx(sizes, [point["peak"] for point in line], **style)
            panels[1, column].set_yscale("symlog", linthresh=1, linscale=0.5)
            panels[1, column].set_xlabel(AXES[axis])
        panels[1, 0].set_ylim(bottom=0)  # after all lines: it fixes the other end, too
        panels[0, 0].set_ylabel("time per trajectory-step / ns")
        panels[1, 0].set_ylabel("peak memory of the call / MiB")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(CASES))
        figure.savefig(FIGURE, dpi=150)


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    lines = [
        f"## {key}: growth with steps, trajectories and parameters",
        "",
        f"![Time per trajectory-step and peak memory]({FIGURE.name})",
        "",
        "sdebias through `simulate`, each point in a process of its own, saving the loss at the start and at the end; "
        f"the points of a curve take turns, medians of {ROUNDS}. The peak is above what is resident before the call, "
        "and holds the result; that of the first call holds the compiler, too.",
    ]
    head = ["", "trajectories", "steps", "parameters", "ns / trajectory-step", "peak", "of it the result"]
    head += ["first call", "its peak"]
    for axis, found in data["sweeps"].items():
        rows = [
            [
                point["case"],
                *(f"{point[name]:,}" for name in ("trajectories", "steps", "parameters")),
                significant(nanoseconds(point), 3),
                *(f"{significant(point[name], 2)} MiB" for name in ("peak", "result")),
                f"{significant(point['first'], 2)} s",
                f"{significant(point['first_peak'], 2)} MiB",
            ]
            for point in found
        ]
        lines += ["", f"Growing {axis}:", "", markdown(head, rows)]
        if axis in FLAT:
            lines += ["", flatness(axis, found)]
    return "\n".join(lines)
