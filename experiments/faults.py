"""Means to do faults to run directories, for the tests and for `experiments.reliability`."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.ensemble.plan import make_plan
from sdebias.ensemble.run import run
from sdebias.storage import RunDirectory
from sdebias.storage.directory import MANIFEST
from sdebias.storage.parts import Part, digest

NOBODY = 65534
# Of sched.h.
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


@contextmanager
def small_pieces(leg_bytes: int = 2**15) -> Iterator[None]:
    """Make every seed block a shard, of many legs of short segments, so that files are written often."""
    with (
        mock.patch.multiple("sdebias.ensemble.run", LEG_BYTES=leg_bytes, SHARD_NUMBERS=1),
        mock.patch("sdebias.ensemble.sizes.SAVES_PER_SEGMENT", (8, 8)),
    ):
        yield


@dataclass(frozen=True)
class Job:
    """An ensemble, to be simulated in memory or in a run directory."""

    problem: sb.Problem
    dynamics: Dynamics
    arguments: Mapping[str, Any]

    def simulate(self) -> xr.Dataset:
        """Return what the run shall be equal to."""
        return sb.simulate(self.problem, self.dynamics, progress=False, **self.arguments)

    @cached_property
    def whole(self) -> xr.Dataset:
        """The same, once."""
        return self.simulate()

    def run(self, folder: Path, **options: Any) -> xr.Dataset:
        """Run in a directory, or continue there."""
        return run(self.problem, self.dynamics, folder, progress=False, **{**self.arguments, **options})


@contextmanager
def shards_of(blocks: int, job: Job) -> Iterator[None]:
    """Give each shard of a job so many blocks, and one leg."""
    plan = make_plan(job.problem, job.dynamics, **job.arguments)
    work = plan.sizes.numbers * plan.sizes.block * plan.grid[-1] * plan.dynamics.substeps
    with mock.patch.multiple("sdebias.ensemble.run", LEG_BYTES=2**27, SHARD_NUMBERS=blocks * work):
        yield


def small_job(seed: int = 0, data: int = 0, **more: Any) -> Job:
    """Return a job of four seed blocks, the last of which is not used up; `more` are arguments of `run`."""
    rng = np.random.default_rng(data)
    X = rng.standard_normal((12, 3))
    problem = sb.problems.HadamardRegression(X, X @ rng.standard_normal(3), initial={"p": 1.0, "q": 0.3})
    arguments = {"trajectories": 60, "steps": 200, "save_every": 2, "save": ["theta", "loss"], "seed": seed}
    return Job(problem, sb.SGDSDE(learning_rate=0.05, substeps=2), {**arguments, "block_size": 16, **more})


def differences(one: xr.Dataset, other: xr.Dataset) -> list[str]:
    """Return the names of variables and coordinates that are not the same in each byte, dtype and shape."""
    names = sorted(map(str, {*one.variables, *other.variables}))
    return [name for name in names if name not in one or name not in other or _bytes(one[name]) != _bytes(other[name])]


def _bytes(variable: xr.DataArray) -> tuple[Any, ...]:
    values = variable.values
    content = values.tolist() if values.dtype.kind in "OTU" else values.tobytes()
    return (
        variable.dims,
        values.shape,
        values.dtype.kind,
        values.dtype.itemsize * (values.dtype.kind in "fiub"),
        content,
    )


def attempt(function: Callable[[], object]) -> str:
    """Return how a call ended: "done", or the error."""
    try:
        function()
    except (sb.errors.SdebiasError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return "done"


def in_child(function: Callable[[], object], meanwhile: Callable[[int], object] | None = None) -> str:
    """Return how a call ended in a process of its own, a fork of this warm one; "" where it was killed.

    `meanwhile` is called with the id of that process.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # never returns
        told = "nothing"
        try:
            told = attempt(function)
        except BaseException as error:
            told = f"TRACEBACK of {type(error).__name__}: {error}"
        finally:
            os.write(write, told.encode()[:4096])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        if meanwhile is not None:
            meanwhile(child)
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told


