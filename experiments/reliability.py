"""What came of faults done to run directories: ``python -m experiments.reliability`` makes docs/reliability.md.

What came of mutated configurations and files follows there, made by ``make fuzz``.

Each fault is done to a small run on purpose; then the run is continued, and what it holds is compared with the same
ensemble simulated in memory, byte for byte in all variables.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr

import sdebias as sb
from sdebias.ensemble.streams import block_seeds
from sdebias.storage import is_run
from sdebias.storage.directory import MANIFEST

from .faults import (
    Deadly,
    Job,
    attempt,
    clock_going_backwards,
    differences,
    edit_manifest,
    flip,
    in_child,
    intact,
    interrupt,
    on_small_disk,
    on_threads,
    own_mounts,
    parts_of,
    plant_pickle,
    read_only,
    shards_of,
    small_job,
    small_pieces,
    truncate,
    with_file_size,
)
from .watch import Watch, workers_of

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reliability.md"
KILLS = 50
# A run is killed at most so often before it may end.
KILLS_OF_A_RUN = 3
# Methods of `Report`.
FAULTS = (
    *("killed", "interrupted", "full_disk", "read_only_folder", "damaged", "foreign", "edited"),
    *("two_processes", "clock", "deadly"),
)
NOT_WRITTEN, SET_ASIDE = "the bytes that this run wrote", "set aside"
NO_ROOM = "expected a writable folder with room for the file"
NO_SPACE = "No space left on device"
WORKERS_DIED = "expected a worker that lives until it is done, got 3 that died"
OTHER_PROCESS = "no other process at work on it"
# Letters of a message that the table shows.
SHOWN = 160
MUTATED = "\n## Mutated configurations and files\n\n"
HEAD = """# Reliability of run directories

## Faults

Made by `python -m experiments.reliability`, not written by hand. Each fault is done on purpose to a small run, whose
parts and states are written every few milliseconds; then the run is continued, and its dataset compared with the same
ensemble simulated in memory. *Parts lost* are intact ones that were there before and are not there after; *states lost*
are shards that, at any moment that was looked at, could go on from fewer saves than before; *accepted* are variables of
the final dataset that differ in any byte. {machine}

| fault | how it was injected | times | expected | seen | parts lost | states lost | accepted |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Victim:
    """Who is killed.

    Attributes
    ----------
    name : str
    share : float
        Of all kills.
    threads : int
    scheduler : str or None
        Of the run.
    worker : bool
        Whether one of the run's workers is killed, or the process that runs.
    statistics : bool
        Whether the run keeps statistics, in shards of two blocks, which are compared with those of a run in peace.
    """

    name: str
    share: float
    threads: int = 1
    scheduler: str | None = None
    worker: bool = False
    statistics: bool = False


VICTIMS = (
    Victim("a run on 1 thread", 0.32),
    Victim("a run on 2 threads", 0.32, threads=2),
    Victim("a run with statistics on 2 threads", 0.16, threads=2, statistics=True),
    Victim("a worker of a run by `local:2`", 0.28, scheduler="local:2", worker=True),
    Victim("the main process of a run by `local:2`", 0.08, scheduler="local:2"),
)


@dataclass
class Row:
    """A fault, and what came of it."""

    fault: str
    how: str
    expected: str
    seen: str = ""
    times: int = 1
    lost: int = 0
    states: int = 0
    half_written: int = 0
    accepted: list[str] = field(default_factory=list)

    @property
    def as_expected(self) -> bool:
        """Whether nothing was lost, nothing wrong accepted, and the error was the one that was expected."""
        return self.expected in self.seen and not (self.lost or self.states or self.accepted)

    def line(self) -> str:
        """Return the row of the table."""
        seen = self.seen if len(self.seen) <= SHOWN else f"{self.seen[:SHOWN]} …"
        cells = [self.fault, self.how, self.times, self.expected, seen, self.lost, self.states]
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in (*cells, len(self.accepted))) + " |"


