"""Files: written whole or not at all, and room for them looked for before anything is simulated."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import xarray as xr

from ..errors import DataError, OutputError, RunError, message

# Room for headers, coordinates and figures beyond the arrays themselves.
SPARE_BYTES = 2**23
# The last bytes of a file of a dataset, behind what the libraries of HDF5 read: the hash of all bytes before.
SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
SEAL_BYTES = len("\nsha256 \n") + 64
PIECE_BYTES = 2**20


@contextmanager
def temporary(folder: Path, stem: str, remedy: str) -> Iterator[Path]:
    """Give a file to write in a folder, to be published under its own name; nothing of it is left behind.

    Raises
    ------
    RunError
        If writing fails.
    """
    path: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{stem}.", suffix=".tmp")
        os.close(handle)
        path = Path(name)
        yield path
    except (OSError, RuntimeError) as error:
        # netCDF's library reports a full disk as "HDF error" and no more.
        raise RunError(message(str(folder), "a writable folder with room for the file", error, remedy)) from None
    finally:
        if path is not None:
            with suppress(OSError):  # of a disk that has become read-only, say: that was told of already
                path.unlink(missing_ok=True)


def publish(path: Path, target: Path) -> Path:
    """Give a file that was written its name, at once and for good, even where power is lost."""
    path.chmod(0o644)
    sync(path)
    path.replace(target)
    sync(target.parent)
    return target


def sync(path: Path) -> None:
    """Make what is written of a file, or the names in a folder, outlast a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset to a netCDF file, whole or not at all.

    The hash of its bytes is written behind them, so that `sdebias.open` notices when one is changed.

    Raises
    ------
    RunError
        If it cannot be written; nothing is left behind.
    """
    path = Path(path)
    with temporary(path.parent, path.name, "free space or choose another folder") as file:
        dataset.to_netcdf(file, engine="netcdf4")
        seal = f"\nsha256 {_sha256(file, file.stat().st_size)}\n"
        with file.open("ab") as stream:
            stream.write(seal.encode())
        return publish(file, path)


def check_seal(path: Path) -> None:
    """Raise unless a file holds the bytes that `save_dataset` wrote, or has no hash to tell: another program wrote it.

    Libraries of HDF5 trust what they read: damaged files must not reach them.

    Raises
    ------
    DataError
        If a byte is not what it was.
    """
    try:
        size = path.stat().st_size - SEAL_BYTES
        with path.open("rb") as stream:
            stream.seek(max(size, 0))
            found = SEAL.fullmatch(stream.read())
        intact = found is None or found[1].decode() == _sha256(path, size)
    except OSError as error:
        remedy = "check the file and its permissions"
        raise DataError(message(str(path), "a file that can be read", error.strerror, remedy)) from None
    if not intact:
        remedy = "restore the file, or make it again"
        raise DataError(message(str(path), "the bytes that were written", "others: the file is damaged", remedy))


def _sha256(path: Path, size: int) -> str:
    """Return the hash of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while size > 0 and (piece := stream.read(min(size, PIECE_BYTES))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def save_text(text: str, path: Path) -> Path:
    """Write a text file whole or not at all.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    with temporary(path.parent, path.name, "free space or make the folder writable") as file:
        file.write_text(text, encoding="utf-8")
        return publish(file, path)


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