# -- what can be done to a directory -----------------------------------------------------------------------------------


def parts_of(folder: Path, kind: str = "part") -> list[Part]:
    """Return the files of one kind."""
    return RunDirectory(folder).parts(kind)


def intact(folder: Path) -> set[str]:
    """Return the names of the parts that hold what was written."""
    return {part.path.name for part in parts_of(folder) if part.intact()}


def truncate(path: Path) -> None:
    """Cut a file to its half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rename_to_hash(path: Path, identity: str) -> Path:
    """Give a file that was changed the name that fits its bytes, as somebody with bad intentions would."""
    stem = path.name.rpartition("-")[0]
    return path.rename(path.with_name(f"{stem}-{digest(path, identity)}{path.suffix}"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest by hand."""
    table = json.loads((folder / MANIFEST).read_text())
    change(table)
    (folder / MANIFEST).write_text(json.dumps(table))


class Bomb:
    """An object that tells where it was unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def plant_pickle(folder: Path) -> Path:
    """Put a pickle in place of a state, under the name that fits it, and return the file that unpickling it makes."""
    state, trace = parts_of(folder, "state")[-1], folder / "unpickled"
    state.path.write_bytes(pickle.dumps(Bomb(trace)))
    rename_to_hash(state.path, state.identity)
    return trace


@contextmanager
def clock_going_backwards() -> Iterator[None]:
    """Set the clock of this process back by an hour each time that it is read."""
    now, readings = time.time(), iter(range(1, 10**9))
    with mock.patch("time.time", side_effect=lambda: now - 3600.0 * next(readings)):
        yield


def with_file_size(size: int, function: Callable[[], object]) -> None:
    """Call where no file may grow beyond a size, which fails as on a full disk and needs no privileges."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    function()


def own_mounts() -> None:
    """Give this process mounts of its own, which no other sees; it must have one thread.

    Raises
    ------
    OSError
        If the system does not let it.
    """
    user, group, libc = os.geteuid(), os.getegid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def on_small_disk(folder: Path, size: int, run: Callable[[Path], object], *, fill: bool) -> None:
    """Call with a folder on a disk of so many bytes, and copy from there what that leaves.

    Parameters
    ----------
    folder : Path
        Where the run directory shall be copied to.
    size : int
    run : callable
        From a run directory that it makes.
    fill : bool
        Whether another file takes all that is left of the disk once the run has written two parts.
    """
    own_mounts()
    disk = folder.with_name(f"{folder.name}-disk")
    disk.mkdir()
    if ctypes.CDLL(None, use_errno=True).mount(b"tmpfs", bytes(disk), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    there = disk / "run"

    def fill_disk() -> None:
        while not ((there / MANIFEST).exists() and len(parts_of(there)) >= 2):
            time.sleep(0.002)
        with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
            while file.write(bytes(2**12)):
                pass

    if fill:
        threading.Thread(target=fill_disk, daemon=True).start()
    try:
        run(there)
    finally:
        if there.exists():
            shutil.copytree(there, folder)


def on_threads(count: int, function: Callable[[], object]) -> None:
    """Call with a number of threads."""
    torch.set_num_threads(count)
    function()


@dataclass(frozen=True)
class Deadly:
    """Starts of trajectories in [0, 1), to draw some of which is the death of the process while there is a file."""

    marker: Path
    deadly_seed: int
    width: int

    def __call__(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """Draw, or die: shape (count, width)."""
        if rng.initial_seed() == self.deadly_seed and self.marker.exists():
            with self.marker.open("a") as file:
                file.write("x")
            os._exit(9)
        return torch.rand(count, self.width, generator=rng, dtype=torch.float64)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write to a folder from its owner, and from root what lets it write nevertheless."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


def interrupt(child: int, folder: Path, times: int = 1) -> None:
    """Send SIGINT to a run once it has written two parts, and again after a moment."""
    while not ((folder / MANIFEST).exists() and len(parts_of(folder)) >= 2):
        time.sleep(0.002)
    for _ in range(times):
        os.kill(child, signal.SIGINT)
        time.sleep(0.001)
