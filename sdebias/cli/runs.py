"""Verbs that make ensembles and look after them: ``run``, ``extend``, ``status``, ``merge``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import xarray as xr
from tyro.conf import Positional, arg

from .. import config
from ..ensemble.run import CHECKPOINT, prepare
from ..ensemble.run import run as simulate_in
from ..errors import InputError, OutputError, check_count, check_positive, message
from ..plotting import plot_orbit_drift
from ..report import comparison_text
from ..storage import check_outputs, find_runs, is_run, merge, remove_run
from ..storage.progress import describe_run
from .options import Flag, Imports, Number, OptionalPath, Text
from .report import compare_ensemble, summary

FIGURE = "orbit_drift.png"
Seconds = Annotated[float, arg(metavar="SECONDS")]


@dataclass(frozen=True)
class Job:
    """An ensemble to be simulated in a folder."""

    name: str
    folder: Path
    run: config.Run
    arguments: dict[str, Any]

    def prepare(self) -> None:
        """Make the run directory, or see that the one that is there is of the same run; simulate nothing."""
        dynamics = self.run.dynamics[self.name]
        prepare(self.run.problem, dynamics, self.folder, resume=is_run(self.folder), **self.arguments)

    def simulate(self, checkpoint: float, scheduler: str | None) -> xr.Dataset:
        """Simulate what is missing."""
        dynamics = self.run.dynamics[self.name]
        return simulate_in(
            self.run.problem,
            dynamics,
            self.folder,
            resume=True,
            progress=True,
            checkpoint=checkpoint,
            scheduler=scheduler,
            **self.arguments,
        )


@dataclass
class RunCommand:
    """Simulate a configuration, compare with the prediction, write datasets, figure."""

    config: Positional[OptionalPath] = None
    """TOML file; or an ensemble file (.nc), which is then made again from the configuration and data that it holds."""
    resume: OptionalPath = None
    """Folder of a run that was interrupted, which is continued; a configuration beside it must be the same."""
    trajectories: Number = None
    """Trajectories of each replicate, instead of the file's."""
    steps: Number = None
    """Updates, instead of the file's."""
    save_every: Number = None
    """Updates between saves, a divisor of the steps."""
    seed: Number = None
    """Seed, instead of the file's."""
    device: Text = None
    """cpu, cuda, cuda:N, or auto."""
    out: OptionalPath = None
    """Folder of the results, instead of the file's: a run directory for each dynamics, and the figure."""
    merge: Flag = False
    """Write each ensemble as one file, too."""
    checkpoint: Seconds = CHECKPOINT
    """Seconds between states of blocks that take long."""
    scheduler: Text = None
    """Where to run: local[:N], tcp://HOST:PORT, or slurm[:N]; by default in this process."""
    threads: Number = None
    """CPU threads; results do not depend on it."""
    overwrite: Flag = False
    """Remove runs that exist."""
    allow_import: Imports = ()
    """Functions that the configuration may name; importing one runs its module."""

    def __call__(self) -> int:
        """Run, and return the exit code."""
        _set_threads(self.threads)
        jobs = self._new() if self.resume is None else self._known(self.resume)
        root = jobs[0].folder.parent if self.resume is None else self.resume
        return _simulate(jobs, root, self.checkpoint, self.scheduler, merged=self.merge)

    def _changes(self) -> dict[str, Any]:
        names = ("trajectories", "steps", "save_every", "seed", "device")
        return {name: getattr(self, name) for name in names}

    def _new(self) -> list[Job]:
        """Return the jobs of a run that is begun, after looking for room for them."""
        if self.config is None:
            raise InputError(message("CONFIG", "a TOML file", "none", "name it, or continue a run with --resume"))
        run = config.load(
            self.config,
            {**self._changes(), "out": None if self.out is None else str(self.out)},
            allow_import=self.allow_import,
        )
        folder = Path(run.settings.out)
        arguments = {"symmetry": run.symmetry, **run.settings.simulate_arguments()}
        jobs = [Job(name, folder / name, run, arguments) for name in run.dynamics]
        for dynamics in run.dynamics.values():
            dynamics.bind(run.problem, run.symmetry)
        files = [folder / f"{job.name}.nc" for job in jobs if self.merge]
        for job in jobs:
            if is_run(job.folder) and not self.overwrite:
                remedy = f"continue it with sdebias run --resume {folder}, or pass --overwrite or another --out"
                raise OutputError(message(str(job.folder), "no run yet", "one that exists", remedy))
        check_outputs([*files, folder / FIGURE], size=0, overwrite=self.overwrite)
        for job in jobs:
            remove_run(job.folder)
        return jobs

    def _known(self, folder: Path) -> list[Job]:
        """Return the jobs of runs that were begun."""
        given = {name: value for name, value in self._changes().items() if value is not None}
        if given or self.out is not None:
            want = "no changes of a run that was begun"
            raise InputError(
                message("resume", want, ", ".join(given) or "out", "leave them out, or use sdebias extend")
            )
        runs = find_runs(folder)
        if self.config is None:
            return [_stored_job(name, directory.path, self.allow_import) for name, directory in runs.items()]
        run = config.load(self.config, allow_import=self.allow_import)
        arguments = {"symmetry": run.symmetry, **run.settings.simulate_arguments()}
        return [Job(name, folder / name, run, arguments) for name in run.dynamics]


