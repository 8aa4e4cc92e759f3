"""Parts: the files of a run directory, whole or not there, each named by what it covers and by what it holds."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import dask
import numpy as np
import xarray as xr

from ..dataset import validate
from ..errors import DataError, message
from .files import publish, temporary

DIGEST = 32
NAME = re.compile(r"(part|state)-(\d{9,})-(\d{9,})-(\d{9,})-(\d{9,})-([0-9a-f]{32})\.(nc|npz)")
# Trajectories `first` to `last`, saves `since` to `until`.
Place: TypeAlias = tuple[int, int, int, int]
# Parts are written and read by several threads, and closed by whichever collects garbage: netCDF4's library allows one
# thread at a time, h5py's locks itself.
ENGINE: Literal["h5netcdf"] = "h5netcdf"
# It takes ten milliseconds for each variable, and the interpreter with them. Statistics have many variables, most of a
# few bytes: up to this size they are netCDF-3, whose writer takes less for all of them, but does not compress.
CLASSIC: Literal["scipy"] = "scipy"
CLASSIC_BYTES = 2**22
_writing = threading.Lock()


@dataclass(frozen=True, order=True)
class Part:
    """A file of a run directory: trajectories `first` to `last`, saves `since` to `until` (both without their end).

    A part holds what was observed; a state holds what a walk needs to go on after save `until` - 1, and what it has
    observed since the last part. The name ends in a hash of the run's identity and of the bytes, so that a file of
    another run, which may cover the same, is not taken for one of this.
    """

    first: int
    last: int
    since: int
    until: int
    path: Path
    identity: str = field(compare=False)

    @property
    def kind(self) -> str:
        """What the file is, a "part" or a "state"."""
        return self.path.name.partition("-")[0]

    def intact(self) -> bool:
        """Return whether the file is of this run, and holds what it held when it was written."""
        return self.path.name.rpartition("-")[2].partition(".")[0] == digest(self.path, self.identity)

    def check(self) -> Part:
        """Return the part.

        Raises
        ------
        DataError
            If the file is not what was written, or was written by another run.
        """
        if not self.intact():
            remedy = "continue the run: sdebias run --resume sets it aside and computes it again"
            raise DataError(message(str(self.path), "the bytes that this run wrote", "others", remedy))
        return self


def find_parts(folder: Path, identity: str) -> list[Part]:
    """Return the parts and states of a folder, sorted; other files are none, whatever they hold.

    Parameters
    ----------
    folder : Path
    identity : str
        Of the run, see `Manifest.identity`.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match is not None and entry.is_file():
                first, last, since, until = map(int, match.group(2, 3, 4, 5))
                found.append(Part(first, last, since, until, folder / entry.name, identity))
    return sorted(found)


def digest(path: Path, identity: str = "") -> str:
    """Return the first half of the SHA-256 of an identity and the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(identity.encode())).hexdigest()[:DIGEST]


def write_named(folder: Path, stem: str, suffix: str, write: Callable[[Path], None], identity: str = "") -> Path:
    """Write a file whole or not at all, under a name that ends in the hash of its bytes; see `digest`.

    Raises
    ------
    RunError
        If it cannot be written; nothing is left behind.
    """
    remedy = "free space or make the folder writable, then continue with sdebias run --resume"
    with temporary(folder, stem, remedy) as file:
        write(file)
        return publish(file, folder / f"{stem}-{digest(file, identity)}{suffix}")


def write_part(folder: Path, place: Place, dataset: xr.Dataset, identity: str) -> Part:
    """Write what was observed; see `write_named`."""

    def write(path: Path) -> None:
        # In a worker of dask, xarray would take a lock of the whole cluster, which a worker that dies may keep. dask's
        # settings are those of the process: one thread at a time sets and resets them.
        with _writing, dask.config.set(scheduler="threads"):
            content = _encoded(dataset)
        path.write_bytes(content)  # by way of memory: HDF5 does not survive a disk that is full

    return Part(*place, write_named(folder, _stem("part", place), ".nc", write, identity), identity)


def _encoded(dataset: xr.Dataset) -> memoryview:
    """Return the bytes of a netCDF file."""
    if dataset.attrs.get("kind") == "statistics" and dataset.nbytes <= CLASSIC_BYTES:
        with suppress(ValueError):  # a number above 2^31, or a name, that netCDF-3 cannot hold
            return dataset.to_netcdf(engine=CLASSIC, format="NETCDF3_64BIT")
    # Counts are mostly zeros; floating noise does not compress, and what is read in pieces is better stored as it is.
    packed = [
        name
        for name, variable in dataset.data_vars.items()
        if variable.dtype.kind in "iu" and "trajectory" not in variable.dims
    ]
    return dataset.to_netcdf(engine=ENGINE, encoding={name: {"zlib": True, "complevel": 1} for name in packed})


def write_state(folder: Path, place: Place, arrays: dict[str, np.ndarray], identity: str) -> Part:
    """Write the state of the walks of a shard; see `write_named`."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    return Part(*place, write_named(folder, _stem("state", place), ".npz", write, identity), identity)


def _stem(kind: str, place: Place) -> str:
    return "-".join([kind, *(f"{number:09d}" for number in place)])


def read_state(part: Part) -> dict[str, np.ndarray]:
    """Return the arrays of a state; nothing is unpickled.

    Raises
    ------
    DataError
        If the file is not what was written, or holds anything but arrays of numbers.
    """
    part.check()
    try:
        with part.path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise foreign_state(part, error) from None


def foreign_state(part: Part, got: object) -> DataError:
    """Return the error of a state that this package cannot have written."""
    remedy = "take the file out of the directory, and continue the run with sdebias run --resume"
    return DataError(message(str(part.path), "arrays of numbers: the state of a walk", got, remedy))


def open_file(path: Path, *, engine: Literal["netcdf4", "h5netcdf", "scipy"] = "netcdf4", **options: Any) -> xr.Dataset:
    """Open a netCDF file of this package, lazily where `chunks` are among the options of `xr.open_dataset`.

    Raises
    ------
    DataError
        If it is not netCDF, or has not the shape of the schema.
    """
    try:
        dataset = xr.open_dataset(path, engine=engine, **options)
    except (OSError, ValueError, RuntimeError, AttributeError, LookupError, TypeError) as error:
        raise DataError(message(str(path), "a netCDF file", f"something else ({error})", "check the file")) from None
    try:
        return validate(dataset)
    except DataError as error:
        dataset.close()
        raise DataError(f"{path}: {error}") from None
