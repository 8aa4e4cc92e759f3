"""One shard of a run directory: its seed blocks walk leg by leg, and each leg leaves a part and a state."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from ..dynamics.walk import Walk
from ..errors import DataError
from ..storage.directory import Manifest
from ..storage.parts import Part, find_parts, read_state, write_part, write_state
from .plan import Plan
from .record import Recorder

log = logging.getLogger("sdebias")

# (first trajectory of a shard, updates of its trajectories so far, trajectories that are flagged so far), in whatever
# process and attempt.
Report = Callable[[int, int, int], None]


class Shard:
    """Trajectories `first` to `last` of a plan, in a folder.

    Parameters
    ----------
    plan : Plan
    folder : Path
    manifest : Manifest
    bounds : (int, int)
        First trajectory, and the one after the last.
    checkpoint : float
        Seconds between states of a long leg.
    """

    def __init__(
        self, plan: Plan, folder: Path, manifest: Manifest, bounds: tuple[int, int], checkpoint: float
    ) -> None:
        self.plan, self.folder, self.manifest, self.checkpoint = plan, folder, manifest, checkpoint
        self.first, self.last = bounds
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
        walks = [self.plan.walk(block) for block in self.blocks]
        if state:
            for number, walk in enumerate(walks):
                walk.restore({name: torch.as_tensor(state[name][number]) for name in ("theta", "rng", "at")})
        for since, until in self.manifest.legs:
            if until <= done:
                continue
            record = self.plan.record(self.last - self.first, since, until)
            record.restore(state)
            for number, walk in enumerate(walks):
                if not self._walk_leg(number, walk, record, (since, done, until), stop, report):
                    return False
            self._write_part(record, since, until)
            state, done = {"status": record.status}, until
            self._write_state(walks, state, until, until)
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
            path = walk.run(steps)[..., rows, :]
            fresh = 0 if at == done == 0 else 1  # the first state of a segment is the last of the one before
            record.write(path[fresh:], low - self.first, at + fresh - since)
            self._updates += (high - low) * self.plan.instances * (steps[-1] - steps[0])
            report(self.first, self._updates, record.flagged)
            reached = at + len(steps)
            if self.long and reached < until and (stop.is_set() or time.monotonic() - written > self.checkpoint):
                self._write_state([walk], record.state(), since, reached)
                written = time.monotonic()
                if stop.is_set():
                    return False
        return True

    def _resume(self) -> tuple[dict[str, np.ndarray], int]:
        """Return the latest state, and the number of saves before it; nothing and 0 at the start.

        Where a part before it is missing, having been damaged, everything is walked again.
        """
        there = {(part.since, part.until) for part in self._files("part")}
        for state in reversed(self._files("state")):
            behind = [leg for leg in self.manifest.legs if leg[1] <= state.until]
            if not there.issuperset(behind):
                continue
            # Another process that was taken for dead may be at work on the same shard, and replace its states.
            with contextlib.suppress(DataError, FileNotFoundError):
                return read_state(state), state.until
        return {}, 0

    def _files(self, kind: str) -> list[Part]:
        there = [part for part in find_parts(self.folder) if (part.first, part.last) == (self.first, self.last)]
        return sorted((part for part in there if part.kind == kind), key=lambda part: part.until)

    def _write_part(self, record: Recorder, since: int, until: int) -> None:
        dataset: xr.Dataset = self.plan.part(record, self.first, since, self.manifest)
        write_part(self.folder, self.first, self.last, since, until, dataset)
        log.info("trajectories %d to %d, saves %d to %d: done", self.first, self.last, since, until)

    def _write_state(self, walks: list[Walk], observed: dict[str, np.ndarray], since: int, until: int) -> None:
        """Write a state, and remove the ones before it; one that another process has written later stays."""
        earlier = [state for state in self._files("state") if state.until <= until]
        states = [walk.state() for walk in walks]
        arrays = {name: np.stack([state[name].cpu().numpy() for state in states]) for name in ("theta", "rng", "at")}
        new = write_state(self.folder, self.first, self.last, since, until, {**arrays, **observed})
        for part in earlier:
            if part.path != new.path:
                part.path.unlink(missing_ok=True)
