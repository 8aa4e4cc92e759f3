"""From a TOML file, or a dataset that was made from one, to the objects of a run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import xarray as xr

from .dataset import config_attributes
from .dynamics import DYNAMICS, Dynamics
from .errors import (
    ConfigError,
    DataError,
    DeviceError,
    InputError,
    check_choice,
    check_count,
    check_flag,
    message,
    nearest,
    out_of_memory,
    shown,
)
from .imports import check_allowed, import_function
from .problems import MODELS, Problem, Regression, WeightDecay
from .storage import find_run, open_dataset
from .symmetry import GROUPS, DiscoveredSymmetry, FromAction, FromFields, Product, Symmetry, from_spec

DTYPES = {"float32": torch.float32, "float64": torch.float64}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The section ``[run]``.

    Parameters
    ----------
    trajectories, steps : int
    save_every, seed, block_size, memory, compile : optional
        As in `sdebias.simulate`.
    save : list of str, optional
        Observables to keep; one's own functions as ``module:function``.
    statistics : list of str or table, optional
        Statistics to keep instead of trajectories, as in `sdebias.simulate`.
    dtype : {"float64", "float32"}
    device : str
        ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (cuda where there is one).
    out : str
        Folder of the results.
    """

    trajectories: int
    steps: int
    save_every: int | None = None
    seed: int = 0
    block_size: int | None = None
    memory: int | str | None = None
    compile: bool | None = None
    save: list[Any] | None = None
    statistics: list[Any] | None = None
    dtype: str = "float64"
    device: str = "cpu"
    out: str = "results"

    def __post_init__(self) -> None:
        """Check what does not depend on the problem."""
        check_count("trajectories", self.trajectories)
        check_count("steps", self.steps)
        check_count("seed", self.seed, minimum=0)
        check_choice("dtype", self.dtype, list(DTYPES))
        for name in ("device", "out"):
            if not isinstance(getattr(self, name), str):
                raise InputError(message(name, "text", shown(getattr(self, name)), 'write it as "..."'))
        if self.compile is not None:
            check_flag("compile", self.compile)

    def simulate_arguments(self) -> dict[str, Any]:
        """Return the arguments of `sdebias.simulate` that these settings hold."""
        names = ("trajectories", "steps", "save_every", "seed", "block_size", "memory", "compile", "save", "statistics")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Run:
    """Everything that a run needs: objects of the public interface, ready to simulate."""

    source: Path
    problem: Problem
    symmetry: Symmetry
    dynamics: dict[str, Dynamics]
    settings: RunSettings


@out_of_memory("configuration", "make the problem smaller")
def load(
    path: Path, overrides: Mapping[str, Any] | None = None, *, allow_import: Collection[str] | bool = False
) -> Run:
    """Build a run from a TOML file, or from an ensemble file or a run directory, which hold configuration and data.

    Parameters
    ----------
    path : Path
    overrides : mapping, optional
        Values of ``[run]`` that replace those of the file; None leaves the file's.
    allow_import : collection of str or bool
        Functions, as ``module:function``, that the file may name; True for all. Without, a file is data only.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        If a key is unknown, missing or wrong; the message names the file, the section, the key and the nearest name.
    DataError
        If the data are not there or malformed.
    DeviceError
        If the device is not there.
    RunError
        If the problem does not fit into memory.
    """
    table, data = _read(path)
    if data is not None and "initial" in table["run"]:
        raise ConfigError(f"{path}: its initial states were given in a call; run it from Python with them")
    _check_keys(path, "", table, ("problem", "symmetry", "dynamics", "run"), ("problem", "symmetry", "dynamics", "run"))
    for name, section in table.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: " + message(name, f"a table [{name}]", repr(section), "write it as a table"))
    changes = {key: value for key, value in (overrides or {}).items() if value is not None}
    settings = _build(path, "run", RunSettings, {**table["run"], **changes})
    settings = dataclasses.replace(settings, save=_functions(path, settings.save, allow_import))
    problem = _problem(path, table["problem"], data).to(resolve_device(settings.device), DTYPES[settings.dtype])
    symmetry = _symmetry(path, table["symmetry"], problem, allow_import)
    if not symmetry.bind(problem).charge_labels:
        raise ConfigError(f"{path} [symmetry]: {symmetry!r} has no charges, so there is no orbit drift to compare")
    return Run(path, problem, symmetry, _dynamics(path, table["dynamics"]), settings)


