"""Laws of every problem, as a class: one subclass for each model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sdebias.problems import MODELS, Problem
from sdebias.symmetry import check_invariance

POINTS = 3
REPLICATES = 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class ProblemLaws(ABC):
    """What holds for every model. A subclass gives arrays and options of a small problem with at least 9 samples."""

    model: Any
    options: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        """Return the arrays of one data set, those that the constructor takes by position."""

    def build(self, *arrays: Tensor) -> Problem:
        return self.model(*arrays, **self.options)

    @pytest.fixture
    def single(self) -> Problem:
        return self.build(*self.arrays(0))

    @pytest.fixture
    def several(self) -> Problem:
        return self.build(*map(torch.stack, zip(*map(self.arrays, range(REPLICATES)), strict=True)))

    @pytest.fixture(params=["single", "several"])
    def any_problem(self, request: pytest.FixtureRequest) -> Problem:
        return request.getfixturevalue(request.param)

    def points(self, problem: Problem) -> Tensor:
        lead = (POINTS,) if problem.replicates is None else (problem.replicates, POINTS)
        return normal(*lead, problem.layout.size, seed=1)

    def test_gradient_is_that_of_the_loss(self, any_problem: Problem) -> None:
        theta, step = self.points(any_problem), 1e-5
        direction = normal(*theta.shape, seed=2)
        change = any_problem.loss(theta + step * direction) - any_problem.loss(theta - step * direction)
        slope = (any_problem.gradient(theta) * direction).sum(-1)
        torch.testing.assert_close(slope, change / (2 * step), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(any_problem.loss(theta), any_problem.per_sample_loss(theta).mean(-1))

    def test_weighted_gradient_is_the_weighted_sum(self, any_problem: Problem) -> None:
        theta = self.points(any_problem)
        weights = normal(2, *theta.shape[:-1], any_problem.n_samples, seed=3)
        gradients = any_problem.per_sample_gradient(theta)
        torch.testing.assert_close(gradients, Problem.per_sample_gradient(any_problem, theta))
        expected = (weights.unsqueeze(-1) * gradients).sum(-2)
        torch.testing.assert_close(any_problem.weighted_gradient(theta, weights), expected)
        torch.testing.assert_close(Problem.weighted_gradient(any_problem, theta, weights), expected)

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_batch_gradient_counts_repeated_samples(self, any_problem: Problem, size: int) -> None:
        theta = self.points(any_problem)
        generator = torch.Generator().manual_seed(4)
        indices = torch.randint(any_problem.n_samples, (*theta.shape[:-1], size), generator=generator)
        indices[..., -1] = indices[..., 0]
        picked = torch.take_along_dim(any_problem.per_sample_gradient(theta), indices.unsqueeze(-1), dim=-2).mean(-2)
        torch.testing.assert_close(any_problem.batch_gradient(theta, indices), picked)

    @pytest.mark.parametrize("chunk", [2**24, 50])
    def test_noise(self, any_problem: Problem, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sdebias.problems.base.CHUNK_ELEMENTS", chunk)
        theta, size = self.points(any_problem), any_problem.layout.size
        gradients = any_problem.per_sample_gradient(theta)
        centred = gradients - gradients.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / any_problem.n_samples
        torch.testing.assert_close(any_problem.gradient_noise_covariance(theta), covariance)
        torch.testing.assert_close(any_problem.gradient_variance(theta), covariance.diagonal(dim1=-2, dim2=-1))
        full = normal(2, size, size, seed=5)
        full = full + full.mT
        for matrices in (full, full.diagonal(dim1=-2, dim2=-1)):
            dense = matrices if matrices.ndim == 3 else torch.diag_embed(matrices)
            expected = torch.einsum("...ij,aji->...a", covariance, dense)
            torch.testing.assert_close(any_problem.gradient_noise_trace(theta, matrices), expected)

    def test_replicates_equal_single_problems(self, several: Problem) -> None:
        theta = self.points(several)
        for r in range(REPLICATES):
            alone = self.build(*self.arrays(r))
            for name in ("loss", "gradient", "per_sample_loss", "predictor", "gradient_variance"):
                torch.testing.assert_close(getattr(several, name)(theta)[r], getattr(alone, name)(theta[r]))

    def test_points_are_independent(self, single: Problem) -> None:
        theta = self.points(single)
        grid = theta.expand(2, -1, -1) * torch.tensor([1.0, 0.5], dtype=torch.float64)[:, None, None]
        for name in ("loss", "gradient", "per_sample_loss", "predictor", "gradient_variance", "per_sample_gradient"):
            function = getattr(single, name)
            torch.testing.assert_close(function(grid)[0], function(theta))
            torch.testing.assert_close(function(grid)[1, 2], function(0.5 * theta[2]))

    def test_single_precision(self, any_problem: Problem) -> None:
        theta, single = self.points(any_problem), any_problem.to(dtype=torch.float32)
        for name in ("loss", "gradient", "predictor"):
            value = getattr(single, name)(theta.float())
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), getattr(any_problem, name)(theta), rtol=1e-3, atol=1e-4)

    def test_hessian_vector_product(self, single: Problem) -> None:
        theta = self.points(single)
        vector = normal(*theta.shape, seed=6)
        products = single.hessian_vector_product(theta, vector)
        for point, direction, product in zip(theta, vector, products, strict=True):
            hessian = torch.autograd.functional.hessian(lambda x: Problem.loss(single, x), point)
            torch.testing.assert_close(product, hessian @ direction)

    def test_declared_symmetry(self, any_problem: Problem) -> None:
        declared = any_problem.symmetry()
        assert declared is not None
        check_invariance(any_problem, declared)
        group = declared.bind(any_problem)
        theta = self.points(any_problem)
        moved = group.act(group.exp(0.3 * normal(group.dim, seed=7)), theta)
        assert float((moved - theta).abs().max()) > 0.01
        torch.testing.assert_close(any_problem.predictor(moved), any_problem.predictor(theta))

    def test_predictor_labels(self, any_problem: Problem) -> None:
        width = any_problem.predictor(self.points(any_problem)).shape[-1]
        assert len(set(any_problem.predictor_labels)) == width

    @pytest.mark.parametrize("chunk", [2**24, 50])
    def test_other_samples_for_each_point(
        self, any_problem: Problem, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sdebias.problems.base.CHUNK_ELEMENTS", chunk)
        theta = self.points(any_problem)
        generator = torch.Generator().manual_seed(8)
        indices = torch.randint(any_problem.n_samples, (*theta.shape[:-1], 4), generator=generator)
        view = any_problem.at(any_problem._take(indices))
        gradients = torch.take_along_dim(any_problem.per_sample_gradient(theta), indices.unsqueeze(-1), dim=-2)
        losses = torch.take_along_dim(any_problem.per_sample_loss(theta), indices, dim=-1)
        torch.testing.assert_close(view.per_sample_loss(theta), losses)
        torch.testing.assert_close(view.loss(theta), losses.mean(-1))
        torch.testing.assert_close(view.gradient(theta), gradients.mean(-2))
        torch.testing.assert_close(view.per_sample_gradient(theta), gradients)
        torch.testing.assert_close(view.gradient_variance(theta), gradients.var(-2, correction=0))
        again = torch.zeros_like(indices[..., :1])
        torch.testing.assert_close(view.batch_gradient(theta, again), gradients[..., 0, :])

    def test_shared_data(self, single: Problem) -> None:
        theta = self.points(single).expand(REPLICATES, -1, -1)
        shared = single.replicate(REPLICATES)
        torch.testing.assert_close(shared.gradient(theta)[1], single.gradient(theta[1]))
        indices = torch.zeros(REPLICATES, POINTS, 1, dtype=torch.long)
        torch.testing.assert_close(
            shared.batch_gradient(theta, indices)[1], single.batch_gradient(theta[1], indices[1])
        )


class ModelLaws(ProblemLaws):
    """What also holds for the models that a configuration can name."""

    def test_spec_builds_it_again(self, single: Problem) -> None:
        spec = single.spec()
        model: Any = MODELS[spec.pop("model")]
        again = model(*self.arrays(0), **spec)
        assert again.spec() == single.spec()
        assert again.layout.labels == single.layout.labels
        theta = self.points(single)
        torch.testing.assert_close(again.loss(theta), single.loss(theta))

    def test_default_start_is_not_stationary(self, single: Problem) -> None:
        theta = self.build(*self.arrays(0)).draw_initial(2, torch.Generator().manual_seed(0))
        assert float(single.gradient(theta).abs().max()) > 1e-6
