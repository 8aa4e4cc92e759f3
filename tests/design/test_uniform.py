"""Tables of w(s) against quadrature by scipy, and potentials that have none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from sdebias.design.penalties import CLOSED, named_penalty
from sdebias.design.uniform import Cubic, UniformCoordinate, check_proper, solve_increasing, uniform_coordinate
from sdebias.errors import InputError

INF = math.inf
LINE = (-INF, INF)
POTENTIALS: dict[str, Callable[[Tensor], Tensor]] = {
    "kink at 0": lambda w: 2 * w.abs(),
    "kink elsewhere": lambda w: 3 * (w - 0.6).abs(),
    "cusp": lambda w: 2 * w.abs() ** 0.25,
    "two wells": lambda w: 4 * (w.square() - 0.5).square(),
    "ripple": lambda w: torch.cos(6 * w),
    "steep": lambda w: torch.tanh(1e4 * (w - 0.3)),
    "rewards size": lambda w: -w.square(),
}


def build(psi: Callable[[Tensor], Tensor], domain: tuple[float, float], anchor: float = 0.0) -> UniformCoordinate:
    return uniform_coordinate(psi, domain, anchor, 1.0)


def tensor(values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("domain", [LINE, (0.0, INF), (-INF, 1.5), (-1.0, 2.0)])
@pytest.mark.parametrize("name", POTENTIALS)
def test_table_against_quadrature(name: str, domain: tuple[float, float]) -> None:
    psi = POTENTIALS[name]
    anchor = min((end for end in domain if math.isfinite(end)), key=abs, default=0.0)
    coordinate = build(psi, domain, anchor)
    places = np.random.default_rng(0).uniform(max(coordinate.lower, -1.4), min(coordinate.upper, 1.4), 6)
    for w in places:
        edges = sorted(
            {anchor, w, *(k for k in (0.0, 0.2999, 0.3, 0.3001, 0.6) if min(anchor, w) < k < max(anchor, w))}
        )
        pieces = [
            scipy.integrate.quad(lambda x: math.exp(-float(psi(torch.tensor(x, dtype=torch.float64)))), a, b)[0]
            for a, b in itertools.pairwise(edges)
        ]
        s = math.copysign(sum(pieces), w - anchor)
        assert float(coordinate.s(tensor(w))) == pytest.approx(s, abs=5e-8, rel=5e-8)
        found, slope = coordinate.w(tensor(s))
        assert float(found) == pytest.approx(w, abs=2e-7)
        assert math.log(float(slope)) == pytest.approx(float(psi(tensor(w))), abs=5e-4)
    assert coordinate.error <= 1e-8


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_what_the_table_approximates(name: str) -> None:
    """Also that a closed form of a penalty 10 % stronger is not."""
    for strength in (1.0, 1.7) if name != "cauchy" else (1.0,):
        psi = named_penalty(name, strength)
        table, closed = build(psi, LINE), uniform_coordinate(psi, LINE, 0.0, 1.0, psi.closed)
        s = torch.linspace(0.95 * table.s_lower, 0.95 * table.s_upper, 101, dtype=torch.float64)
        (one, one_slope), (two, two_slope) = table.w(s), closed.w(s)
        torch.testing.assert_close(one, two, atol=5e-8, rtol=5e-8)
        torch.testing.assert_close(one_slope, two_slope, atol=5e-6, rtol=5e-6)
        assert closed.error < 1e-15
        if name not in ("none", "cauchy"):
            other = named_penalty(name, 1.1 * strength).closed
            assert other is not None
            assert float((other(s / 2) - closed.w(s / 2)[0]).abs().max()) > 1e-3
    assert named_penalty("cauchy", 2.0).closed is None


def test_beyond_the_interval_s_is_reflected() -> None:
    coordinate = build(POTENTIALS["kink elsewhere"], (-1.0, 2.0), -1.0)
    s = torch.linspace(0.01, coordinate.s_upper - 0.01, 7, dtype=torch.float64)
    w, slope = coordinate.w(s)
    period = 2 * coordinate.s_upper
    for image, sign in ((s + period, 1), (s - 3 * period, 1), (-s, -1), (period - s, -1)):
        again, again_slope = coordinate.w(image)
        torch.testing.assert_close(again, w)
        torch.testing.assert_close(again_slope, sign * slope)


def test_maps_are_differentiable_to_second_order() -> None:
    coordinate = build(POTENTIALS["two wells"], LINE)
    s = torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: coordinate.w(x)[0], s)
    assert torch.autograd.gradcheck(lambda x: coordinate.w(x)[1], s, atol=1e-4)
    w = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(coordinate.s, w)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x**3 + x, 3 * x**2 + 1

    assert torch.autograd.gradgradcheck(lambda y: solve_increasing(function, y, -2.0, 2.0), w)
    single, slope = coordinate.w(s.detach().float())
    assert single.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(single.double(), coordinate.w(s.detach())[0], atol=1e-5, rtol=1e-5)


def test_cubic_reproduces_cubics() -> None:
    knots = np.array([-1.0, 0.3, 0.5, 2.0])
    cubic = Cubic(knots, knots**3, 3 * knots**2)
    x = torch.linspace(-1, 2, 13, dtype=torch.float64).reshape(1, 13)
    value, slope = cubic(x)
    torch.testing.assert_close(value, x**3)
    torch.testing.assert_close(slope, 3 * x**2)


@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_an_infinite_reward_at_an_end_is_fine_where_it_can_be_integrated(strength: float) -> None:
    coordinate = build(lambda w: strength * w.log(), (0.0, 1.0))
    assert coordinate.s_upper == pytest.approx(1 / (1 - strength), rel=1e-7)
    w, slope = coordinate.w(torch.zeros(1, dtype=torch.float64))
    assert float(w) == float(slope) == 0


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], str]] = {
    "jump": (lambda w: (w > 0.3).double(), LINE, "a change by 1 between neighbouring numbers at w = 0.3"),
    "small jump": (lambda w: 0.01 * (w > 0.3), LINE, "a change by 0.01 between neighbouring numbers at w = 0.3"),
    "pole at 0": (lambda w: 0.5 * w.abs().log(), LINE, "got -inf at w = 0; choose a domain that ends there"),
    "pole elsewhere": (lambda w: 0.5 * (w - 0.3).abs().log(), LINE, "expected a continuous function"),
    "not a number": (lambda w: (w - 0.2).sqrt(), LINE, "expected finite values inside the domain, got nan"),
    "collapse": (lambda w: 1.5 * w.log(), (0.0, INF), r"an integral down to w = 0, got e\^-psi that grows as"),
    "harmonic": (lambda w: w.log(), (0.0, INF), "all probability would collapse onto it"),
    "repulsion": (lambda w: -w.log(), (0.0, INF), "h would be infinitely steep there"),
    "nan at an end": (lambda w: torch.where(w == 0, torch.nan, w), (0.0, INF), "psi = nan"),
    "barrier": (lambda w: 90 * torch.exp(-50 * (w - 1).square()), LINE, "a range of at most 41 on the domain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_laws_that_cannot_be_had(name: str) -> None:
    psi, domain, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        build(psi, domain)


def test_proper_laws_need_no_loss() -> None:
    check_proper(lambda w: 2 * torch.log1p(w.abs()), LINE, 1.0)
    check_proper(lambda w: w.square() ** 20, LINE, 1.0)
    check_proper(torch.zeros_like, (-1.0, 1.0), 1.0)
    with pytest.raises(InputError, match=r"falls only as \|w\|\^-0.9 towards inf; without a loss"):
        check_proper(lambda w: 0.9 * torch.log1p(w.abs()), (0.0, INF), 1.0)
