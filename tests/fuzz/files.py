"""Files that are damaged in every way: files of the package, mutated, and opened in a process that may die of it."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from outcomes import BUG, REFUSED, RIGHT, BugError, command_line, limited, traceback_of

import sdebias as sb
from sdebias import config
from sdebias.dataset import config_attributes, validate
from sdebias.errors import SdebiasError
from sdebias.storage import save_dataset
from sdebias.storage.files import SEAL_BYTES as SEAL_BYTES

SECONDS = 30.0
HANG, DIED = "hang", "the library died"
Change = Callable[[random.Random, Path], None]


def originals(folder: Path) -> list[Path]:
    """Make files of each sort, and run directories; return them."""
    rng = np.random.default_rng(0)
    problem = sb.problems.HadamardRegression(
        rng.standard_normal((6, 2)), rng.standard_normal(6), features=["a", "b"], initial={"p": 1.0, "q": 0.3}
    )
    symmetry, sgd = sb.symmetry.Rescaling("p", "q"), sb.SGD(learning_rate=0.01)
    arguments: dict[str, Any] = {"symmetry": symmetry, "trajectories": 5, "steps": 4, "save_every": 1}
    ensemble = sb.simulate(problem, sgd, progress=False, **arguments)
    kept = ["mean", "quantiles"]
    statistics = sb.simulate(problem, sgd, progress=False, statistics=kept, **arguments)
    comparison = sb.compare(ensemble, sb.predict_orbit_drift(ensemble, problem, symmetry))
    made = {"ensemble": ensemble, "statistics": statistics, "comparison": comparison}
    runs = [folder / "run", folder / "statistics"]
    sb.run(problem, sgd, runs[0], progress=False, **arguments)
    sb.run(problem, sgd, runs[1], progress=False, statistics=kept, **arguments)
    return [*(save_dataset(dataset, folder / f"{name}.nc") for name, dataset in made.items()), *runs]


# -- bytes ---------------------------------------------------------------------------------------------------------


def flip(rng: random.Random, path: Path) -> None:
    """Flip bits of one to eight bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path) -> None:
    """Cut the end off."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(1, 100)])])


def insert(rng: random.Random, path: Path) -> None:
    """Insert some bytes."""
    data, at = path.read_bytes(), rng.randrange(path.stat().st_size)
    path.write_bytes(data[:at] + rng.randbytes(rng.choice([1, 8, 512])) + data[at:])


def overwrite(rng: random.Random, path: Path) -> None:
    """Overwrite a stretch, as with a sector that cannot be read."""
    data, at, length = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size), rng.choice([8, 64, 512])
    data[at : at + length] = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    path.write_bytes(data)


def replace(rng: random.Random, path: Path) -> None:
    """Put something else in its place: nothing, text, a zip, a directory, HDF5 or netCDF 3 of others."""
    path.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        path.touch()
    elif kind == 1:
        path.write_text(rng.choice(["hello", "[run]\nsteps = 1\n", "{}", "CDF\x01", "\x89HDF\r\n\x1a\n" * 9]))
    elif kind == 2:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        with h5py.File(path, "w") as file:
            file.create_group("g").create_dataset("x", data=np.zeros(3, [("a", "i4"), ("b", "f8")]))
    elif kind == 5:
        xr.Dataset({"x": ("t", np.arange(3.0))}, attrs={"kind": rng.choice(["ensemble", "law", "x"])}).to_netcdf(
            path, engine="scipy"
        )
    else:
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))


BYTES: list[Change] = [flip, flip, flip, truncate, insert, overwrite, overwrite, replace]

# -- contents ------------------------------------------------------------------------------------------------------


def _hostile(rng: random.Random) -> Any:
    """Return the value of an attribute."""
    return rng.choice(
        [
            *("", "not JSON", "null", "[]", "3", "[" * 10_000, '{"problem": 1}', "{" + '"a": 1, ' * 100_000, np.nan, 7),
            json.dumps({"problem": {"model": "os"}, "dynamics": {"type": "SGD"}, "run": {"trajectories": 10**12}}),
            json.dumps({"dynamics": {}, "run": {}, "symmetry": {"group": "FromAction", "action": "os:f"}}),
        ]
    )


def attribute(rng: random.Random, path: Path) -> None:
    """Change, drop or add an attribute of the file or of a variable."""
    with h5py.File(path, "a") as file:
        names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        holder = rng.choice([file, file, file, file[rng.choice(names)]])
        keys = [key for key in holder.attrs if key.isidentifier() and not key.startswith(("_", "CLASS", "NAME"))]
        keys = [key for key in keys if key.islower()] or ["kind"]
        key = rng.choice(["config_json", "config_json", "kind", "schema_version", "seed", rng.choice(keys)])
        if rng.random() < 0.2:
            holder.attrs.pop(key, None)
        else:
            value = _hostile(rng)
            holder.attrs[key] = value[:60_000] if isinstance(value, str) else value


def rewrite(rng: random.Random, path: Path) -> None:
    """Change what the file says, as a program that writes good files would: names, dims, types, labels, values."""
    with xr.open_dataset(path, decode_times=False) as opened:
        dataset = opened.load()
    name = rng.choice([str(name) for name in dataset.variables])
    dim = rng.choice([str(dim) for dim in dataset.dims])
    numeric = [str(n) for n, v in dataset.variables.items() if v.dtype.kind in "fiu" and v.ndim]
    number = rng.choice(numeric)
    kind = rng.randrange(8)
    if kind == 0:
        dataset = dataset.drop_vars(name)
    elif kind == 1:
        dataset = dataset.rename({name: rng.choice(["x", "theta2", "a-b"])})
    elif kind == 2 and dim in dataset.coords:
        labels = dataset[dim].values.copy()
        labels[-1] = labels[0]
        dataset = dataset.assign_coords({dim: labels})
    elif kind == 3:
        values = dataset[number].values.astype(float)
        values.reshape(-1)[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1])
        dataset[number] = (dataset[number].dims, values)
    elif kind == 4:
        dataset[number] = dataset[number].astype(rng.choice(["S3", "i1", "U5", "c16"])).astype("U9")
    elif kind == 5:
        dataset = dataset.isel({dim: slice(0, rng.choice([0, 1]))})
    elif kind == 6:
        dataset = dataset.swap_dims({dim: "other"}) if dim in dataset.coords else dataset.rename({dim: "other"})
    else:
        dataset = dataset.isel({dim: slice(None, None, -1)})
    path.unlink()
    dataset.drop_encoding().to_netcdf(path, engine=rng.choice(["netcdf4", "h5netcdf"]))


CONTENTS: list[Change] = [attribute, rewrite]


def directory(rng: random.Random, path: Path) -> None:
    """Change a file of a run directory: its manifest, data, a part, or one that is not there."""
    files = sorted(file for file in path.iterdir() if file.suffix in (".nc", ".json"))
    chosen = rng.choice(files)
    if chosen.name == "manifest.json" and rng.random() < 0.7:
        table = json.loads(chosen.read_text())
        config_keys = [("config", key) for key in table["config"]]
        keys = [*table, *config_keys, *(("config", "run", key) for key in table["config"]["run"])]
        place = rng.choice(keys)
        *outer, last = (place,) if isinstance(place, str) else place
        holder = table
        for key in outer:
            holder = holder[key]
        wrong: list[Any] = [
            None,
            -1,
            10**12,
            10**400,
            "",
            "../../x",
            [],
            {},
            [[0, 5]],
            [[0, 10**12]],
            [[]],
            True,
            1.5,
            "x" * 9999,
        ]
        holder[last] = rng.choice(wrong)
        if rng.random() < 0.5:
            table["config_hash"] = config_attributes(table["config"])["config_hash"]
        chosen.write_text(rng.choice([json.dumps(table), json.dumps(table), "[" * 10_000 + "]" * 10_000, "\x00" * 10]))
    else:
        rng.choice([flip, truncate, insert, overwrite, replace])(rng, chosen)


# -- the property --------------------------------------------------------------------------------------------------


def mutate(seed: int, files: list[Path], folder: Path, changes: list[Change]) -> tuple[Path, Path, bool]:
    """Return a mutated copy of one of the files, the original, and whether only its bytes were changed."""
    rng = random.Random(seed)
    original = rng.choice(files)
    copy = folder / f"{seed}{original.suffix}"
    if original.is_dir():
        shutil.copytree(original, copy)
        change: Change = directory
    else:
        shutil.copy(original, copy)
        change = rng.choice(changes)
    change(rng, copy)
    return copy, original, change not in CONTENTS


def check(path: Path, original: Path, *, damaged: bool) -> str:
    """Open a mutated file in every way that the package has.

    Raises
    ------
    BugError
        If what was opened is not what was written, where only bytes were changed, or a command fails badly.
    """
    found = REFUSED
    with limited(SECONDS):
        try:
            with sb.open(path) as opened:
                dataset = validate(opened.load())
            found = RIGHT
            if damaged and not path.is_dir():
                with sb.open(original) as there:
                    if not dataset.identical(there.load()):
                        raise BugError("bytes were changed, and another dataset was opened")
            elif damaged:
                with sb.open(original) as there:
                    if not dataset.drop_attrs().equals(there.load().drop_attrs()):
                        raise BugError("bytes of a run directory were changed, and other values were opened")
        except SdebiasError as error:
            if "\n" in str(error):
                raise BugError(f"not one line: {error}") from error
        try:
            config.load(path)
        except SdebiasError as error:
            if "\n" in str(error):
                raise BugError(f"not one line: {error}") from error
        if (command_line("info", str(path)) == 0) != (found == RIGHT):
            raise BugError(f"{found} by open, and otherwise by info")
        command_line("compare", str(path))
        if found == RIGHT:
            command_line("plot", str(path), "--out", str(path.with_suffix(".png")), "--overwrite")
    return found


def _work(seeds: list[int], files: list[Path], folder: Path, changes: list[Change], pipe: Any) -> None:
    """Check the files of some seeds, and tell before and after each."""
    for seed in seeds:
        pipe.send((seed, "begun", ""))
        try:
            path, original, damaged = mutate(seed, files, folder, changes)
            pipe.send((seed, check(path, original, damaged=damaged), ""))
        except BaseException as error:  # whatever it is, it is what we look for
            pipe.send((seed, BUG, traceback_of(error)))
    pipe.send((None, "", ""))


def outcomes(
    seeds: list[int], files: list[Path], folder: Path, changes: list[Change], seconds: float = 2 * SECONDS
) -> dict[int, tuple[str, str]]:
    """Return what becomes of the files of some seeds, each opened in a process that may die or hang."""
    # A fork of a process that has used threads, as this one has, may wait for ever.
    context = multiprocessing.get_context("spawn")
    found: dict[int, tuple[str, str]] = {}
    left = list(seeds)
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(left, files, folder, changes, theirs))
        worker.start()
        theirs.close()
        current: int | None = left[0]
        try:
            while current is not None:
                if not ours.poll(seconds):
                    found[current] = (HANG, f"no end after {seconds} s")
                    break
                seed, what, text = ours.recv()
                if what and what != "begun":
                    found[seed] = (what, text)
                current = seed
        except EOFError:
            worker.join()
            assert current is not None
            found[current] = (DIED, f"exit code {worker.exitcode}")
        finally:
            worker.kill()
            worker.join()
            ours.close()
        left = [seed for seed in left if seed not in found]
    return found