class Report:
    """Does the faults one after the other."""

    def __init__(self, folder: Path, job: Job, kills: int) -> None:
        self.folder, self.job, self.kills = folder, job, kills
        self.long = replace(job, arguments={**job.arguments, "steps": 1000})
        kept = {"trajectories": 150, "save": ["loss"], "statistics": ["covariance", "quantiles"]}
        self.kept = replace(job, arguments={**job.arguments, **kept})
        self.rows: list[Row] = []

    def half_done(self, name: str) -> Path:
        """Return the directory of a run that was interrupted."""
        folder = self.folder / name
        in_child(lambda: self.job.run(folder, checkpoint=1e-3), lambda child: interrupt(child, folder))
        return folder

    def note(self, row: Row) -> None:
        """Enter a row."""
        row.seen = row.seen.replace(str(self.folder), "runs")
        self.rows.append(row)
        print(row.line(), flush=True)

    def watched(self, folder: Path, row: Row, work: Callable[[], object], watch: Watch | None = None) -> str:
        """Return how work on a run ended, of which the row counts the states that it lost."""
        watch = watch or Watch(folder)
        told = in_child(work, watch)
        row.states += watch.lost
        return told

    def continued(self, folder: Path, row: Row, harmed: int = 0, job: Job | None = None) -> None:
        """Continue a run, compare it with the whole, and note the row; see `compared`."""
        self.compared(folder, row, harmed, job or self.job)
        self.note(row)

    def compared(self, folder: Path, row: Row, harmed: int, job: Job, whole: xr.Dataset | None = None) -> None:
        """Continue a run in one process, and compare it with the whole, by default what `simulate` returns.

        Where nothing was seen before, what is seen is how that ended; of states that were `harmed`, whether as many
        were set aside.
        """
        before = intact(folder)
        told = self.watched(folder, row, lambda: job.run(folder, resume=True))
        if told != "done":
            row.seen += f"; then {told}"
            row.accepted.append("not finished")
        aside = sum(1 for _ in folder.glob("state-*.damaged"))
        row.seen = row.seen or (told if not harmed else SET_ASIDE if aside == harmed else f"{aside} of {harmed}")
        row.lost += len(before - intact(folder))
        with sb.open(folder) as found:
            row.accepted += differences(found, job.whole if whole is None else whole)

    def killed(self, seed: int = 0) -> None:
        """Kill runs and their workers at random moments of their lives, those of being continued among them."""
        random = Random(seed)
        with sb.open(self.half_done("warm")):
            pass  # what opening a run imports, every child would import anew
        for victim in VICTIMS:
            # Workers need seconds to come back: their run lasts longer.
            job = self.kept if victim.statistics else self.job if victim.scheduler is None else self.long
            with shards_of(2, job) if victim.statistics else nullcontext():
                self._kill(victim, job, random)

    def _kill(self, victim: Victim, job: Job, random: Random) -> None:
        """Kill one of the victims; see `killed`."""
        start, peace = time.monotonic(), self.folder / f"timed-{victim.name}"
        in_child(partial(job.run, peace, checkpoint=1e-3))
        seconds = time.monotonic() - start
        whole = sb.open(peace) if victim.statistics else job.whole
        row = Row(f"`kill -9` of {victim.name}", "", "done", times=0)
        runs, wanted = 0, math.ceil(victim.share * self.kills)
        while row.times < wanted:
            folder = self.folder / f"killed-{victim.name}-{runs}"
            runs += 1
            for _ in range(1 if victim.worker else KILLS_OF_A_RUN):
                told = self._life(folder, row, job, victim, partial(random.uniform, 0, seconds), random)
                if told == "done" or row.times == wanted:
                    break
            if is_run(folder):  # else it was killed before there was anything
                self.compared(folder, row, 0, job, whole)
        row.how = f"at random moments of {seconds:.1f} s, {runs} runs; {row.half_written} files were half written"
        self.note(row)

    def _life(
        self, folder: Path, row: Row, job: Job, victim: Victim, moment: Callable[[], float], random: Random
    ) -> str:
        """Begin or continue a run, kill, and return how it ended."""
        begun = is_run(folder)
        before = intact(folder) if begun else set()
        # Where only workers die, the process that runs lives on, and more of them can.
        moments = [moment() / 3 for _ in range(KILLS_OF_A_RUN)] if victim.worker else [moment()]
        watch = Watch(folder, moments, held=victim.scheduler is not None)
        if victim.worker:
            watch.victim = lambda child: random.choice(workers_of(child) or [None])
        work = partial(job.run, folder, resume=begun, checkpoint=1e-3, scheduler=victim.scheduler)
        told = self.watched(folder, row, partial(on_threads, victim.threads, work), watch)
        row.times += watch.kills
        if told not in ("", "done") and not (victim.worker and WORKERS_DIED in told):
            row.seen = told
        if is_run(folder):
            row.lost += len(before - intact(folder))
            row.half_written += sum(1 for _ in folder.glob(".*.tmp"))
        return told

    def interrupted(self) -> None:
        """Interrupt a run, once and twice."""
        for times, expected in (
            (1, "KeyboardInterrupt: stopped; continue with: sdebias run --resume"),
            (2, "Keyboard"),
        ):
            folder = self.folder / f"interrupted-{times}"
            how = f"SIGINT, {'once' if times == 1 else 'twice within 1 ms'}"
            row = Row("Ctrl-C", how, expected)
            row.seen = in_child(
                partial(self.job.run, folder, checkpoint=1e-3), partial(interrupt, folder=folder, times=times)
            )
            self.continued(folder, row)

    def full_disk(self) -> None:
        """Let no file become larger than most, and let a disk be full, before the run and in the middle of it."""
        folder = self.half_done("full")
        smallest = min(part.path.stat().st_size for part in parts_of(folder))
        for what, size in (("parts", smallest - 1), ("states", 2**10), ("anything", 16)):
            row = Row(f"full disk, no room for {what}", f"RLIMIT_FSIZE of {size} bytes", NO_ROOM)
            work = partial(self.job.run, folder, resume=True, checkpoint=1e-3)
            row.seen = self.watched(folder, row, partial(with_file_size, size, work))
            if what == "anything":
                self.continued(folder, row)
            else:
                self.note(row)
        if in_child(own_mounts) != "done":
            return  # a system that lets nobody but root have a small disk
        for when, size, expected in (
            ("before the run", 2**22, "MiB of free space"),
            ("in its middle", 2**24, NO_SPACE),
        ):
            folder, fill = self.folder / f"disk-{size}", expected == NO_SPACE
            row = Row(f"full disk, {when}", f"a tmpfs of {size >> 20} MiB{', filled by another file' * fill}", expected)
            row.seen = in_child(partial(on_small_disk, folder, size, partial(self.job.run, checkpoint=1e-3), fill=fill))
            if fill:
                self.continued(folder, row)
            else:
                self.note(row)

    def read_only_folder(self) -> None:
        """Take the right to write from a run that shall go on."""
        folder = self.half_done("read-only")
        row = Row("read-only folder", "mode 555, as an ordinary user", "a writable folder")

        def work() -> None:
            os.chdir(folder.parent)
            with read_only(Path(folder.name)):
                self.job.run(Path(folder.name), resume=True)

        row.seen = in_child(work)
        self.continued(folder, row)

    def damaged(self) -> None:
        """Damage files, each in its own way."""
        for kind, harm in (("part", truncate), ("part", flip), ("state", truncate), ("state", flip)):
            folder = self.half_done(f"{kind}-{harm.__name__}")
            harm(parts_of(folder, kind)[0].path)
            row = Row(f"{kind} damaged", f"`{harm.__name__}`", NOT_WRITTEN if kind == "part" else SET_ASIDE)
            row.seen = attempt(partial(sb.open, folder)) if kind == "part" else ""
            self.continued(folder, row, harmed=kind == "state")

    def foreign(self) -> None:
        """Put files into the folder that are not of the run."""
        folder, other = self.half_done("foreign"), self.folder / "other"
        small_job(seed=1).run(other)
        row = Row("foreign files", "a netCDF file, a text and a folder with the name of a part", "done")
        xr.Dataset({"x": ("t", np.arange(3))}).to_netcdf(folder / "foreign.nc")
        (folder / "part-notes.nc").write_text("mine")
        (folder / parts_of(other)[0].path.name).mkdir()
        row.seen = attempt(lambda: sb.open(folder))
        self.continued(folder, row)

        for kind in ("part", "state"):
            folder = self.half_done(f"another-{kind}")
            copied = parts_of(other, kind)
            for part in copied:
                (folder / part.path.name).write_bytes(part.path.read_bytes())
            expected = NOT_WRITTEN if kind == "part" else SET_ASIDE
            row = Row(f"{kind}s of another run", "those of another seed, copied in", expected)
            row.seen = attempt(partial(sb.open, folder)) if kind == "part" else ""
            self.continued(folder, row, harmed=len(copied) if kind == "state" else 0)

        folder = self.half_done("pickle")
        row = Row("pickle as a state", "under the name that fits its bytes", "arrays of numbers")
        trace = plant_pickle(folder)
        row.seen = in_child(lambda: self.job.run(folder, resume=True))
        if trace.exists():
            row.accepted.append("the pickle")
        parts_of(folder, "state")[-1].path.unlink()
        self.continued(folder, row)

    def edited(self) -> None:
        """Change manifest, configuration and data under the run."""
        changes: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
            "its configuration": (lambda table: table["config"]["run"].update(seed=7), "the configuration of its hash"),
            "a data file `../x`": (lambda table: table.update(data="../x"), "the configuration of its hash"),
            "its ranges": (lambda table: table.update(legs=[[0, 3]]), "a manifest"),
        }
        folder = self.half_done("edited")
        manifest = (folder / MANIFEST).read_text()
        for what, (change, expected) in changes.items():
            edit_manifest(folder, change)
            seen = in_child(lambda: self.job.run(folder, resume=True))
            self.note(Row("manifest edited", what, expected, seen))
            (folder / MANIFEST).write_text(manifest)
        changed = replace(self.job, dynamics=sb.SGDSDE(learning_rate=0.04, substeps=2))
        others = replace(self.job, problem=small_job(data=1).problem)
        for what, job, expected in (
            ("configuration edited", changed, "learning_rate: 0.05 there, 0.04 here"),
            ("other data", others, "expected the data of the run"),
        ):
            self.note(
                Row(what, "continued with another one", expected, in_child(partial(job.run, folder, resume=True)))
            )
        self.continued(folder, Row("all of these undone", "files restored", "done"))

    def two_processes(self) -> None:
        """Run what another process is running, which is held in the middle of it."""
        folder = self.folder / "two"
        row = Row("two processes on one directory", "a second run while the first writes", OTHER_PROCESS)

        def second(first: int) -> None:
            while not ((folder / MANIFEST).exists() and len(parts_of(folder)) >= 2):
                time.sleep(0.002)
            os.kill(first, signal.SIGSTOP)
            row.seen = in_child(lambda: self.job.run(folder, resume=True))
            os.kill(first, signal.SIGCONT)

        ended = in_child(lambda: self.job.run(folder, checkpoint=1e-3), second)
        if ended != "done":
            row.accepted.append(f"the first: {ended}")
        self.continued(folder, row)

    def clock(self) -> None:
        """Set the clock back, again and again."""
        folder = self.folder / "clock"

        def work() -> None:
            with clock_going_backwards():
                self.job.run(folder, checkpoint=1e-3)

        row = Row("clock going backwards", "an hour back with each reading of `time.time`", "done", in_child(work))
        self.continued(folder, row)

    def deadly(self) -> None:
        """Have the same shard kill whatever worker begins it."""
        folder, marker = self.folder / "deadly", self.folder / "marker"
        marker.touch()
        initial = Deadly(marker, block_seeds(0, 4)[2], self.job.problem.layout.size)
        job = replace(self.job, arguments={**self.job.arguments, "initial": initial})
        row = Row("a worker that dies three times", "each that begins one shard of a run by `local:2`", WORKERS_DIED)
        row.seen = self.watched(folder, row, partial(job.run, folder, checkpoint=1e-3, scheduler="local:2"))
        if (deaths := marker.read_text()) != "xxx":
            row.accepted.append(f"{len(deaths)} deaths")
        marker.unlink()
        self.continued(folder, row, job=job)


