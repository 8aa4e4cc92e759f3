"""Symmetries found from gradients alone: dimensions, planted ones, and none where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from sdebias.errors import DataError, InputError, SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.problems import (
    DeepDiagonalRegression,
    HadamardRegression,
    MatrixFactorization,
    Problem,
    ShallowReLU,
    SingleHeadAttention,
    SoftmaxRegression,
    WeightDecay,
)
from sdebias.symmetry import (
    DiscoveredSymmetry,
    GeneralLinear,
    Orthogonal,
    Rescaling,
    Symmetry,
    Translation,
    check_invariance,
    discover,
)

F64 = torch.float64
Named = Mapping[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class LossProblem(Problem):
    """A problem of named parameters and a function (data, parameters) -> per-sample losses."""

    model = "LossProblem"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], loss: Callable[..., Tensor], **data: Tensor) -> None:
        self.function = loss
        dims = {name: (("sample", *(f"{name}_{i}" for i in range(t.ndim - 1))), t) for name, t in data.items()}
        super().__init__(ParameterLayout(shapes), dims)

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        return self.function(self.layout.unflatten(theta), **{name: t for name, (_, t) in self.data.items()})

    def predictor(self, theta: Tensor) -> Tensor:
        return theta

    @property
    def predictor_labels(self) -> list[str]:
        return self.layout.labels


def hadamard() -> Problem:
    return HadamardRegression(draw(20, 8), draw(20, seed=1))


def factorisation() -> Problem:
    return MatrixFactorization(draw(6, 5), rank=3)


def attention() -> Problem:
    return SingleHeadAttention(draw(12, 5, 6), draw(12, 5, 3, seed=1))


def softmax(bias: bool, classes: int = 3, features: int = 4) -> Problem:
    return SoftmaxRegression(draw(24, features), torch.arange(24) % classes, bias=bias)


ACCEPTANCE: dict[str, tuple[Callable[[], Problem], int, int, str]] = {
    "hadamard": (hadamard, 8, 0, "rescaling of 8 pairs p:q"),
    "depth 3": (
        lambda: DeepDiagonalRegression(draw(20, 5), draw(20, seed=1), depth=3),
        10,
        0,
        "rescaling of 5 pairs u1:u3; rescaling of 5 pairs u2:u3",
    ),
    "factorisation": (factorisation, 9, 3, "gl(3) on U, V"),
    "relu": (lambda: ShallowReLU(draw(40, 4), draw(40, seed=1), units=6), 6, 0, "rescaling of 6 pairs W:v"),
    "attention": (attention, 9, 3, "gl(3) on W_Q, W_K"),
    "softmax": (lambda: softmax(False), 4, 0, "translation of W in 4 directions"),
    "softmax, bias": (lambda: softmax(True), 5, 0, "translation of W, b in 5 directions"),
    "softmax, 5 classes": (lambda: softmax(True, 5, 2), 3, 0, "translation of W, b in 3 directions"),
    "hadamard, decay": (lambda: WeightDecay(hadamard(), 0.1), 0, 0, "no affine symmetry"),
    "factorisation, decay": (lambda: WeightDecay(factorisation(), 0.1), 3, 3, "so(3) on U, V"),
}


def check_found(problem: Problem, found: DiscoveredSymmetry, dim: int, compact: int) -> None:
    """Check what must hold for a symmetry whose orbits have the dimension of the group."""
    assert (found.dim, found.orbit_dimension, found.compact_dim, found.noncompact_dim) == (
        dim,
        dim,
        compact,
        dim - compact,
    )
    assert found.structure_constants.shape == (dim, dim, dim)
    assert len(found.charge_labels) == len(found.charge_matrices(draw(1))) == dim - compact
    assert found.null_residual < 1e-12
    assert found.next_residual > 1e-2
    assert found.gap > 1e10
    assert not found.violation > 1e-11
    assert len(found.compact_basis(draw(1))) == compact
    theta = draw(3, problem.layout.size, seed=7)
    gradients = problem.per_sample_gradient(theta)
    vertical = found.vertical_projection(gradients, theta.unsqueeze(1))
    torch.testing.assert_close(vertical, torch.zeros_like(vertical), rtol=0, atol=1e-10 * float(gradients.max()))
    assert found.rank(theta).tolist() == [dim] * 3


@pytest.mark.parametrize("ansatz", ["structured", "dense"])
@pytest.mark.parametrize("name", [name for name in ACCEPTANCE if name != "attention"])
def test_dimensions_of_the_models(name: str, ansatz: Literal["structured", "dense"]) -> None:
    make, dim, compact, description = ACCEPTANCE[name]
    problem = make()
    found = discover(problem, ansatz=ansatz)
    check_found(problem, found, dim, compact)
    assert found.description == description


@pytest.mark.parametrize("ansatz", ["structured", pytest.param("auto", marks=pytest.mark.slow)])
def test_attention_has_the_group_of_queries_and_keys(ansatz: Literal["structured", "auto"]) -> None:
    make, dim, compact, description = ACCEPTANCE["attention"]
    problem = make()
    found = discover(problem, ansatz=ansatz)
    check_found(problem, found, dim, compact)
    assert found.description == description


@pytest.mark.parametrize(
    ("make", "group"),
    [
        (hadamard, Rescaling("p", "q")),
        (factorisation, GeneralLinear("U", "V")),
        (lambda: WeightDecay(factorisation(), 0.1), Orthogonal("U", "V")),
        (lambda: softmax(True), Translation("W", "b")),
        (attention, GeneralLinear("W_Q", "W_K")),
    ],
)
def test_the_declared_group_is_found(make: Callable[[], Problem], group: Symmetry) -> None:
    problem = make()
    found, declared = discover(problem, ansatz="structured"), group.bind(problem)
    theta, vector = draw(2, 5, problem.layout.size, seed=2)
    torch.testing.assert_close(found.vertical_projection(vector, theta), declared.vertical_projection(vector, theta))


def test_rescalings_are_found_in_the_basis_in_which_they_are_declared() -> None:
    problem = hadamard()
    found, declared = discover(problem), Rescaling("p", "q").bind(problem)
    theta = draw(5, 16, seed=2)
    torch.testing.assert_close(found.charge(theta), declared.charge(theta))
    torch.testing.assert_close(found.log_orbit_volume(theta), declared.log_orbit_volume(theta))


def planted(seed: int, broken: float = 0.0) -> tuple[Problem, Tensor]:
    """Return a loss in z = Bθ with gl(2) on two factors and so(3) on a vector, and their matrices in θ, (7, 13, 13)."""
    size, samples = 13, 14
    change, mixing, targets = draw(size, size, seed=seed), draw(samples, 6, seed=seed + 1), draw(samples, seed=seed + 2)

    def loss(named: Named, mixing: Tensor, targets: Tensor) -> Tensor:
        z = named["theta"] @ change.mT
        U, V, w = z[..., :4].unflatten(-1, (2, 2)), z[..., 4:10].unflatten(-1, (3, 2)), z[..., 10:]
        radius = w.square().sum(-1, keepdim=True) + broken * (z[..., :1] ** 3 + w[..., :1] ** 3)
        return ((U @ V.mT).flatten(-2) @ mixing.mT + targets * radius - targets).square()

    matrices = torch.zeros(7, size, size, dtype=F64)
    for matrix, unit in zip(matrices[:4], torch.eye(4, dtype=F64).reshape(4, 2, 2), strict=True):
        matrix[:4, :4] = torch.kron(torch.eye(2, dtype=F64), unit.mT.contiguous())
        matrix[4:10, 4:10] = torch.kron(torch.eye(3, dtype=F64), -unit)
    for matrix, (i, j) in zip(matrices[4:], ((10, 11), (10, 12), (11, 12)), strict=True):
        matrix[i, j], matrix[j, i] = 1, -1
    problem = LossProblem({"theta": (size,)}, loss, mixing=mixing, targets=targets)
    return problem, torch.linalg.inv(change) @ matrices @ change


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_symmetry_is_found_in_any_basis(seed: int) -> None:
    problem, truth = planted(seed)
    found = discover(problem)
    assert (found.dim, found.orbit_dimension, found.compact_dim) == (7, 6, 4)
    assert found.description == "algebra of dimension 7 (4 compact) on theta"
    basis = torch.linalg.qr(truth.flatten(1).mT).Q
    unit = torch.nn.functional.normalize(found.matrices.flatten(1), dim=1)
    assert float((unit - unit @ basis @ basis.mT).norm(dim=1).max()) < 1e-8
    torch.testing.assert_close(found.shifts, torch.zeros_like(found.shifts), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_a_slightly_broken_symmetry_is_not_found(size: float) -> None:
    problem, _ = planted(0, broken=size)
    # Breaking leaves the rotation about w_0 and the element of gl(2) that fixes U_00: not the seven planted fields.
    found = discover(problem)
    assert found.dim == 3
    assert found.next_residual < 10 * size


def random_loss(seed: int) -> Problem:
    """Return a loss without symmetry: a tanh network (odd seeds) or a random cubic polynomial of 3-7 variables."""
    if seed % 2:

        def network(named: Named, X: Tensor, y: Tensor) -> Tensor:
            hidden = torch.tanh(X @ named["W"].mT + named["b"].unsqueeze(-2))
            return ((hidden @ named["v"].unsqueeze(-1)).squeeze(-1) + named["c"] - y).square()

        shapes: dict[str, tuple[int, ...]] = {"W": (2, 2), "b": (2,), "v": (2,), "c": (1,)}
        return LossProblem(shapes, network, X=draw(12, 2, seed=seed), y=draw(12, seed=1000 + seed))

    size = 3 + seed // 2 % 5

    def cubic(named: Named, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        theta = torch.cat([named["a"], named["b"]], dim=-1)
        quadratic = torch.einsum("nij,...i,...j->...n", second, theta, theta)
        return theta @ first.mT + quadratic + torch.einsum("nijk,...i,...j,...k->...n", third, theta, theta, theta)

    n = size + 2
    first, second = draw(n, size, seed=seed), draw(n, size, size, seed=1000 + seed)
    third = draw(n, size, size, size, seed=2000 + seed)
    return LossProblem({"a": (size - 1,), "b": (1,)}, cubic, first=first, second=second, third=third)


@pytest.mark.parametrize("ansatz", ["structured", "dense"])
def test_nothing_is_found_in_200_losses_without_symmetry(ansatz: Literal["structured", "dense"]) -> None:
    found = [discover(random_loss(seed), ansatz=ansatz) for seed in range(200)]
    assert [symmetry.dim for symmetry in found] == [0] * 200
    assert min(symmetry.next_residual for symmetry in found) > 1e-2


def test_ignored_parameters_are_translations_and_spheres_have_stabilizers() -> None:
    def loss(named: Named, scale: Tensor) -> Tensor:
        return named["w"].square().sum(-1, keepdim=True) * scale

    problem = LossProblem({"w": (4,), "unused": (2,)}, loss, scale=draw(3))
    found = discover(problem)
    assert found.description == "translation of unused in 2 directions; so(4) on w"
    assert (found.dim, found.orbit_dimension, found.compact_dim) == (8, 5, 6)
    constant = discover(LossProblem({"w": (3,)}, lambda named, scale: 0 * named["w"][..., :1] + scale, scale=draw(4)))
    assert constant.description == "translation of w in 3 directions"
    assert constant.next_residual == math.inf


def test_matrices_that_no_tensor_axis_can_hold_are_found_by_the_dense_search_only() -> None:
    # u·v of two vectors is a quadratic form of signature (3, 3): more than gl(3).
    def loss(named: Named, y: Tensor) -> Tensor:
        return ((named["u"] * named["v"]).sum(-1, keepdim=True) - y).square()

    problem = LossProblem({"u": (3,), "v": (3,)}, loss, y=draw(10))
    dense, structured = discover(problem, ansatz="dense"), discover(problem, ansatz="structured")
    assert (dense.description, structured.description) == ("so(3,3) on u, v", "gl(3) on u, v")
    assert (dense.dim, structured.dim) == (15, 9)
    assert dense.orbit_dimension == structured.orbit_dimension == 5


def test_symmetries_about_a_point_have_shifts_and_charges() -> None:
    def loss(named: Named, y: Tensor) -> Tensor:
        return ((named["p"] - 1) * (named["q"] + 2) - y).square()

    found = discover(LossProblem({"p": (1,), "q": (1,)}, loss, y=draw(6)))
    assert found.description == "rescaling of 1 pair p:q"
    theta = draw(2)
    gradient = torch.func.jacrev(found.charge)(theta)
    torch.testing.assert_close(gradient, found.fundamental_vector_fields(theta))
    torch.testing.assert_close(theta[0] - 1, gradient[0, 0])


def test_gradients_that_cancel_in_saturated_samples_hide_nothing() -> None:
    found = discover(SoftmaxRegression(100 * draw(24, 4), torch.arange(24) % 3))
    assert (found.dim, found.description) == (5, "translation of W, b in 5 directions")


def test_consecutive_linear_layers_have_one_group_each() -> None:
    def loss(named: Named, M: Tensor) -> Tensor:
        return ((named["A"] @ named["B"] @ named["C"]).flatten(-2) - M).square()

    found = discover(LossProblem({"A": (4, 2), "B": (2, 2), "C": (2, 4)}, loss, M=draw(16)))
    assert found.description == "gl(2) on A, B; gl(2) on B, C"


def test_wide_problems_are_searched_with_diagonal_matrices_on_long_axes() -> None:
    def loss(named: Named, X: Tensor, y: Tensor) -> Tensor:
        return ((named["p"] * named["q"]) @ X.mT - y).square()

    found = discover(LossProblem({"p": (48,), "q": (48,)}, loss, X=draw(40, 48), y=draw(40)))
    assert found.description == "rescaling of 48 pairs p:q"


def test_single_precision_problems_are_evaluated_in_double() -> None:
    found = discover(hadamard().to(dtype=torch.float32))
    assert (found.dim, found.fields.dtype) == (8, F64)
    assert check_invariance(hadamard().to(dtype=torch.float32), found) < 1e-3


def test_the_search_repeats_and_does_not_depend_on_the_seed() -> None:
    problem = factorisation()
    first, again, other = discover(problem), discover(problem), discover(problem, seed=1)
    assert torch.equal(first.fields, again.fields)
    torch.testing.assert_close(first.fields, other.fields, rtol=0, atol=1e-10)
    assert math.isnan(discover(problem, verify=False).violation)


def test_finite_elements_refuse_what_gradients_cannot_tell() -> None:
    # A step has no gradient, but a rescaling takes points across it.
    def loss(named: Named, y: Tensor) -> Tensor:
        return (named["p"] * named["q"] - y).square() + (named["p"] > 0.5)

    problem = LossProblem({"p": (1,), "q": (1,)}, loss, y=draw(6))
    assert discover(problem, verify=False).dim == 1
    with pytest.raises(SymmetryError, match="not invariant"):
        discover(problem)


def test_symmetries_and_near_symmetries_without_a_gap_are_an_error() -> None:
    def loss(named: Named, X: Tensor, y: Tensor) -> Tensor:
        p, q = named["p"], named["q"]
        breaking = torch.tensor([1e-10, 1e-8], dtype=F64) * p**3
        return ((p * q + breaking) @ X.mT - y).square()

    problem = LossProblem({"p": (2,), "q": (2,)}, loss, X=draw(10, 2), y=draw(10, seed=1))
    with pytest.raises(SymmetryError, match="clear gap"):
        discover(problem)


@pytest.mark.parametrize(
    ("make", "arguments", "error", "match"),
    [
        (lambda: hadamard().replicate(2), {}, InputError, "replicates"),
        (hadamard, {"ansatz": "dens"}, InputError, "did you mean 'dense'"),
        (lambda: HadamardRegression(draw(4, 40), draw(4)), {"ansatz": "dense"}, InputError, "ansatz='structured'"),
        (lambda: HadamardRegression(draw(4, 300), draw(4)), {}, InputError, "at most 512 parameters"),
        (
            lambda: LossProblem({"w": (2,)}, lambda named, y: named["w"].sqrt().sum(-1, keepdim=True) * y, y=draw(4)),
            {},
            DataError,
            "per-sample gradients",
        ),
    ],
)
def test_bad_input_is_refused(
    make: Callable[[], Problem], arguments: dict[str, Any], error: type[InputError], match: str
) -> None:
    with pytest.raises(error, match=match):
        discover(make(), **arguments)
