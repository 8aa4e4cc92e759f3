"""Curves of constant charge, and the coordinate in which their noise is uniform."""

from __future__ import annotations

import math

import pytest
import torch

from sdebias.design.slices import Diagonal, GaugedHyperbola, Hyperbola, Slice

S = torch.linspace(-3, 3, 41, dtype=torch.float64)
SLICES: list[Slice] = [Diagonal(), Hyperbola(0.4), GaugedHyperbola(0.4, 1.5)]


@pytest.mark.parametrize("curve", SLICES, ids=lambda curve: type(curve).__name__)
def test_points_have_the_charge_and_the_coordinate(curve: Slice) -> None:
    p, q = curve.factors(S)
    torch.testing.assert_close(0.5 * (p.square() - q.square()), torch.full_like(S, curve.level))
    s, rate = curve.s(p * q)
    torch.testing.assert_close(s, S if curve.level else S.abs(), atol=1e-9, rtol=1e-9)
    z = (p * q).requires_grad_(True)
    (slope,) = torch.autograd.grad(curve.s(z)[0].sum(), z)
    away = S != 0
    torch.testing.assert_close(rate[away], slope[away], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("curve", SLICES, ids=lambda curve: type(curve).__name__)
def test_the_coordinate_is_that_of_the_law(curve: Slice) -> None:
    """ds = dz det(J Jᵀ)^{−1/2}, and once more ⟨∇C, ∇C⟩^{−1/2} for the gauge: both are p² + q²."""
    p, q = curve.factors(S[S > 0])
    norm = p.square() + q.square()
    _, rate = curve.s(p * q)
    expected = 1 / norm if isinstance(curve, GaugedHyperbola) else norm.rsqrt()
    scale = rate / expected
    torch.testing.assert_close(scale, scale[:1].expand_as(scale), atol=1e-6, rtol=1e-6)
    if not isinstance(curve, GaugedHyperbola):
        torch.testing.assert_close(scale, torch.ones_like(scale), atol=1e-6, rtol=1e-6)


def test_the_centre_of_the_cross_has_no_slope_and_no_nan() -> None:
    s, rate = Diagonal().s(torch.zeros(1, dtype=torch.float64))
    assert 0 <= float(s) < 1e-100
    assert float(rate) == 0


def test_the_hyperbola_reaches_far() -> None:
    z = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    s, _ = Hyperbola(1.0).s(z)
    assert float(s[1]) == pytest.approx(math.sqrt(2e6), rel=2e-3)
    p, q = Hyperbola(1.0).factors(s)
    torch.testing.assert_close(p * q, z, rtol=1e-6, atol=0)
