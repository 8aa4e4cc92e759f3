"""What it costs to run on workers of dask instead of threads: ``python -m experiments.distribution``.

The numbers go into docs/howto/cluster.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

import sdebias as sb
from sdebias.ensemble.cluster import connect
from sdebias.storage import RunDirectory

from .faults import differences

TARGET = Path(__file__).parents[1] / "docs" / "howto" / "cluster.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
WORKERS, REPEATS = 2, 5
SAMPLES, FEATURES, TRAJECTORIES, STEPS = 64, 16, 4096, 200


def measure(function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds on the clock that a call takes, and those of processors, here and in what was started here."""
    cpu, wall = _processor_seconds(), time.perf_counter()
    function()
    return time.perf_counter() - wall, _processor_seconds() - cpu


def _processor_seconds() -> float:
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def main() -> None:
    """Measure in turn, and write the medians."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((SAMPLES, FEATURES))
    problem = sb.problems.HadamardRegression(X, X[:, 0], initial={"p": 1.0, "q": 0.3})
    sde = sb.SGDSDE(learning_rate=1e-3, batch_size=4)
    torch.set_num_threads(WORKERS)
    took: dict[str, list[tuple[float, float]]] = {"threads": [], "workers": []}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, connect(f"local:{WORKERS}", problem) as client:
        started = time.perf_counter() - start
        for repeat in range(-1, REPEATS):  # the first is not counted: what it imports and allocates, later ones have
            for where, scheduler in (("threads", None), ("workers", client.scheduler_info()["address"])):
                out = Path(name) / f"{where}{repeat}"

                def run(out: Path = out, scheduler: str | None = scheduler) -> None:
                    sb.run(problem, sde, out, trajectories=TRAJECTORIES, steps=STEPS, scheduler=scheduler).close()

                times = measure(run)
                print(f"{where} {repeat}: {times[0]:.2f} s, processors {times[1]:.2f} s", flush=True)
                if repeat >= 0:
                    took[where].append(times)
        with sb.open(Path(name) / "threads0") as one, sb.open(Path(name) / "workers0") as other:
            assert differences(one, other) == []
        shards = len(RunDirectory(Path(name) / "threads0").manifest.shards)
    (wall, wall_threads), (cpu, cpu_threads) = (
        [median(times[which] for times in took[where]) for where in ("workers", "threads")] for which in (0, 1)
    )
    text = (
        f"What it costs: {WORKERS} workers start, and import torch and sdebias, in {started:.0f} s. After that, a\n"
        f"Hadamard regression (n = {SAMPLES}, d = {FEATURES}, minibatch noise, {TRAJECTORIES:,} trajectories,\n"
        f"{STEPS:,} updates in {shards} shards) took {wall / wall_threads:.2f} times as long on them as on {WORKERS}\n"
        f"threads ({wall:.1f} s against {wall_threads:.1f} s) and {cpu / cpu_threads:.2f} times the processor time\n"
        f"({cpu:.1f} s against {cpu_threads:.1f} s); medians of {REPEATS}, in turn, on {os.cpu_count()} cores, by\n"
        "`python -m experiments.distribution`.\n"
    )
    before, _, rest = TARGET.read_text().partition(BEGIN)
    TARGET.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    print(text)


if __name__ == "__main__":
    main()
