"""Every model obeys the laws of a problem; its predictions are those of its equation; bad data are refused."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from problem_laws import ModelLaws, ProblemLaws, normal
from torch import Tensor

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.problems import MODELS, Problem, WeightDecay

P = sb.problems


class LinearData:
    """Data of the linear models."""

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(16, 4, seed=seed), normal(16, seed=seed + 10)


class TestHadamard(LinearData, ModelLaws):
    model = P.HadamardRegression
    options: ClassVar[dict[str, Any]] = {"initial": {"p": 1.0, "q": [0.1, 0.2, 0.3, 0.4]}}


class TestDeepDiagonal(LinearData, ModelLaws):
    model = P.DeepDiagonalRegression
    options: ClassVar[dict[str, Any]] = {"depth": 3, "features": ["a", "b", "c", "d"]}

    def test_equation(self) -> None:
        problem = self.build(*self.arrays(0))
        theta = normal(12)
        torch.testing.assert_close(problem.predictor(theta), theta.reshape(3, 4).prod(0))
        assert problem.predictor_labels == ["w[a]", "w[b]", "w[c]", "w[d]"]


class TestDeepDiagonalOfDepthTwo(LinearData, ModelLaws):
    model = P.DeepDiagonalRegression
    options: ClassVar[dict[str, Any]] = {"depth": 2}


class TestCumulativeSum(LinearData, ModelLaws):
    model = P.CumulativeSumRegression

    def test_equation(self) -> None:
        problem = self.build(*self.arrays(0))
        weights = problem.predictor(torch.tensor([1.0, 2, 3, 4, 1, 0, -1, 2], dtype=torch.float64))
        assert weights.tolist() == [1, 1, -2, 6]


class TestNormalized(LinearData, ModelLaws):
    model = P.NormalizedRegression

    def test_equation(self) -> None:
        weights = self.build(*self.arrays(0)).predictor(torch.tensor([3.0, 0, 4, 0], dtype=torch.float64))
        torch.testing.assert_close(weights, torch.tensor([0.6, 0, 0.8, 0], dtype=torch.float64))


class TestShallowReLU(ModelLaws):
    model = P.ShallowReLU
    options: ClassVar[dict[str, Any]] = {"units": 5}

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(16, 3, seed=seed), normal(16, seed=seed + 10)

    def test_equation(self) -> None:
        X, y = self.arrays(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 5, bias=False), torch.nn.ReLU(), torch.nn.Linear(5, 1, bias=False))
        theta = torch.cat([p.detach().double().flatten() for p in net.parameters()])
        losses = 0.5 * (net.double()(X).squeeze(-1).detach() - y).square()
        torch.testing.assert_close(self.build(X, y).per_sample_loss(theta), losses)


class CompletionData:
    """A 5×6 matrix of which 18 entries are observed."""

    model: Any = P.MatrixFactorization
    options: ClassVar[dict[str, Any]] = {"rank": 2}

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        mask = torch.zeros(30, dtype=torch.bool)
        mask[torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:18]] = True
        return normal(5, 6, seed=seed).where(mask.reshape(5, 6), torch.nan), mask.reshape(5, 6)


class TestMatrixCompletion(CompletionData, ModelLaws):
    def test_equation(self) -> None:
        M, mask = self.arrays(0)
        problem = self.build(M, mask)
        U, V = normal(5, 2, seed=1), normal(6, 2, seed=2)
        theta = problem.layout.flatten({"U": U, "V": V})
        torch.testing.assert_close(problem.predictor(theta), (U @ V.mT).flatten())
        torch.testing.assert_close(problem.loss(theta), 0.5 * (U @ V.mT - M)[mask].square().mean())


class TestMatrixFactorization(ModelLaws):
    model = P.MatrixFactorization

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return (normal(5, 4, seed=seed),)


class TestAttention(ModelLaws):
    model = P.SingleHeadAttention

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(16, 3, 4, seed=seed), normal(16, 3, 2, seed=seed + 10)

    def test_equation(self) -> None:
        X, y = self.arrays(0)
        Q, K, V = (normal(4, 2, seed=seed) for seed in (1, 2, 3))
        problem = self.build(X, y)
        theta = problem.layout.flatten({"W_Q": Q, "W_K": K, "W_V": V})
        output = torch.nn.functional.scaled_dot_product_attention(X @ Q, X @ K, X @ V)
        torch.testing.assert_close(problem.per_sample_loss(theta), 0.5 * (output - y).square().mean((-2, -1)))

    def test_columns_rescale(self) -> None:
        problem = self.build(*self.arrays(0))
        sb.symmetry.check_invariance(problem, sb.symmetry.Rescaling.columns("W_Q", "W_K"))


class TestSoftmax(ModelLaws):
    model = P.SoftmaxRegression
    options: ClassVar[dict[str, Any]] = {"classes": 3}

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(16, 4, seed=seed), torch.randint(3, (16,), generator=torch.Generator().manual_seed(seed))

    def test_equation(self) -> None:
        X, y = self.arrays(0)
        problem = self.build(X, y)
        theta = self.points(problem)[0]
        named = problem.layout.unflatten(theta)
        logits = X @ named["W"].mT + named.get("b", torch.zeros(3, dtype=torch.float64))
        losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        torch.testing.assert_close(problem.per_sample_loss(theta), losses)


class TestSoftmaxWithoutBias(TestSoftmax):
    options: ClassVar[dict[str, Any]] = {"classes": 3, "bias": False}


class WeightDecayLaws(ProblemLaws):
    """A problem with weight decay, which leaves of its symmetry the isometries only."""

    def build(self, *arrays: Tensor) -> Problem:
        return WeightDecay(self.model(*arrays, **self.options), 0.3)

    def test_declared_symmetry(self, any_problem: Problem) -> None:
        assert isinstance(any_problem, WeightDecay)
        assert any_problem.symmetry() is None
        group = any_problem.problem.symmetry()
        assert group is not None
        with pytest.raises(sb.errors.SymmetryError, match="not invariant"):
            sb.symmetry.check_invariance(any_problem, group)

    def test_adds_the_squared_norm(self, single: Problem) -> None:
        assert isinstance(single, WeightDecay)
        theta = self.points(single)
        added = single.per_sample_loss(theta) - single.problem.per_sample_loss(theta)
        torch.testing.assert_close(added, 0.15 * theta.square().sum(-1, keepdim=True).expand_as(added))
        assert single.spec() == {**single.problem.spec(), "weight_decay": 0.3}


class TestHadamardWithDecay(LinearData, WeightDecayLaws):
    model = P.HadamardRegression


class TestCompletionWithDecay(CompletionData, WeightDecayLaws):
    def test_rotations_stay(self, single: Problem) -> None:
        theta, angle = self.points(single), 0.7
        c, s = np.cos(angle), np.sin(angle)
        turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        turned = single.layout.flatten({name: part @ turn for name, part in single.layout.unflatten(theta).items()})
        torch.testing.assert_close(single.per_sample_loss(turned), single.per_sample_loss(theta))


def test_every_named_model_has_laws() -> None:
    tested = {cls.model for name, cls in globals().items() if name.startswith("Test") and issubclass(cls, ModelLaws)}
    assert tested == set(MODELS.values())


X, Y = np.ones((4, 3)), np.ones(4)
NAN = np.full((4, 3), np.nan)
M = np.ones((3, 3))


@pytest.mark.parametrize(
    ("model", "arrays", "options", "words"),
    [
        (P.DeepDiagonalRegression, (X, Y[:3]), {}, "match the sample axes"),
        (P.DeepDiagonalRegression, (NAN, Y), {}, "X: expected finite"),
        (P.DeepDiagonalRegression, (X, Y), {"features": ["a", "a", "b"]}, "3 different names"),
        (P.DeepDiagonalRegression, (X, Y), {"depth": 1}, "whole number >= 2"),
        (P.ShallowReLU, (X[None], Y), {}, "match the sample axes"),
        (P.ShallowReLU, (X, Y), {"units": 0}, "units"),
        (P.ShallowReLU, (X, Y), {"initial": {"WW": 1.0}}, "did you mean 'W'"),
        (P.SingleHeadAttention, (X, Y), {}, "3 axes"),
        (P.SingleHeadAttention, (np.ones((4, 3, 2)), np.ones((4, 2, 5))), {}, "match the tokens"),
        (P.MatrixFactorization, (M, np.zeros((3, 3))), {}, "observe entries"),
        (P.MatrixFactorization, (M, np.ones((2, 3))), {}, "the shape of M"),
        (P.MatrixFactorization, (M, np.full((3, 3), 0.5)), {}, "0 and 1"),
        (P.MatrixFactorization, (M * np.nan,), {}, "value: expected finite"),
        (P.MatrixFactorization, (M,), {"rank": 0}, "rank"),
        (P.MatrixFactorization, (np.ones((2, 2, 2)), [[[1, 1], [1, 1]], [[1, 1], [1, 0]]]), {}, "same number"),
        (P.SoftmaxRegression, (X, Y - 2), {}, "class numbers"),
        (P.SoftmaxRegression, (X, Y * 0.5), {}, "class numbers"),
        (P.SoftmaxRegression, (X, Y * 3), {"classes": 2}, "raise classes"),
        (P.SoftmaxRegression, (X, Y[:2]), {}, "match the sample axes"),
        (P.SoftmaxRegression, (X, Y), {"bias": "no"}, "true or false"),
    ],
)
def test_refusals(model: type[Problem], arrays: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, InputError), match=words):
        model(*arrays, **options)


@pytest.mark.parametrize("gamma", [0, -1.0, float("nan"), "much"])
def test_weight_decay_must_be_positive(gamma: Any, problem: Problem) -> None:
    with pytest.raises(InputError, match="weight_decay"):
        WeightDecay(problem, gamma)


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_constructors_name_all_their_arguments(model: type[Problem]) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(model).parameters.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
