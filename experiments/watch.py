"""Look at a run from outside: kill it, or its workers, and count what can no longer be gone on from."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sdebias.storage import RunDirectory, is_run
from sdebias.storage.parts import Part

# Seconds between two looks.
LOOK = 0.005


def workers_of(child: int) -> list[int]:
    """Return whom to kill: the workers of dask that a process has started, also those that are only starting."""
    found = []
    for process in _family(child):
        with suppress(psutil.NoSuchProcess):
            if "--multiprocessing-fork" in process.cmdline():
                found.append(process.pid)
    return found


def _family(child: int) -> list[psutil.Process]:
    """Return the processes that a process has started, and those that they have."""
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(child).children(recursive=True))
    return []


@dataclass
class Watch:
    """Looks at a run from outside: kills at given moments, and counts states that are lost.

    Attributes
    ----------
    folder : Path
    moments : list of float
        Seconds after which somebody is killed: the first since the run holds its directory, where it shall be `held`,
        else since the process began; each other since the one before.
    victim : callable
        From the id of the process that runs to that of the one to kill, if there is any.
    held : bool
    kills : int
        How often somebody was killed.
    lost : int
        How often a shard could go on from fewer saves than before.
    """

    folder: Path
    moments: list[float] = field(default_factory=list)
    victim: Callable[[int], int | None] = lambda child: child
    held: bool = False
    kills: int = 0
    lost: int = 0

    def __call__(self, child: int) -> None:
        """Watch until the process has ended, and whatever it has started."""
        self._intact: set[str] = set()
        # What is behind a damaged part is of no use, and is not missed.
        self._useless: set[str] = set()
        self._last = self._reached()
        self._useless = {file.path.name for file in self._states() if file.until > self._last[file.first, file.last]}
        family: set[psutil.Process] = set()
        moments, due = iter(self.moments), None if self.held else time.monotonic()
        wait = next(moments, None)
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._look()
            if due is None and wait is not None and is_run(self.folder) and RunDirectory(self.folder).busy():
                due = time.monotonic()
            if due is not None and wait is not None and time.monotonic() > due + wait:
                family |= {*_family(child)}
                victim = self.victim(child)
                with suppress(ProcessLookupError):  # one that has ended meanwhile
                    if victim is not None:
                        os.kill(victim, signal.SIGKILL)
                        self.kills += 1
                due, wait = time.monotonic(), next(moments, None)
            time.sleep(LOOK)
        if psutil.wait_procs(family, timeout=30)[1]:
            raise RuntimeError(f"processes that outlive the run that started them: {family}")
        self._look()

    def _look(self) -> None:
        """Compare with the last look; what changes while it is listed is looked at again."""
        for again in (True, True, False):
            now = self._reached()
            fallen = sum(now.get(shard, 0) < saves for shard, saves in self._last.items())
            if not fallen:
                break
            self.lost += 0 if again else fallen
        self._last = now

    def _states(self) -> list[Part]:
        return RunDirectory(self.folder).parts("state") if is_run(self.folder) else []

    def _reached(self) -> dict[tuple[int, int], int]:
        """Return after how many saves each shard can go on: those of a state with all parts before it, all intact."""
        if not is_run(self.folder):
            return {}
        run, reached = RunDirectory(self.folder), {}
        shards = run.by_shard()
        # Under the same name, what is computed anew is good.
        self._useless &= {file.path.name for files in shards.values() for file in files}
        for shard, files in shards.items():
            good = [file for file in files if self._check(file)]
            there = {(file.since, file.until) for file in good if file.kind == "part"}
            states = [file.until for file in good if file.kind == "state" and file.path.name not in self._useless]
            usable = [end for end in states if there.issuperset(leg for leg in run.manifest.legs if leg[1] <= end)]
            reached[shard] = max(usable, default=0)
        return reached

    def _check(self, file: Part) -> bool:
        """Return whether a file is intact, which is read once."""
        with suppress(FileNotFoundError):
            if file.path.name not in self._intact and file.intact():
                self._intact.add(file.path.name)
        return file.path.name in self._intact
