"""What comes where a symmetry is wanted, and which charges it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import sdebias as sb
from sdebias.errors import InputError, SymmetryError

SGD = sb.SGD(learning_rate=1e-2)
POINT = torch.ones(4, dtype=torch.float64)
LAW: dict[str, Any] = {"noise": "soft_gauge", "temperature": 0.1, "measure": "predictor"}


@pytest.fixture(scope="module")
def problem() -> sb.problems.HadamardRegression:
    return sb.problems.HadamardRegression(np.eye(2), np.ones(2))


@pytest.fixture(scope="module")
def ensemble(problem: sb.problems.HadamardRegression) -> xr.Dataset:
    return sb.simulate(problem, SGD, trajectories=2, steps=4, progress=False)


def nodes() -> sb.prediction.PanelQuadrature:
    return sb.prediction.PanelQuadrature({"w": [1.0, 2.0]})


def section(w: torch.Tensor) -> torch.Tensor:
    return w.sqrt().expand(-1, 4)


CALLS: dict[str, Callable[[xr.Dataset, sb.Problem, Any], object]] = {
    "predict_orbit_drift": lambda e, p, s: sb.predict_orbit_drift(e, p, s),
    "split_dynamics": lambda e, p, s: sb.split_dynamics(e, p, s),
    "split_states": lambda e, p, s: sb.prediction.split_states(POINT[None], p, s, SGD.spec()),
    "gram_spectrum": lambda e, p, s: sb.gram_spectrum(e, p, s),
    "landscape": lambda e, p, s: sb.landscape(
        p, s, {"p[0]": [1.0, 2, 3], "q[0]": [1.0, 2, 3]}, base_point=POINT, **LAW
    ),
    "effective_loss": lambda e, p, s: sb.effective_loss(p, s, section, POINT[:, None], **LAW),
    "stationary_law": lambda e, p, s: sb.stationary_law(p, s, section, nodes(), **LAW),
    "log_stationary_density": lambda e, p, s: sb.prediction.log_stationary_density(
        p, s, POINT[None], **{**LAW, "noise": "isotropic"}
    ),
    "noise_equilibrium": lambda e, p, s: sb.noise_equilibrium(p, s, POINT, learning_rate=0.1),
    "predict_relaxation": lambda e, p, s: sb.predict_relaxation(p, s, POINT, [0, 1], learning_rate=0.1),
    "check_invariance": lambda e, p, s: sb.symmetry.check_invariance(p, s),
    "Product": lambda e, p, s: sb.symmetry.Product(s),
    "OrbitDrift": lambda e, p, s: sb.design.OrbitDrift(p, s, POINT),
    "StationaryMean": lambda e, p, s: sb.design.StationaryMean(lambda w: w[:, 0], p, s, section, nodes(), "soft_gauge")(
        torch.tensor(0.1)
    ),
}


def needing_one(module: ModuleType) -> set[str]:
    """Return the public callables of a module that take a symmetry which may not be None."""
    found = set()
    for name, value in vars(module).items():
        if name.startswith("_") or not callable(value) or getattr(value, "__module__", "").startswith("typing"):
            continue
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:
            continue
        if "symmetry" in parameters and str(parameters["symmetry"].annotation) == "Symmetry":
            found.add(name)
    return found


def test_every_function_that_takes_a_symmetry_is_tried() -> None:
    found = set().union(*map(needing_one, (sb, sb.prediction, sb.symmetry, sb.design)))
    assert {"predict_orbit_drift", "StationaryMean"} <= found
    assert found <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", [None, "Rescaling", ("p", "q")], ids=["none", "text", "tuple"])
def test_no_symmetry_is_refused_in_one_line(
    name: str, wrong: Any, ensemble: xr.Dataset, problem: sb.problems.HadamardRegression
) -> None:
    with pytest.raises(InputError, match="expected a Symmetry, got (None|str|tuple); declare one") as refusal:
        CALLS[name](ensemble, problem, wrong)
    assert "\n" not in str(refusal.value)


def test_what_may_go_without_says_so_where_it_needs_one(
    ensemble: xr.Dataset, problem: sb.problems.HadamardRegression
) -> None:
    with pytest.raises(InputError, match="expected a Symmetry, got str"):
        sb.simulate(problem, SGD, symmetry="Rescaling", trajectories=2, steps=4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="save: charge_value: expected a symmetry, got none"):
        sb.simulate(problem, SGD, symmetry=None, save=["charge"], trajectories=2, steps=4)
    with pytest.raises(InputError, match="expected one, for horizontal noise"):
        sb.simulate(problem, sb.SGD(learning_rate=0.1, gauge_stiffness=1.0), trajectories=2, steps=4)
    with pytest.raises(InputError, match="expected a Symmetry, got str"):
        ensemble.sdebias.split(problem, "Rescaling")


def test_what_of_module_returns_is_no_symmetry_but_has_one(ensemble: xr.Dataset, problem: sb.Problem) -> None:
    found = sb.symmetry.of_module(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    with pytest.raises(InputError, match="got ModuleSymmetry; pass its attribute symmetry"):
        sb.predict_orbit_drift(ensemble, problem, found)  # type: ignore[arg-type]


def shear(xi: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return p + xi * p.flip(0) * torch.tensor([1.0, 0.0], dtype=p.dtype)


class TestWithoutCharges:
    """The reason is that of the group at hand."""

    @staticmethod
    def refused(ensemble: xr.Dataset, problem: sb.Problem, symmetry: sb.symmetry.Symmetry) -> str:
        with pytest.raises(SymmetryError) as refusal:
            sb.predict_orbit_drift(ensemble, problem, symmetry)
        with pytest.raises(SymmetryError, match="so that nothing relaxes"):
            sb.noise_equilibrium(problem, symmetry, POINT, learning_rate=0.1)
        return str(refusal.value)

    def test_rotations(self, ensemble: xr.Dataset, problem: sb.Problem) -> None:
        said = self.refused(ensemble, problem, sb.symmetry.Orthogonal("p"))
        assert said.endswith("it has no charges (its group is compact), so that there is no drift to predict")

    def test_shears(self, ensemble: xr.Dataset, problem: sb.Problem) -> None:
        said = self.refused(ensemble, problem, sb.symmetry.from_action(shear, 1, ["p"]))
        assert "it has no charges (none of its fields is a gradient)" in said
        assert "compact" not in said

    def test_no_directions(self, ensemble: xr.Dataset, problem: sb.Problem) -> None:
        nothing = sb.symmetry.DiscoveredSymmetry(torch.zeros(0, 5, 5).double(), problem.layout, 0)
        said = self.refused(ensemble, problem, nothing)
        assert "it has no directions" in said
        assert "compact" not in said

    def test_isotropic_noise_wants_isometries(self, problem: sb.Problem) -> None:
        """A shear has no charges either, but its orbits have no finite volume."""
        for symmetry, remedy in (
            (sb.symmetry.Rescaling("p", "q"), "soft_gauge"),
            (sb.symmetry.from_action(shear, 1, ["p"]), "no stationary law"),
        ):
            with pytest.raises(SymmetryError, match=f"a compact group of isometries for isotropic noise.*{remedy}"):
                sb.prediction.log_stationary_density(
                    problem, symmetry.bind(problem), POINT[None], noise="isotropic", temperature=0.1, measure="quotient"
                )
