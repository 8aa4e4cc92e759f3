"""Geometry of rescaling orbits: the laws of projections, and the structured formulas against the dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import regression
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

import sdebias as sb
from sdebias.errors import SymmetryError
from sdebias.symmetry import Symmetry
from sdebias.symmetry.bundle import quadratic_form

PAIRS = 4
PROBLEM = sb.problems.HadamardRegression(*regression(features=PAIRS))
GROUP = sb.symmetry.Rescaling("p", "q").bind(PROBLEM)
VECTORS = arrays(np.float64, 2 * PAIRS, elements=st.floats(-4, 4, allow_subnormal=False)).map(torch.from_numpy)
ELEMENTS = arrays(np.float64, PAIRS, elements=st.floats(0.2, 5)).map(torch.from_numpy)
laws = settings(deadline=None, max_examples=60)


def close(one: Tensor, two: Tensor, scale: float = 1.0) -> None:
    assert float((one - two).abs().max()) <= 1e-10 * scale


@laws
@given(VECTORS, VECTORS)
def test_projections(theta: Tensor, vector: Tensor) -> None:
    vertical, horizontal = (p(vector, theta) for p in (GROUP.vertical_projection, GROUP.horizontal_projection))
    close(GROUP.vertical_projection(vertical, theta), vertical)
    close(vertical + horizontal, vector)
    close(GROUP.vertical_projection(horizontal, theta), torch.zeros_like(vector))
    fields = GROUP.fundamental_vector_fields(theta)
    assume(float(theta.abs().max()) > 1e-3)
    kept = (fields.square().sum(-1) > 1e-12 * fields.square().sum(-1).max())[:, None]
    close(GROUP.vertical_projection(fields, theta.expand(PAIRS, -1)) * kept, fields * kept)


@laws
@given(VECTORS, VECTORS)
def test_structured_formulas_are_the_dense_ones(theta: Tensor, vector: Tensor) -> None:
    close(GROUP.gram_matrix(theta), Symmetry.gram_matrix(GROUP, theta), 10)
    close(GROUP.vertical_projection(vector, theta), Symmetry.vertical_projection(GROUP, vector, theta))
    close(GROUP.log_orbit_volume(theta), Symmetry.log_orbit_volume(GROUP, theta), 10)
    close(GROUP.charge(theta), Symmetry.charge(GROUP, theta), 10)
    assert GROUP.rank(theta) == Symmetry.rank(GROUP, theta)


@laws
@given(VECTORS, ELEMENTS, ELEMENTS)
def test_act_is_a_group_action_that_predictors_do_not_see(theta: Tensor, one: Tensor, two: Tensor) -> None:
    close(GROUP.act(one, GROUP.act(two, theta)), GROUP.act(one * two, theta), 100)
    close(GROUP.act(torch.ones(PAIRS), theta), theta)
    close(PROBLEM.predictor(GROUP.act(one, theta)), PROBLEM.predictor(theta), 100)


@laws
@given(VECTORS)
def test_fields_are_velocities_of_the_action_and_gradients_of_charges(theta: Tensor) -> None:
    def orbit(coefficients: Tensor) -> Tensor:
        first, second = theta[:PAIRS] * GROUP.exp(coefficients), theta[PAIRS:] / GROUP.exp(coefficients)
        return torch.cat([first, second])

    fields = GROUP.fundamental_vector_fields(theta)
    zero = torch.zeros(PAIRS, dtype=torch.float64)
    close(GROUP.act(GROUP.exp(zero + 0.3), theta), orbit(zero + 0.3), 100)
    close(torch.func.jacfwd(orbit)(zero).mT, fields)
    close(torch.func.jacrev(GROUP.charge)(theta), fields)


@laws
@given(VECTORS)
def test_per_sample_gradients_are_horizontal(theta: Tensor) -> None:
    products = PROBLEM.per_sample_gradient(theta) @ GROUP.fundamental_vector_fields(theta).mT
    close(products, torch.zeros_like(products), 1e3)


def test_batch_equals_loop() -> None:
    theta = torch.randn(2, 3, 2 * PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("fundamental_vector_fields", "gram_matrix", "charge", "log_orbit_volume", "rank"):
        function = getattr(GROUP, name)
        loop = torch.stack([torch.stack([function(point) for point in row]) for row in theta])
        assert torch.equal(function(theta), loop)


def test_orbit_volume_on_the_balanced_slice() -> None:
    """½ log det G = ½ Σ log 2|w_j| where p_j² = q_j² (arXiv:2601.06597)."""
    w = torch.tensor([0.5, -2.0, 1.5, 3.0], dtype=torch.float64)
    theta = torch.cat([w.abs().sqrt(), w.abs().sqrt() * w.sign()])
    close(GROUP.log_orbit_volume(theta), 0.5 * (2 * w.abs()).log().sum())
    close(GROUP.charge(theta), torch.zeros(PAIRS))


def test_a_zero_pair_lowers_the_rank_and_gives_no_nan() -> None:
    theta = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    vector = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert int(GROUP.rank(theta)) == 3
    assert float(GROUP.vertical_projection(vector, theta)[0]) == 0
    assert bool(torch.isfinite(GROUP.vertical_projection(vector, theta)).all())
    close(GROUP.log_orbit_volume(theta), 0.5 * torch.tensor([1.25, 4.0, 2.0], dtype=torch.float64).log().sum())


def test_quadratic_form_takes_diagonals_and_matrices() -> None:
    vectors = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    diagonals = GROUP.charge_matrices(vectors)
    torch.testing.assert_close(quadratic_form(diagonals, vectors), quadratic_form(torch.diag_embed(diagonals), vectors))


class TestRefusals:
    def test_unknown_parameter(self) -> None:
        with pytest.raises(SymmetryError, match="expected a declared name, got 'r'"):
            sb.symmetry.Rescaling("p", "r").bind(PROBLEM)

    def test_same_parameter(self) -> None:
        with pytest.raises(SymmetryError, match="two different parameters"):
            sb.symmetry.Rescaling("p", "p").bind(PROBLEM)

    def test_unbound(self) -> None:
        with pytest.raises(SymmetryError, match="call symmetry.bind"):
            sb.symmetry.Rescaling("p", "q").charge(torch.zeros(8))

    @pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
    def test_element(self, factor: float) -> None:
        with pytest.raises(SymmetryError, match="positive finite factors"):
            GROUP.act(torch.tensor([1.0, 1.0, factor, 1.0]), torch.ones(8))
