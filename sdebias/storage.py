"""Files: open datasets, write them whole or not at all, and look for room before anything is simulated."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from .dataset import validate
from .errors import DataError, OutputError, RunError, message

# Room for headers, coordinates and figures beyond the arrays themselves.
SPARE_BYTES = 2**23


def open_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a dataset of this package from a netCDF file.

    Raises
    ------
    DataError
        If there is no such file, it is not netCDF, or it has not the shape of the schema.
    """
    if not Path(path).is_file():
        raise DataError(message(str(path), "a netCDF file", "no such file", "check the path"))
    try:
        dataset = xr.open_dataset(path, engine="netcdf4")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(message(str(path), "a netCDF file", f"something else ({error})", "check the file")) from None
    try:
        return validate(dataset)
    except DataError as error:
        dataset.close()
        raise DataError(f"{path}: {error}") from None


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset to a netCDF file, whole or not at all.

    Raises
    ------
    RunError
        If it cannot be written; nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise RunError(message(str(path), "a writable folder", error.strerror, "choose another folder")) from None
    os.close(handle)
    try:
        dataset.to_netcdf(name, engine="netcdf4")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except (OSError, RuntimeError) as error:
        remedy = "free space or choose another folder"
        raise RunError(message(str(path), "room for the file", error, remedy)) from None
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def check_outputs(paths: Sequence[Path], *, size: int, overwrite: bool) -> None:
    """Find out whether files can be written, and write nothing.

    Parameters
    ----------
    paths : sequence of Path
        Files of one folder, which need not exist yet.
    size : int
        Bytes that they will take together.
    overwrite : bool
        Whether they may exist.

    Raises
    ------
    OutputError
        If one exists, the folder cannot be made or written to, or the disk has not the room.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(
                message(str(path), "no such file yet", "one that exists", "pass --overwrite or another --out")
            )
        if path.is_dir():
            raise OutputError(message(str(path), "a file", "a folder", "choose another --out"))
    folder = paths[0].parent
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    remedy = "choose another --out"
    if not existing.is_dir():
        raise OutputError(message(str(folder), "a folder", f"{existing} is a file", remedy))
    try:
        # Asking for permission bits is not enough: mounts can be read-only, and root passes every such question.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(message(str(existing), "a writable folder", error.strerror, remedy)) from None
    free = shutil.disk_usage(existing).free
    if free < size + SPARE_BYTES:
        want = f"{(size + SPARE_BYTES) / 2**20:.0f} MiB of free space"
        remedy = "free space, choose another --out, or save less often"
        raise OutputError(message(str(existing), want, f"{free / 2**20:.0f} MiB", remedy))
