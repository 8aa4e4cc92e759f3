"""Datasets made and checked by the schema.

Every dataset is a flat `xr.Dataset` that `xr.open_dataset` reads without this package; see `sdebias.schema` for what is
in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex

from .errors import DataError, message, nearest
from .provenance import provenance
from .schema import COORDINATES, KINDS, LABELLED, SCHEMA, SCHEMA_VERSION, STATUS


def make_dataset(
    kind: str,
    variables: Mapping[str, Any],
    coords: Mapping[str, Any],
    attributes: Mapping[str, str | int | float],
    data: Mapping[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
) -> xr.Dataset:
    """Build a dataset of one kind, each variable with the dims, units and equation of the schema.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    variables : mapping of str to array
        Arrays with the dims of the schema; one more leading axis is `replicate`. One that varies along further dims,
        or is lazy, is an `xr.DataArray` or `xr.Variable`; one that the schema has not is an `xr.DataArray` with
        attributes of its own.
    coords : mapping of str to 1-D array
        Labels of the dims; ``time`` is added from ``learning_rate`` and ``step`` where both are there and it is not.
    attributes : mapping of str to str or number
    data : mapping of str to (dims, array), optional
        Arrays of the problem, which are not in the schema.

    Returns
    -------
    xr.Dataset
    """
    given = (data or {}).items()
    arrays: dict[str, Any] = {name: (dims, array, data_attributes(name)) for name, (dims, array) in given}
    for name, values in variables.items():
        if name not in SCHEMA:
            arrays[name] = values.variable
            continue
        row = SCHEMA[name]
        if isinstance(values, xr.DataArray | xr.Variable):
            arrays[name] = (values.dims, values.data, row.attributes)
            continue
        array = np.asarray(values)
        lead = ("replicate",) if array.ndim > len(row.dims) else ()
        arrays[name] = ((*lead, *row.dims), array, row.attributes)
    if "learning_rate" in arrays and "step" in coords and "time" not in coords:
        rate_dims, rate, _ = arrays["learning_rate"]
        coords = {**coords, "time": ((*rate_dims, "step"), np.multiply.outer(rate, np.asarray(coords["step"])))}
    origin = {"kind": kind, "schema_version": SCHEMA_VERSION, **provenance()}
    dataset = xr.Dataset(arrays, coords=_labelled(coords), attrs={**origin, **attributes})
    made = dataset.variables
    if "status" in made:
        flags = {"flag_values": np.array(list(STATUS.values()), np.int8), "flag_meanings": " ".join(STATUS)}
        made["status"].attrs.update(flags)
    for coordinate in made.keys() & COORDINATES.keys():
        made[coordinate].attrs = COORDINATES[str(coordinate)]
    return validate(dataset, kind)


def _labelled(coords: Mapping[str, Any]) -> xr.Coordinates:
    """Return coordinates with their indexes, which takes half of the time that `xr.Dataset` takes to find them."""
    variables: dict[Any, xr.Variable] = {}
    indexes: dict[str, PandasIndex] = {}
    for name, values in coords.items():
        if isinstance(values, tuple):  # (dims, values)
            variables[name] = xr.Variable(*values)
        else:
            names = isinstance(values, list) and all(isinstance(value, str) for value in values)
            labels = tuple(values) if names else values
            indexes[name] = (_known_index if isinstance(labels, tuple | range) else _index)(name, labels)
            variables |= indexes[name].create_variables()
    return xr.Coordinates(variables, indexes=indexes)


@functools.lru_cache(maxsize=64)
def _known_index(dim: str, labels: tuple[str, ...] | range) -> PandasIndex:
    """Return the index of an axis of names or evenly spaced numbers: the same in many calls, and pandas takes long."""
    return _index(dim, pd.RangeIndex(labels) if isinstance(labels, range) else labels)


def _index(dim: str, labels: Any) -> PandasIndex:
    labels = labels if isinstance(labels, pd.Index) else np.asarray(labels)
    return PandasIndex(labels, dim, coord_dtype=labels.dtype)


def data_attributes(name: str) -> dict[str, str]:
    """Return the attributes of an array of the problem's data."""
    return {"long_name": f"problem data {name}", "units": "1"}


def validate(dataset: xr.Dataset, kind: str | None = None) -> xr.Dataset:
    """Return `dataset` if it has the shape that the schema gives to its kind.

    Parameters
    ----------
    dataset : xr.Dataset
    kind : str, optional
        The kind that it must be.

    Raises
    ------
    DataError
        If it is of another kind, or a variable is missing, has other dims or is not of numbers, or labels do not tell
        things apart; the message names it.
    """
    if not isinstance(dataset, xr.Dataset):
        raise DataError(message("dataset", "an xarray.Dataset", type(dataset).__name__, "open it with sdebias.open"))
    found = str(dataset.attrs.get("kind", "unknown"))
    wanted = (kind,) if kind else KINDS
    if found not in wanted:
        want = f"a dataset of kind {' or '.join(wanted)}"
        remedy = "make one with sdebias.simulate, predict_orbit_drift or compare"
        raise DataError(message("dataset", want, f"kind {found!r}", remedy))
    variables = dataset.variables  # without the array that `dataset[name]` makes of one
    rows = {name: row for name, row in SCHEMA.items() if found in row.kinds}
    for name, row in rows.items():
        if name not in variables:
            if row.required:
                raise DataError(message("dataset", f"a variable {name!r}", "none", nearest(name, map(str, dataset))))
            continue
        dims = tuple(str(dim) for dim in variables[name].dims if dim != "replicate")
        if dims not in (row.dims, (*row.dims, *row.varying)):
            remedy = f"transpose it to ([replicate,] {', '.join(row.dims)})"
            raise DataError(message(f"variable {name!r}", f"dims {row.dims}", dims, remedy))
        if variables[name].dtype.kind not in "biuf":
            raise DataError(message(f"variable {name!r}", "numbers", str(variables[name].dtype), "convert it"))
    _check_labels(dataset)
    return dataset


def _check_labels(dataset: xr.Dataset) -> None:
    """Raise unless steps increase, and labels name one thing each.

    Raises
    ------
    DataError
        If not.
    """
    for dim in [dim for dim in LABELLED if dim in dataset.coords]:
        labels = dataset.variables[dim].to_index()
        if dim == "step":
            good = labels.dtype.kind in "iuf" and labels.is_monotonic_increasing and labels.is_unique
            good = good and (labels.dtype.kind != "f" or bool(np.isfinite(labels).all()))
        else:
            good = labels.is_unique
        if not good:
            want = "finite numbers that increase" if dim == "step" else "different labels"
            raise DataError(message(f"coordinate {dim!r}", want, "others", "correct it; data belong to its labels"))


def config_attributes(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the configuration as one JSON string, and the hash of it."""
    text = json.dumps(config, sort_keys=True)
    return {"config_json": text, "config_hash": hashlib.sha256(text.encode()).hexdigest()}
