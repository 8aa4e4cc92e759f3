"""Increments: their moments, their independence, and the weak order that they keep."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torchsde
from conftest import GivenIncrements
from numpy.polynomial import Polynomial

import sdebias as sb
from sdebias.dynamics.increments import (
    COSINE,
    INCREMENTS,
    LOGARITHM,
    MANY,
    OUTER,
    SINE,
    SIZE,
    FastBits,
    box_muller,
    draw,
    piece,
    read,
)
from sdebias.dynamics.walk import Walk, advance
from sdebias.errors import InputError

SOURCES = (torch.Generator, FastBits)
MOMENTS = {"gaussian": (1, 3, 15), "rademacher": (1, 1, 1), "three-point": (1, 3, 9)}


def increments(
    kind: str,
    steps: int = 32,
    shape: tuple[int, ...] = (250, 50),
    source: type[torch.Generator] = torch.Generator,
) -> torch.Tensor:
    drawn = draw(kind, steps, shape, source().manual_seed(0))
    return torch.stack([read(kind, drawn, step, torch.float64) for step in range(steps)])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", INCREMENTS)
def test_moments(kind: str, source: type[torch.Generator]) -> None:
    """Of 400,000 increments, within 4.5 standard errors: false alarm 7e-6 each; moments 10 % off are refused."""
    values = increments(kind, source=source)
    for power, moment in zip((2, 4, 6), MOMENTS[kind], strict=True):
        error = max(float(values.pow(power).std()) / values.numel() ** 0.5, 1e-4)
        assert abs(float(values.pow(power).mean()) - moment) < 4.5 * error
        assert abs(float(values.pow(power).mean()) - 1.1 * moment) > 4.5 * error
    for power in (1, 3, 5):
        assert abs(float(values.pow(power).mean())) < 4.5 * float(values.pow(power).std()) / values.numel() ** 0.5


def test_three_points_are_exact_where_it_counts() -> None:
    share = 2 * OUTER / 65_536
    assert share * SIZE**2 == pytest.approx(1, abs=1e-15)
    assert share * SIZE**4 == pytest.approx(3, abs=1e-4)
    assert set(np.round(np.unique(increments("three-point")), 3)) == {-1.732, 0.0, 1.732}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", INCREMENTS)
def test_steps_and_channels_are_independent(kind: str, source: type[torch.Generator]) -> None:
    """Correlations of steps and of neighbouring channels are N(0, 1/12,500): false alarm 1e-3 after Bonferroni."""
    values = increments(kind, source=source)
    rows = values.flatten(1)
    pairs = [torch.corrcoef(rows).triu(1)[tuple(zip(*itertools.combinations(range(32), 2), strict=True))]]
    channels = values[..., 1:].flatten().unsqueeze(0), values[..., :-1].flatten().unsqueeze(0)
    assert float(pairs[0].abs().max()) * 12_500**0.5 < scipy.stats.norm.isf(1e-3 / 2 / 496)
    assert abs(float(torch.corrcoef(torch.cat(channels))[0, 1])) * channels[0].numel() ** 0.5 < 3.3


@pytest.mark.parametrize("kind", INCREMENTS)
def test_words_go_on(kind: str) -> None:
    """Steps beyond the bits of a word read the next one: 70 steps are 70 different increments."""
    assert len(torch.unique(increments(kind, steps=70), dim=0)) == 70


def stream(seed: int) -> FastBits:
    rng = FastBits()
    rng.manual_seed(seed)
    return rng


@pytest.mark.parametrize(
    ("kind", "steps", "length"), [("gaussian", 12, 4), ("rademacher", 30, 10), ("three-point", 2, 1)]
)
def test_pieces_of_a_window_are_its_steps(kind: str, steps: int, length: int) -> None:
    drawn = draw(kind, steps, (50, 3), torch.Generator().manual_seed(0))
    for first in range(0, steps, length):
        part = piece(kind, drawn, first, length)
        for step in range(length):
            whole = read(kind, drawn, first + step, torch.float64)
            torch.testing.assert_close(read(kind, part, step, torch.float64), whole, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["rademacher", "three-point"])
def test_chunks_that_share_words_walk_as_steps_do(kind: Any) -> None:
    """A window holds the chunks of one word; each gets its bits moved to where the first has them."""
    problem = sb.problems.HadamardRegression([[1.0]], [1.0])
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, increments=kind).bind(problem)
    chunk = 10 if kind == "rademacher" else 1
    assert dynamics.window(chunk) == {"rademacher": 30, "three-point": 2}[kind]
    calls = []

    def chunks(*arguments: Any) -> list[torch.Tensor]:
        calls.append(arguments[3])
        return advance(dynamics, *arguments)

    paths = []
    for function in (None, chunks):
        theta = problem.draw_initial(8, torch.Generator().manual_seed(1))
        walk = Walk(dynamics, theta, [torch.Generator().manual_seed(2)], chunk, advance=function)
        paths.append(walk.run([0, 30, 45]))
    torch.testing.assert_close(*paths, rtol=0, atol=0)
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("kind", "name", "value"), [("rademacher", "WINDOWS_AHEAD", 8), ("gaussian", "NORMALS_AHEAD", 0)]
)
def test_a_state_says_how_many_windows_were_drawn_at_once(
    kind: Any, name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk goes on where that number is another by now; taken for the new one, bits would be used twice."""
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, increments=kind)
    bound = dynamics.bind(sb.problems.HadamardRegression([[1.0]], [1.0]))

    def walk() -> Walk:
        theta = bound.bound_problem.draw_initial(8, torch.Generator().manual_seed(1))
        return Walk(bound, theta, [torch.Generator().manual_seed(seed) for seed in (2, 3)], chunk=32)

    whole, half = walk(), walk()
    wanted = whole.run([0, 200, 400])[-1]
    half.run([0, 200])
    monkeypatch.setattr(f"sdebias.dynamics.sde.{name}", value)
    ends = []
    for ahead in (half.state()["ahead"], walk().state()["ahead"]):
        rest = walk()
        rest.restore({**half.state(), "ahead": ahead})
        ends.append(rest.run([200, 400])[-1])
    torch.testing.assert_close(ends[0], wanted, rtol=0, atol=0)
    assert not torch.equal(ends[1], wanted)


