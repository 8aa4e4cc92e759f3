"""Run seed blocks on threads of this process: of an ensemble in memory, or of the shards of a run directory."""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from ..storage.parts import Part
from .memory import keep_memory
from .shard import Bounds, Make, Report, Walks

T = TypeVar("T")


@contextmanager
def _single() -> Iterator[None]:
    """Have each block computed by one thread, so that numbers do not depend on the number of threads."""
    keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Set `stop` where an error leaves the block."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _pool(workers: int) -> ThreadPoolExecutor:
    # OpenMP counts for each thread anew: without this, each of ours would have a team of its own, and all wait.
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def side_by_side(function: Callable[[T], object], items: Sequence[T], workers: int, stop: threading.Event) -> None:
    """Call a function for each item, each on one thread; the caller's thread is one of them.

    `stop` is set where one call fails; the others shall look at it, and end.
    """
    waiting = deque(items)

    def work() -> None:
        with _stopping(stop):
            while not stop.is_set():
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                function(item)

    others = min(workers, len(items)) - 1
    with _single(), _pool(max(others, 1)) as pool, _stopping(stop):
        futures = [pool.submit(work) for _ in range(others)]
        work()
        for future in futures:
            future.result()


def run_shards(
    workers: int, make: Make, pending: Mapping[Bounds, Sequence[Part]], stop: threading.Event, told: Report
) -> None:
    """Run shards on threads, which share the blocks of each: however few shards there are, none is idle.

    Parameters
    ----------
    workers : int
        Number of threads.
    make : callable
        From bounds and files to a shard.
    pending : mapping
        Bounds of the shards, and their files.
    stop : threading.Event
        Has the shards that are under way end or write their states; no other is begun. Where a shard fails, it is set,
        and the others under way end so before the error is raised.
    told : callable
        See `Report`.
    """
    with _single():
        if workers == 1:
            for shard in pending.items():
                make(*shard).run(stop, told)
            return
        with _pool(workers) as pool:
            try:
                _Turns(pool, workers).run(make, pending, stop, told)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


class _Turns:
    """Shards under way on the threads of a pool."""

    def __init__(self, pool: ThreadPoolExecutor, workers: int) -> None:
        self.pool, self.workers = pool, workers
        self.running: dict[Future[Walks], Iterator[Walks]] = {}
        self.inbox: queue.SimpleQueue[Future[Walks]] = queue.SimpleQueue()
        # Blocks of each shard that have not come to the end of their leg.
        self.left: dict[Iterator[Walks], int] = {}
        self.lock = threading.Lock()

    def run(self, make: Make, pending: Mapping[Bounds, Sequence[Part]], stop: threading.Event, told: Report) -> None:
        """Give threads work until all shards have ended; see `run_shards`."""
        waiting = deque(pending.items())
        failure: BaseException | None = None
        while waiting or self.running:
            while waiting and len(self.running) < self.workers:
                legs = make(*waiting.popleft()).legs(stop, told)
                self._submit(functools.partial(next, legs, ()), legs)
            future = self.inbox.get()
            legs = self.running.pop(future)
            if (error := future.exception()) is not None:
                failure = failure or error
                stop.set()
                waiting.clear()
                continue
            if walks := future.result():
                self.left[legs] = len(walks)
            for walk in walks:
                self._submit(functools.partial(self._walk, walk, legs), legs)
        if failure is not None:
            raise failure

    def _submit(self, task: Callable[[], Walks], legs: Iterator[Walks]) -> None:
        future = self.pool.submit(task)
        self.running[future] = legs
        future.add_done_callback(self.inbox.put)

    def _walk(self, walk: Callable[[], None], legs: Iterator[Walks]) -> Walks:
        """Walk a block; on the thread that walks the last one of a leg, write what it has left, and begin the next."""
        walk()
        with self.lock:
            self.left[legs] -= 1
            if self.left[legs]:
                return ()
        return next(legs, ())
