"""One shard of a run directory: its seed blocks walk leg by leg, and each leg leaves a part and a state."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
import xarray as xr

from ..dynamics.walk import Walk
from ..storage.directory import RunDirectory
from ..storage.parts import Part, foreign_state, read_state, write_part, write_state
from .plan import Plan
from .record import Recorder

log = logging.getLogger("sdebias")

# (first trajectory of a shard, updates of its trajectories so far, trajectories that are flagged so far), in whatever
# process and attempt.
Report: TypeAlias = Callable[[int, int, int], None]
Bounds: TypeAlias = tuple[int, int]
# (bounds of a shard, its files) → the shard.
Make: TypeAlias = "Callable[[Bounds, Sequence[Part]], Shard]"
# Walks of the blocks of one leg.
Walks: TypeAlias = tuple[Callable[[], None], ...]

# What the state of a walk consists of.
WALK = ("theta", "rng", "at", "ahead")


class Shard:
    """Trajectories `first` to `last` of a plan, in a run directory.

    Parameters
    ----------
    plan : Plan
    directory : RunDirectory
    bounds : (int, int)
        First trajectory, and the one after the last.
    files : sequence of Part
        What the directory holds of this shard.
    checkpoint : float
        Seconds between states of a long leg.
    """

    def __init__(
        self,
        plan: Plan,
        directory: RunDirectory,
        bounds: Bounds,
        files: Sequence[Part],
        checkpoint: float,
    ) -> None:
        self.plan, self.folder, self.manifest, self.checkpoint = plan, directory.path, directory.manifest, checkpoint
        self.first, self.last = bounds
        self._parts = [file for file in files if file.kind == "part"]
        self._states = sorted((file for file in files if file.kind == "state"), key=lambda file: file.until)
        size = plan.sizes.block
        self.blocks = range(self.first // size, -(-self.last // size))
        # The states of one block are written on its way; several blocks are so little work that none is needed.
        self.long = len(self.blocks) == 1
        self.finished = False
        self._updates = 0
        self._lock = threading.Lock()

    def run(self, stop: threading.Event, report: Report) -> bool:
        """Walk to the end of the last leg, from where an earlier process came to; return whether it was reached."""
        for walks in self.legs(stop, report):
            for walk in walks:
                walk()
        return self.finished

    def legs(self, stop: threading.Event, report: Report) -> Iterator[Walks]:
        """Begin one leg after another, and write what is finished before the next.

        Yields
        ------
        tuple of callable
            The walks of the blocks, to be called in any order, on any threads, before the next leg is asked for.
        """
        if stop.is_set():
            return
        state, done = self._resume()
        self._updates = (self.last - self.first) * self.plan.instances * self.plan.grid[max(done - 1, 0)]
        for since, until in self.manifest.legs:
            if until <= done:
                continue
            leg = _Leg(self.plan.record(self.last - self.first, since, until), state, since, done, until)
            leg.record.restore(state)
            yield tuple(
                functools.partial(self._walk, blocks, leg, stop, report) for blocks in self.plan.groups(self.blocks)
            )
            if len(leg.ends) < len(self.blocks):
                return
            self._write_part(leg.record, since, until)
            ends = {name: np.stack([leg.ends[block][name] for block in self.blocks]) for name in WALK}
            state, done = {**ends, "status": leg.record.status}, until
            self._write_state(state, until, until)
            if stop.is_set():
                break
        self.finished = done == self.manifest.legs[-1][1]

    def _walk(self, blocks: Sequence[int], leg: _Leg, stop: threading.Event, report: Report) -> None:
        """Walk blocks through a leg, of which some saves may be done; or to where they were stopped."""
        walk, size = self.plan.walk(blocks), self.plan.sizes.block
        if leg.state:
            places = [block - self.blocks[0] for block in blocks]
            walk.restore({name: torch.as_tensor(leg.state[name][places]) for name in WALK})
        written = time.monotonic()
        for at, steps in self.plan.segments(max(leg.done - 1, 0), leg.until):
            fresh = 0 if at == leg.done == 0 else 1  # the first state of a segment is the last of the one before
            for block, path in self.plan.apart(blocks, walk.run(steps)[fresh:]).items():
                low, high = max(self.first, block * size), min(self.last, (block + 1) * size)
                rows = slice(low - block * size, high - block * size)
                leg.record.write(path, rows, low - self.first, at + fresh - leg.since)
                with self._lock:
                    self._updates += (high - low) * self.plan.instances * (steps[-1] - steps[0])
                    report(self.first, self._updates, leg.record.flagged)
            reached = at + len(steps)
            if self.long and reached < leg.until and (stop.is_set() or time.monotonic() - written > self.checkpoint):
                self._write_state({**_plain(walk), **leg.record.state()}, leg.since, reached)
                written = time.monotonic()
                if stop.is_set():
                    return
        # Of many blocks only the ends are kept: a walk holds random numbers for many steps.
        end = _plain(walk)
        leg.ends.update({block: {name: end[name][place] for name in WALK} for place, block in enumerate(blocks)})

    def _resume(self) -> tuple[dict[str, np.ndarray], int]:
        """Return the latest state, and the number of saves before it; nothing and 0 at the start.

        Where a part before it is missing, having been damaged, everything is walked again.
        """
        there = {(part.since, part.until) for part in self._parts}
        for file in reversed(self._states):
            behind = [leg for leg in self.manifest.legs if leg[1] <= file.until]
            if not there.issuperset(behind):
                continue
            # Another process that was taken for dead may be at work on the same shard, and replace its states.
            with contextlib.suppress(FileNotFoundError):
                if file.intact():
                    state = read_state(file)
                    self._check_state(file, state)
                    return state, file.until
        return {}, 0

    def _check_state(self, file: Part, state: Mapping[str, np.ndarray]) -> None:
        """Raise DataError unless a state has the arrays of one.

        A file that bears the right name was written by this package, or made by somebody who wants it to seem so.
        """
        start = _plain(self.plan.walk(self.blocks[:1]))
        wanted: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            name: ((len(self.blocks), *array.shape[1:]), array.dtype) for name, array in start.items()
        }
        found = {name: (state[name].shape, state[name].dtype) for name in wanted if name in state}
        if found != wanted:
            raise foreign_state(file, f"{', '.join(map(str, state)) or 'nothing'}, or other shapes")

    def _write_part(self, record: Recorder, since: int, until: int) -> None:
        dataset: xr.Dataset = self.plan.part(record, self.first, since, self.manifest)
        self._parts.append(write_part(self.folder, self._place(since, until), dataset, self.manifest.identity))
        log.info("trajectories %d to %d, saves %d to %d: done", self.first, self.last, since, until)

    def _write_state(self, arrays: dict[str, np.ndarray], since: int, until: int) -> None:
        """Write a state, and remove the ones before it."""
        new = write_state(self.folder, self._place(since, until), arrays, self.manifest.identity)
        for state in self._states:
            if state.path != new.path:
                state.path.unlink(missing_ok=True)
        self._states = [new]

    def _place(self, since: int, until: int) -> tuple[int, int, int, int]:
        return self.first, self.last, since, until


@dataclass(frozen=True)
class _Leg:
    """The saves from `since` to before `until` of a shard.

    Attributes
    ----------
    record : Recorder
    state : mapping of str to array
        Where the walks stand, with an axis for the blocks in front; empty at the start.
    since, done, until : int
        Of the saves, those before `done` are in the record.
    ends : dict
        Where each block has come to that was walked through the leg.
    """

    record: Recorder
    state: Mapping[str, np.ndarray]
    since: int
    done: int
    until: int
    ends: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


def _plain(walk: Walk) -> dict[str, np.ndarray]:
    """Return where a walk stands, as arrays with an axis for its blocks in front."""
    return {name: tensor.cpu().numpy() for name, tensor in walk.state().items()}
