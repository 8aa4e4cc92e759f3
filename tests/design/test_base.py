"""Designs in general, on a product of two factors whose law is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import sdebias as sb
from sdebias.design import Design
from sdebias.errors import InputError
from sdebias.prediction import PanelQuadrature

FLOAT = torch.float64
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)


class Product(Design):
    """w = p∘q on w > 0, whose law under horizontal noise is e^{−L/T} Π w_j^{−1/2} dw."""

    factors = ("p", "q")

    def __init__(self, noise: Any = "horizontal") -> None:
        self.noise = noise

    @property
    def symmetry(self) -> sb.symmetry.Symmetry:
        return sb.symmetry.Rescaling("p", "q")

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"p": shape, "q": shape}

    def weight(self, named: Mapping[str, Tensor]) -> Tensor:
        return named["p"] * named["q"]

    def factorize(self, weight: Tensor) -> dict[str, Tensor]:
        return {"p": weight.sqrt(), "q": weight.sqrt()}

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {"p": 1.0, "q": 0.5}

    def penalty(self, weight: Tensor) -> Tensor:
        return (0.5 if self.noise == "horizontal" else 1.0) * weight.log().sum(-1)

    def spec(self) -> dict[str, Any]:
        return {"design": "product"}


def test_the_problem_is_a_hadamard_regression() -> None:
    problem, reference = Product().problem(X, Y, features=["a", "b", "c"]), sb.problems.HadamardRegression(X, Y)
    theta = torch.from_numpy(RNG.normal(size=(5, 6)))
    weights = torch.from_numpy(RNG.normal(size=(5, 12)))
    indices = torch.tensor([[0, 3], [1, 1], [2, 5], [4, 6], [7, 8]])
    for value, expected in (
        (problem.predictor(theta), reference.predictor(theta)),
        (problem.loss(theta), reference.loss(theta)),
        (problem.gradient(theta), reference.gradient(theta)),
        (problem.weighted_gradient(theta, weights), reference.weighted_gradient(theta, weights)),
        (problem.per_sample_gradient(theta), reference.per_sample_gradient(theta)),
        (problem.batch_gradient(theta, indices[:, :1]), reference.batch_gradient(theta, indices[:, :1])),
    ):
        torch.testing.assert_close(value, expected)
    assert problem.predictor_labels == ["w[a]", "w[b]", "w[c]"]
    assert problem.layout.labels[0] == "p[a]"
    assert problem.symmetry() == sb.symmetry.Rescaling("p", "q")
    assert problem.spec()["design"] == {"design": "product"}
    start = problem.draw_initial(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(start, torch.tensor([[1.0] * 3 + [0.5] * 3] * 2, dtype=FLOAT))


def test_replicates_and_fresh_samples_work_as_for_any_model() -> None:
    problem = Product().problem(np.stack([X, 2 * X]), np.stack([Y, Y]))
    ensemble = sb.simulate(
        problem, sb.SGD(learning_rate=0.01, batch_size=2), symmetry=problem.symmetry(), trajectories=4, steps=10
    )
    assert dict(ensemble["predictor_value"].sizes) == {"replicate": 2, "trajectory": 4, "step": 11, "predictor": 3}
    student = type(problem).teacher_student(3, teacher={"p": 1.0, "q": 1.0}, pool=64)
    assert student.loss(torch.ones(6, dtype=FLOAT)) < 1e-28


@pytest.mark.parametrize("noise", ["horizontal", "isotropic-gauged"])
def test_effective_loss_and_law_carry_the_penalty(noise: Any) -> None:
    """Up to a constant; the geometry of the problem is computed apart from ψ."""
    design, temperature = Product(noise), 0.3
    problem = design.problem(X, Y)
    points = torch.from_numpy(RNG.uniform(0.5, 2, size=(7, 3)))
    found = design.effective_loss(problem, points, temperature=temperature)
    loss = problem.loss(design.section(points))
    expected = loss + temperature * design.penalty(points)
    difference = torch.from_numpy(found["effective_loss"].values) - expected
    torch.testing.assert_close(difference, difference[:1].expand(7))

    scalar = design.problem(np.ones((1, 1)), np.ones(1))
    nodes = PanelQuadrature({"w": np.linspace(0.5, 2, 9).tolist()})
    law = design.stationary_law(scalar, nodes, temperature=temperature)
    w = law["coordinate_value"].values[:, 0]
    density = np.exp(-0.5 * (w - 1) ** 2 / temperature) * w ** (-0.5 if noise == "horizontal" else -1.0)
    ratio = law["probability_density"].values / density
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)


def test_dynamics_have_the_noise_under_which_the_penalty_holds() -> None:
    dynamics = Product().dynamics(temperature=0.2, learning_rate=0.01)
    assert dynamics.noise == sb.noise.horizontal(sb.noise.isotropic(0.2))
    assert Product("isotropic-gauged").dynamics(temperature=0.2, learning_rate=0.01).noise == sb.noise.isotropic(0.2)
    with pytest.raises(InputError, match="temperature: expected a positive finite number, got -1"):
        Product().dynamics(temperature=-1, learning_rate=0.01)


def test_a_layer_trains_the_factors() -> None:
    layer = torch.nn.Linear(4, 2, dtype=FLOAT)
    with torch.no_grad():
        layer.weight.uniform_(0.1, 1.0)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Product().parametrization())
    torch.testing.assert_close(layer.weight, before)
    names = [name for name, _ in layer.named_parameters()]
    assert names == ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    layer(torch.ones(3, 4, dtype=FLOAT)).sum().backward()
    p, q = (parameter for name, parameter in layer.named_parameters() if "original" in name)
    torch.testing.assert_close(p.grad, 3 * q.detach())
    with pytest.raises(InputError, match="factors: expected 2: p, q, got 1"):
        Product().parametrization()(before)
