"""The main job, `sdebias run experiments/diabetes.toml`, from start to end."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sdebias as sb
from sdebias import cli, config

from . import processes
from .report import scientific, significant

CONFIG = Path(__file__).parents[1] / "experiments" / "diabetes.toml"
DRAWS = 10**6


def run() -> float:
    """Return the seconds of the job in this process."""
    start = time.perf_counter()
    quiet = io.StringIO()
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet), tempfile.TemporaryDirectory() as folder:
        code = cli.main(["run", str(CONFIG), "--out", folder])
    if code != 0:
        raise RuntimeError(f"sdebias run {CONFIG.name} ended with exit code {code}")
    return time.perf_counter() - start


def normals_a_second() -> float:
    """Return how many normals torch draws a second on one thread, in single precision as the engine draws them."""
    buffer = torch.empty(DRAWS)
    buffer.normal_()
    start = time.perf_counter()
    for _ in range(20):
        buffer.normal_()
    return 20 * DRAWS / (time.perf_counter() - start)


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the time of the job on all cores, and what its draws alone take."""
    job = config.load(CONFIG, {})
    settings = job.settings
    draws = sum(
        settings.trajectories * settings.steps * dynamics.substeps * job.problem.n_samples
        for dynamics in job.dynamics.values()
        if isinstance(dynamics, sb.SGDSDE)
    )
    with processes.worker(allowed, len(allowed)) as process:
        seconds = process.submit(run).result()
        rate = process.submit(normals_a_second).result()
    sizes = {"trajectories": settings.trajectories, "steps": settings.steps, "cores": len(allowed)}
    return {**sizes, "seconds": seconds, "draws": draws, "rate": rate}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    alone = data["draws"] / data["rate"] / data["cores"]
    return (
        f"## The main job\n\n`make run` after set-up, float64: {data['trajectories']:,} trajectories × {data['steps']} "
        f"updates of SGD and of its SDE, prediction, comparison and figure take {significant(data['seconds'])} s on "
        f"{data['cores']} cores. Bound: passes over memory, several for each substep over a weight for each sample of "
        f"each trajectory. Drawing the {scientific(data['draws'])} normals, one for each weight, alone takes "
        f"{significant(alone)} s at {scientific(data['rate'])} a second on each core."
    )
