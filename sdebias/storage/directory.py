"""Run directories: the manifest that says what shall be there, and the parts that are."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import filelock
import xarray as xr

from ..dataset import config_attributes
from ..errors import ConfigError, DataError, OutputError, RunError, message
from .files import save_text, sync
from .parts import Part, digest, find_parts, write_named

log = logging.getLogger("sdebias")

MANIFEST = "manifest.json"
LOG = "run.log"
PROGRESS = "progress.json"
LOCK = "lock"
OWNER = "owner.json"
# Seconds that a lock is waited for: `busy` holds it for an instant.
PATIENCE = 0.5
FORMAT = "sdebias run directory"
VERSION = 1
DATA = re.compile(r"data-[0-9a-f]{32}\.nc")
# What an extension may change of a configuration.
GROWING = ("trajectories", "steps")


@dataclass(frozen=True)
class Manifest:
    """What a run directory shall hold.

    Attributes
    ----------
    config : dict
        Configuration as plain data, with the sections ``problem``, ``dynamics``, ``run`` and perhaps ``symmetry``.
    provenance : dict
        Who made it, when, and with which versions.
    data : str
        File of the problem's data.
    chunk : int
        Solver steps of a chunk: with the seed and the block size it decides every number.
    shards : list of [int, int]
        Ranges of trajectories, one file each.
    legs : list of [int, int]
        Ranges of saves, one file each.
    """

    config: dict[str, Any]
    provenance: dict[str, str]
    data: str
    chunk: int
    shards: list[tuple[int, int]]
    legs: list[tuple[int, int]]

    @property
    def run(self) -> dict[str, Any]:
        """Section ``run`` of the configuration."""
        section: dict[str, Any] = self.config["run"]
        return section

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides the numbers, whatever their number: that of every part."""
        run = {key: value for key, value in self.run.items() if key not in GROWING}
        return config_attributes({**self.config, "run": run, "data": self.data, "chunk": self.chunk})["config_hash"]

    def to_json(self) -> str:
        """Return the manifest as text, with the hash of its configuration."""
        table = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps({**table, "config_hash": config_attributes(self.config)["config_hash"]}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Self:
        """Read a manifest, which is data and nothing else.

        Raises
        ------
        DataError
            If it is not one, or was changed by hand.
        """
        remedy = "restore the file; the parts beside it are not lost"
        try:
            table = json.loads(text)
            if table["format"] != FORMAT or table["version"] != VERSION:
                raise ValueError(f"{table['format']} {table['version']}")
            ranges = {key: [(int(one), int(other)) for one, other in table[key]] for key in ("shards", "legs")}
            origin = {str(key): str(value) for key, value in dict(table["provenance"]).items()}
            made = cls(dict(table["config"]), origin, str(table["data"]), int(table["chunk"]), **ranges)
            known = table["config_hash"]
            for section in ("problem", "dynamics", "run"):
                dict(made.config[section])
            last = {"shards": int(made.run["trajectories"]), "legs": made.run["steps"] // made.run["save_every"] + 1}
            if made.chunk < 1 or any(ranges[name][-1][1] != end for name, end in last.items()):
                raise ValueError(f"chunk {made.chunk}, ranges that do not end at {last}")
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            want = f"a manifest ({FORMAT}, version {VERSION})"
            raise DataError(message(str(path), want, f"{type(error).__name__}: {error}", remedy)) from None
        if known != config_attributes(made.config)["config_hash"] or not DATA.fullmatch(made.data):
            raise DataError(message(str(path), "the configuration of its hash", "another one", remedy))
        for name, pieces in ranges.items():
            ends = [0, *(end for _, end in pieces)]
            if not pieces or any(
                start != end or start >= stop for (start, stop), end in zip(pieces, ends, strict=False)
            ):
                raise DataError(message(str(path), f"{name} that follow one another from 0", pieces, remedy))
        return made


class RunDirectory:
    """A folder with a manifest, the problem's data, parts and states.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it has no manifest, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / MANIFEST
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            remedy = "make one with sdebias run --out"
            raise DataError(message(str(path), f"a run directory with {MANIFEST}", error, remedy)) from None
        self.manifest = Manifest.from_json(text, file)

    @classmethod
    def create(cls, path: Path, manifest: Manifest, data: xr.Dataset) -> Self:
        """Make the folder, with the data and the manifest, which is the last to appear.

        Raises
        ------
        OutputError
            If it is a run directory already, or cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            sync(path.parent)
        except OSError as error:
            remedy = "choose another --out"
            raise OutputError(message(str(path), "a folder that can be made", error.strerror, remedy)) from None
        with _locked(path):
            if is_run(path):
                remedy = f"continue it with sdebias run --resume {path}, or choose another --out"
                raise OutputError(message(str(path), "no run directory yet", "one that exists", remedy))
            file = write_named(path, "data", ".nc", lambda target: _write(data, target))
            save_text(dataclasses.replace(manifest, data=file.name).to_json(), path / MANIFEST)
        return cls(path)

    def grow(self, manifest: Manifest) -> None:
        """Replace the manifest by one with more trajectories or steps; only under the lock."""
        save_text(manifest.to_json(), self.path / MANIFEST)
        self.manifest = manifest

    def data(self) -> xr.Dataset:
        """Return the problem's data.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        file = self.path / self.manifest.data
        want, remedy = "the data of the run", "restore the file"
        if not file.is_file() or digest(file) not in file.name:
            got = "other bytes" if file.is_file() else "no such file"
            raise DataError(message(str(file), want, got, remedy))
        with xr.open_dataset(file, engine="netcdf4") as dataset:
            return dataset.load()

    def parts(self, kind: str = "part") -> list[Part]:
        """Return the files of one kind, unchecked, sorted by trajectory and save."""
        return [part for part in self.files() if part.kind == kind]

    def files(self) -> list[Part]:
        """Return parts and states, unchecked, sorted by trajectory and save."""
        return find_parts(self.path, self.manifest.identity)

    def by_shard(self) -> dict[tuple[int, int], list[Part]]:
        """Return parts and states of each range of trajectories that has any."""
        found: dict[tuple[int, int], list[Part]] = {}
        for part in self.files():
            found.setdefault((part.first, part.last), []).append(part)
        return found

    def size(self) -> int:
        """Return the bytes that parts and states take."""
        total = 0
        for part in self.files():
            with contextlib.suppress(FileNotFoundError):  # a process at work replaces its states
                total += part.path.stat().st_size
        return total

    def missing(self) -> list[tuple[int, int]]:
        """Return the shards that lack a part."""
        there = {(part.first, part.last, part.since, part.until) for part in self.parts()}
        legs = self.manifest.legs
        return [shard for shard in self.manifest.shards if any((*shard, *leg) not in there for leg in legs)]

    def reached(self) -> dict[tuple[int, int], int]:
        """Return how many saves after the start each shard has on the disk."""
        reached = dict.fromkeys(self.manifest.shards, 0)
        for part in self.files():
            shard = (part.first, part.last)
            if shard in reached:
                reached[shard] = max(reached[shard], part.until - 1)
        return reached

    def fraction(self) -> float:
        """Return how much of the run is on the disk, between 0 and 1."""
        saves, trajectories = self.manifest.legs[-1][1], self.manifest.shards[-1][1]
        done = sum((last - first) * after for (first, last), after in self.reached().items())
        return done / ((saves - 1) * trajectories)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for writing, against every other process.

        Raises
        ------
        RunError
            If another process holds it or has changed its manifest meanwhile, or it cannot be written to.
        """
        with _locked(self.path):
            if type(self)(self.path).manifest != self.manifest:
                want, remedy = "the manifest that was read before", "try again"
                raise RunError(message(str(self.path), want, "one that another process changed", remedy))
            yield

    def busy(self) -> bool:
        """Return whether a process is at work on it."""
        if not (self.path / LOCK).exists():
            return False
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return True
        except OSError as error:
            return error.errno != errno.EROFS  # what this user may not lock, another may be at work on
        lock.release()
        return False

    def sweep(self) -> list[Path]:
        """Set aside parts and states that are damaged or of another run, and return them; only under the lock.

        What a process that died was writing is removed.

        Raises
        ------
        RunError
            If a file can be neither read nor set aside.
        """
        damaged = []
        try:
            for leftover in self.path.glob(".*.tmp"):
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)
            for part in self.files():
                if not part.intact():
                    aside = part.path.with_name(f"{part.path.name}.damaged")
                    part.path.replace(aside)
                    damaged.append(aside)
                    log.warning(
                        "%s is damaged, or of another run; it was set aside and is computed again", part.path.name
                    )
        except OSError as error:
            want, remedy = "files that can be read and renamed", "repair the disk, or copy the directory"
            raise RunError(message(str(self.path), want, error, remedy)) from None
        return damaged


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a folder against every other process; see `RunDirectory.locked`."""
    owner, lock = path / OWNER, filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        try:
            who = owner.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            who = "one"
        remedy = "wait for it, or stop it; sdebias status shows how far it is"
        raise RunError(message(str(path), "no other process at work on it", who, remedy)) from None
    except OSError as error:
        remedy = "make it writable, or copy the directory"
        raise RunError(message(str(path), "a writable folder", error.strerror, remedy)) from None
    try:
        save_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n", owner)
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that fails has been told of already
            owner.unlink(missing_ok=True)
        lock.release()


def is_run(path: Path) -> bool:
    """Return whether a path is a run directory."""
    return (path / MANIFEST).is_file()


def remove_run(path: Path) -> None:
    """Remove what makes a folder a run directory, and the folder where nothing else is in it.

    Raises
    ------
    RunError
        If a process is at work on it.
    """
    if not is_run(path):
        return
    run = RunDirectory(path)
    with run.locked():
        # The manifest first: what is half removed is no run.
        for name in (MANIFEST, run.manifest.data, LOG, PROGRESS):
            (path / name).unlink(missing_ok=True)
        for part in run.files():
            part.path.unlink(missing_ok=True)
    (path / LOCK).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()


def check_same(path: Path, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise unless two configurations are the same, but for what may grow.

    Raises
    ------
    ConfigError
        If they differ; the message shows each difference.
    """
    one, other = _flat(known), _flat(given)
    differences = [
        f"{key}: {one.get(key, 'absent')!r} there, {other.get(key, 'absent')!r} here"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key) and key not in {f"run.{name}" for name in GROWING}
    ]
    if differences:
        remedy = "undo the change, or choose another --out"
        raise ConfigError(
            message(str(path), "the configuration that it was begun with", "; ".join(differences), remedy)
        )


def _flat(table: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    if not isinstance(table, Mapping):
        return {prefix: list(table) if isinstance(table, tuple) else table}
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _write(dataset: xr.Dataset, path: Path) -> None:
    dataset.to_netcdf(path, engine="netcdf4")
