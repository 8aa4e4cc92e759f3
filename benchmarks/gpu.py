"""W1 at three sizes, W2 and W5 on a CUDA device, against the same contenders on the same device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from . import sde, torch_peers
from .report import table
from .timing import Contender
from .workloads import Hadamard, ReLU, Toy, Workload

STATE = "limit: the state read and written once a step"
BASELINES = {**sde.BASELINES, "state": STATE}
UNTESTED = (
    "## GPU\n\nUntested on GPU: no CUDA device was available where these numbers were taken. `python -m benchmarks "
    "--device cuda` measures W1 at 1e4, 1e6 and 1e7 trajectories, W2 and W5, and writes them here."
)


def workloads() -> list[Workload]:
    """Return the workloads, those with many trajectories for fewer steps."""
    return [
        Toy("cuda"),
        Toy("cuda", trajectories=10**6, steps=100),
        Toy("cuda", trajectories=10**7, steps=50),
        Hadamard("cuda"),
        ReLU("cuda"),
    ]


def state_alone(workload: Workload) -> Callable[[], None]:
    """Return a call that reads and writes θ once a step: the bandwidth bound of one kernel for each step."""
    theta = torch_peers.starts(workload, workload.trajectories)

    def call() -> None:
        for _ in range(workload.steps):
            theta.mul_(1.0)
        torch.cuda.synchronize()

    return call


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the numbers of all workloads on the GPU."""
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks gpu: expected a CUDA device, found none; leave the section out")
    contests = []
    for workload in workloads():
        limit = Contender(
            STATE,
            lambda workload=workload: state_alone(workload),  # type: ignore[misc]
            workload.trajectories,
            workload.steps,
            "memory bandwidth, launches",
        )
        contests.append({"key": workload.key, **sde.contest(workload, [limit])})
    return {"contests": contests}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    parts = ["## GPU"]
    for found in data["contests"]:
        size = f"{found['trajectories']:,} trajectories × {found['steps']} steps"
        parts += [f"### {found['key']}: {found['title']}, {size}", table(sde.with_shares(found["rows"]), BASELINES)]
    return "\n\n".join(parts)
