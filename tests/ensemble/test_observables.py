"""Observables: short names, and functions of the user's that are tried before the run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from sdebias.config import load
from sdebias.errors import ConfigError, InputError

SGD = sb.SGD(learning_rate=0.05)


def first(theta: torch.Tensor) -> torch.Tensor:
    """First parameter.

    The rest is not told.
    """
    return theta[..., 0]


def table(theta: torch.Tensor) -> torch.Tensor:
    return theta.unflatten(-1, (2, 3)).square()


def run(problem: sb.Problem, save: Any, **arguments: Any) -> xr.Dataset:
    return sb.simulate(problem, SGD, trajectories=10, steps=12, save_every=3, progress=False, save=save, **arguments)


@pytest.mark.parametrize("name", ["problem", "replicated"])
def test_functions_are_called_as_they_are(name: str, request: pytest.FixtureRequest) -> None:
    problem = request.getfixturevalue(name)
    lead = () if problem.replicates is None else ("replicate",)
    ens = run(problem, ["theta", first, table])
    assert ens["first"].dims == (*lead, "trajectory", "step")
    assert ens["first"].attrs == {"long_name": "First parameter."}
    assert ens["table"].dims == (*lead, "trajectory", "step", "table_axis0", "table_axis1")
    np.testing.assert_array_equal(ens["first"], ens["theta"].isel(parameter=0))
    np.testing.assert_array_equal(ens["table"].values.reshape(ens["theta"].shape), ens["theta"].values ** 2)


def test_short_names(problem: sb.problems.HadamardRegression) -> None:
    symmetry = sb.symmetry.Rescaling("p", "q")
    short, long = (
        run(problem, names, symmetry=symmetry)
        for names in (["charge", "predictor"], ["charge_value", "predictor_value"])
    )
    assert short.equals(long)
    assert short.attrs["config_hash"] == long.attrs["config_hash"]


def test_a_file_names_functions_and_imports_none(problem: sb.problems.HadamardRegression, tmp_path: Any) -> None:
    run(problem, ["loss", first], symmetry=sb.symmetry.Rescaling("p", "q")).to_netcdf(tmp_path / "ens.nc")
    with pytest.raises(ConfigError, match="functions that were allowed, got 'test_observables:first'"):
        load(tmp_path / "ens.nc")
    assert load(tmp_path / "ens.nc", allow_import=["test_observables:first"]).settings.save == ["loss", first]


def loss(theta: torch.Tensor) -> torch.Tensor:
    return theta.sum(-1)


def feature(theta: torch.Tensor) -> torch.Tensor:
    return theta.sum(-1)


def of_all(theta: torch.Tensor) -> torch.Tensor:
    return theta.sum()


def centred(theta: torch.Tensor) -> torch.Tensor:
    return theta - theta.mean(-2, keepdim=True)


def random(theta: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(theta)


def positive(theta: torch.Tensor) -> torch.Tensor:
    return theta[..., 0] > 0


def as_numpy(theta: torch.Tensor) -> Any:
    return theta.numpy()


def too_far(theta: torch.Tensor) -> torch.Tensor:
    return theta[..., 6]


def empty(theta: torch.Tensor) -> torch.Tensor:
    return theta[..., :0]


@pytest.mark.parametrize(
    ("save", "words"),
    [
        ([lambda theta: theta], "<lambda>; write it as def name"),
        ([functools.partial(first)], "partial; write it as def name"),
        ([loss], "'loss'; rename it"),
        ([feature], "'feature'; rename it"),
        ([first, first], "two 'first'"),
        ([of_all], r"got shape \(\) from"),
        ([empty], r"got shape \(2, 3, 0\)"),
        ([centred], "depend on other trajectories"),
        ([random], "depend on other trajectories"),
        ([positive], r"torch.bool; convert with .to\(theta.dtype\)"),
        ([as_numpy], "got ndarray"),
        ([too_far], "got IndexError: .*; index parameters on the last axis"),
        ("loss", "a list of observables"),
        (first, "a list of observables"),
        ([7], "save: expected one of"),
        (["charge"], "charge_value: expected a symmetry"),
    ],
)
def test_refusals(problem: sb.problems.HadamardRegression, save: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        run(problem, save)
    assert "\n" not in str(error.value)