@pytest.mark.parametrize("count", [MANY - 1, MANY, MANY + 1 + 1, 2**20])
def test_normals_of_both_sources_are_normal(count: int) -> None:
    """Kolmogorov–Smirnov of few and many at a false-alarm rate of 1e-3; a deviation 10 % larger is rejected."""
    sample = draw("gaussian", 1, (count,), stream(1))[0].double().numpy()
    assert len(sample) == count
    assert len(np.unique(sample)) > 0.98 * count
    assert scipy.stats.kstest(sample, "norm").pvalue > 1e-3
    assert scipy.stats.kstest(sample, "norm", args=(0, 1.1)).pvalue < 1e-3


def test_the_tails_of_many_normals_are_those_of_a_normal() -> None:
    """Counts of 2^24 normals beyond 3, 4 and 5 are within a Poisson interval: false alarms 1e-3 each.

    The draws come in pairs of one radius: the number of pairs with both beyond 2 is that of independent ones.
    """
    sample = draw("gaussian", 2**8, (2**16,), stream(2)).flatten()
    assert torch.isfinite(sample).all()
    for bound in (3, 4, 5):
        law = scipy.stats.poisson(2 * scipy.stats.norm.sf(bound) * len(sample))
        assert law.ppf(5e-4) <= int((sample.abs() > bound).sum()) <= law.isf(5e-4)
    one, two = (half.abs() > 2 for half in sample.chunk(2))
    law = scipy.stats.poisson((2 * scipy.stats.norm.sf(2)) ** 2 * one.numel())
    assert law.ppf(5e-4) <= int((one & two).sum()) <= law.isf(5e-4)


