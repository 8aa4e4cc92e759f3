"""Read the many parts of a run, which must be alike: statistics whole, trajectories in the pieces that are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr

from ..errors import DataError, message
from ..schema import OK
from .parts import CLASSIC, ENGINE, Part, open_file

REMEDY = "take the file out of the directory, and continue the run with sdebias run --resume"


@dataclass(frozen=True)
class _Stored:
    """A variable in a file, which is open only while some of it is read; dask slices it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            values: np.ndarray = file[self.name][key]
        return values


def read_statistics(part: Part) -> xr.Dataset:
    """Return a part with statistics, which are small.

    Raises
    ------
    DataError
        If it is not netCDF, or has not the shape of the schema.
    """
    with open_file(part.path, engine=CLASSIC if _is_classic(part) else ENGINE) as dataset:
        dataset.load()
    native = {name: _native(variable) for name, variable in dataset.variables.items()}
    labels = {name: native.pop(name) for name in dataset.coords}
    return xr.Dataset(native, labels, dataset.attrs)


def _native(variable: xr.Variable) -> xr.Variable:
    """Return a variable as it was written: netCDF-3 has other integers and text, and the bytes of numbers reversed."""
    kind, dtype = variable.dtype.kind, variable.dtype.newbyteorder("=")
    if kind == "i" and dtype.itemsize > 1:
        dtype = np.dtype(np.int64)
    values = variable.values.astype(np.str_ if kind == "O" else dtype)
    plain = dict(variable.attrs)
    for key, value in plain.items():
        if isinstance(value, np.ndarray):
            plain[key] = value.astype(value.dtype.newbyteorder("="))
    return xr.Variable(variable.dims, values, plain)


def check_alike(part: Part, first: xr.Dataset, found: xr.Dataset) -> None:
    """Raise DataError unless a part has the variables of another one, of whatever trajectories and keys."""
    want, got = ({name: _pattern(v) for name, v in each.variables.items()} for each in (first, found))
    for name in want | got:
        _compare(part, str(name), want.get(name), got.get(name))


def _pattern(variable: xr.Variable) -> tuple[str, list[tuple[str, int | None]]]:
    """Return what variables of the same name have in common."""
    free = [dim == "trajectory" or str(dim).endswith("_key") for dim in variable.dims]
    sizes = [None if varies else size for varies, size in zip(free, variable.shape, strict=True)]
    return variable.dtype.kind, list(zip(map(str, variable.dims), sizes, strict=True))


def _is_classic(part: Part) -> bool:
    with part.path.open("rb") as file:
        return file.read(3) == b"CDF"


def open_like(part: Part, first: xr.Dataset, rows: int) -> xr.Dataset:
    """Open a part by the pattern of another one, of other trajectories and the same saves.

    Libraries that find out what a file holds take milliseconds for each variable; what is known need only be compared.
    The part must be of the same run, and have the variables of the pattern in their types and shapes. Text and
    attributes are those of the pattern.

    Parameters
    ----------
    part : Part
    first : xr.Dataset
        The pattern, lazy; what it holds in memory, the part will, too.
    rows : int
        Trajectories of a chunk of what is lazy.

    Raises
    ------
    DataError
        If it is not HDF5, or has another pattern.
    """
    sizes = {**first.sizes, "trajectory": part.last - part.first}
    arrays: dict[Any, Any] = {}
    try:
        with h5py.File(part.path, "r") as file:
            for key in ("kind", "identity"):
                _compare(part, key, first.attrs[key], file.attrs.get(key))
            # A dim without labels is stored, too.
            more = file.keys() - {*map(str, first.variables), *map(str, first.dims)}
            _compare(part, "variables besides those of the first", set(), more)
            for name, known in first.variables.items():
                stored = file[str(name)]
                _compare(part, str(name), tuple(sizes[dim] for dim in known.dims), stored.shape)
                if known.dtype.kind not in "biuf":
                    arrays[name] = known
                    continue
                _compare(part, str(name), known.dtype, stored.dtype)
                values: Any = stored[()] if known.chunks is None else _lazy(part, str(name), known, stored, rows)
                arrays[name] = (known.dims, values, known.attrs)
    except (OSError, LookupError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(message(str(part.path), "a part of this run", error, REMEDY)) from None
    coords = {name: arrays.pop(name) for name in first.coords}
    return xr.Dataset(arrays, coords, first.attrs)


def flagged(part: Part) -> int:
    """Return how many trajectories of a part have another status than ok.

    Raises
    ------
    DataError
        If it is damaged so that this cannot be read.
    """
    try:
        if _is_classic(part):
            return int(np.count_nonzero(read_statistics(part)["status"] != OK))
        with h5py.File(part.path, "r") as file:
            return int(np.count_nonzero(file["status"][()] != OK))
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(message(str(part.path), "a part of this run", error, REMEDY)) from None


def _lazy(part: Part, name: str, known: xr.Variable, stored: Any, rows: int) -> da.Array:
    """Return a variable of which dask reads what is needed."""
    chunks = tuple(rows if dim == "trajectory" else -1 for dim in known.dims)
    return da.from_array(
        _Stored(part.path, name, stored.shape, stored.dtype), chunks, name=False, meta=known.data._meta
    )


def _compare(part: Part, what: str, want: object, got: object) -> None:
    """Raise DataError unless a part has what it must."""
    if want != got:
        raise DataError(message(str(part.path), f"a part of this run, {what} {want}", got, REMEDY))