@dataclass
class ExtendCommand:
    """Add trajectories or steps to a run that is finished."""

    folder: Positional[Path]
    """Run directory, or a folder of them."""
    trajectories: Number = None
    """Trajectories of each replicate to add."""
    steps: Number = None
    """Updates to add, a multiple of those between saves."""
    checkpoint: Seconds = CHECKPOINT
    """Seconds between states of blocks that take long."""
    scheduler: Text = None
    """Where to run: local[:N], tcp://HOST:PORT, or slurm[:N]; by default in this process."""
    threads: Number = None
    """CPU threads; results do not depend on it."""
    allow_import: Imports = ()
    """Functions that the configuration may name; importing one runs its module."""

    def __call__(self) -> int:
        """Extend, and return the exit code."""
        _set_threads(self.threads)
        added = {"trajectories": self.trajectories, "steps": self.steps}
        more = {name: check_count(name, count) for name, count in added.items() if count is not None}
        if not more:
            raise InputError("extend: expected --trajectories N or --steps K, got neither; say what to add")
        jobs = [_stored_job(name, run.path, self.allow_import, more) for name, run in find_runs(self.folder).items()]
        return _simulate(jobs, self.folder, self.checkpoint, self.scheduler, merged=False)


@dataclass
class StatusCommand:
    """Say how far runs are."""

    folder: Positional[Path]
    """Run directory, or a folder of them."""

    def __call__(self) -> int:
        """Print, and return the exit code."""
        print("\n".join(describe_run(run) for run in find_runs(self.folder).values()))
        return 0


@dataclass
class MergeCommand:
    """Write a run directory as one file."""

    folder: Positional[Path]
    """Run directory."""
    out: Positional[Path]
    """File (.nc), or zarr store."""
    zarr: Flag = False
    """Write a zarr store."""
    overwrite: Flag = False
    """Replace what exists."""

    def __call__(self) -> int:
        """Write, and return the exit code."""
        print(merge(self.folder, self.out, zarr=self.zarr, overwrite=self.overwrite))
        return 0


def _stored_job(name: str, folder: Path, allowed: Sequence[str], more: Mapping[str, int] | None = None) -> Job:
    """Return the job of a run that was begun, with so many trajectories and steps more."""
    run = config.load(folder, allow_import=allowed)
    arguments = {"symmetry": run.symmetry, **run.settings.simulate_arguments()}
    arguments |= {key: arguments[key] + count for key, count in (more or {}).items()}
    return Job(name, folder, run, arguments)


def _simulate(jobs: list[Job], root: Path, checkpoint: float, scheduler: str | None, *, merged: bool) -> int:
    """Simulate what is missing of some ensembles, compare them with the prediction, and draw."""
    check_positive("checkpoint", checkpoint)
    for job in jobs:
        job.prepare()
    comparisons, files = {}, []
    for job in jobs:
        try:
            ensemble = job.simulate(checkpoint, scheduler)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; continue with: sdebias run --resume {root}") from None
        files.append(job.folder)
        if merged:
            files.append(merge(job.folder, job.folder.with_suffix(".nc"), overwrite=True))
        if ensemble.attrs["kind"] == "statistics":
            print(summary(job.name, ensemble))
        else:
            comparisons[job.name] = compare_ensemble(ensemble, job.run)
    if comparisons:
        print(comparison_text(comparisons))
        files.append(root / FIGURE)
        plot_orbit_drift(list(comparisons.values())).savefig(files[-1])
    for file in files:
        print(file)
    return 0


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(check_count("threads", threads))