def report(folder: Path, kills: int, only: Sequence[str] = FAULTS) -> list[Row]:
    """Do faults to runs in a folder, and return what came of them."""
    # This process forks: it must have one thread.
    torch.set_num_threads(1)
    logging.getLogger("sdebias").addHandler(logging.NullHandler())
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(scheduler="synchronous"))
        stack.enter_context(small_pieces())
        made = Report(folder, small_job(), kills)
        for name in only:
            getattr(made, name)()
    return made.rows


def write(path: Path, *, faults: str | None = None, mutated: str | None = None) -> None:
    """Write one half of the report, and leave the other as it is there."""
    there = path.read_text() if path.exists() else HEAD
    before, heading, after = there.partition(MUTATED)
    path.write_text((faults or before) + (heading + after if mutated is None else MUTATED + mutated))


def main() -> int:
    """Write the report, and return whether anything was not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help="how often runs are killed")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=FAULTS, help="which faults")
    parser.add_argument("--out", type=Path, default=TARGET, help="the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        rows = report(folder, options.kills, options.only)
    machine = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}."
    write(options.out, faults=HEAD.replace("{machine}", machine) + "".join(f"{row.line()}\n" for row in rows))
    unexpected = [row for row in rows if not row.as_expected]
    for row in unexpected:
        print("NOT AS EXPECTED", row)
    print(f"{len(rows)} faults, {sum(row.times for row in rows)} injections, {len(unexpected)} not as expected")
    return int(bool(unexpected))


if __name__ == "__main__":
    raise SystemExit(main())
