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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack, cast

import xarray as xr

from ..dataset import data_attributes
from ..dynamics.base import Dynamics
from ..errors import DataError, InputError, check_positive, message
from ..problems.base import Problem
from ..provenance import provenance
from ..storage import Manifest, RunDirectory, check_outputs, check_same, open_dataset
from ..storage.directory import LOG, MANIFEST
from ..storage.parts import Part
from ..storage.progress import Progress
from ..symmetry import Symmetry
from .observables import Function
from .plan import Initial, Plan, make_plan, memory_errors, workers
from .shard import Bounds, Make, Report, Shard
from .simulate import progress_bar
from .sizes import parse_memory
from .statistics import Statistic
from .threads import run_shards

log = logging.getLogger("sdebias")

# Work of a shard, in numbers written: about a second, of which writing a file takes little.
SHARD_NUMBERS = 2**30
# Four times as much where that leaves so many shards, for workers; threads share the blocks of each.
FEW_SHARDS = 8
# Shards above which they become larger instead: each is a file, or more, to be listed and opened.
SHARDS = 2**11
# Results of a shard that are held in memory before they are written; and once more as a file, while they are.
LEG_BYTES = 2**27
CHECKPOINT = 30.0

# (make, shards to do with their files, what stops them, what is told) → runs them.
Execute: TypeAlias = Callable[[Make, Mapping[Bounds, Sequence[Part]], threading.Event, Report], None]


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
        After an interruption (SIGINT, SIGTERM), once the state is written. A second one does not wait for that where
        one worker runs; where several do, it waits for the end of their segments.
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
                files = directory.by_shard()
                pending = {bounds: files.get(bounds, []) for bounds in directory.missing()}
                log.info("%d of %d shards to do", len(pending), len(directory.manifest.shards))
                make = functools.partial(Shard, plan, RunDirectory(path.absolute()), checkpoint=checkpoint)
                with memory_errors():
                    execute(make, pending, stop, told)
            if stop.is_set():
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
        if not _data(problem).equals(directory.data()):
            remedy = "give the data that it was begun with, or choose another directory"
            raise DataError(message(str(path), "the data of the run", "others", remedy))
        grown = _extended(plan, directory.manifest, arguments.get("memory"))
        _warn_of_versions(directory)
        _check_room(plan, path, grown, directory.size())
        if grown != directory.manifest:
            with directory.locked():
                directory.grow(grown)
        return directory
    plan = planned(problem, dynamics, None, **arguments)
    manifest = _manifest(plan, arguments.get("memory"))
    _check_room(plan, path, manifest, there=0)
    return RunDirectory.create(path, manifest, _data(problem))


def planned(problem: Problem, dynamics: Dynamics, manifest: Manifest | None, **arguments: Unpack[Arguments]) -> Plan:
    """Return the plan of a run; what the arguments leave open is as it was where the run was begun before."""
    memory = arguments.get("memory")
    held = 2 * LEG_BYTES * workers(problem)
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
    shards, legs = _pieces(plan, memory, [], [])
    return Manifest(_plain(plan.config()), provenance(), "", plan.sizes.chunk, shards, legs)


def _pieces(
    plan: Plan, memory: int | str | None, shards: list[tuple[int, int]], legs: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return ranges of trajectories and of saves: those that are there, and more up to the ends of the plan."""
    block, saves = plan.sizes.block, len(plan.grid)
    room = LEG_BYTES if memory is None else min(LEG_BYTES, parse_memory(memory) // (4 * workers(plan.problem)))
    work = max(plan.sizes.numbers * block * plan.grid[-1] * plan.dynamics.substeps, 1)
    few = max(SHARD_NUMBERS // work, min(4 * SHARD_NUMBERS // work, -(-plan.blocks // FEW_SHARDS)))
    blocks = max(1, min(max(few, plan.blocks // SHARDS), room // max(plan.result_bytes(block, saves), 1)))
    # A block that was not used up is walked again, alone, for the trajectories that it has left.
    begun = shards[-1][1] if shards else 0
    whole = min(-(-begun // block) * block, plan.trajectories)
    shards = [*shards, *_ranges(begun, whole, block), *_ranges(whole, plan.trajectories, blocks * block)]
    widest = max(last - first for first, last in shards)
    segments = -(-room // max(plan.result_bytes(widest, plan.sizes.saves), 1))
    legs = [*legs, *_ranges(legs[-1][1] if legs else 1, saves, segments * plan.sizes.saves)]
    return shards, [(0, legs[0][1]), *legs[1:]]  # the start is saved with the first leg


def _extended(plan: Plan, manifest: Manifest, memory: int | str | None) -> Manifest:
    """Return a manifest with the trajectories and saves of the plan, of which there are as many or more.

    Raises
    ------
    InputError
        If there are fewer.
    """
    for name, now in (("trajectories", plan.trajectories), ("steps", plan.grid[-1])):
        if now < manifest.run[name]:
            want = f"at least the {manifest.run[name]} that the run has"
            raise InputError(message(name, want, now, "a run can be extended, not cut"))
    shards, legs = _pieces(plan, memory, manifest.shards, manifest.legs)
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
    arrays = {name: (dims, tensor.cpu().numpy()) for name, (dims, tensor) in problem.arrays().items()}
    return xr.Dataset({name: (*array, data_attributes(name)) for name, array in arrays.items()})


def _warn_of_versions(directory: RunDirectory) -> None:
    """Say where other versions than those that began a run shall go on with it."""
    now, before = provenance(), directory.manifest.provenance
    changed = [name for name in now if name.endswith(("_version", "_language")) and before.get(name) != now[name]]
    if changed and directory.missing():
        told = ", ".join(f"{name} {before.get(name)} before, {now[name]} now" for name in changed)
        log.warning("%s: %s; what is still to come may differ in the last bits", directory.path, told)


def _check_room(plan: Plan, path: Path, manifest: Manifest, there: int) -> None:
    """Raise OutputError unless the folder can be written to, and the disk has room for what is to come.

    States take the place of two saves of θ, and in the middle of a leg of what the leg has observed so far: a new one
    is written before the old one goes. Bytes that are `there` already count.
    """
    results = sum(plan.result_bytes(last - first, len(plan.grid)) for first, last in manifest.shards)
    states = 2 * plan.blocks * plan.sizes.block * plan.instances * plan.problem.layout.size * 8
    widest, longest = (max(stop - start for start, stop in ranges) for ranges in (manifest.shards, manifest.legs))
    states += workers(plan.problem) * plan.result_bytes(widest, longest)
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
        yield functools.partial(run_shards, workers(problem))
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
    """Write what the package logs to the run directory, and warnings to stderr unless somebody else takes them."""
    handler = _LogFile(path / LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [handler]
    if logging.lastResort is not None and not log.hasHandlers():
        handlers.append(logging.lastResort)
    level = log.level
    for one in handlers:
        log.addHandler(one)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        for one in handlers:
            log.removeHandler(one)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log of which a line may be lost: where the disk is full, parts that cannot be written say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do without."""


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
