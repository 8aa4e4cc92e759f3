"""Threads: blocks of one shard side by side, errors that end the others in order, and one thread for each block."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
import torch

import sdebias as sb
from sdebias.ensemble.observables import choose_observables
from sdebias.ensemble.record import Record
from sdebias.ensemble.shard import Make, Report, Walks
from sdebias.ensemble.threads import run_shards

PATIENCE = 30.0


class Blocks:
    """A shard of blocks that do nothing, leg by leg; says in order what was done."""

    def __init__(self, name: str, blocks: int, legs: int, walk: Any = lambda: None, write: Any = lambda: None) -> None:
        self.name, self.blocks, self.count, self.walk, self.write = name, blocks, legs, walk, write
        self.log: list[str] = []

    def legs(self, stop: threading.Event, report: Report) -> Iterator[Walks]:
        for leg in range(self.count):
            if stop.is_set():
                return
            yield (lambda leg=leg: self.one(leg),) * self.blocks
            self.log.append(f"write {leg}")
            self.write()

    def one(self, leg: int) -> None:
        self.walk()
        self.log.append(f"walk {leg}")


def run(*shards: Blocks, workers: int = 2, stop: threading.Event | None = None) -> None:
    stop = threading.Event() if stop is None else stop
    make = cast(Make, lambda bounds, files: shards[bounds[0]])
    run_shards(workers, make, {(n, n + 1): [] for n in range(len(shards))}, stop, lambda *told: None)


class TestShards:
    @pytest.mark.parametrize("threads", [2, 3])
    def test_threads_share_the_blocks_of_one(self, threads: int) -> None:
        together = threading.Barrier(threads, timeout=PATIENCE)
        one = Blocks("one", blocks=2 * threads, legs=2, walk=together.wait)
        run(one, workers=threads)
        walks = 2 * threads
        assert one.log == [*["walk 0"] * walks, "write 0", *["walk 1"] * walks, "write 1"]

    def test_while_one_is_written_another_walks(self) -> None:
        together = threading.Barrier(2, timeout=PATIENCE)
        run(Blocks("one", 1, 1, write=together.wait), Blocks("other", 1, 1, walk=together.wait))

    @pytest.mark.parametrize("where", ["walk", "write"])
    def test_where_one_fails_the_others_under_way_end_in_order_and_none_is_begun(self, where: str) -> None:
        begun, failed = threading.Event(), threading.Event()

        def fail() -> None:
            assert begun.wait(PATIENCE)
            failed.set()
            raise ValueError("of the first")

        def wait() -> None:
            begun.set()
            assert failed.wait(PATIENCE)

        bad, good, later = Blocks("bad", 1, 1, **{where: fail}), Blocks("good", 2, 1, walk=wait), Blocks("later", 1, 1)
        stop = threading.Event()
        with pytest.raises(ValueError, match="of the first"):
            run(bad, good, later, stop=stop)
        assert good.log == ["walk 0", "walk 0", "write 0"]
        assert not later.log
        assert stop.is_set()

    def test_a_stop_ends_legs(self) -> None:
        stop, together = threading.Event(), threading.Barrier(2, timeout=PATIENCE)

        def walk() -> None:
            together.wait()
            stop.set()

        one, other = Blocks("one", 1, 2, walk=walk), Blocks("other", 1, 2, walk=walk)
        run(one, other, Blocks("later", 1, 1, walk=pytest.fail), stop=stop)
        assert one.log == other.log == ["walk 0", "write 0"]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_an_interrupt_of_the_caller_ends_all(self, workers: int) -> None:
        """What is not begun is not: neither other blocks of the same shard, nor other shards."""
        begun, stop = threading.Event(), threading.Event()

        def walk() -> None:
            if threading.current_thread() is threading.main_thread():
                assert workers == 1 or begun.wait(PATIENCE)
                raise KeyboardInterrupt
            begun.set()
            assert stop.wait(PATIENCE)

        shards = [Blocks(name, 3, 1, walk=walk) for name in "abc"]
        with pytest.raises(KeyboardInterrupt):
            run(*shards, workers=workers, stop=stop)
        assert stop.is_set()
        assert sum(len(shard.log) for shard in shards) == workers - 1

    def test_threads_of_torch_are_as_before(self) -> None:
        before = torch.get_num_threads()
        run(Blocks("one", 1, 1))
        assert torch.get_num_threads() == before


def test_two_blocks_that_come_first_share_the_arrays(
    problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds none; an array that the second made anew would lose the values of the first."""
    record = Record(choose_observables(problem, None, ["theta"]), (), trajectories=4, saves=1)
    together = threading.Barrier(2, timeout=PATIENCE)
    zeros = np.zeros

    def slow(*arguments: Any) -> np.ndarray:
        with suppress(threading.BrokenBarrierError):
            together.wait()
        return zeros(*arguments)

    monkeypatch.setattr("sdebias.ensemble.record.np.zeros", slow)
    width = problem.layout.size
    states = [torch.full((1, 2, width), float(n), dtype=problem.dtype) for n in (1, 2)]
    threads = [
        threading.Thread(target=record.write, args=(path, slice(2), first, 0))
        for first, path in zip((0, 2), states, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(record.arrays["theta"][:, 0, 0], [1, 1, 2, 2])


TEAMS = """
import threading, psutil, torch
from sdebias.ensemble.threads import side_by_side

large, seen = torch.rand(400, 400), []

def block(_):
    large @ large
    seen.append(psutil.Process().num_threads())

torch.set_num_threads(1)
before = psutil.Process().num_threads()
side_by_side(block, range(4), 2, threading.Event())
print(max(seen) - before)
"""


def test_blocks_side_by_side_have_one_thread_each() -> None:
    """OpenMP counts for each thread: without care, each of ours has a team of its own for matrix products."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", TEAMS], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == 1  # beside the one that calls
