"""Run seed blocks on threads of this process: of an ensemble in memory, or of the shards of a run directory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def _together(work: Callable[[], None], workers: int, stop: threading.Event) -> None:
    """Have so many threads work, of which the caller's is one: another would wake up for nothing, and be in the way.

    `stop` is set where one of them fails; the others shall look at it, and end.
    """
    # OpenMP counts for each thread anew: without this, each of ours would have a team of its own, and all wait.
    with (
        ThreadPoolExecutor(max(workers - 1, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        _stopping(stop),
    ):
        others = [pool.submit(_stopping(stop)(work)) for _ in range(workers - 1)]
        work()
        for other in others:
            other.result()


def side_by_side(function: Callable[[T], object], items: Sequence[T], workers: int, stop: threading.Event) -> None:
    """Call a function for each item, each on one thread; the caller's thread is one of them.

    `stop` is set where one call fails; the others shall look at it, and end.
    """
    waiting = deque(items)

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            function(item)

    with _single():
        _together(work, min(workers, len(items)), stop)


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
    turns = _Turns(make, pending, stop, told)
    with _single():
        _together(turns.work, workers, stop)
    if turns.failure is not None:
        raise turns.failure


class _Turns:
    """Shards under way, and who walks next."""

    def __init__(
        self, make: Make, pending: Mapping[Bounds, Sequence[Part]], stop: threading.Event, told: Report
    ) -> None:
        self._make, self._stop, self._told = make, stop, told
        self.failure: BaseException | None = None
        self._waiting = deque(pending.items())
        # Blocks that nobody walks yet, with their shards, and how many of each shard have not come to the end of a leg.
        self._ready: deque[tuple[Callable[[], None], Iterator[Walks]]] = deque()
        self._left: dict[Iterator[Walks], int] = {}
        self._busy = 0
        self._change = threading.Condition()

    def work(self) -> None:
        """Take one task after the other until there is none, and none to come."""
        try:
            while (task := self._next()) is not None:
                self._do(*task)
        except BaseException as error:  # not of a shard: the user's impatience
            self._fail(error, None)
            raise

    def _next(self) -> tuple[Callable[[], None] | None, Iterator[Walks]] | None:
        """Return a block of a shard under way, else a shard to begin with, once there is one; None at the end."""
        with self._change:
            while not self._ready and not self._waiting and self._busy and self.failure is None:
                self._change.wait()
            if not self._ready and not self._waiting:
                return None
            self._busy += 1
            return self._ready.popleft() if self._ready else (None, self._legs(*self._waiting.popleft()))

    def _legs(self, bounds: Bounds, files: Sequence[Part]) -> Iterator[Walks]:
        yield from self._make(bounds, files).legs(self._stop, self._told)

    def _do(self, walk: Callable[[], None] | None, legs: Iterator[Walks]) -> None:
        """Walk a block; the thread that walks the last one of a leg writes what it has left, and begins the next."""
        walks: Walks = ()
        try:
            if walk is None or self._walk(walk, legs):
                walks = next(legs, ())
        except BaseException as error:
            of_shard = isinstance(error, Exception)
            self._fail(error, legs if of_shard else None)
            if not of_shard:
                raise
        finally:
            with self._change:
                self._busy -= 1
                self._left[legs] = self._left.get(legs, 0) + len(walks)
                self._ready.extend((walk, legs) for walk in walks)
                self._change.notify_all()

    def _walk(self, walk: Callable[[], None], legs: Iterator[Walks]) -> bool:
        """Walk a block; return whether it was the last one of its leg."""
        walk()
        with self._change:
            self._left[legs] -= 1
            return self._left[legs] == 0

    def _fail(self, error: BaseException, legs: Iterator[Walks] | None) -> None:
        """Have the shards other than that which failed end in order; or none, where none is given."""
        with self._change:
            self.failure = self.failure or error
            self._waiting.clear()
            self._ready = deque(ready for ready in self._ready if legs is not None and ready[1] is not legs)
            self._stop.set()
            self._change.notify_all()
