"""Spans of affine fields: function multiples, sparse bases, structure constants, names."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdebias.errors import SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import lie_algebra

F64 = torch.float64


def homogeneous(linear: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Return homogeneous matrices of linear parts (field, d, d) and shifts (field, d)."""
    count, size = linear.shape[:2]
    fields = torch.zeros(count, size + 1, size + 1, dtype=F64)
    fields[:, :-1, :-1] = linear
    if shifts is not None:
        fields[:, :-1, -1] = shifts
    return fields


def units(n: int) -> Tensor:
    """Return all n×n matrices with a single 1: a basis of gl(n)."""
    return torch.eye(n * n, dtype=F64).reshape(n * n, n, n)


def so(p: int, q: int = 0) -> Tensor:
    """Return a basis of the matrices A with AᵀJ + JA = 0, J = diag(1 (p times), −1 (q times))."""
    signature = torch.tensor([1.0] * p + [-1.0] * q, dtype=F64)
    pairs = list(itertools.combinations(range(p + q), 2))
    basis = torch.zeros(len(pairs), p + q, p + q, dtype=F64)
    for matrix, (i, j) in zip(basis, pairs, strict=True):
        matrix[i, j], matrix[j, i] = signature[j], -signature[i]
    return basis


def factorisation(n: int, m: int, r: int) -> Tensor:
    """Return gl(r) on U (n×r), V (m×r): U → UB, V → −VBᵀ, flattened row by row."""
    eye_n, eye_m = torch.eye(n, dtype=F64), torch.eye(m, dtype=F64)
    return torch.stack(
        [torch.block_diag(torch.kron(eye_n, B.mT.contiguous()), torch.kron(eye_m, -B)) for B in units(r)]
    )


def mix(fields: Tensor, seed: int) -> Tensor:
    """Return a random basis of the same span."""
    count = fields.shape[0]
    weights = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.tensordot(torch.linalg.qr(weights).Q, fields, dims=1)


def distance(fields: Tensor, others: Tensor) -> float:
    """Return the largest distance of a unit field from the span of the others."""
    basis = lie_algebra.span(others).flatten(1)
    unit = torch.nn.functional.normalize(fields.flatten(1), dim=1)
    return float((unit - unit @ basis.mT @ basis).norm(dim=1).max())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(2, 3))
def test_structure_constants_do_not_depend_on_a_conjugation(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    change = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64)).Q
    change = change * (0.5 + torch.rand(n, generator=generator, dtype=F64))
    fields = homogeneous(units(n))
    moved = homogeneous(torch.linalg.inv(change) @ units(n) @ change)
    constants = lie_algebra.structure_constants(fields)
    torch.testing.assert_close(lie_algebra.structure_constants(moved), constants, rtol=0, atol=1e-11)
    torch.testing.assert_close(constants, -constants.transpose(0, 1), rtol=0, atol=1e-12)
    nested = torch.einsum("abe,ecd->abcd", constants, constants)
    jacobi = nested + nested.permute(2, 0, 1, 3) + nested.permute(1, 2, 0, 3)
    torch.testing.assert_close(jacobi, torch.zeros_like(jacobi), rtol=0, atol=1e-11)
    assert lie_algebra.compact_dim(moved) == n * (n - 1) // 2


def test_brackets_outside_the_span_are_refused() -> None:
    with pytest.raises(SymmetryError, match="bracket of fields"):
        lie_algebra.structure_constants(homogeneous(so(3)[:2]))


HEISENBERG = torch.stack([units(3)[1], units(3)[5], units(3)[2]])
TRACELESS = torch.stack([*units(3)[[1, 2, 3, 5, 6, 7]], units(3)[0] - units(3)[4], units(3)[4] - units(3)[8]])


@pytest.mark.parametrize(
    ("linear", "name"),
    [
        (units(2), "gl(2)"),
        (units(4), "gl(4)"),
        (factorisation(2, 3, 3), "gl(3)"),
        (so(3), "so(3)"),
        (so(4), "so(4)"),
        (so(5), "so(5)"),
        (so(3, 1), "so(3,1)"),
        (so(2, 2), "so(2,2)"),
        (so(3, 3), "so(3,3)"),
        (TRACELESS, "sl(3)"),
        (HEISENBERG, None),
    ],
)
def test_algebras_are_named_in_any_basis(linear: Tensor, name: str | None) -> None:
    size = linear.shape[-1]
    change = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=F64)
    change = torch.linalg.qr(change).Q * torch.linspace(0.5, 2, size, dtype=F64)
    moved = homogeneous(change @ linear @ torch.linalg.inv(change))
    assert lie_algebra.algebra_name(mix(moved, 2)) == name


