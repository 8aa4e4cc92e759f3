"""The bias of each symmetry of an explanation, against closed forms and the stationary law."""

from __future__ import annotations

import math

import pytest
import torch
from explained import F64, column, draw
from torch import Tensor

from sdebias.design.explain import explain
from sdebias.design.report import Explanation
from sdebias.prediction import log_stationary_density
from sdebias.problems import (
    DeepDiagonalRegression,
    HadamardRegression,
    MatrixFactorization,
    Problem,
    ShallowReLU,
)
from sdebias.symmetry import GeneralLinear, Rescaling


def test_rescalings_have_the_volume_penalty_and_drift_of_the_declared_group() -> None:
    problem = HadamardRegression(draw(20, 4), draw(20, seed=1))
    declared, theta = Rescaling("p", "q").bind(problem), draw(8, seed=2)
    found = explain(problem, theta=theta)
    row = found.table.iloc[0]
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-12)
    penalty = float(0.5 * (2 * problem.predictor(theta).abs()).log().sum())
    assert row["isotropic_value"] == pytest.approx(penalty, rel=1e-12)
    assert penalty == pytest.approx(float(declared.log_orbit_volume(declared.balance(theta))), rel=1e-12)
    # det J_F J_Fᵀ = Π (p² + q²): for this model the volume of the orbit
    assert found.predictor_volume == pytest.approx(row["log_orbit_volume"], rel=1e-12)
    matrices = declared.charge_matrices(theta)
    noise = problem.gradient_noise_trace(theta, matrices)
    torch.testing.assert_close(column(found, "minibatch"), noise)
    torch.testing.assert_close(column(found, "value"), declared.charge(theta))
    assert row["noise_drift"] == pytest.approx(float(noise.norm()), rel=1e-12)
    eye = torch.eye(8, dtype=F64)
    across = declared.horizontal_projection(eye, theta.expand(8, 8)).diagonal()
    torch.testing.assert_close(column(found, "horizontal"), matrices @ across)
    assert found.charges["isotropic"].abs().max() < 1e-12


@pytest.mark.parametrize("depth", [3, 4])
def test_deep_diagonal_networks_have_the_closed_form(depth: int) -> None:
    problem = DeepDiagonalRegression(draw(20, 2), draw(20, seed=1), depth=depth)
    declared, theta = problem.symmetry().bind(problem), draw(2 * depth, seed=2)
    row = explain(problem, theta=theta).table.iloc[0]
    w = problem.predictor(theta).abs()
    closed = float(((depth - 1) / depth * w.log() + 0.5 * math.log(depth)).sum())
    assert row["isotropic_value"] == pytest.approx(closed, rel=1e-12)
    assert closed == pytest.approx(float(declared.log_orbit_volume(declared.balance(theta))), rel=1e-9)
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-9)
    assert f"{depth - 1}/{depth} T Σ_j log |z_j|" in row["isotropic_penalty"]


def test_relu_units_have_the_path_norm() -> None:
    problem = ShallowReLU(draw(40, 3), draw(40, seed=1), units=4)
    theta = draw(16, seed=2)
    named = problem.layout.unflatten(theta)
    path = named["v"].abs() * named["W"].norm(dim=1)
    row = explain(problem, theta=theta).table.iloc[0]
    assert row["isotropic_value"] == pytest.approx(float(0.5 * (2 * path).log().sum()), rel=1e-12)


def test_factorisations_have_the_singular_values_of_the_product() -> None:
    problem = MatrixFactorization(draw(5, 4), rank=3)
    declared, theta = GeneralLinear("U", "V").bind(problem), draw(27, seed=2)
    found = explain(problem, theta=theta)
    row = found.table.iloc[0]
    sigma = torch.linalg.svdvals(problem.predictor(theta).unflatten(-1, (5, 4)))[:3]
    assert row["isotropic_value"] == pytest.approx(float(0.5 * (2 * sigma).log().sum()), rel=1e-9)
    assert ", ".join(f"{s:.3g}" for s in sigma.tolist()) in row["isotropic_penalty"]
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-9)
    # The whole volume on the balanced slice is that of the table, ½ Σ_ij log(σ_i + σ_j).
    whole = 0.5 * (sigma[:, None] + sigma).log().sum()
    torch.testing.assert_close(found.symmetry.log_orbit_volume(declared.balance(theta)), whole + _units(found, theta))


@pytest.mark.parametrize(
    "problem",
    [
        HadamardRegression(draw(20, 3), draw(20, seed=1)),
        DeepDiagonalRegression(draw(20, 2), draw(20, seed=1), depth=3),
        ShallowReLU(draw(40, 3), draw(40, seed=1), units=4),
        MatrixFactorization(draw(5, 4), rank=2),
    ],
    ids=lambda problem: problem.model,
)
def test_penalties_are_those_of_the_stationary_law(problem: Problem) -> None:
    declared = problem.symmetry()
    assert declared is not None
    points = declared.bind(problem).balance(draw(2, problem.layout.size, seed=5))
    values = [explain(problem, theta=theta).table["isotropic_value"][0] for theta in points]
    temperature = 0.3
    density = log_stationary_density(
        problem, declared.bind(problem), points, noise="soft_gauge", temperature=temperature, measure="slice"
    )
    penalty = -(density + problem.loss(points) / temperature)
    assert values[1] - values[0] == pytest.approx(float(penalty[1] - penalty[0]), rel=1e-9)


def _units(found: Explanation, theta: Tensor) -> Tensor:
    """Return the constant by which the sparse basis of the discovered fields measures volumes differently."""
    return found.symmetry.log_orbit_volume(theta) - found.table["log_orbit_volume"][0]
