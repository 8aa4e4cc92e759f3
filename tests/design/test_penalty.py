"""Penalty designs: the geometry of the problem has the wanted law, and what cannot be had is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import sdebias as sb
from sdebias.design import PENALTIES, PenaltyDesign, penalty
from sdebias.design.slices import Diagonal, GaugedHyperbola, Hyperbola
from sdebias.errors import InputError
from sdebias.prediction import PanelQuadrature

FLOAT = torch.float64
INF = math.inf
LINE, HALF = (-INF, INF), (0.0, INF)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)), RNG.normal(size=12)
NOISES: tuple[Any, ...] = ("horizontal", "isotropic-gauged")
STRENGTH = {"logarithm": 0.5}


def spread(design: PenaltyDesign, domain: tuple[float, float], stronger: float = 1.0) -> float:
    """Return the range over w of log(law of the geometry) − (−L/T − ψ), the penalty taken `stronger` times."""
    temperature = 0.25
    problem = design.problem(np.ones((1, 1)), np.full(1, 0.5))
    lower, upper = max(domain[0], -1.2), min(domain[1], 1.4)
    edges = np.linspace(lower + 0.01 * math.isfinite(domain[0]), upper, 12)
    nodes = PanelQuadrature({"w": edges.tolist()}, tolerance=0.5)
    law = design.stationary_law(problem, nodes, temperature=temperature)
    w = torch.from_numpy(law["coordinate_value"].values)
    wanted = -0.5 * (w[:, 0] - 0.5).square() / temperature - stronger * design.penalty(w)
    return float(np.ptp(np.log(law["probability_density"].values) - wanted.numpy()))


@pytest.mark.parametrize("domain", [LINE, (-INF, 0.5), (-1.0, 2.0)])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_geometry_of_the_problem_has_the_wanted_law(name: str, domain: tuple[float, float]) -> None:
    """Within 1e-4 of log density everywhere; a penalty 10 % stronger is off by far more. No simulation."""
    if name == "logarithm" and domain[0] < 0 < domain[1]:
        domain = HALF
    for noise in NOISES if not all(map(math.isfinite, domain)) else NOISES[:1]:
        design = penalty(name, noise, domain, strength=STRENGTH.get(name, 2.0))
        assert spread(design, domain) < 1e-4
        if name != "none":
            assert spread(design, domain, stronger=1.1) > 1e-2


@pytest.mark.parametrize("noise", NOISES)
def test_a_half_line_on_a_hyperbola(noise: Any) -> None:
    design = penalty("huber", noise, HALF, level=0.7)
    assert design.symmetry == sb.symmetry.Rescaling("p", "q", level=0.7)
    assert spread(design, HALF) < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_other_units(scale: float) -> None:
    design = penalty(lambda w: 3 * abs(w / scale - 0.6), width=scale)
    w = scale * torch.linspace(-1, 1.5, 30, dtype=FLOAT).unsqueeze(-1)
    torch.testing.assert_close(design.weight(design.factorize(w)), w, rtol=1e-8, atol=1e-9 * scale)


def test_closed_form_of_l1() -> None:
    """One-sided: z = ½ ((1 − e^{−λw})/λ)² on the diagonal; gauged: z = c sinh(2s/ℓ) on the hyperbola."""
    w = torch.linspace(0, 3, 20, dtype=FLOAT)
    s = (1 - torch.exp(-2 * w)) / 2
    torch.testing.assert_close(penalty("l1", domain=HALF, strength=2.0).h(0.5 * s**2), w)
    gauged = penalty("l1", "isotropic-gauged", strength=2.0)
    assert isinstance(gauged.slice, GaugedHyperbola)
    z = gauged.slice.level * torch.sinh(2 * s / gauged.slice.length)
    torch.testing.assert_close(gauged.h(z), w)
    torch.testing.assert_close(gauged.h(-z), -w)


@pytest.mark.parametrize("operator", [None, "differences", "fourier", RNG.normal(size=(4, 4))])
@pytest.mark.parametrize("noise", NOISES)
def test_gradients_in_closed_form(noise: Any, operator: Any) -> None:
    design = penalty("huber", noise, operator=operator)
    problem = design.problem(X, Y)
    theta = torch.from_numpy(RNG.normal(size=(5, 8))).requires_grad_(True)
    (expected,) = torch.autograd.grad(problem.loss(theta).sum(), theta)
    torch.testing.assert_close(problem.gradient(theta.detach()), expected)
    sb.symmetry.check_invariance(problem, design.symmetry)
    coefficients = torch.from_numpy(RNG.uniform(-1, 1, size=(3, 4)))
    named = design.factorize(coefficients)
    torch.testing.assert_close(design.weight(named), coefficients)
    charge = 0.5 * (named["p"].square() - named["q"].square())
    torch.testing.assert_close(charge, torch.full_like(charge, design.slice.level))


def test_operators_move_the_penalty_to_the_coefficients() -> None:
    """L_eff = L + T Σ ψ((A w)_j) up to a constant, from the geometry of all four weights."""
    design = penalty("elastic", operator="differences", strength=1.5)
    problem = design.problem(X, Y)
    points = torch.from_numpy(RNG.uniform(-0.5, 0.5, size=(6, 4)))
    found = torch.from_numpy(design.effective_loss(problem, points, temperature=0.3)["effective_loss"].values)
    psi = penalty("elastic", strength=1.5).penalty
    increments = torch.diff(points, prepend=torch.zeros(6, 1, dtype=FLOAT))
    difference = found - problem.loss(design.section(points)) - 0.3 * psi(increments)
    torch.testing.assert_close(difference, difference[:1].expand(6), atol=1e-6, rtol=0)


def test_functions_of_every_kind_give_one_design() -> None:
    reference = penalty("pinned", strength=3.0)
    functions: list[Callable[[Any], Any]] = [
        lambda w: 3 * abs(w - 0.6),
        lambda w: 3 * np.abs(w - 0.6),
        lambda w: 3 * math.fabs(w - 0.6),
    ]
    w = torch.linspace(-1, 1.5, 12, dtype=FLOAT).unsqueeze(-1)
    for function in functions:
        design = penalty(function)
        torch.testing.assert_close(design.penalty(w), reference.penalty(w))
        torch.testing.assert_close(design.section(w), reference.section(w), atol=1e-8, rtol=0)
        assert design.spec()["psi"] == "given in the call"


def test_a_spec_is_plain_data_and_builds_the_design_again() -> None:
    design = penalty("l0.5", domain=HALF, strength=2.0)
    spec = json.loads(json.dumps(design.spec()))
    assert spec["psi"] == {"name": "power", "exponent": 0.5, "strength": 2.0}
    again = penalty(spec["psi"], spec["noise"], spec["domain"], width=spec["width"], level=spec["level"])
    assert again.spec() == design.spec()
    assert repr(again) == repr(design)
    assert "name='power'" not in repr(design)
    assert penalty(again.psi, domain=HALF).spec()["psi"] == spec["psi"]


def test_starts_are_not_stationary() -> None:
    for domain in (LINE, HALF, (-INF, 0.3), (-1.0, 2.0)):
        problem = penalty("huber", domain=domain).problem(X, Y)
        theta = problem.draw_initial(1, torch.Generator().manual_seed(0))
        assert float(problem.gradient(theta).abs().sum()) > 0.1


def test_dynamics_hold_the_charge_where_noise_does_not() -> None:
    assert penalty("l1", domain=HALF).dynamics(temperature=0.1, learning_rate=0.01).gauge_stiffness is None
    design = penalty("l1")
    assert isinstance(design.slice, Hyperbola)
    stiffness = design.dynamics(temperature=0.1, learning_rate=0.01).gauge_stiffness
    assert stiffness == pytest.approx(50 * 0.1 / design.slice.level**2)
    assert isinstance(penalty("l1", domain=HALF).slice, Diagonal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_trains_under_the_penalty(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(5, 3, dtype=dtype)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", penalty("l0.5", strength=2.0).parametrization())
    torch.testing.assert_close(layer.weight, before, atol=1e-5, rtol=1e-4)
    assert layer.weight.dtype == dtype
    inputs = torch.ones(8, 5, dtype=dtype)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (layer(inputs) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def complex_value(w: float) -> complex:
    return complex(w, 1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a jump": ({"psi": lambda w: 1.0 * (w > 0.3)}, "psi: expected a continuous function, got a change by 1"),
    "a pole inside": (
        {"psi": lambda w: 0.5 * math.log(abs(w)) if w else -INF},
        "finite values inside the domain, got -inf at w = 0",
    ),
    "a collapse": ({"psi": "logarithm", "domain": HALF, "strength": 1.2}, "an integral down to w = 0"),
    "no law without a loss": ({"psi": "bounded", "proper": True}, "without a loss there is no such law"),
    "complex values": ({"psi": complex_value}, "psi: expected a function of one number, got TypeError"),
    "a vector": ({"psi": lambda w: np.zeros(2)}, "psi: expected a function of one number"),
    "an error inside": ({"psi": lambda w: 1 / 0}, "a function of one number, got ZeroDivisionError"),
    "not a number": ({"psi": lambda w: math.nan}, "finite values inside the domain, got nan"),
    "no function": ({"psi": 3.0}, "psi: expected the name of a penalty"),
    "parameters of a function": ({"psi": abs, "strength": 2.0}, r"got parameters \['strength'\] of a function"),
    "an unknown name": ({"psi": "lasso"}, "psi: expected one of none, l1, l2"),
    "an unknown parameter": ({"psi": "l1", "scale": 2.0}, "penalty 'l1': expected parameters strength, got 'scale'"),
    "no strength": ({"psi": "l1", "strength": 0.0}, "strength: expected a positive finite number"),
    "a ratio of 1": ({"psi": "elastic", "ratio": 1.0}, r"ratio: expected a number in \(0, 1\)"),
    "an empty domain": ({"psi": "l1", "domain": (1.0, 1.0)}, "domain: expected two increasing ends"),
    "a reversed domain": ({"psi": "l1", "domain": (2.0, 1.0)}, "domain: expected two increasing ends"),
    "a domain of NaN": ({"psi": "l1", "domain": (math.nan, 1.0)}, "domain: expected two increasing ends"),
    "no domain": ({"psi": "l1", "domain": 3.0}, "domain: expected two increasing ends"),
    "both signs on the cross": ({"psi": "l1", "level": 0.0}, "no trajectory passes from pq > 0 to pq < 0"),
    "the gauge at charge 0": (
        {"psi": "l1", "noise": "isotropic-gauged", "domain": HALF, "level": 0.0},
        r"law dz/2\|z\|, which has no integral down to z = 0",
    ),
    "the gauge between walls": (
        {"psi": "l1", "noise": "isotropic-gauged", "domain": (0.0, 1.0)},
        "no loss holds p and q, which walk to infinity",
    ),
    "a negative level": ({"psi": "l1", "level": -1.0}, "level: expected a finite number >= 0"),
    "another noise": ({"psi": "l1", "noise": "minibatch"}, "noise: expected one of horizontal, isotropic-gauged"),
    "no width": ({"psi": "l1", "width": 0.0}, "width: expected a positive finite number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_with_the_reason(name: str) -> None:
    arguments, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as caught:
        penalty(**arguments)
    assert "\n" not in str(caught.value)


def test_an_operator_must_fit() -> None:
    with pytest.raises(InputError, match="operator: expected one of size 4, got 3"):
        penalty("l1", operator=np.eye(3)).problem(X, Y)


def test_penalties_by_name_are_what_they_say() -> None:
    w = torch.tensor([-0.9, -0.2, 0.0, 0.3, 1.2], dtype=FLOAT)
    expected: dict[str, Callable[[float], float]] = {
        "none": lambda x: 0.0,
        "l1": lambda x: 2 * abs(x),
        "l2": lambda x: x * x,
        "l0.5": lambda x: 2 * math.sqrt(abs(x)),
        "power": lambda x: 2 * math.sqrt(abs(x)),
        "log": lambda x: 2 * math.log(1 + 10 * abs(x)),
        "elastic": lambda x: abs(x) + 0.5 * x * x,
        "huber": lambda x: 2 * x * x if abs(x) < 0.5 else 2 * abs(x) - 0.5,
        "cauchy": lambda x: 2 * math.log(1 + 4 * x * x),
        "bounded": lambda x: 2 * (1 - math.exp(-x * x / 0.18)),
        "mcp": lambda x: 2 * (abs(x) - x * x / 1.6) if abs(x) < 0.8 else 0.8,
        "logcosh": lambda x: 2 * math.log(math.cosh(x / 0.3)),
        "wells": lambda x: 2 * (x * x / 0.49 - 1) ** 2,
        "periodic": lambda x: 2 * math.sin(2 * math.pi * x) ** 2,
        "pinned": lambda x: 2 * abs(x - 0.6),
        "pinball": lambda x: 0.4 * x if x > 0 else -1.6 * x,
    }
    assert set(PENALTIES) - set(expected) == {"logarithm"}
    for name, function in expected.items():
        values = penalty(name, strength=2.0).psi(w)
        torch.testing.assert_close(values, torch.tensor([function(x) for x in w.tolist()], dtype=FLOAT))
    bound: Tensor = penalty("logarithm", domain=HALF, strength=0.5).psi(w[3:])
    torch.testing.assert_close(bound, 0.5 * w[3:].log())