def rebuild(ensemble: xr.Dataset, *, allow_import: Collection[str] | bool = False) -> tuple[Problem, Symmetry | None]:
    """Return problem and symmetry of an ensemble, from the configuration and the data that it holds, on the CPU.

    Parameters
    ----------
    ensemble : xr.Dataset
        From `sdebias.simulate`, in memory or opened from its file.
    allow_import : collection of str or bool
        As in `load`.

    Returns
    -------
    problem : Problem
    symmetry : Symmetry or None
        None where the ensemble was simulated without.

    Raises
    ------
    ConfigError
        If it holds no configuration, or one of a model that is not in `sdebias.problems.MODELS`.
    DataError
        If the data are not there or malformed.
    """
    path = Path(str(ensemble.encoding.get("source", "dataset")))
    table = _stored(path, _configuration(ensemble), "dynamics")
    dtype = check_choice("dtype", str(table["run"].get("dtype", "float64")), list(DTYPES), ConfigError)
    problem = _problem(path, table["problem"], ensemble).to(dtype=DTYPES[dtype])
    symmetry = _symmetry(path, table["symmetry"], problem, allow_import) if "symmetry" in table else None
    return problem, symmetry


def _functions(path: Path, save: list[Any] | None, allow_import: Collection[str] | bool) -> list[Any] | None:
    """Return what is to be saved, functions that are named as ``module:function`` imported."""
    if not isinstance(save, list):
        return save
    named = [entry for entry in save if isinstance(entry, str) and ":" in entry]
    try:
        check_allowed(named, allow_import)
        return [import_function(entry) if entry in named else entry for entry in save]
    except InputError as error:
        raise ConfigError(f"{path} [run]: save: {error}") from None


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` takes cuda where there is one.

    Raises
    ------
    DeviceError
        If there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in there:
        raise DeviceError(message("device", f"one of {', '.join(there)}, auto", repr(name), "choose one that is there"))
    return torch.device(name)


def _read(path: Path) -> tuple[dict[str, Any], xr.Dataset | None]:
    """Return the configuration as a table, and the data where the file holds them."""
    if path.is_dir():
        directory = find_run(path)
        return _stored(path, directory.manifest.config, directory.path.name), directory.data()
    if not path.is_file():
        want = "a TOML file, an ensemble file (.nc) or a run directory"
        raise ConfigError(message(str(path), want, "no such file", "check the path"))
    if path.suffix == ".nc":
        with open_dataset(path) as dataset:
            dataset.load()
        return _stored(path, _configuration(dataset), path.stem), dataset
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, or an int of many digits
        got = " ".join(str(error).split())
        raise ConfigError(message(str(path), "valid TOML", got, "correct that line")) from None


def _configuration(ensemble: xr.Dataset) -> Any:
    """Return the configuration that an ensemble holds, None where it holds none or one of another hash."""
    try:
        table = json.loads(ensemble.attrs["config_json"])
        return table if config_attributes(table)["config_hash"] == ensemble.attrs["config_hash"] else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _stored(path: Path, table: Any, name: str) -> dict[str, Any]:
    """Return the configuration that was stored with an ensemble, whose dynamics get a name."""
    try:
        found = {**table, "dynamics": {name: table["dynamics"]}}
        found |= {section: dict(table[section]) for section in ("problem", "run")}
    except (KeyError, TypeError, ValueError):
        remedy = "run from the original TOML file"
        raise ConfigError(message(str(path), "a file that holds its configuration", "none", remedy)) from None
    return found


def _check_keys(
    path: Path, section: str, table: Mapping[str, Any], valid: Iterable[str], needed: Iterable[str]
) -> None:
    where = f"in [{section}]" if section else "at the top level"
    for key in table:
        if key not in valid:
            raise ConfigError(f"{path}: unknown key {key!r} {where}; {nearest(key, valid)}")
    for key in needed:
        if key not in table:
            raise ConfigError(f"{path}: missing key {key!r} {where}; add it")


def _build(path: Path, section: str, make: Callable[..., T], table: Mapping[str, Any]) -> T:
    """Call `make` with the keys of a section, after checking them against its signature."""
    parameters = inspect.signature(make).parameters
    needed = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    _check_keys(path, section, table, parameters, needed)
    try:
        return make(**table)
    except InputError as error:
        raise type(error)(f"{path} [{section}]: {error}") from None


def _options(make: Callable[..., object]) -> list[str]:
    """Return the parameters that are given by name: data and the like are given by place."""
    parameters = inspect.signature(make).parameters
    return [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]


def _dynamics(path: Path, table: Mapping[str, Any]) -> dict[str, Dynamics]:
    if not table:
        raise ConfigError(f"{path}: no dynamics; add a section such as [dynamics.sgd] with type = 'SGD'")
    found = {}
    for name, section in table.items():
        where = f"dynamics.{name}"
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: " + message(where, f"a table [{where}]", repr(section), "write it as a table"))
        if not name.replace("_", "").replace("-", "").isalnum():
            remedy = "use letters, digits, - and _"
            raise ConfigError(f"{path}: " + message(f"[{where}]", "a name that can be a file's", repr(name), remedy))
        kind = _named(path, where, "type", section, DYNAMICS)
        if "problem" in section:
            raise ConfigError(f"{path}: unknown key 'problem' in [{where}]; the problem has a section of its own")
        found[name] = _build(path, where, kind, _without(section, "type"))
    return found


def _symmetry(path: Path, section: dict[str, Any], problem: Problem, allow_import: Collection[str] | bool) -> Symmetry:
    group = _named(path, "symmetry", "group", section, GROUPS)
    content = "factors" if group is Product else "parameters"
    if group not in (FromAction, FromFields, DiscoveredSymmetry):
        _check_keys(path, "symmetry", section, ("group", content, *_options(group)), (content,))
        if not isinstance(section[content], list):
            remedy = f'for instance {content} = ["p", "q"]' if group is not Product else "list a table for each"
            got = repr(section[content])
            raise ConfigError(f"{path} [symmetry]: " + message(content, "a list", got, remedy))
    try:
        symmetry = from_spec(section, allow_import=allow_import)
        symmetry.bind(problem)
    except InputError as error:
        raise type(error)(f"{path} [symmetry]: {error}") from None
    return symmetry


def _problem(path: Path, section: dict[str, Any], data: xr.Dataset | None) -> Problem:
    model = _named(path, "problem", "model", section, MODELS)
    section = _without(section, "model")
    _check_keys(path, "problem", section, (*_options(model), "weight_decay", "data", "stream"), ())
    decay = section.pop("weight_decay", None)
    if "stream" in section:
        problem = _streamed(path, model, section.pop("stream"), section)
    else:
        if data is None:
            if not isinstance(section.get("data"), str):
                raise ConfigError(f"{path}: missing key 'data' in [problem]; name a netCDF file, relative to this file")
            data = _open_data(path.parent / section.pop("data"))
        problem = _build(path, "problem", model, {**section, **_arrays(path, model, section, data)})
    if decay is not None:
        problem = _build(path, "problem", WeightDecay, {"problem": problem, "weight_decay": decay})
    return problem


def _arrays(path: Path, model: type[Problem], section: Mapping[str, Any], data: xr.Dataset) -> dict[str, Any]:
    """Return the arguments of a model that the data hold: arrays by name, and the labels of the features."""
    found: dict[str, Any] = {}
    parameters = inspect.signature(model).parameters
    for name, parameter in parameters.items():
        if name in data:
            found[name] = data[name].values
        elif parameter.default is parameter.empty:
            names = nearest(name, map(str, data))
            raise DataError(message(str(path), f"data with a variable {name!r}", "none", names))
    if "features" in parameters and "features" not in section and "X" in data:
        labels = data["X"].coords.get(data["X"].dims[-1])
        found |= {"features": [str(label) for label in labels.values]} if labels is not None else {}
    return found


def _streamed(path: Path, model: type[Problem], stream: Any, section: dict[str, Any]) -> Problem:
    """Return a model that draws its samples from a teacher."""
    if not issubclass(model, Regression) or not isinstance(stream, dict) or stream.get("law") != "teacher-student":
        want = "stream = { law = 'teacher-student', input_shape = [...], ... } of a regression model"
        raise ConfigError(f"{path} [problem]: " + message("stream", want, repr(stream), "write it so, or give data"))
    stream = _without(stream, "law")
    valid = [key for key in inspect.signature(model.teacher_student).parameters if key not in ("device", "options")]
    _check_keys(path, "problem.stream", stream, valid, ("input_shape",))
    dtype = check_choice("stream.dtype", stream.pop("dtype", "float64"), list(DTYPES), ConfigError)
    _check_keys(path, "problem", section, _options(model), ())
    try:
        return model.teacher_student(**stream, dtype=DTYPES[dtype], **section)
    except InputError as error:
        raise type(error)(f"{path} [problem]: {error}") from None


def _open_data(path: Path) -> xr.Dataset:
    if not path.is_file():
        raise DataError(
            message(f"data {path}", "a netCDF file", "no such file", "give its path relative to the TOML file")
        )
    try:
        with xr.open_dataset(path, engine="netcdf4") as dataset:
            return dataset.load()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            message(f"data {path}", "a netCDF file", f"something else ({error})", "check the file")
        ) from None


def _named(path: Path, where: str, key: str, section: Mapping[str, Any], choices: Mapping[str, T]) -> T:
    """Return the class that a section names by `key`."""
    if key not in section:
        raise ConfigError(f"{path}: missing key {key!r} in [{where}]; one of {', '.join(choices)}")
    try:
        return choices[check_choice(key, section[key], list(choices), ConfigError)]
    except ConfigError as error:
        raise ConfigError(f"{path} [{where}]: {error}") from None


def _without(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != key}
