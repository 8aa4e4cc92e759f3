"""Open a file or a run directory as one dataset, and merge the parts of a run directory into one file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import config_attributes
from ..errors import DataError, InputError, OutputError, RunError, message
from ..pooling import derived, pool_steps, pool_trajectories
from .directory import MANIFEST, RunDirectory, is_run
from .files import check_outputs, check_seal, save_dataset
from .parts import ENGINE, Part, open_file
from .reading import REMEDY, check_alike, open_like, read_statistics

# Of the largest variable, what is read at once by each thread (16 MiB).
CHUNK_BYTES = 2**24


def open_dataset(path: str | os.PathLike[str], *, verify: bool = True) -> xr.Dataset:
    """Open a dataset: a netCDF file, or a run directory, finished or still at work.

    Parameters
    ----------
    path : path
        File; run directory; or a folder with one run directory.
    verify : bool
        Whether a file, or the parts of a run directory, are read once, to make sure that they are what was written.

    Returns
    -------
    xr.Dataset
        Of a run directory, backed by dask: values are read when they are needed. It holds the trajectories that have
        reached the last step; where none has, the steps that all that are under way have reached. The attribute
        ``complete`` is 1 where nothing is missing.

    Raises
    ------
    DataError
        If there is nothing at `path`, a file is not netCDF, damaged or of another run, or has not the shape of the
        schema, or nothing is finished yet.
    """
    path = Path(path)
    if path.is_dir():
        return _open_run(find_run(path), verify)
    if not path.is_file():
        raise DataError(message(str(path), "a netCDF file or a run directory", "no such file", "check the path"))
    if verify:
        check_seal(path)
    return open_file(path)


def find_runs(path: Path) -> dict[str, RunDirectory]:
    """Return the run directories at a path by name: itself, or those in it.

    Raises
    ------
    DataError
        If there is none, or a manifest is damaged.
    """
    if is_run(path):
        return {path.name: RunDirectory(path)}
    found = sorted(file.parent for file in path.glob(f"*/{MANIFEST}")) if path.is_dir() else []
    if not found:
        remedy = "check the path, or make one with sdebias run --out"
        raise DataError(message(str(path), f"a run directory with {MANIFEST}", "none", remedy))
    return {folder.name: RunDirectory(folder) for folder in found}


def find_run(path: Path) -> RunDirectory:
    """Return the one run directory at a path.

    Raises
    ------
    DataError
        If there is none, or more than one.
    """
    runs = find_runs(path)
    if len(runs) > 1:
        remedy = f"name one, such as {path / next(iter(runs))}"
        raise DataError(message(str(path), "one run directory", ", ".join(runs), remedy))
    return next(iter(runs.values()))


def _open_run(run: RunDirectory, verify: bool) -> xr.Dataset:
    """Join the parts of a run directory."""
    shards: dict[tuple[int, int], dict[tuple[int, int], Part]] = {}
    for part in run.parts():
        shards.setdefault((part.first, part.last), {})[part.since, part.until] = part
    planned, legs = run.manifest.shards, run.manifest.legs
    reached = {shard: _reached(shards.get(shard, {}), legs) for shard in planned}
    begun = {shard: count for shard, count in reached.items() if count}
    if not begun:
        remedy = "wait for it, or continue it with sdebias run --resume"
        raise DataError(message(str(run.path), "at least one finished part", "none", remedy))
    last = len(legs) if len(legs) in begun.values() else min(begun.values())
    chosen = [[shards[shard][leg] for leg in legs[:last]] for shard, count in begun.items() if count >= last]
    with ExitStack() as stack:
        first = [stack.enter_context(_open(part, run, verify)) for part in chosen[0]]
        others = [
            [_open_like(part, run, leg, verify) for part, leg in zip(parts, first, strict=True)] for parts in chosen[1:]
        ]
        files = stack.pop_all()
    dataset = _pool(run, [first, *others]) if _is_summary(first[0]) else _join_all([first, *others])
    with_data = dataset.assign(run.data().data_vars)
    complete = int(last == len(legs) and len(chosen) == len(planned))
    # Parts that were written before an extension tell of the run as it was.
    whole = {**run.manifest.provenance, **config_attributes(run.manifest.config), "complete": complete}
    with_data = with_data.assign_attrs(whole)
    with_data.set_close(files.close)
    return with_data


def _reached(parts: dict[tuple[int, int], Part], legs: Sequence[tuple[int, int]]) -> int:
    """Return how many legs in a row are there."""
    return next((count for count, leg in enumerate(legs) if leg not in parts), len(legs))


def _open(part: Part, run: RunDirectory, verify: bool) -> xr.Dataset:
    """Open a part of a run, lazily unless it holds statistics.

    Raises
    ------
    DataError
        If it is damaged, or of another run.
    """
    if verify:
        part.check()
    if "statistics" in run.manifest.run:
        dataset = read_statistics(part)
    else:
        dataset = open_file(part.path, engine=ENGINE, chunks={"trajectory": _rows(part, run)})
    wanted = {"identity": run.manifest.identity, "trajectory": part.last - part.first, "step": part.until - part.since}
    found = {**dataset.sizes, "identity": dataset.attrs.get("identity")}
    if any(found.get(name) != value for name, value in wanted.items()):
        dataset.close()
        got = {name: found.get(name) for name in wanted}
        raise DataError(message(str(part.path), f"a part of this run ({wanted})", got, REMEDY))
    return dataset


def _open_like(part: Part, run: RunDirectory, first: xr.Dataset, verify: bool) -> xr.Dataset:
    """Open a part of another shard; see `_open`."""
    if _is_summary(first):
        dataset = _open(part, run, verify)
        check_alike(part, first, dataset)
        return dataset
    return open_like(part.check() if verify else part, first, _rows(part, run))


def _rows(part: Part, run: RunDirectory) -> int:
    """Return how many trajectories a chunk has.

    It is of whole trajectories, through all legs; no variable is larger than its file, floats not compressed.
    """
    trajectories, size = part.last - part.first, max(part.path.stat().st_size, 1) * len(run.manifest.legs)
    return min(max(1, trajectories * CHUNK_BYTES // size), trajectories)


def _pool(run: RunDirectory, shards: Sequence[Sequence[xr.Dataset]]) -> xr.Dataset:
    """Pool the statistics of all legs of all shards.

    Raises
    ------
    DataError
        If they lack what `sdebias.ensemble` writes: the files bear the right names, and are of somebody else.
    """
    try:
        return derived(pool_trajectories([pool_steps(legs) if len(legs) > 1 else legs[0] for legs in shards]))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise DataError(message(str(run.path), "statistics of this run", error, REMEDY)) from None


def _join_all(shards: Sequence[Sequence[xr.Dataset]]) -> xr.Dataset:
    """Join the legs of each shard, and the shards; a flag, once raised, stays."""
    rows = []
    for legs in shards:
        whole = _join([leg.drop_vars("status") for leg in legs], "step")
        rows.append(whole.assign(status=legs[-1]["status"]))
    return _join(rows, "trajectory")


def _is_summary(dataset: xr.Dataset) -> bool:
    return bool(dataset.attrs["kind"] == "statistics")


def _join(pieces: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    if len(pieces) == 1:
        return pieces[0]
    options: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    return xr.concat(pieces, dim, combine_attrs="override", **options)


def merge(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, zarr: bool = False, overwrite: bool = False
) -> Path:
    """Write a run directory as one netCDF file, or one zarr store, piece by piece.

    Raises
    ------
    DataError
        As by `open_dataset`.
    InputError
        If zarr is wanted and not installed.
    OutputError
        If `out` exists, or there is no room for it.
    RunError
        If it cannot be written; nothing is left behind.
    """
    out = Path(out)
    with open_dataset(path) as dataset:
        if zarr:
            return _save_zarr(dataset, out, overwrite)
        check_outputs([out], size=dataset.nbytes, overwrite=overwrite)
        return save_dataset(dataset, out)


def _save_zarr(dataset: xr.Dataset, out: Path, overwrite: bool) -> Path:
    """Write a zarr store, whole or not at all; see `merge`."""
    try:
        import zarr as _  # noqa: F401
    except ImportError:
        raise InputError(message("zarr", "the package zarr", "none", "pip install 'sdebias[zarr]'")) from None
    check_outputs([out / ".zgroup"], size=dataset.nbytes, overwrite=overwrite)
    if out.exists() and not overwrite:
        raise OutputError(message(str(out), "no such store yet", "one that exists", "pass --overwrite or another name"))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    try:
        _as_text(dataset).to_zarr(temporary, mode="w", consolidated=False, zarr_format=2)
        shutil.rmtree(out, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.rename(out)
    except (OSError, RuntimeError) as error:
        raise RunError(message(str(out), "room for the store", error, "free space, or choose another name")) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _as_text(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose labels have a fixed width: zarr has no standard for strings of any length.

    Nor has its format 3 for any strings at all, which is why format 2 is written.
    """
    labels = {name: coord.astype(np.str_) for name, coord in dataset.coords.items() if coord.dtype.kind in "OT"}
    return dataset.assign_coords(labels)
