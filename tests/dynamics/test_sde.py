"""The SDE: its diffusion is the gradient noise, and torchsde solves it as any other."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
import torchsde
from conftest import GivenIncrements
from hypothesis import given, settings
from hypothesis import strategies as st

import sdebias as sb
from sdebias.dynamics.increments import INCREMENTS, read
from sdebias.errors import InputError


def rows(problem: sb.Problem, count: int = 4, seed: int = 3) -> torch.Tensor:
    lead = 1 if problem.replicates is None else problem.replicates
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(lead * count, problem.layout.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["problem", "replicated"])
@pytest.mark.parametrize("options", [{}, {"order": 2}, {"noise": "isotropic", "temperature": 0.1}], ids=str)
def test_fused_products_equal_the_dense_ones(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    problem = request.getfixturevalue(name)
    sde = sb.SGDSDE(learning_rate=0.1, batch_size=2, **options).bind(problem)
    y = rows(problem)
    v = torch.randn(len(y), sde.noise_channels, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    g = sde.g(0.0, y)
    dense = g * v if g.ndim == 2 else (g @ v.unsqueeze(-1)).squeeze(-1)
    f, product = sde.f_and_g_prod(0.0, y, v)
    torch.testing.assert_close(product, dense, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sde.g_prod(0.0, y, v), dense, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sde.f(0.0, y), f, rtol=1e-12, atol=1e-12)


def test_diffusion_is_the_gradient_noise_covariance(problem: sb.problems.HadamardRegression) -> None:
    sde = sb.SGDSDE(learning_rate=0.1, batch_size=3).bind(problem)
    g = sde.g(0.0, rows(problem))
    covariance = problem.gradient_noise_covariance(rows(problem))
    torch.testing.assert_close(g @ g.mT, 0.1**2 / 3 * covariance, rtol=1e-10, atol=1e-12)


def test_second_order_drift_is_that_of_the_modified_loss(problem: sb.problems.HadamardRegression) -> None:
    y = rows(problem).requires_grad_(True)
    modified = problem.loss(y) + 0.1 / 4 * problem.gradient(y).square().sum(-1)
    expected = -0.1 * torch.autograd.grad(modified.sum(), y)[0]
    drift = sb.SGDSDE(learning_rate=0.1, order=2).bind(problem).f(0.0, y.detach())
    torch.testing.assert_close(drift, expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_minibatch_noise_is_horizontal(values: list[float]) -> None:
    from conftest import regression

    problem = sb.problems.HadamardRegression(*regression())
    symmetry = sb.symmetry.Rescaling("p", "q").bind(problem)
    theta = torch.tensor([values], dtype=torch.float64)
    g = sb.SGDSDE(learning_rate=1.0).bind(problem).g(0.0, theta)
    assert (
        float((symmetry.fundamental_vector_fields(theta) @ g).abs().max()) < 1e-10 * (1 + float(theta.abs().max())) ** 4
    )


@pytest.mark.parametrize("options", [{}, {"noise": "isotropic", "temperature": 0.02}], ids=str)
def test_plain_torchsde_gives_the_same_law(problem: sb.problems.HadamardRegression, options: dict[str, Any]) -> None:
    """Two-sample Kolmogorov–Smirnov on each parameter, Bonferroni at 1e-3; a tenth more η is rejected."""
    sde = sb.SGDSDE(learning_rate=0.05, substeps=2, **options)
    ours = sb.simulate(problem, sde, trajectories=3000, steps=10, seed=5, progress=False)
    start = problem.draw_initial(3000, torch.Generator().manual_seed(0))

    def smallest_p(solved: sb.SGDSDE) -> float:
        torch.manual_seed(6)
        with torch.no_grad():
            # Only the method is fixed: torchsde's own Brownian motion, sizes and checks.
            end = torchsde.sdeint(solved.bind(problem), start, torch.tensor([0.0, 10.0]), dt=0.5, method="euler")[-1]
        samples = zip(ours["theta"].isel(step=-1).values.T, end.numpy().T, strict=True)
        return 6 * min(scipy.stats.ks_2samp(a, b).pvalue for a, b in samples)

    assert smallest_p(sde) > 1e-3
    assert smallest_p(sb.SGDSDE(learning_rate=0.055, substeps=2, **options)) < 1e-3


def test_replicates_are_rows_of_one_solve(replicated: sb.problems.HadamardRegression) -> None:
    sde = sb.SGDSDE(learning_rate=[0.1, 0.2, 0.3], noise="isotropic", temperature=[0.1, 0.2, 0.3]).bind(replicated)
    y = rows(replicated)
    single = [
        sb.SGDSDE(learning_rate=0.1 * (r + 1), noise="isotropic", temperature=0.1 * (r + 1)).bind(
            sb.problems.HadamardRegression(*(replicated.data[name][1][r] for name in ("X", "y")))
        )
        for r in range(3)
    ]
    for r, one in enumerate(single):
        part = slice(4 * r, 4 * r + 4)
        torch.testing.assert_close(sde.f(0.0, y)[part], one.f(0.0, y[part]))
        torch.testing.assert_close(sde.g(0.0, y)[part], one.g(0.0, y[part]))


def test_the_deviation_from_the_ito_row_is_of_first_order(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    """Slope of log |deviation| against log dt at substeps 1, 4, 16: its 99.9 % interval holds 1, and not 1.1."""
    from experiments.ito_convergence import deviations, fit_order

    found = deviations(problem, symmetry, learning_rate=0.05, trajectories=4096, steps=20, save_every=1, seed=2)
    order, error = fit_order(found)
    assert abs(order - 1) < 3.3 * error, (order, error)
    assert abs(order - 1.1) > 3.3 * error, (order, error)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"noise": "isotopic"}, "did you mean 'isotropic'"),
            ({"method": "milstein"}, "one of euler"),
            ({"order": 3}, "order: expected 1 or 2"),
            ({"substeps": 3}, "a power of two"),
            ({"substeps": 0}, "substeps: expected a whole number >= 1"),
            ({"temperature": 0.1}, "none with minibatch noise"),
            ({"noise": "isotropic"}, "a temperature > 0 with isotropic noise"),
            ({"noise": "isotropic", "temperature": -1.0}, "temperature: expected a positive finite number"),
            ({"batch_size": 0}, "batch_size: expected a whole number >= 1"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            sb.SGDSDE(learning_rate=0.1, **options)


@pytest.mark.parametrize("kind", INCREMENTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 2},
        {"noise": "isotropic", "temperature": 0.1},
        {"noise": sb.noise.label(std=0.3)},
        {"noise": sb.noise.horizontal(sb.noise.minibatch())},
        {"weight_decay": 0.1, "gauge_stiffness": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["problem", "replicated"])
def test_engine_equals_torchsde_on_the_same_increments(
    name: str, options: dict[str, Any], kind: Any, request: pytest.FixtureRequest
) -> None:
    problem = request.getfixturevalue(name)
    sde = sb.SGDSDE(learning_rate=0.1, batch_size=2, substeps=4, increments=kind, **options)
    sde = sde.bind(problem, sb.symmetry.Rescaling("p", "q"))
    theta = problem.draw_initial(3, torch.Generator().manual_seed(1))
    path = sde.integrate(theta, [0, 1, 3], torch.Generator().manual_seed(9))
    lead = tuple(theta.shape[:-1])
    ahead = (sde.windows_ahead(12, lead), *lead)
    draws = sde.draw(12, ahead, torch.Generator().manual_seed(9))["increment"][:, 0]
    increments = torch.stack([0.5 * read(kind, draws, step, torch.float64) for step in range(12)])
    with torch.no_grad():
        solved = torchsde.sdeint(
            sde,
            theta.flatten(0, -2),
            torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64),
            bm=GivenIncrements(increments.flatten(1, -2)),
            method="euler",
            dt=0.25,
        )
    torch.testing.assert_close(path.flatten(1, -2), solved, rtol=1e-14, atol=1e-14)


def test_torchsde_as_engine_has_the_law_of_the_fused_one(problem: sb.problems.HadamardRegression) -> None:
    """Two-sample Kolmogorov–Smirnov on each parameter, Bonferroni at 1e-3; a tenth more η is rejected."""

    def smallest_p(rate: float) -> float:
        one = sb.simulate(problem, sb.SGDSDE(learning_rate=0.05, substeps=2), trajectories=3000, steps=10, seed=5)
        other = sb.SGDSDE(learning_rate=rate, substeps=2, engine="torchsde")
        two = sb.simulate(problem, other, trajectories=3000, steps=10, seed=6)
        samples = zip(*(ens["theta"].isel(step=-1).values.T for ens in (one, two)), strict=True)
        return 6 * min(scipy.stats.ks_2samp(a, b).pvalue for a, b in samples)

    assert smallest_p(0.05) > 1e-3
    assert smallest_p(0.055) < 1e-3
