"""Runs in processes of their own: peak memory of a call, and calls with another number of threads."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from . import machine, torch_peers
from .timing import turn
from .workloads import WORKLOADS

Call = Callable[[], Any]


def worker(allowed: Sequence[int], threads: int) -> ProcessPoolExecutor:
    """Return one fresh process with its own cores and threads.

    It is forked from a server that has imported everything and run nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(1, context, machine.pin, (list(allowed), threads))


@functools.cache
def prepared(kind: str, key: str, trajectories: int, steps: int, options: tuple[tuple[str, Any], ...] = ()) -> Call:
    """Return a contender's call, kept in this process; `kind` is "torchsde" or "sdebias"."""
    workload = WORKLOADS[key](steps=steps)
    if kind == "torchsde":
        return torch_peers.solve(workload, trajectories, sequential=False)
    return torch_peers.sdebias(workload, trajectories, {"compile": True}, **dict(options))


def seconds(*case: Any) -> float:
    """Return the time of a call in this process, the median of a turn."""
    return statistics.median(turn(prepared(*case))[0])


def peak(*case: Any) -> float:
    """Return the peak memory of a call in MiB, above what is resident before it, after a first call that compiles."""
    call = prepared(*case)
    call()
    before = machine.settle()
    call()
    return machine.resident("VmHWM") - before


def peaks(cases: Mapping[str, tuple[Any, ...]], allowed: Sequence[int]) -> dict[str, float]:
    """Return the peak of each case, each in a process of its own on one core."""
    result = {}
    for name, case in cases.items():
        with worker(allowed, 1) as process:
            result[name] = process.submit(peak, *case).result()
    return result


def thread_times(
    cases: Mapping[str, tuple[Any, ...]], allowed: Sequence[int], rounds: int = 15
) -> list[dict[str, Any]]:
    """Return the medians of each case with one thread, with two, and in two processes at once, measured in turn."""
    rows = []
    for name, case in cases.items():
        with worker(allowed, 1) as one, worker(allowed, 2) as two, worker(allowed[:1], 1) as other:
            times: dict[str, list[float]] = {"1": [], "2": [], "apart": []}
            for process in (one, two, other):
                process.submit(seconds, *case).result()
            for _ in range(rounds):
                times["1"].append(one.submit(seconds, *case).result())
                times["2"].append(two.submit(seconds, *case).result())
                both = [process.submit(seconds, *case) for process in (one, other)]
                times["apart"].append(max(future.result() for future in both))
        rows.append({"name": name, **{count: statistics.median(values) for count, values in times.items()}})
    return rows
