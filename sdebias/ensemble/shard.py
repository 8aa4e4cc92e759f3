"""One shard of a run directory: its seed blocks walk leg by leg, and each leg leaves a part and a state."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

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
Report = Callable[[int, int, int], None]

# What the state of a walk consists of.
WALK = ("theta", "rng", "at")


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
        bounds: tuple[int, int],
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

    def run(self, stop: threading.Event, report: Report) -> bool:
        """Walk to the end of the last leg, from where an earlier process came to; return whether it was reached."""
        if stop.is_set():
            return False
        state, done = self._resume()
        self._updates = (self.last - self.first) * self.plan.instances * self.plan.grid[max(done - 1, 0)]
        for since, until in self.manifest.legs:
            if until <= done:
                continue
            record = self.plan.record(self.last - self.first, since, until)
            record.restore(state)
            ends = []
            # Of many blocks only the ends are kept: a walk holds random numbers for many steps.
            for number, block in enumerate(self.blocks):
                walk = self.plan.walk(block)
                if state:
                    walk.restore({name: torch.as_tensor(state[name][number]) for name in WALK})
                if not self._walk_leg(number, walk, record, (since, done, until), stop, report):
                    return False
                ends.append(_plain(walk))
            self._write_part(record, since, until)
            state, done = {**_stacked(ends), "status": record.status}, until
            self._write_state(state, until, until)
            if stop.is_set():
                return until == self.manifest.legs[-1][1]
        return True

    def _walk_leg(
        self,
        number: int,
        walk: Walk,
        record: Recorder,
        saves: tuple[int, int, int],
        stop: threading.Event,
        report: Report,
    ) -> bool:
        """Walk one block through a leg, of which some saves may be done; return whether its end was reached."""
        since, done, until = saves
        start = self.blocks[number] * self.plan.sizes.block
        low, high = max(self.first, start), min(self.last, start + self.plan.sizes.block)
        rows = slice(low - start, high - start)
        written = time.monotonic()
        for at, steps in self.plan.segments(max(done - 1, 0), until):
            path = walk.run(steps)
            fresh = 0 if at == done == 0 else 1  # the first state of a segment is the last of the one before
            record.write(path[fresh:], rows, low - self.first, at + fresh - since)
            self._updates += (high - low) * self.plan.instances * (steps[-1] - steps[0])
            report(self.first, self._updates, record.flagged)
            reached = at + len(steps)
            if self.long and reached < until and (stop.is_set() or time.monotonic() - written > self.checkpoint):
                self._write_state({**_stacked([_plain(walk)]), **record.state()}, since, reached)
                written = time.monotonic()
                if stop.is_set():
                    return False
        return True

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
        start = _stacked([_plain(self.plan.walk(self.blocks[0]))])
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


def _plain(walk: Walk) -> dict[str, np.ndarray]:
    """Return where a walk stands, as arrays."""
    return {name: tensor.cpu().numpy() for name, tensor in walk.state().items()}


def _stacked(walks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return where the walks of several blocks stand, each array with an axis for them in front."""
    return {name: np.stack([walk[name] for walk in walks]) for name in WALK}
