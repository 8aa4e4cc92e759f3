"""Analysis operators: inverse, linear, orthonormal where they say so, and equal to independent formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from sdebias.design.graph import GraphDifferences
from sdebias.design.operators import (
    OPERATORS,
    Cosine,
    Differences,
    Fourier,
    FunctionOperator,
    Haar,
    Identity,
    Kronecker,
    MatrixOperator,
    Operator,
    as_operator,
)
from sdebias.errors import InputError

TREE = [(0, 1), (1, 2), (1, 3), (4, 5)]  # two components and a lone node 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


EVERY: dict[str, Callable[[], Operator]] = {
    "identity": lambda: Identity(5),
    "differences": lambda: Differences(7),
    "second differences": lambda: Differences(7, order=2),
    "fourier even": lambda: Fourier(8),
    "fourier odd": lambda: Fourier(7),
    "fourier 1": lambda: Fourier(1),
    "fourier 2": lambda: Fourier(2),
    "cosine even": lambda: Cosine(8),
    "cosine odd": lambda: Cosine(5),
    "haar": lambda: Haar(16),
    "haar one level": lambda: Haar(12, levels=1),
    "matrix": lambda: MatrixOperator(normal(6, 6)),
    "functions": lambda: FunctionOperator(lambda w: 2 * w.flip(-1), lambda c: c.flip(-1) / 2, 4),
    "kronecker": lambda: Kronecker(Differences(3), Cosine(4)),
    "tree": lambda: GraphDifferences(TREE, 7),
    "chain": lambda: GraphDifferences([*TREE, (2, 3), (3, 0)], 7, cycles="chain"),
}


@pytest.mark.parametrize("build", EVERY.values(), ids=EVERY)
class TestEveryOperator:
    def test_inverse(self, build: Callable[[], Operator]) -> None:
        operator = build()
        signal = normal(2, 3, operator.size)
        torch.testing.assert_close(operator.synthesis(operator.analysis(signal)), signal)
        torch.testing.assert_close(operator.analysis(operator(signal)), signal)

    def test_linear_and_batched(self, build: Callable[[], Operator]) -> None:
        operator = build()
        matrix = operator.analysis(torch.eye(operator.size, dtype=torch.float64)).mT
        signal = normal(2, 3, operator.size)
        torch.testing.assert_close(operator.analysis(signal), signal @ matrix.mT)
        torch.testing.assert_close(operator.synthesis(signal), signal @ torch.linalg.inv(matrix).mT)

    def test_derivatives(self, build: Callable[[], Operator]) -> None:
        operator = build()
        signal = normal(2, operator.size).requires_grad_(True)
        for function in (operator.analysis, operator.synthesis):
            assert torch.autograd.gradcheck(function, (signal,))

    def test_keeps_single_precision(self, build: Callable[[], Operator]) -> None:
        operator = build()
        signal = normal(operator.size)
        coefficients = operator.analysis(signal.float())
        assert coefficients.dtype == torch.float32
        torch.testing.assert_close(coefficients.double(), operator.analysis(signal), rtol=1e-5, atol=1e-5)
        assert operator.synthesis(coefficients).dtype == torch.float32


@pytest.mark.parametrize("name", ["fourier even", "fourier odd", "cosine even", "cosine odd", "haar", "haar one level"])
def test_orthonormal(name: str) -> None:
    operator = EVERY[name]()
    matrix = operator.analysis(torch.eye(operator.size, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(operator.size, dtype=torch.float64))


class TestFormulas:
    def test_differences(self) -> None:
        signal = torch.tensor([3.0, 3.0, 5.0, 4.0])
        assert Differences(4).analysis(signal).tolist() == [3, 0, 2, -1]
        assert Differences(4, order=2).analysis(signal).tolist() == [3, -3, 2, -3]

    def test_differences_form_no_matrix(self) -> None:
        assert list(Differences(10**6).buffers()) == []
        ones = Differences(10**6)(torch.eye(1, 10**6)[0])
        assert torch.equal(ones, torch.ones(10**6))

    @pytest.mark.parametrize("size", [8, 7])
    def test_fourier(self, size: int) -> None:
        m, operator = torch.arange(size, dtype=torch.float64), Fourier(size)
        for k, places in enumerate(operator.waves):
            waves = [torch.cos(2 * torch.pi * k * m / size), torch.sin(2 * torch.pi * k * m / size)]
            for place, wave in zip(places, waves, strict=False):
                unit = torch.zeros(size, dtype=torch.float64)
                unit[place] = 1
                torch.testing.assert_close(operator(unit), wave / wave.norm())
        assert sorted(place for places in operator.waves for place in places) == list(range(size))

    def test_cosine(self) -> None:
        signal = normal(9)
        expected = scipy.fft.dct(signal.numpy(), norm="ortho")
        np.testing.assert_allclose(Cosine(9).analysis(signal).numpy(), expected, atol=1e-14)

    def test_haar(self) -> None:
        step = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1], dtype=torch.float64)
        expected = torch.zeros(8, dtype=torch.float64)
        expected[1] = 8**0.5  # the coarsest detail is the second coefficient
        torch.testing.assert_close(Haar(8).analysis(step), expected)
        local = torch.tensor([0.0, 0, 0, 0, 1, -1, 0, 0], dtype=torch.float64)
        assert torch.nonzero(Haar(8).analysis(local)).flatten().tolist() == [6]

    def test_kronecker(self) -> None:
        rows, columns = MatrixOperator(normal(3, 3)), MatrixOperator(normal(4, 4, seed=1))
        signal = normal(12, seed=2)
        expected = torch.kron(rows.matrix, columns.matrix) @ signal
        torch.testing.assert_close(Kronecker(rows, columns).analysis(signal), expected)


class TestGraph:
    def test_tree_differences_and_means(self) -> None:
        operator, signal = GraphDifferences(TREE, 7), normal(7)
        coefficients = operator.analysis(signal)
        torch.testing.assert_close(coefficients[:4], torch.stack([signal[j] - signal[i] for i, j in TREE]))
        means = torch.stack([signal[:4].sum() / 2, signal[4:6].sum() / 2**0.5, signal[6]])
        torch.testing.assert_close(coefficients[4:], means)

    def test_pseudo_inverse_on_signals_of_mean_zero(self) -> None:
        operator = GraphDifferences([(0, 1), (1, 2), (1, 3)], 4)
        coefficients = torch.cat([normal(3), torch.zeros(1, dtype=torch.float64)])
        expected = torch.linalg.pinv(operator.matrix[:3]) @ coefficients[:3]
        torch.testing.assert_close(operator(coefficients), expected)

    def test_cycles_are_refused_with_the_reason(self) -> None:
        with pytest.raises(InputError, match='differences around a cycle sum to zero.*cycles="chain"'):
            GraphDifferences([(0, 1), (1, 2), (2, 0)], 3)

    def test_chain_is_at_most_twice_the_total_variation(self) -> None:
        # Not a statistical test: the bound holds for every graph and signal.
        rng = np.random.default_rng(0)
        for _ in range(20):
            nodes = 12
            pairs = np.stack(np.triu_indices(nodes, 1), axis=1)
            edges = [(int(i), int(j)) for i, j in pairs[rng.random(len(pairs)) < 0.3]]
            operator = GraphDifferences(edges, nodes, cycles="chain")
            signal = rng.integers(0, 3, nodes).astype(float)  # with many edges across which it does not jump
            chain = np.array([signal[j] - signal[i] for i, j in operator.edges])
            graph = np.array([signal[j] - signal[i] for i, j in edges])
            assert np.abs(chain).sum() <= 2 * np.abs(graph).sum()
            assert np.count_nonzero(chain) <= 2 * np.count_nonzero(graph)

    @pytest.mark.parametrize(
        ("edges", "words"),
        [
            ([(0, 4)], "nodes 0 to 3"),
            ([(-1, 2)], "nodes 0 to 3"),
            ([(1, 1)], "between two nodes"),
            ([(0, 1), (1, 0)], "each edge once"),
            ([(0, 1, 2)], "pairs of nodes"),
            ([(0.5, 1.0)], "nodes 0 to 3"),
        ],
    )
    def test_refusals(self, edges: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            GraphDifferences(edges, 4)

    def test_no_edges(self) -> None:
        torch.testing.assert_close(GraphDifferences([], 3).matrix, torch.eye(3, dtype=torch.float64))


class TestAsOperator:
    def test_everything_a_user_may_mean(self) -> None:
        for given, kind in (
            (None, Identity),
            ("differences", Differences),
            (np.eye(4) * 2, MatrixOperator),
            ((lambda w: w, lambda c: c), FunctionOperator),
            (Haar(4), Haar),
        ):
            assert type(as_operator(given, 4)) is kind
        assert all(as_operator(name, 8).size == 8 for name in OPERATORS)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("difference", "did you mean 'differences'"),
            (Fourier(5), "size 4, got 5"),
            (np.ones((4, 4)), "can be inverted"),
            (np.full((4, 4), np.nan), "can be inverted"),
            (np.ones((6, 4)), "square matrix"),
            ("a matrix of text", "one of"),
            (object(), "operator: expected a matrix"),
            ((lambda w: w, lambda c: 2 * c), "the identity"),
            ((lambda w: w**3, lambda c: c.sign() * c.abs() ** (1 / 3)), "a linear function"),
            ((lambda w: w[..., 1:], lambda c: c), "keep its length"),
            ((lambda w: w @ torch.ones(3, 3), lambda c: c), "a function of tensors"),
        ],
    )
    def test_refusals(self, given: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            as_operator(given, 4)

    def test_haar_needs_an_even_size(self) -> None:
        with pytest.raises(InputError, match="0 levels"):
            Haar(7)
        with pytest.raises(InputError, match="2 levels"):
            Haar(12, levels=3)
