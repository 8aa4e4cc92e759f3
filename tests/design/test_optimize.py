"""Families tuned to a wanted bias: optima in closed form, whole numbers, unreachable targets, a simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import gamma
from torch import Tensor

import sdebias as sb
from sdebias.design import OrbitDrift, PenaltyExponent, StationaryMean, optimize
from sdebias.errors import InputError, SymmetryError
from sdebias.prediction import PanelQuadrature, log_stationary_density
from sdebias.problems import DeepDiagonalRegression, HadamardRegression, WeightDecay
from sdebias.symmetry import Orthogonal, Rescaling

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def start() -> Tensor:
    return draw(6, seed=2)


def problem() -> HadamardRegression:
    theta = start()
    return HadamardRegression(draw(20, 3), draw(20, seed=1), initial={"p": theta[:3], "q": theta[3:]})


def drift(**options: Any) -> OrbitDrift:
    return OrbitDrift(problem(), Rescaling("p", "q"), start(), **options)


def traces() -> tuple[Tensor, Tensor]:
    """Return tr(Σ A_a) and ∇LᵀA_a∇L, from the per-sample gradients."""
    gradients = problem().per_sample_gradient(start())
    mean = gradients.mean(0)
    signs = torch.tensor([1.0] * 3 + [-1.0] * 3, dtype=F64)
    spread = (gradients - mean).square().mean(0) * signs
    square = mean.square() * signs
    return spread[:3] + spread[3:], square[:3] + square[3:]


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("noise", ["soft_gauge", "horizontal"])
@pytest.mark.parametrize("measure", ["predictor", "slice", "quotient"])
def test_the_exponent_is_that_of_the_stationary_density(depth: int, noise: Any, measure: Any) -> None:
    # log density = −L/T − a log|w|: the slope over balanced points of one coordinate.
    deep = DeepDiagonalRegression(draw(5, 1), draw(5, seed=1), depth=depth)
    w = torch.tensor([0.3, 0.9], dtype=F64)
    theta = (w ** (1 / depth)).unsqueeze(-1).expand(2, depth).contiguous()
    symmetry = deep.symmetry().bind(deep)
    density = log_stationary_density(deep, symmetry, theta, noise=noise, temperature=0.5, measure=measure)
    slope = -(density + deep.loss(theta) / 0.5).diff() / w.log().diff()
    predicted = PenaltyExponent(noise, measure)(torch.tensor(depth, dtype=F64))
    torch.testing.assert_close(slope, predicted.expand(1))


def test_a_depth_for_an_exponent() -> None:
    found = optimize(PenaltyExponent(), None, {"depth": (2, 10)}, target=0.75, integers=["depth"])
    assert (found.values, found.reached, found.at_bounds) == ({"depth": 4}, True, {})
    assert isinstance(found.values["depth"], int)
    assert found.predicted == pytest.approx(0.75, rel=1e-12)
    assert found.gradient["depth"] == pytest.approx(1 / 16, rel=1e-9)


def test_whole_numbers_are_reported_beside_real_ones() -> None:
    # (D−1)/D = 0.7 at D = 10/3; of whole depths 3 is nearest.
    found = optimize(PenaltyExponent(), None, {"depth": (2, 10)}, target=0.7, integers=["depth"])
    assert found.relaxed_values["depth"] == pytest.approx(10 / 3, rel=1e-6)
    assert found.relaxed_predicted == pytest.approx(0.7, rel=1e-6)
    assert (found.values, found.reached, found.exhaustive) == ({"depth": 3}, False, True)
    assert found.predicted == pytest.approx(2 / 3)
    assert found.relative_error == pytest.approx(1 / 21)
    assert "NOT reached" in str(found)
    # The temperature makes up for it.
    bounds = {"depth": (2.0, 10.0), "temperature": (0.01, 10.0)}
    found = optimize(PenaltyExponent(), None, bounds, target=0.7, integers=["depth"])
    depth = found.values["depth"]
    assert found.reached
    assert found.values["temperature"] == pytest.approx(0.7 * depth / (depth - 1), rel=1e-6)


def test_a_learning_rate_for_an_orbit_drift() -> None:
    trace, square = traces()
    objective = drift(charge="p:q[1]")
    y = 1e-3 * float((trace + square)[1].sign())
    found = optimize(objective, None, {"learning_rate": (1e-4, 1.0)}, target=y)
    eta = math.sqrt(2 * y / float(trace[1] + square[1]))
    assert found.reached
    assert found.converged
    assert found.free_directions == 0
    assert found.values["learning_rate"] == pytest.approx(eta, rel=1e-6)
    assert found.gradient["learning_rate"] == pytest.approx(2 * y / eta, rel=1e-6)
    # The SDE lacks the second term, and a batch without replacement has a smaller share of the first.
    batch, n = torch.tensor(4.0, dtype=F64), 20
    rate = torch.tensor(0.1, dtype=F64)
    half = 0.01 / 2
    torch.testing.assert_close(drift(dynamics="SGDSDE")(rate, batch), (half * trace / 4).norm())
    share = (n - 4) / (4 * (n - 1))
    torch.testing.assert_close(drift(replacement=False)(rate, batch), (half * (share * trace + square)).norm())


def test_of_many_optima_the_one_nearest_to_the_start() -> None:
    # For the SDE the drift is ∝ η²/B: in logarithms a line, on which the foot of the perpendicular is returned.
    objective = drift(dynamics="SGDSDE")
    bounds, begin = (
        {"learning_rate": (1e-4, 1.0), "batch_size": (1.0, 100.0)},
        {"learning_rate": 0.01, "batch_size": 8.0},
    )
    strength = float(traces()[0].norm()) / 2
    wanted = 4e-5
    found = optimize(objective, None, bounds, target=wanted, start=begin)
    assert (found.reached, found.free_directions) == (True, 1)
    ranges = np.array([math.log(1e4), math.log(100)])
    direction = np.array([2.0, -1.0]) * ranges  # of log drift, in the units of the search
    missing = math.log(wanted / (strength * 0.01**2 / 8))
    move = direction * missing / (direction @ direction) * ranges
    assert found.values["learning_rate"] == pytest.approx(0.01 * math.exp(move[0]), rel=1e-5)
    assert found.values["batch_size"] == pytest.approx(8 * math.exp(move[1]), rel=1e-5)
    assert "not unique" in str(found)


def quartic(temperature: float = 1.0, noise: Any = "horizontal") -> StationaryMean:
    """Return E w, w = s² > 0, of L = w²/2."""
    return StationaryMean(
        lambda points: points[:, 0].square(),
        HadamardRegression(torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)),
        Rescaling("p", "q"),
        lambda s: s.expand(len(s), 2),
        PanelQuadrature({"s": np.linspace(0, 4, 41).tolist()}),
        noise,
    )


def test_a_temperature_for_a_mean() -> None:
    # Horizontal noise: e^{−w²/2T} w^{−1/2} dw, E w = √(2T) Γ(3/4)/Γ(1/4).
    ratio = gamma(0.75) / gamma(0.25)
    found = optimize(quartic(), None, {"temperature": (0.01, 1.0)}, target=0.25)
    assert found.reached
    assert found.values["temperature"] == pytest.approx((0.25 / ratio) ** 2 / 2, rel=1e-5)
    assert found.gradient["temperature"] == pytest.approx(0.25 / (2 * found.values["temperature"]), rel=1e-6)


# -- a simulation at the optimum -------------------------------------------------------------------------------------


def test_the_optimum_has_the_wanted_drift_in_a_simulation() -> None:
    """One exact update of 60,000 trajectories; 4 standard errors, false alarms 6e-5; a drift 10 % off is refused."""
    target = 2e-3 * float(traces()[0][0].sign())
    bounds = {"learning_rate": (1e-3, 1.0), "batch_size": (1.0, 16.0)}
    found = optimize(drift(charge="p:q[0]"), None, bounds, target=target, integers=["batch_size"])
    assert found.reached
    dynamics = sb.SGD(learning_rate=found.values["learning_rate"], batch_size=int(found.values["batch_size"]))
    ensemble = sb.simulate(
        problem(), dynamics, symmetry=Rescaling("p", "q"), trajectories=60000, steps=1, save_every=1, seed=0
    )
    charge = ensemble["charge_value"].sel(charge="p:q[0]")
    moved = (charge.isel(step=-1) - charge.isel(step=0)).values
    error = moved.std() / math.sqrt(len(moved))
    assert abs(moved.mean() - target) < 4 * error
    assert abs(moved.mean() - 1.1 * target) > 4 * error


# -- the search ------------------------------------------------------------------------------------------------------


def test_unreachable_targets_give_the_nearest_value_on_the_bound() -> None:
    found = optimize(drift(), None, {"learning_rate": (1e-4, 0.1)}, target=1e3)
    assert (found.reached, found.at_bounds) == (False, {"learning_rate": "upper"})
    assert found.predicted == pytest.approx(float(drift()(torch.tensor(0.1, dtype=F64))))
    assert "at bounds: learning_rate (upper)" in str(found)


def test_a_target_behind_a_hill_is_found() -> None:
    # From the middle the slope leads to a local maximum of 0.5 near 1; the target is reached near 9 only.
    def hills(x: Tensor) -> Tensor:
        return 0.5 * torch.exp(-((x - 4) ** 2)) + torch.exp(-((x - 9) ** 2))

    found = optimize(hills, None, {"x": (-1.0, 10.0)}, target=0.9)
    assert found.reached
    assert abs(found.values["x"] - 9) == pytest.approx(math.sqrt(-math.log(0.9)), rel=1e-4)


@pytest.mark.parametrize("target", [0.0, -0.5])
def test_targets_need_not_be_positive(target: float) -> None:
    found = optimize(lambda x: x**3 - 1, None, {"x": (-2.0, 2.0)}, target=target, start={"x": 1.5})
    assert found.reached
    assert found.values["x"] == pytest.approx((1 + target) ** (1 / 3), rel=1e-5)


def test_predictions_without_derivatives_are_taken() -> None:
    found = optimize(lambda x: float(x.detach()) ** 2, None, {"x": (0.1, 10.0)}, target=2.0)
    assert found.reached
    assert found.values["x"] == pytest.approx(math.sqrt(2), rel=1e-5)
    assert math.isnan(found.gradient["x"])


def test_a_family_names_what_the_objective_needs() -> None:
    # Temperature and depth of one line of designs.
    found = optimize(
        PenaltyExponent("horizontal", "predictor"),
        lambda s: {"depth": 2 + s, "temperature": 0.1 * (1 + s)},
        {"s": (0.0, 8.0)},
        target=0.2,
    )
    s = found.values["s"]
    assert found.reached
    assert 0.1 * (1 + s) * (1 + s) / (2 + s) == pytest.approx(0.2, rel=1e-6)


def test_long_ranges_of_whole_numbers_are_searched_near_the_real_optimum() -> None:
    found = optimize(lambda b: 1 / b, None, {"b": (1, 100000)}, target=1 / 31234.4, integers=["b"])
    assert found.values == {"b": 31234}
    assert (found.reached, found.exhaustive) == (False, False)


def test_the_search_repeats() -> None:
    first, second = (optimize(drift(), None, {"learning_rate": (1e-4, 0.1)}, target=1e3) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("bounds", "options", "match"),
    [
        ({}, {}, "one variable or more"),
        ({"x": (1.0, 1.0)}, {}, "finite lower < upper"),
        ({"x": (2.0, 1.0)}, {}, "finite lower < upper"),
        ({"x": (0.0, math.inf)}, {}, "finite lower < upper"),
        ({"x": (0.0, math.nan)}, {}, "finite lower < upper"),
        ({"x": 3.0}, {}, "two numbers"),
        ({"x": (2.1, 2.9)}, {"integers": ["x"]}, "a whole number between them"),
        ({"x": (0.0, 1.0)}, {"integers": ["y"]}, "one that has bounds"),
        ({"x": (0.0, 1.0)}, {"start": {"z": 1.0}}, "one that has bounds"),
        ({"x": (0.0, 1.0)}, {"start": {"x": 2.0}}, "a value from 0 to 1"),
        ({"x": (0.0, 1.0)}, {"start": {"x": math.nan}}, "a value from 0 to 1"),
        ({"x": (0.0, 1.0)}, {"target": math.nan}, "target: expected a finite number"),
        ({"x": (0.0, 1.0)}, {"tolerance": 0.0}, "tolerance"),
        ({"x": (-1.0, 0.5)}, {"objective": lambda x: x.sqrt()}, "a finite number, got nan"),
        ({"x": (0.0, 1.0)}, {"objective": lambda x: x * torch.ones(2)}, "a scalar"),
        ({"x": (0.0, 1.0)}, {"objective": lambda x: (x - 0.5).abs().sqrt()}, "a derivative that is not finite"),
    ],
)
def test_bad_input_is_refused(bounds: Any, options: dict[str, Any], match: str) -> None:
    objective: Callable[..., Any] = options.pop("objective", lambda x: x)
    with pytest.raises(InputError, match=match):
        optimize(objective, None, bounds, **{"target": 0.3, **options})


def test_bad_objectives_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'soft_gauge'"):
        PenaltyExponent("soft_gage")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one of predictor"):
        PenaltyExponent("horizontal", "w")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"did you mean 'p:q\[1\]'"):
        drift(charge="p:q1")
    with pytest.raises(InputError, match="one of SGD, SGDSDE"):
        drift(dynamics="Adam")
    with pytest.raises(InputError, match="take one replicate and one row"):
        OrbitDrift(problem(), Rescaling("p", "q"), start()[None])
    with pytest.raises(InputError, match="finite entries"):
        OrbitDrift(problem(), Rescaling("p", "q"), start() * torch.nan)
    with pytest.raises(SymmetryError, match="there is no drift"):
        OrbitDrift(WeightDecay(problem(), 0.1), Orthogonal("p", "q"), start())
