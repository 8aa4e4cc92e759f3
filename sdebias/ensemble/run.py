"""Run an ensemble in a directory: what was computed stays, whatever happens to the process or the machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import xarray as xr

from ..dynamics.base import Dynamics
from ..errors import DataError, InputError, check_positive, message
from ..problems.base import Problem
from ..provenance import provenance
from ..storage import Manifest, RunDirectory, check_outputs, check_same, open_dataset
from ..storage.directory import LOG, MANIFEST
from ..storage.parts import find_parts
from ..storage.progress import Progress
from ..symmetry import Symmetry
from .observables import Function
from .plan import SAVES_PER_SEGMENT, Initial, Plan, make_plan, memory_errors, workers
from .shard import Report, Shard
from .simulate import progress_bar, side_by_side
from .sizes import parse_memory
from .statistics import Statistic

log = logging.getLogger("sdebias")

# Work of a shard, in numbers written: about a second, of which writing a file takes little.
SHARD_NUMBERS = 2**30
# Results of a shard that are held in memory before they are written.
LEG_BYTES = 2**28
CHECKPOINT = 30.0

# From bounds to a shard, bounds, what stops it, and what is told → runs all of them.
Execute = Callable[[Callable[[tuple[int, int]], Shard], Sequence[tuple[int, int]], threading.Event, Report], None]


class Arguments(TypedDict, total=False):
    """Arguments that `run` and `simulate` share; `simulate` describes them."""

    symmetry: Symmetry | None
    trajectories: int
    steps: int
    save_every: int | None
    seed: int
    initial: Initial | None
    save: Sequence[str | Function] | None
    statistics: Sequence[Statistic | str | Mapping[str, Any]] | None
    block_size: int | None
    memory: int | str | None
    compile: bool | None


def run(
    problem: Problem,
    dynamics: Dynamics,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    checkpoint: float = CHECKPOINT,
    scheduler: str | None = None,
    progress: bool | None = None,
    **arguments: Unpack[Arguments],
) -> xr.Dataset:
    """Simulate an ensemble in a run directory, of which nothing is lost.

    Trajectories are written shard by shard, each file whole or not at all; of blocks that take long, the state is
    written on the way. The numbers are those of `simulate`, whatever was interrupted, and however often.

    Parameters
    ----------
    problem, dynamics
        As for `simulate`.
    out : path
        Run directory.
    resume : bool
        Continue the run that is there. It must be the same run, but may have more trajectories or steps than before:
        then it is extended.
    checkpoint : float
        Seconds between states of blocks that take long.
    scheduler : str, optional
        Where shards run: by default on threads of this process; ``"local"`` or ``"local:N"`` on processes of this
        machine, ``"tcp://HOST:PORT"`` on the workers of a dask scheduler, ``"slurm"`` or ``"slurm:N"`` on those of N
        jobs. All must see `out`. The numbers are the same; `memory` is that of each worker. Needs the extra
        `distributed`; see `sdebias.ensemble.cluster.connect`.
    progress : bool, optional
        Show a progress bar on stderr; by default where that is a terminal.
    **arguments
        Of `simulate`: symmetry, trajectories, steps, save_every, seed, initial, save, statistics, block_size, memory,
        compile.

    Returns
    -------
    xr.Dataset
        As by `simulate`, but lazy: see `sdebias.open`.

    Raises
    ------
    InputError
        As by `simulate`; or if the run that is there is another one (ConfigError), or the disk has not the room or the
        directory exists (OutputError).
    RunError
        If memory or disk run out, another process is at work on the directory, or workers die again and again. What
        was finished stays.
    KeyboardInterrupt
        After an interruption (SIGINT, SIGTERM), once the state is written. A second one acts at once.
    """
    path = Path(out)
    check_positive("checkpoint", checkpoint)
    with executor(scheduler, problem) as execute:
        directory = prepare(problem, dynamics, path, resume=resume, **arguments)
        plan = planned(problem, dynamics, directory.manifest, **arguments)
        with directory.locked(), _logged(path), interruptible() as stop:
            directory.sweep()
            total = plan.instances * plan.trajectories * plan.grid[-1]
            with progress_bar(progress, total, type(dynamics).__name__) as bar, Progress(directory, bar) as told:
                pending = directory.missing()
                log.info("%d of %d shards to do", len(pending), len(directory.manifest.shards))
                make = functools.partial(Shard, plan, path.absolute(), directory.manifest, checkpoint=checkpoint)
                with memory_errors():
                    execute(make, pending, stop, told)
            if directory.missing():
                raise KeyboardInterrupt(f"stopped; continue with: sdebias run --resume {path}")
    return open_dataset(path, verify=False)


def prepare(
    problem: Problem, dynamics: Dynamics, path: Path, *, resume: bool, **arguments: Unpack[Arguments]
) -> RunDirectory:
    """Make a run directory, or make sure that the one that is there is of the same run, and extend it.

    Raises
    ------
    InputError
        See `run`.
    """
    if resume:
        directory = RunDirectory(path)
        plan = planned(problem, dynamics, directory.manifest, **arguments)
        check_same(path, directory.manifest.config, _plain(plan.config()))
        if not _data(problem).equals(directory.data().drop_attrs()):
            remedy = "give the data that it was begun with, or choose another directory"
            raise DataError(message(str(path), "the data of the run", "others", remedy))
        grown = _extended(plan, directory.manifest)
        _check_room(plan, path, grown)
        if grown != directory.manifest:
            with directory.locked():
                directory.grow(grown)
        return directory
    plan = planned(problem, dynamics, None, **arguments)
    manifest = _manifest(plan, arguments.get("memory"))
    _check_room(plan, path, manifest)
    return RunDirectory.create(path, manifest, _data(problem))


def planned(problem: Problem, dynamics: Dynamics, manifest: Manifest | None, **arguments: Unpack[Arguments]) -> Plan:
    """Return the plan of a run; what the arguments leave open is as it was where the run was begun before."""
    memory = arguments.get("memory")
    held = LEG_BYTES * workers(problem)
    if memory is not None:
        held = min(held, parse_memory(memory) // 2)
    if manifest is None:
        return make_plan(problem, dynamics, held=held, **arguments)
    names = ("trajectories", "steps", "save_every", "block_size", "compile")
    given = {name: value for name, value in arguments.items() if value is not None}
    arguments = cast(Arguments, {name: manifest.run[name] for name in names} | given)
    plan = make_plan(problem, dynamics, held=held, **arguments)
    return dataclasses.replace(plan, sizes=dataclasses.replace(plan.sizes, chunk=manifest.chunk))


def _manifest(plan: Plan, memory: int | str | None) -> Manifest:
    """Return what the directory of a new run shall hold."""
    sizes, steps = plan.sizes, plan.grid[-1]
    room = LEG_BYTES if memory is None else min(LEG_BYTES, parse_memory(memory) // (2 * workers(plan.problem)))
    work = sizes.numbers * sizes.block * steps * plan.dynamics.substeps
    blocks = max(1, min(SHARD_NUMBERS // work, room // plan.result_bytes(sizes.block, len(plan.grid))))
    segments = max(1, room // plan.result_bytes(sizes.block, SAVES_PER_SEGMENT))
    shards = _ranges(0, plan.trajectories, blocks * sizes.block)
    legs = _ranges(1, len(plan.grid), segments * SAVES_PER_SEGMENT)
    legs[0] = (0, legs[0][1])  # the start is saved with the first leg
    return Manifest(_plain(plan.config()), provenance(), "", sizes.chunk, shards, legs)


def _extended(plan: Plan, manifest: Manifest) -> Manifest:
    """Return a manifest with the trajectories and saves of the plan, of which there are as many or more.

    Raises
    ------
    InputError
        If there are fewer.
    """
    shards, legs = manifest.shards, manifest.legs
    for name, now in (("trajectories", plan.trajectories), ("steps", plan.grid[-1])):
        if now < manifest.run[name]:
            want = f"at least the {manifest.run[name]} that the run has"
            raise InputError(message(name, want, now, "a run can be extended, not cut"))
    # What is there stays as it is: a block that was not used up is walked again for the trajectories that it has left.
    shards = shards + _ranges(shards[-1][1], plan.trajectories, shards[0][1])
    legs = legs + _ranges(legs[-1][1], len(plan.grid), legs[0][1] - 1)
    return dataclasses.replace(manifest, config=_plain(plan.config()), shards=shards, legs=legs)


def _ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges of at most `size` from `start` to `stop`."""
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _data(problem: Problem) -> xr.Dataset:
    """Return the problem's data."""
    return xr.Dataset({name: (dims, tensor.cpu().numpy()) for name, (dims, tensor) in problem.arrays().items()})