def test_multiples_of_translations_by_functions_are_removed() -> None:
    # Softmax regression with 3 classes, 4 features and bias: 5 shifts times the 16 affine functions of θ.
    directions = torch.kron(torch.ones(1, 3, dtype=F64), torch.eye(5, dtype=F64)) / 3**0.5
    everything = torch.einsum("ki,jl->kjil", directions, torch.eye(16, dtype=F64)).flatten(0, 1)
    fields = torch.zeros(80, 16, 16, dtype=F64)
    fields[:, :-1] = everything
    translations, rest = lie_algebra.without_multiples(mix(fields, 0))
    assert (len(translations), len(rest)) == (5, 0)
    shifts = torch.zeros(5, 16, 16, dtype=F64)
    shifts[:, :-1, -1] = directions
    assert distance(translations, shifts) < 1e-12


def test_what_is_left_beside_translations_is_closed_and_spans_the_same_directions() -> None:
    # R³ with a free translation along a skew direction, and so(3) in coordinates that do not see it.
    size, generator = 5, torch.Generator().manual_seed(3)
    along = torch.randn(size, 2, generator=generator, dtype=F64)
    seen = torch.linalg.qr(along, mode="complete").Q[:, 2:]
    frame = torch.cat([along, seen], dim=1)
    inverse = torch.linalg.inv(frame)
    free = torch.einsum("ki,jl->kjil", along.mT, torch.eye(size + 1, dtype=F64)).flatten(0, 1)
    rotations = torch.zeros(3, size, size, dtype=F64)
    rotations[:, 2:, 2:] = so(3)
    fields = torch.cat([torch.nn.functional.pad(free, (0, 0, 0, 1)), homogeneous(frame @ rotations @ inverse)])
    translations, rest = lie_algebra.without_multiples(mix(fields, 4))
    assert (len(translations), len(rest)) == (2, 3)
    lie_algebra.structure_constants(torch.cat([translations, rest]))
    point = torch.cat([torch.randn(size, generator=generator, dtype=F64), torch.ones(1, dtype=F64)])
    before, after = (f @ point for f in (fields, torch.cat([translations, rest])))
    assert int(torch.linalg.matrix_rank(after)) == int(torch.linalg.matrix_rank(before)) == 4
    assert int(torch.linalg.matrix_rank(torch.cat([before, after]), rtol=1e-10)) == 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_sparse_basis_finds_the_sparse_fields_of_a_mixture(seed: int) -> None:
    first = torch.nn.functional.pad(factorisation(2, 3, 2), (0, 4, 0, 4))
    pair = torch.diag(torch.tensor([0.0] * 10 + [1.0, -1.0, 0.0, 0.0], dtype=F64))
    sparse = homogeneous(torch.cat([first, pair[None]]))
    basis = lie_algebra.sparse_basis(lie_algebra.span(mix(sparse, seed)))
    assert distance(basis, sparse) < 1e-12
    assert int((basis != 0).sum()) == int((sparse != 0).sum())
    torch.testing.assert_close(torch.linalg.matrix_norm(basis, ord=2), torch.ones(5, dtype=F64))


def test_symmetric_and_antisymmetric_fields_are_told_apart() -> None:
    symmetric, others = lie_algebra.symmetric_first(mix(homogeneous(factorisation(2, 3, 3)), 5))
    assert (len(symmetric), len(others)) == (6, 3)
    torch.testing.assert_close(symmetric, symmetric.mT)
    torch.testing.assert_close(others, -others.mT)
    shear = homogeneous(units(2)[1:2])
    assert [len(part) for part in lie_algebra.symmetric_first(shear)] == [0, 1]


def test_descriptions_name_each_part() -> None:
    layout = ParameterLayout({"U": (2, 2), "V": (3, 2), "p": (2,), "q": (2,), "w": (2,), "z": (2,)})
    size = layout.size

    def diagonal(**entries: list[float]) -> Tensor:
        named = {name: torch.zeros(shape, dtype=F64) for name, shape in layout.shapes.items()}
        named |= {name: torch.tensor(value, dtype=F64) for name, value in entries.items()}
        return layout.flatten(named).diag()

    rotation = torch.zeros(size, size, dtype=F64)
    rotation[-4, -3], rotation[-3, -4] = 1, -1
    linear = [
        *torch.nn.functional.pad(factorisation(2, 3, 2), (0, 8, 0, 8)),
        diagonal(p=[1, 0], q=[-1, 0]),
        diagonal(p=[0, 1], q=[0, -1]),
        diagonal(w=[1, 1]),
        rotation,
    ]
    shifts = torch.zeros(1, size, dtype=F64)
    shifts[0, -1] = 1
    fields = torch.cat([homogeneous(torch.zeros(1, size, size, dtype=F64), shifts), homogeneous(torch.stack(linear))])
    assert lie_algebra.describe(fields, layout) == (
        "translation of z in 1 direction; gl(2) on U, V; rescaling of 2 pairs p:q; scaling of w; so(2) on w"
    )
    assert lie_algebra.describe(fields[:0], layout) == "no affine symmetry"
