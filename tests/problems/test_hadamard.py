"""Hadamard regression: closed forms against automatic differentiation, replicates against single problems."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import regression
from torch import Tensor

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.problems import Problem


def points(problem: Problem, count: int = 5) -> Tensor:
    lead = (count,) if problem.replicates is None else (problem.replicates, count)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*lead, problem.layout.size, dtype=torch.float64, generator=generator)


@pytest.fixture(params=["problem", "replicated"])
def any_problem(request: pytest.FixtureRequest) -> sb.problems.HadamardRegression:
    return request.getfixturevalue(request.param)


class TestClosedForms:
    """What the subclass computes in closed form equals what the base class derives from the per-sample loss."""

    def test_gradients(self, any_problem: sb.problems.HadamardRegression) -> None:
        theta = points(any_problem)
        weights = torch.randn(2, *theta.shape[:-1], 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(
            any_problem.weighted_gradient(theta, weights), Problem.weighted_gradient(any_problem, theta, weights)
        )
        torch.testing.assert_close(any_problem.gradient(theta), Problem.gradient(any_problem, theta))
        torch.testing.assert_close(any_problem.loss(theta), Problem.loss(any_problem, theta))
        torch.testing.assert_close(
            any_problem.per_sample_gradient(theta), Problem.per_sample_gradient(any_problem, theta)
        )
        torch.testing.assert_close(any_problem.gradient_variance(theta), Problem.gradient_variance(any_problem, theta))

    @pytest.mark.parametrize("size", [1, 2, 9])
    def test_batches(self, any_problem: sb.problems.HadamardRegression, size: int) -> None:
        theta = points(any_problem)
        indices = torch.randint(12, (*theta.shape[:-1], size), generator=torch.Generator().manual_seed(3))
        indices[..., -1] = indices[..., 0]  # one sample twice
        gradients = any_problem.per_sample_gradient(theta)
        picked = torch.take_along_dim(gradients, indices.unsqueeze(-1), dim=-2).mean(-2)
        torch.testing.assert_close(any_problem.batch_gradient(theta, indices), picked)
        torch.testing.assert_close(Problem.batch_gradient(any_problem, theta, indices), picked)

    def test_one_point(self, problem: sb.problems.HadamardRegression) -> None:
        theta = points(problem)
        for function in (
            problem.loss,
            problem.gradient,
            problem.per_sample_loss,
            problem.predictor,
            problem.gradient_variance,
        ):
            torch.testing.assert_close(function(theta[0]), function(theta)[0])

    def test_fewer_samples_than_features(self) -> None:
        X, y = regression(features=5, samples=3)
        problem = sb.problems.HadamardRegression(X, y)
        theta = points(problem)
        torch.testing.assert_close(problem.loss(theta), Problem.loss(problem, theta))
        w = torch.linalg.lstsq(torch.as_tensor(X), torch.as_tensor(y)[:, None]).solution[:, 0]
        assert float(problem.loss(torch.cat([w, torch.ones(5)]))) < 1e-28


def test_weighted_gradient_is_the_weighted_sum(any_problem: sb.problems.HadamardRegression) -> None:
    theta = points(any_problem)
    weights = torch.randn(*theta.shape[:-1], 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = (weights.unsqueeze(-1) * any_problem.per_sample_gradient(theta)).sum(-2)
    torch.testing.assert_close(any_problem.weighted_gradient(theta, weights), expected)


@pytest.mark.parametrize("chunk", [2**24, 50])
def test_gradient_noise(
    any_problem: sb.problems.HadamardRegression, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdebias.problems.base.CHUNK_ELEMENTS", chunk)
    theta = points(any_problem)
    gradients = any_problem.per_sample_gradient(theta).numpy()
    centred = gradients - gradients.mean(-2, keepdims=True)
    covariance = np.einsum("...ni,...nj->...ij", centred, centred) / 12
    np.testing.assert_allclose(any_problem.gradient_noise_covariance(theta), covariance, atol=1e-12)
    np.testing.assert_allclose(
        any_problem.gradient_variance(theta), np.diagonal(covariance, axis1=-2, axis2=-1), atol=1e-12
    )
    matrices = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    matrices = matrices + matrices.mT
    expected = np.einsum("...ij,aji->...a", covariance, matrices)
    np.testing.assert_allclose(any_problem.gradient_noise_trace(theta, matrices), expected, atol=1e-10)
    diagonals = matrices.diagonal(dim1=-2, dim2=-1)
    expected = np.einsum("...ii,ai->...a", covariance, diagonals)
    np.testing.assert_allclose(any_problem.gradient_noise_trace(theta, diagonals), expected, atol=1e-10)


def test_hessian_vector_product(any_problem: sb.problems.HadamardRegression) -> None:
    theta = points(any_problem)
    vector = torch.randn(theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    step = 1e-5
    difference = any_problem.gradient(theta + step * vector) - any_problem.gradient(theta - step * vector)
    product = any_problem.hessian_vector_product(theta, vector)
    torch.testing.assert_close(product, difference / (2 * step), rtol=1e-6, atol=1e-6)


def test_replicates_equal_single_problems(replicated: sb.problems.HadamardRegression) -> None:
    theta = points(replicated)
    for r in range(3):
        X, y = (replicated.data[name][1][r] for name in ("X", "y"))
        single = sb.problems.HadamardRegression(X, y)
        for name in ("loss", "gradient", "per_sample_loss", "predictor", "gradient_variance", "per_sample_gradient"):
            torch.testing.assert_close(getattr(replicated, name)(theta)[r], getattr(single, name)(theta[r]))


def test_replicate_shares_the_data(problem: sb.problems.HadamardRegression) -> None:
    twice = problem.replicate(2)
    theta = points(problem).expand(2, -1, -1)
    torch.testing.assert_close(twice.gradient(theta)[1], problem.gradient(theta[0]))
    indices = torch.arange(5)[:, None].expand(2, -1, -1)
    torch.testing.assert_close(twice.batch_gradient(theta, indices)[1], problem.batch_gradient(theta[0], indices[0]))


class TestInitialLaw:
    def test_default_is_the_zero_predictor(self) -> None:
        problem = sb.problems.HadamardRegression(*regression())
        theta = problem.draw_initial(2, torch.Generator())
        assert torch.equal(theta, torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64).expand(2, -1))

    def test_mean_and_deviation_by_entry_and_replicate(self, replicated: sb.problems.HadamardRegression) -> None:
        X, y = (replicated.data[name][1] for name in ("X", "y"))
        mean = torch.arange(9.0).reshape(3, 3)
        problem = sb.problems.HadamardRegression(X, y, initial={"p": mean, "q": [1, 2, 3]}, initial_std={"q": 0.1})
        theta = problem.draw_initial(4000, torch.Generator().manual_seed(0))
        assert theta.shape == (3, 4000, 6)
        torch.testing.assert_close(theta[..., :3], mean.double().unsqueeze(1).expand(-1, 4000, -1))
        torch.testing.assert_close(theta[..., 3:].mean((0, 1)), torch.tensor([1.0, 2, 3]).double(), atol=5e-3, rtol=0)
        torch.testing.assert_close(theta[..., 3:].std(1), torch.full((3, 3), 0.1).double(), atol=5e-3, rtol=0)

    @pytest.mark.parametrize(
        "value", [0.2, np.float64(0.2), np.full(3, 0.2), torch.full((3,), 0.2, dtype=torch.float64)]
    )
    def test_spec_is_plain_data(self, value: Any) -> None:
        spec = sb.problems.HadamardRegression(*regression(), initial={"q": value}).spec()
        assert json.loads(json.dumps(spec))["initial"]["q"] in (0.2, [0.2] * 3)

    @pytest.mark.parametrize(
        ("initial", "words"),
        [({"r": 1.0}, "declared name, got 'r'"), ({"p": [1, 2]}, "broadcasts"), ({"p": float("nan")}, "finite")],
    )
    def test_refusals(self, initial: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            sb.problems.HadamardRegression(*regression(), initial=initial)


class TestRefusals:
    def test_theta(self, replicated: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="replicate axis third from the end"):
            replicated.gradient(torch.zeros(5, 6, dtype=torch.float64))

    def test_data(self) -> None:
        X, y = regression()
        for bad, words in (
            ((X, y[:-1]), "match the sample axes"),
            ((X[0], y[0]), "X: expected 2 axes"),
            ((X[:0], y[:0]), "at least one sample"),
            ((torch.as_tensor(X), torch.as_tensor(y).float()), "one floating dtype"),
            ((np.where(X > 1, np.inf, X), y), "X: expected finite entries"),
            (([["a"]], y), "X: expected a numeric array"),
        ):
            with pytest.raises(DataError, match=words):
                sb.problems.HadamardRegression(*bad)
        with pytest.raises(DataError, match="3 different names"):
            sb.problems.HadamardRegression(X, y, features=["a", "a", "b"])

    def test_replicating_twice(self, replicated: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="replicate once"):
            replicated.replicate(2)


def test_integers_become_floats() -> None:
    problem = sb.problems.HadamardRegression([[1, 2], [3, 4]], [1, 0])
    assert problem.dtype == torch.float64
