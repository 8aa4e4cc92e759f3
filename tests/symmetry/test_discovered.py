"""A symmetry that is given by affine fields: its action, charges and declaration."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdebias.errors import SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import DiscoveredSymmetry, from_spec

F64 = torch.float64
LAYOUT = ParameterLayout({"p": (2,), "w": (2,), "z": (1,)})


def example() -> DiscoveredSymmetry:
    """Return a translation of z, (p_0 − 1, p_1 + 2) → (c·, ·/c), and a rotation of w about (1, 1)."""
    fields = torch.zeros(3, 6, 6, dtype=F64)
    fields[0, 4, 5] = 1
    fields[1, 0, 0], fields[1, 0, 5], fields[1, 1, 1], fields[1, 1, 5] = 1, -1, -1, -2
    fields[2, 2, 3], fields[2, 2, 5], fields[2, 3, 2], fields[2, 3, 5] = 1, -1, -1, 1
    return DiscoveredSymmetry(fields, LAYOUT, orbit_dimension=3).bind(SimpleNamespace(layout=LAYOUT))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_elements_compose_and_keep_the_invariants(seed: int) -> None:
    symmetry, theta = example(), draw(4, 5, seed=seed)
    first, second = symmetry.exp(draw(4, 3, seed=seed + 1)), symmetry.exp(draw(4, 3, seed=seed + 2))
    moved = symmetry.act(symmetry.compose(first, second), theta)
    torch.testing.assert_close(moved, symmetry.act(first, symmetry.act(second, theta)))
    torch.testing.assert_close(symmetry.act(symmetry.exp(torch.zeros(3, dtype=F64)), theta), theta)
    for point in (theta, moved):
        product = (point[:, 0] - 1) * (point[:, 1] + 2)
        radius = (point[:, 2:4] - 1).square().sum(-1)
        invariants = torch.stack([product, radius], -1)
        if point is theta:
            expected = invariants
    torch.testing.assert_close(invariants, expected)


def test_fields_are_derivatives_of_the_action() -> None:
    symmetry, theta = example(), draw(5)
    derivative = torch.func.jacrev(lambda xi: symmetry.act(symmetry.exp(xi), theta))(torch.zeros(3, dtype=F64))
    torch.testing.assert_close(derivative.mT, symmetry.fundamental_vector_fields(theta))
    coefficients, vector = draw(4, 3), draw(4, 5, seed=1)
    torch.testing.assert_close(symmetry.infinitesimal_action(coefficients, theta), coefficients @ derivative.mT)
    torch.testing.assert_close(symmetry.infinitesimal_action_adjoint(vector, theta), vector @ derivative)


def test_charges_have_the_fields_as_gradients() -> None:
    symmetry, theta = example(), draw(5)
    gradients = torch.func.jacrev(symmetry.charge)(theta)
    torch.testing.assert_close(gradients, symmetry.fundamental_vector_fields(theta)[:2])
    assert symmetry.charge(draw(7, 5)).shape == (7, 2)
    assert symmetry.charge_labels == ["C0 z[0]", "C1 p[0]^2"]
    assert symmetry.charge_matrices(theta).shape == (2, 5)


def test_charge_matrices_are_full_where_they_must_be() -> None:
    fields = torch.zeros(1, 6, 6, dtype=F64)
    fields[0, 0, 3] = fields[0, 3, 0] = 1
    symmetry = DiscoveredSymmetry(fields, LAYOUT, orbit_dimension=1)
    torch.testing.assert_close(symmetry.charge_matrices(draw(1)), fields[:, :5, :5])
    assert symmetry.charge_labels == ["C0 p[0]*w[1]"]


def test_the_algebra_is_described() -> None:
    symmetry = example()
    assert (symmetry.dim, symmetry.compact_dim, symmetry.noncompact_dim) == (3, 1, 2)
    assert symmetry.compact_basis(draw(1)).tolist() == [[0.0, 0.0, 1.0]]
    torch.testing.assert_close(symmetry.structure_constants, torch.zeros(3, 3, 3, dtype=F64))
    assert repr(symmetry) == ("DiscoveredSymmetry(translation of z in 1 direction; rescaling of 1 unit p; so(2) on w)")


def test_single_precision_points_are_taken() -> None:
    symmetry, theta = example(), draw(4, 5).float()
    assert symmetry.act(symmetry.exp(torch.ones(3)), theta).dtype == torch.float32
    assert symmetry.vertical_projection(theta, theta).dtype == torch.float32
    assert symmetry.charge(theta).dtype == torch.float32


def test_the_declaration_survives_json() -> None:
    symmetry = example()
    again = from_spec(json.loads(json.dumps(symmetry.spec())))
    assert isinstance(again, DiscoveredSymmetry)
    assert torch.equal(again.fields, symmetry.fields)
    assert again.parameters.shapes == LAYOUT.shapes
    assert again.orbit_dimension == 3
    assert math.isnan(again.violation)


@pytest.mark.parametrize(
    ("element", "match"),
    [
        (torch.eye(5, dtype=F64), r"square matrices \(..., 6, 6\)"),
        (torch.zeros(6, 6, dtype=F64), "a singular one"),
        (torch.full((6, 6), torch.nan, dtype=F64), "finite entries"),
    ],
)
def test_bad_elements_are_refused(element: torch.Tensor, match: str) -> None:
    with pytest.raises(SymmetryError, match=match):
        example().act(element, draw(5))


def test_other_parameters_are_refused() -> None:
    other = SimpleNamespace(layout=ParameterLayout({"p": (3,), "w": (2,)}))
    with pytest.raises(SymmetryError, match="discover the symmetries of this problem"):
        example().bind(other)
