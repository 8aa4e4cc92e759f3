"""How far a run is: told by the process that runs it, and read by any other."""

from __future__ import annotations

import json
import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

from ..errors import DataError, RunError
from .directory import PROGRESS, RunDirectory
from .files import save_text
from .reading import flagged

log = logging.getLogger("sdebias")

# Seconds between two notes.
INTERVAL = 1.0


class Progress:
    """Tells a progress bar, and a file of the run directory, how far the run is; called as the `Report` of a shard.

    Parameters
    ----------
    directory : RunDirectory
    bar : tqdm
        Whose total is that of the whole run.
    """

    def __init__(self, directory: RunDirectory, bar: Any) -> None:
        self.directory, self.bar = directory, bar
        self.here = self.flagged = 0
        saves, trajectories = directory.manifest.legs[-1][1], directory.manifest.shards[-1][1]
        each = bar.total // (trajectories * (saves - 1))
        reached = directory.reached().items()
        # Updates and flagged trajectories of each shard, by its first trajectory.
        self._shards = {first: (each * (last - first) * after, 0) for (first, last), after in reached}
        self.before = sum(updates for updates, _ in self._shards.values())
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Begin where the directory stands."""
        self.bar.update(self.before)
        self._tell("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended."""
        finished = "stopped" if self.directory.missing() else "finished"
        self._tell(finished if error is None else f"failed: {error or kind}")

    def __call__(self, shard: int, updates: int, flagged: int) -> None:
        """Take note of how far a shard is; it may be behind what it was, where a worker died."""
        with self._lock:
            before, known = self._shards[shard]
            self._shards[shard] = (updates, flagged)
            self.here += updates - before
            self.flagged += flagged - known
            self.bar.update(updates - before)
            if flagged != known:
                self.bar.set_postfix(flagged=self.flagged)
            if time.monotonic() - self._told > INTERVAL:
                self._tell("running")

    def _tell(self, state: str) -> None:
        self._told = time.monotonic()
        rate = self.here / max(self._told - self._begun, 1e-9)
        left = max(self.bar.total - self.before - self.here, 0)
        note = {"state": state, "updates": self.before + self.here, "total": self.bar.total, "flagged": self.flagged}
        note |= {"rate": rate, "eta_seconds": left / rate if rate else None}
        try:
            save_text(json.dumps(note) + "\n", self.directory.path / PROGRESS)
        except RunError as error:
            log.warning("%s", error)  # parts that cannot be written make a run fail, this need not


def describe_run(directory: RunDirectory) -> str:
    """Return how far a run is, at what rate, and what has been flagged, in lines."""
    manifest, missing = directory.manifest, directory.missing()
    try:
        note = json.loads((directory.path / PROGRESS).read_text(encoding="utf-8"))
        state = "".join(letter for letter in str(note["state"]) if letter.isprintable())
        rate, eta = float(note["rate"]), float(note["eta_seconds"] or 0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        state, rate, eta = "not begun", 0.0, 0.0
    busy = directory.busy()
    if state == "running" and not busy:
        state = "interrupted"  # the process that said so is gone
    if not missing:
        state = "finished"
    elif state not in ("running", "not begun"):
        state += f"; continue with sdebias run --resume {directory.path}"
    flags = damaged = 0
    for part in directory.parts():
        if part.until == manifest.legs[-1][1]:
            try:
                flags += flagged(part)
            except DataError:
                damaged += 1
    run, shards = manifest.run, len(manifest.shards)
    lines = [
        f"{directory.path}: {state}",
        f"  {run['trajectories']} trajectories, {run['steps']} steps; {100 * directory.fraction():.1f} % done",
        f"  {shards - len(missing)} of {shards} shards, {flags} of their trajectories flagged",
    ]
    if damaged:
        lines.append(f"  {damaged} files are damaged; sdebias run --resume computes them again")
    if state == "running":
        lines.append(f"  {rate:.3g} updates/s, {eta:.0f} s to go")
    return "\n".join(lines)