def test_many_normals_come_from_the_stream_alone() -> None:
    """The same seed gives the same normals, the next draw others, and another seed others again."""
    rng = stream(3)
    first, second = (draw("gaussian", 2, (MANY,), rng) for _ in range(2))
    assert torch.equal(first, draw("gaussian", 2, (MANY,), stream(3)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw("gaussian", 2, (MANY,), stream(4)))


def test_the_largest_of_words_are_finite_normals() -> None:
    """Words of all bits 0 and 1 are the ends of what u and v can be."""
    ends = torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    words = torch.cartesian_prod(ends, ends).mT.contiguous()
    normals = words.clone().view(torch.float32)
    box_muller(*normals)
    normals = normals.double()
    u, v = words.double()
    radius = (-2 * ((u + 0.5).abs() * 2.0**-31).log()).sqrt()
    assert torch.allclose(normals.norm(dim=0), radius, rtol=1e-6, atol=1e-4)  # u next to 1 is 1 in float32
    angle = (((v % 2.0**31) - 2.0**30) * 2.0**-30 * np.pi / 4).tan().abs()
    assert torch.allclose(normals.abs().amin(0), angle * normals.abs().amax(0), rtol=1e-6, atol=1e-6)
    assert normals.norm(dim=0).max() == pytest.approx((64 * np.log(2)) ** 0.5, rel=1e-6)


def test_normals_fill_all_quadrants_alike() -> None:
    """Angles of 2^20 pairs are uniform on the circle and independent of radii: false alarms 1e-3 each."""
    first, second = draw("gaussian", 1, (2**21,), stream(5)).double().view(2, -1)
    angle = torch.atan2(second, first)
    sixteenths = torch.histc(angle, 16, -np.pi, np.pi).numpy()
    assert scipy.stats.chisquare(sixteenths).pvalue > 1e-3
    far = first.square() + second.square() > 2
    table = [torch.histc(angle[part], 16, -np.pi, np.pi).numpy() for part in (far, ~far)]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
    skewed = sixteenths * (1 + 0.1 * (np.arange(16) == 3))  # a twin: one sixteenth 10 % too likely
    assert scipy.stats.chisquare(skewed * sixteenths.sum() / skewed.sum()).pvalue < 1e-3


def test_polynomials_are_those_of_the_functions() -> None:
    """Logarithm, sine and cosine to less than half the last place of float32, relative."""
    x = np.linspace(2**-0.5 - 1, 2**0.5 - 1, 100_001)
    x = x[np.abs(x) > 1e-9]
    assert np.allclose(x * Polynomial(LOGARITHM)(x), -2 * np.log1p(x), rtol=6e-8, atol=0)
    angle = np.linspace(1e-6, 1, 100_001)
    assert np.allclose(angle * Polynomial(SINE)(angle**2), np.sin(np.pi / 4 * angle), rtol=6e-8, atol=0)
    assert np.allclose(Polynomial(COSINE)(angle**2), np.cos(np.pi / 4 * angle), rtol=6e-8, atol=0)


def test_bits_cost_a_fraction_of_a_normal() -> None:
    sizes = {kind: draw(kind, 32, (16, 8), torch.Generator()) for kind in INCREMENTS}
    memory = {kind: drawn.numel() * drawn.element_size() for kind, drawn in sizes.items()}
    assert memory["rademacher"] * 32 == memory["gaussian"]
    assert memory["three-point"] * 2 == memory["gaussian"]


def law(kind: str) -> tuple[list[float], list[float]]:
    """Return values and probabilities of an increment, by Gauss–Hermite quadrature for the normal."""
    if kind == "gaussian":
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        return list(nodes), list(weights / weights.sum())
    if kind == "rademacher":
        return [-1.0, 1.0], [0.5, 0.5]
    share = OUTER / 65_536
    return [-SIZE, 0.0, SIZE], [share, 1 - 2 * share, share]


def weak_error(kind: str, method: str, form: Any, count: int) -> float:
    """Return the error of E cos(2θ) after one update of an Ornstein–Uhlenbeck process in `count` steps.

    Nothing is sampled: torchsde solves every sequence of increments, and each counts with its probability. θ(1) is
    normal, and its mean and variance are known.
    """
    net = torch.nn.Linear(1, 1, bias=False).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = sb.Problem.from_module(net, lambda out, y: 0.5 * (out - y).squeeze(-1) ** 2, one, one)
    rate, temperature, start = 0.8, 0.5, 0.2
    mean = 1 + (start - 1) * np.exp(-rate)
    exact = np.cos(2 * mean) * np.exp(-2 * temperature * (1 - np.exp(-2 * rate)))
    sde = sb.SGDSDE(
        learning_rate=rate, noise="isotropic", temperature=temperature, substeps=count, method=method, sde_type=form
    ).bind(problem)
    values, shares = (torch.tensor(part, dtype=torch.float64) for part in law(kind))
    paths = torch.cartesian_prod(*[torch.arange(len(values))] * count).reshape(-1, count)
    increments = values[paths].T.unsqueeze(-1) * count**-0.5
    theta = torch.full((len(paths), 1), start, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        end = torchsde.sdeint(sde, theta, times, bm=GivenIncrements(increments), method=method, dt=1 / count)[-1, :, 0]
    return abs(float((shares[paths].prod(-1) * (2 * end).cos()).sum()) - exact)


@pytest.mark.parametrize(
    ("kind", "method", "form", "order"),
    [
        ("gaussian", "euler", "ito", 1),
        ("rademacher", "euler", "ito", 1),
        ("three-point", "euler", "ito", 1),
        ("rademacher", "heun", "stratonovich", 1),
        ("three-point", "heun", "stratonovich", 2),
        ("gaussian", "heun", "stratonovich", 2),
    ],
)
def test_weak_order(kind: str, method: str, form: Any, order: int) -> None:
    """Slope between two dt, finer where increments have few values, without sampling: within 0.25 of its order."""
    coarse, fine = (weak_error(kind, method, form, count) for count in ((8, 16) if kind == "rademacher" else (4, 8)))
    assert abs(np.log2(coarse / fine) - order) < 0.25, (coarse, fine)


def test_areas_need_normals() -> None:
    with pytest.raises(InputError, match="increments: expected 'gaussian' with srk"):
        sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=1.0, method="srk", increments="rademacher")
    with pytest.raises(InputError, match="did you mean 'rademacher'"):
        sb.SGDSDE(learning_rate=0.1, increments="rademecher")  # type: ignore[arg-type]
