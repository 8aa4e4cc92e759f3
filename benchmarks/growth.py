"""W6: time per trajectory-step and peak memory as steps, trajectories and parameters grow, through `simulate`.

Each point has a process of its own on one core. The first call compiles; the next ones give time and peak.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

import sdebias as sb

from . import machine, processes
from .report import markdown, significant
from .workloads import WORKLOADS, Hadamard

FIGURE = Path(__file__).parent / "growth.png"
AXES = {"steps": "steps", "trajectories": "trajectories", "parameters": "parameters d"}
CASES = {"W1": "W1: toy, isotropic noise", "W2": "W2: Hadamard regression, n = 64, minibatch noise"}
ENOUGH = 2.0  # seconds of timed calls, at most three of them

Point = tuple[str, int, int, int]  # case, trajectories, steps, parameters


def points() -> dict[str, list[Point]]:
    """Return the points of each sweep; the other sizes are such that a point takes seconds."""
    steps = [10**k for k in (2, 3, 4, 5)]
    many = [10**k for k in (2, 3, 4, 5, 6)]
    wide = [4**k for k in range(1, 7)]
    return {
        "steps": [*(("W1", 1_000, count, 2) for count in steps), *(("W2", 64, count, 64) for count in steps)],
        "trajectories": [*(("W1", count, 500, 2) for count in many), *(("W2", count, 10, 64) for count in many)],
        "parameters": [("W2", 1_000, max(20, 4_000 // size), size) for size in wide],
    }


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


def measure_point(case: str, trajectories: int, steps: int, parameters: int) -> dict[str, Any]:
    """Return the numbers of one point: seconds, and memory in MiB, of the first call and of later ones."""
    model, dynamics = problem(case, parameters)
    sizes = {"trajectories": trajectories, "steps": steps}
    options: dict[str, Any] = {**sizes, "compile": True, "save_every": steps, "save": ["loss"]}
    times: list[float] = []
    memory: list[float] = []
    result = 0.0
    while len(times) < 2 or (len(times) < 4 and sum(times[1:]) < ENOUGH):
        before = machine.settle()
        start = time.perf_counter()
        ensemble = sb.simulate(model, dynamics, progress=False, **options)
        times.append(time.perf_counter() - start)
        memory.append(machine.resident("VmHWM") - before)
        result = ensemble.nbytes / machine.MIB
        del ensemble
    return {
        **{"case": case, **sizes, "parameters": parameters, "result": result},
        **{"seconds": statistics.median(times[1:]), "peak": max(memory[1:])},
        **{"first": times[0], "first_peak": memory[0]},
    }


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return all points of all sweeps, and draw the figure."""
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for axis, cases in points().items():
        sweeps[axis] = []
        for case in cases:
            with processes.worker(allowed, 1) as process:
                sweeps[axis].append(process.submit(measure_point, *case).result())
    draw(sweeps)
    return {"sweeps": sweeps}


def nanoseconds(point: dict[str, Any]) -> float:
    """Return the time per trajectory-step in ns."""
    return 1e9 * point["seconds"] / (point["trajectories"] * point["steps"])


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
        "sdebias through `simulate`, each point in a process of its own, saving the loss at the start and at the end. "
        "The peak is above what is resident before the call, and holds the result; that of the first call holds the "
        "compiler, too.",
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
    return "\n".join(lines)
