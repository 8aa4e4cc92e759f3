"""Configurations: what they build, and one clear line for everything that is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import ROOT, every_model, regression

import sdebias as sb
from sdebias import config
from sdebias.ensemble.observables import OBSERVABLES
from sdebias.errors import ConfigError, DataError, DeviceError, InputError
from sdebias.storage import save_dataset

TOML = """
[problem]
model = "HadamardRegression"
data = "data.nc"
initial = { p = 1.0, q = 0.2 }

[symmetry]
group = "Rescaling"
parameters = ["p", "q"]

[dynamics.sgd]
type = "SGD"
learning_rate = 0.01

[dynamics.sde]
type = "SGDSDE"
learning_rate = 0.01
substeps = 2

[run]
trajectories = 6
steps = 4
save_every = 2
"""


def write(folder: Path, text: str = TOML, **variables: Any) -> Path:
    """Write a configuration and its data, and return its path."""
    X, y = regression()
    arrays = {"X": (("sample", "feature"), X), "y": ("sample", y)} | variables
    xr.Dataset({k: v for k, v in arrays.items() if v is not None}, {"feature": ["a", "b", "c"]}).to_netcdf(
        folder / "data.nc"
    )
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


def rescale(xi: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescale all pairs by one factor: a group made from a function."""
    return p * xi.exp(), q * (-xi).exp()


def test_objects_are_those_of_the_public_interface(tmp_path: Path) -> None:
    run = config.load(write(tmp_path), {"steps": 8, "seed": None})
    assert isinstance(run.problem, sb.problems.HadamardRegression)
    assert run.problem.predictor_labels == ["w[a]", "w[b]", "w[c]"]
    assert run.symmetry == sb.symmetry.Rescaling("p", "q")
    assert run.dynamics == {"sgd": sb.SGD(learning_rate=0.01), "sde": sb.SGDSDE(learning_rate=0.01, substeps=2)}
    assert run.settings.simulate_arguments() == {"trajectories": 6, "steps": 8, "save_every": 2, "seed": 0}
    assert run.problem.dtype == torch.float64


def test_an_ensemble_file_is_a_configuration(tmp_path: Path) -> None:
    run = config.load(write(tmp_path))
    ens = sb.simulate(run.problem, run.dynamics["sde"], symmetry=run.symmetry, **run.settings.simulate_arguments())
    again = config.load(save_dataset(ens, tmp_path / "sde.nc"))
    assert again.dynamics == {"sde": run.dynamics["sde"]}
    assert again.symmetry == run.symmetry
    assert again.problem.spec() == run.problem.spec()
    assert torch.equal(again.problem.data["X"][1], run.problem.data["X"][1])
    assert again.settings.simulate_arguments()["save"] == list(OBSERVABLES)


@pytest.mark.parametrize("problem", every_model(), ids=lambda problem: type(problem).__name__)
def test_every_model_is_made_again_from_its_file(problem: sb.Problem, tmp_path: Path) -> None:
    symmetry = problem.symmetry()
    assert symmetry is not None
    sgd = sb.SGD(learning_rate=0.01, batch_size=2)
    arguments = {"trajectories": 3, "steps": 4, "save_every": 2, "seed": 5}
    ens = sb.simulate(problem, sgd, symmetry=symmetry, progress=False, **arguments)  # type: ignore[arg-type]
    run = config.load(save_dataset(ens, tmp_path / "sgd.nc"))
    assert run.problem.spec() == problem.spec()
    again = sb.simulate(
        run.problem, run.dynamics["sgd"], symmetry=run.symmetry, progress=False, **run.settings.simulate_arguments()
    )
    xr.testing.assert_equal(again, ens)


def test_a_file_with_functions_in_it_is_not_imported(problem: sb.Problem, tmp_path: Path) -> None:
    shear = sb.symmetry.from_action(rescale, 1, ["p", "q"])
    ens = sb.simulate(problem, sb.SGD(learning_rate=0.01), symmetry=shear, trajectories=2, steps=2, progress=False)
    with pytest.raises(ConfigError, match="functions that were allowed, got .test_config:rescale."):
        config.load(save_dataset(ens, tmp_path / "sgd.nc"))


def test_given_initial_states_are_not_in_the_file(tmp_path: Path) -> None:
    run = config.load(write(tmp_path))
    ens = sb.simulate(
        run.problem,
        run.dynamics["sgd"],
        symmetry=run.symmetry,
        trajectories=2,
        steps=2,
        initial=torch.ones(2, 6, dtype=torch.float64),
    )
    with pytest.raises(ConfigError, match="run it from Python"):
        config.load(save_dataset(ens, tmp_path / "sgd.nc"))


def test_rates_by_replicate(tmp_path: Path) -> None:
    X, y = (np.stack(arrays) for arrays in zip(*(regression(seed=s) for s in range(2)), strict=True))
    text = TOML.replace("learning_rate = 0.01", "learning_rate = [0.01, 0.02]")
    run = config.load(write(tmp_path, text, X=(("replicate", "sample", "feature"), X), y=(("replicate", "sample"), y)))
    assert run.dynamics["sgd"].bind(run.problem).learning_rate == (0.01, 0.02)


def test_device_names() -> None:
    assert config.resolve_device("cpu").type == "cpu"
    assert config.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceError, match="device: expected one of cpu.*choose one that is there"):
        config.resolve_device("cuda:99")