def _check_room(plan: Plan, path: Path, manifest: Manifest) -> None:
    """Raise OutputError unless the folder can be written to, and the disk has room for what is to come.

    States take the place of two saves of θ: a new one is written before the old one goes.
    """
    there = sum(part.path.stat().st_size for part in find_parts(path)) if path.is_dir() else 0
    results = sum(plan.result_bytes(last - first, len(plan.grid)) for first, last in manifest.shards)
    states = 2 * plan.blocks * plan.sizes.block * plan.instances * plan.problem.layout.size * 8
    check_outputs([path / MANIFEST], size=max(results + states - there, 0), overwrite=True)


@contextmanager
def executor(scheduler: str | None, problem: Problem) -> Iterator[Execute]:
    """Give what runs shards: on threads of this process, or on workers.

    Raises
    ------
    InputError
        If the extra `distributed` is missing, and as by `cluster.connect`.
    """
    if scheduler is None:
        yield lambda make, pending, stop, told: side_by_side(
            lambda bounds: make(bounds).run(stop, told), pending, workers(problem), stop
        )
        return
    try:
        from . import cluster  # dask.distributed is optional, and slow to import
    except ImportError:
        remedy = "pip install 'sdebias[distributed]'"
        raise InputError(message("scheduler", "the package distributed", "none", remedy)) from None
    with cluster.connect(scheduler, problem) as client:
        yield functools.partial(cluster.run_shards, client)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what the package logs to the run directory."""
    handler = logging.FileHandler(path / LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set, so that work can end in order; a second signal ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        log.warning("signal %d: stopping at the end of a segment; once more stops at once", number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
