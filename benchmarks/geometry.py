"""Cost of orbit geometry: structured groups against the dense formula, and growth in r, n and trajectories.

Run with ``python benchmarks/geometry.py``; one thread, medians. The large case runs in a process of its own, whose peak
resident memory is read before and after the call.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdebias.layout import ParameterLayout
from sdebias.symmetry import GeneralLinear, Rescaling, Symmetry

MIB = 2**20
LIMIT_GIB = 2.0


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


def growth(title: str, cases: list[tuple[str, Symmetry, int]], dense: bool = True) -> None:
    """Print times of the projection with the ratio to the case before, and to the dense formula."""
    print(
        f"\n{title}\n{'case':>28} {'structured':>12} {'growth':>8} {'dense':>12} {'growth':>8} {'dense/structured':>17}"
    )
    before: tuple[float, float] | None = None
    for label, symmetry, trajectories in cases:
        vector, theta = draw(symmetry, trajectories)
        fast = median_time(partial(symmetry.vertical_projection, vector, theta))
        slow = median_time(partial(dense_projection, symmetry, vector, theta)) if dense else float("nan")
        ratios = (fast / before[0], slow / before[1]) if before else (float("nan"), float("nan"))
        row = f"{label:>28} {1e3 * fast:9.2f} ms {ratios[0]:8.2f} {1e3 * slow:9.2f} ms {ratios[1]:8.2f}"
        print(f"{row} {slow / fast:17.1f}")
        before = (fast, slow)


def large_case(r: int, n: int, trajectories: int) -> tuple[float, float, float]:
    """Return seconds, resident MiB before the call and peak MiB after it, of one projection."""
    torch.set_num_threads(1)
    symmetry = factorisation(r, n)
    vector, theta = draw(symmetry, trajectories)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    seconds = median_time(lambda: symmetry.vertical_projection(vector, theta), repeats=3)
    return seconds, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> int:
    """Print all tables; return 1 if the large case needs more memory than it may."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one CPU thread, float64, medians of 5")
    growth("GL(r): r, n = m = 16, 16 trajectories", [(f"r={r}", factorisation(r, 16), 16) for r in (2, 4, 8, 16)])
    growth("GL(4): n = m, 16 trajectories", [(f"n={n}", factorisation(4, n), 16) for n in (16, 32, 64, 128)])
    growth("GL(4): trajectories, n = m = 16", [(f"trajectories={t}", factorisation(4, 16), t) for t in (16, 64, 256)])
    growth("Rescaling: pairs, 64 trajectories", [(f"pairs={n}", hadamard(n), 64) for n in (8, 16, 32, 64)])
    growth(
        "GL(r), structured only: n = m = 256, 64", [(f"r={r}", factorisation(r, 256), 64) for r in (8, 16, 32)], False
    )

    growth("GL(32): n = m = 256, one trajectory", [("trajectories=1", factorisation(32, 256), 1)])

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, before, peak = pool.apply(large_case, (32, 256, 1024))
    print("\nGL(32), n = m = 256, 1,024 trajectories, d = 16,384, in a process of its own")
    print(f"  one projection {seconds:.2f} s; peak {peak:.0f} MiB, of which {before:.0f} MiB before the call")
    print(f"  the dense fields alone would be {32**2 * 2 * 256 * 32 * 1024 * 8 / 2**30:.0f} GiB")
    return int(peak / 1024 > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