BAD = {
    "misspelt key": (
        ("learning_rate", "learning_rte"),
        r"unknown key 'learning_rte' in \[dynamics.sgd\]; did you mean 'learning_rate'",
    ),
    "misspelt section": (("[run]", "[runs]"), "unknown key 'runs' at the top level; did you mean 'run'"),
    "misspelt run key": (("save_every", "save_evry"), r"unknown key 'save_evry' in \[run\]; did you mean 'save_every'"),
    "misspelt option": (("initial =", "inital ="), "did you mean 'initial'"),
    "missing key": (("steps = 4\n", ""), r"missing key 'steps' in \[run\]"),
    "negative rate": (
        ("learning_rate = 0.01", "learning_rate = -0.01"),
        "learning_rate: expected a positive finite number, got -0.01",
    ),
    "infinite rate": (
        ("learning_rate = 0.01", "learning_rate = inf"),
        "learning_rate: expected a positive finite number, got inf",
    ),
    "text for a rate": (
        ("learning_rate = 0.01", 'learning_rate = "fast"'),
        "learning_rate: expected a positive finite number",
    ),
    "unknown model": (("HadamardRegression", "HadamardRegresion"), "did you mean 'HadamardRegression'"),
    "unknown group": (('"Rescaling"', '"Rescalling"'), "did you mean 'Rescaling'"),
    "unknown dynamics": (('"SGDSDE"', '"SDE"'), r"\[dynamics.sde\]: type: expected one of SGD, SGDSDE"),
    "no type": (('type = "SGD"\n', ""), r"missing key 'type' in \[dynamics.sgd\]"),
    "no data": (('data = "data.nc"\n', ""), r"missing key 'data' in \[problem\]"),
    "other data": (('"data.nc"', '"dat.nc"'), "dat.nc: expected a netCDF file, got no such file"),
    "data not a file": (('"data.nc"', "3"), "missing key 'data'"),
    "unknown parameter": (("q = 0.2", "r = 0.2"), "parameter: expected a declared name, got 'r'"),
    "text for an initial value": (("q = 0.2", 'q = "x"'), "initial law of 'q': expected numbers"),
    "too many initial values": (("q = 0.2", "q = [1.0, 2.0]"), "initial law of 'q': expected a value that broadcasts"),
    "parameters no list": (('["p", "q"]', '"p"'), r'parameters = \["p", "q"\]'),
    "too many parameters": (('["p", "q"]', '["p", "q", "r"]'), "expected a declared name, got 'r'"),
    "no charges": (('"Rescaling"', '"Orthogonal"'), "has no charges"),
    "functions from a file": (
        ('group = "Rescaling"', 'group = "FromAction"\naction = "os:system"\ndim = 1'),
        "functions that were allowed",
    ),
    "problem in dynamics": (("learning_rate = 0.01", "learning_rate = 0.01\nproblem = 1"), "unknown key 'problem'"),
    "stream of a text": (("initial =", "stream = 3\ninitial ="), "stream: expected stream = { law"),
    "unknown key of a stream": (
        ("initial =", "stream = { law = 'teacher-student', input_shpe = [3] }\ninitial ="),
        "did you mean 'input_shape'",
    ),
    "negative decay": (
        ("initial =", "weight_decay = -1.0\ninitial ="),
        "weight_decay: expected a positive finite number",
    ),
    "no table": (("[run]\ntrajectories = 6\nsteps = 4\nsave_every = 2", ""), "missing key 'run'"),
    "a number for a table": (("[symmetry]", "[other]"), "unknown key 'other'"),
    "no TOML": (("[run]", "[run"), "expected valid TOML"),
    "unknown device": (("steps = 4", 'steps = 4\ndevice = "tpu"'), "device: expected one of cpu"),
    "unknown dtype": (("steps = 4", 'steps = 4\ndtype = "float16"'), "dtype: expected one of float32, float64"),
    "zero trajectories": (("trajectories = 6", "trajectories = 0"), "trajectories: expected a whole number >= 1"),
    "path as a name": (("[dynamics.sgd]", '[dynamics."../sgd"]'), "expected a name that can be a file's"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD.keys())
def test_refusals(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = TOML.replace(*change)
    assert text != TOML
    with pytest.raises(InputError, match=words) as caught:
        config.load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"y": ("sample", np.full(12, np.nan))}, "y: expected finite entries only, got 12 NaN or infinite"),
    "another length": ({"y": ("other", np.zeros(11))}, r"got X \(12, 3\) and y \(11,\)"),
    "missing": ({"y": None}, "expected data with a variable 'y', got none"),
    "text": ({"y": ("sample", np.array(["a"] * 12))}, "y: expected a numeric array"),
    "too few axes": ({"X": ("sample", np.zeros(12))}, "X: expected 2 axes"),
}


@pytest.mark.parametrize(("variables", "words"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data(tmp_path: Path, variables: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        config.load(write(tmp_path, **variables))


def test_the_main_jobs_configuration_loads() -> None:
    run = config.load(ROOT / "experiments" / "diabetes.toml")
    assert run.problem.n_samples == 442
    assert run.symmetry.bind(run.problem).charge_labels[2] == "p:q[bmi]"
