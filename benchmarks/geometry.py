"""Cost of orbit geometry: structured groups against the dense formula, and growth in r, n and trajectories.

One thread, medians. The large case runs in a process of its own, whose peak resident memory is that of the call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdebias.layout import ParameterLayout
from sdebias.symmetry import GeneralLinear, Rescaling, Symmetry

from . import machine, processes
from .report import markdown, significant

LARGE = (32, 256, 1024)


@dataclass(frozen=True)
class Shapes:
    """What a symmetry is bound to."""

    layout: ParameterLayout


def factorisation(r: int, n: int) -> Symmetry:
    """Return GL(r) on U Vᵀ with n × r factors."""
    return GeneralLinear("U", "V").bind(Shapes(ParameterLayout({"U": (n, r), "V": (n, r)})))


def hadamard(n: int) -> Symmetry:
    """Return the rescalings of n pairs."""
    return Rescaling("p", "q").bind(Shapes(ParameterLayout({"p": (n,), "q": (n,)})))


def dense_projection(symmetry: Symmetry, vector: Tensor, theta: Tensor) -> Tensor:
    """Return X G⁺ Xᵀ v from dense fields, dim · d numbers a point."""
    fields = symmetry.fundamental_vector_fields(theta)
    inverse = torch.linalg.pinv(fields @ fields.mT, hermitian=True)
    return (fields.mT @ (inverse @ (fields @ vector.unsqueeze(-1)))).squeeze(-1)


def median_time(call: Callable[[], Tensor], repeats: int = 5) -> float:
    """Return the median time of a call in seconds, after one call that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def draw(symmetry: Symmetry, trajectories: int) -> tuple[Tensor, Tensor]:
    """Return random vectors and points, float64."""
    generator = torch.Generator().manual_seed(0)
    size = symmetry.layout.size
    vector, theta = (torch.randn(trajectories, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return vector, theta


def cases() -> list[tuple[str, Symmetry, int, bool]]:
    """Return (name, symmetry, trajectories, whether the dense formula fits)."""
    few = "16 trajectories"
    return [
        *((f"GL(r), n = m = 16, {few}: r = {r}", factorisation(r, 16), 16, True) for r in (2, 4, 8, 16)),
        *((f"GL(4), {few}: n = m = {n}", factorisation(4, n), 16, True) for n in (16, 32, 64, 128)),
        *((f"GL(4), n = m = 16: {t} trajectories", factorisation(4, 16), t, True) for t in (16, 64, 256)),
        *((f"rescaling of {n} pairs, 64 trajectories", hadamard(n), 64, True) for n in (8, 16, 32, 64)),
        *((f"GL(r), n = m = 256, 64 trajectories: r = {r}", factorisation(r, 256), 64, False) for r in (8, 16, 32)),
        ("GL(32), n = m = 256, 1 trajectory", factorisation(32, 256), 1, True),
    ]


def large_case(r: int, n: int, trajectories: int) -> tuple[float, float]:
    """Return the seconds and the peak in MiB of one projection in this process."""
    symmetry = factorisation(r, n)
    vector, theta = draw(symmetry, trajectories)
    machine.settle()
    seconds = median_time(lambda: symmetry.vertical_projection(vector, theta), repeats=3)
    return seconds, machine.resident("VmHWM")


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the times of all cases, and time and peak memory of the large one."""
    rows: list[dict[str, Any]] = []
    for name, symmetry, trajectories, fits in cases():
        vector, theta = draw(symmetry, trajectories)
        row = {"name": name, "structured": median_time(partial(symmetry.vertical_projection, vector, theta))}
        if fits:
            row["dense"] = median_time(partial(dense_projection, symmetry, vector, theta))
        rows.append(row)
    with processes.worker(allowed, 1) as process:
        seconds, peak = process.submit(large_case, *LARGE).result()
    return {"rows": rows, "large": {"seconds": seconds, "peak": peak}}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    rows = []
    for row in data["rows"]:
        times = [f"{significant(1e3 * row[name], 3)} ms" if name in row else "" for name in ("structured", "dense")]
        rows.append([row["name"], *times, significant(row["dense"] / row["structured"]) if "dense" in row else ""])
    (r, n, trajectories), large = LARGE, data["large"]
    fields = r**2 * 2 * n * r * trajectories * 8 / 2**30
    peak = f"{significant(large['seconds'])} s, peak of the process {significant(large['peak'] / 1024)} GiB"
    name = f"GL({r}), n = m = {n}, {trajectories:,} trajectories (d = {2 * n * r:,})"
    rows.append([name, peak, f"does not fit: fields alone {fields:.0f} GiB", ""])
    return (
        "## Projection under structured groups\n\n"
        "One thread, float64, medians of 5: one projection P_V v, against the dense formula X G⁺ Xᵀ v from fields and "
        f"Gram matrix.\n\n{markdown(['case', 'structured', 'dense', 'dense / structured'], rows)}\n\n"
        "Bound: the products with U and V, O((n + m) r²) flops a trajectory, and small eigenproblems of size r."
    )
