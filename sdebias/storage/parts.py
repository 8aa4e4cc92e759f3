"""Parts: the files of a run directory, whole or not there, each named by what it covers and by what it holds."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import xarray as xr

from ..dataset import validate
from ..errors import DataError, message
from .files import publish, temporary

DIGEST = 32
NAME = re.compile(r"(part|state)-(\d{9})-(\d{9})-(\d{9})-(\d{9})-([0-9a-f]{32})\.(nc|npz)")
# Parts are written and read by several threads, and closed by whichever collects garbage: netCDF4's library allows one
# thread at a time, h5py's locks itself.
ENGINE: Literal["h5netcdf"] = "h5netcdf"
_writing = threading.Lock()


@dataclass(frozen=True, order=True)
class Part:
    """A file of a run directory: trajectories `first` to `last`, saves `since` to `until` (both without their end).

    A part holds what was observed; a state holds what a walk needs to go on after save `until` - 1, and what it has
    observed since the last part.
    """

    first: int
    last: int
    since: int
    until: int
    path: Path

    @property
    def kind(self) -> str:
        """What the file is, a "part" or a "state"."""
        return self.path.name.partition("-")[0]

    def intact(self) -> bool:
        """Return whether the file holds what it held when it was written."""
        return self.path.name.rpartition("-")[2].partition(".")[0] == digest(self.path)

    def check(self) -> Part:
        """Return the part.

        Raises
        ------
        DataError
            If the file is not what was written.
        """
        if not self.intact():
            remedy = "continue the run: sdebias run --resume computes it again"
            raise DataError(message(str(self.path), "the bytes that were written", "others", remedy))
        return self


def find_parts(folder: Path) -> list[Part]:
    """Return the parts and states of a folder, sorted; other files are none, whatever they hold."""
    return sorted(part for path in folder.iterdir() if (part := _part(path)))


def _part(path: Path) -> Part | None:
    match = NAME.fullmatch(path.name)
    if match is None:
        return None
    first, last, since, until = map(int, match.group(2, 3, 4, 5))
    return Part(first, last, since, until, path)


def digest(path: Path) -> str:
    """Return the first half of the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST]


def write_named(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write a file whole or not at all, under a name that ends in the hash of its bytes.

    Raises
    ------
    RunError
        If it cannot be written; nothing is left behind.
    """
    remedy = "free space or make the folder writable, then continue with sdebias run --resume"
    with temporary(folder, stem, remedy) as file:
        write(file)
        return publish(file, folder / f"{stem}-{digest(file)}{suffix}")


def write_part(folder: Path, first: int, last: int, since: int, until: int, dataset: xr.Dataset) -> Part:
    """Write what was observed; see `write_named`."""
    # Flags and counts are mostly zeros; floating noise does not compress.
    packed = [name for name, variable in dataset.data_vars.items() if variable.dtype.kind in "iu"]
    encoding = {name: {"zlib": True, "complevel": 1} for name in packed}

    def write(path: Path) -> None:
        # In a worker of dask, xarray would take a lock of the whole cluster, which a worker that dies may keep. dask's
        # settings are those of the process: one thread at a time sets and resets them.
        with _writing, dask.config.set(scheduler="threads"):
            dataset.to_netcdf(path, engine=ENGINE, encoding=encoding)

    stem = f"part-{first:09d}-{last:09d}-{since:09d}-{until:09d}"
    return Part(first, last, since, until, write_named(folder, stem, ".nc", write))


def write_state(folder: Path, first: int, last: int, since: int, until: int, arrays: dict[str, np.ndarray]) -> Part:
    """Write the state of the walks of a shard; see `write_named`."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    stem = f"state-{first:09d}-{last:09d}-{since:09d}-{until:09d}"
    return Part(first, last, since, until, write_named(folder, stem, ".npz", write))


def read_state(part: Part) -> dict[str, np.ndarray]:
    """Return the arrays of a state; nothing is unpickled.

    Raises
    ------
    DataError
        If the file is not what was written.
    """
    part.check()
    with np.load(part.path, allow_pickle=False) as file:
        return dict(file)


def open_file(path: Path, *, engine: Literal["netcdf4", "h5netcdf"] = "netcdf4", **options: Any) -> xr.Dataset:
    """Open a netCDF file of this package, lazily where `chunks` are among the options of `xr.open_dataset`.

    Raises
    ------
    DataError
        If it is not netCDF, or has not the shape of the schema.
    """
    try:
        dataset = xr.open_dataset(path, engine=engine, **options)
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise DataError(message(str(path), "a netCDF file", f"something else ({error})", "check the file")) from None
    try:
        return validate(dataset)
    except DataError as error:
        dataset.close()
        raise DataError(f"{path}: {error}") from None
