"""Solvers: strong and weak order on equations with exact solutions, and which of them solve which form.

The exact solutions are those of geometric Brownian motion dX = μX dt + σX dW and of the Ornstein–Uhlenbeck process
dX = −θX dt + σ dW. Strong errors are taken on the paths of the project's own Brownian motion; weak errors without any
sampling, since a step of a linear equation is linear in X and its moments are integrals over normals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torchsde
from torch import Tensor

import sdebias as sb
from sdebias.dynamics.brownian import SequentialBrownian
from sdebias.dynamics.solvers import METHODS
from sdebias.errors import InputError

MU, SIGMA, THETA = 0.5, 0.8, 1.0
FINE = 2**8
STRONG, WEAK = np.array([4, 8, 16, 32]), np.array([128, 256, 512, 1024])


class Geometric:
    """Geometric Brownian motion in either form."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        self.sde_type = sde_type

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return (MU - (SIGMA**2 / 2 if self.sde_type == "stratonovich" else 0)) * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return SIGMA * y


class OrnsteinUhlenbeck:
    """The same in both forms."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        self.sde_type = sde_type

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -THETA * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return SIGMA * torch.ones_like(y)


class Replay:
    """Increments and areas on [0, 1] that were drawn once, on any coarser grid."""

    levy_area_approximation = "foster"

    def __init__(self, rows: int, seed: int) -> None:
        self.shape = (rows, 1)
        motion = SequentialBrownian(
            self.shape, torch.float64, torch.Generator().manual_seed(seed), levy_area_approximation="space-time"
        )
        drawn = [motion(j / FINE, (j + 1) / FINE, return_U=True) for j in range(FINE)]
        self.w, self.u = (torch.stack(parts) for parts in zip(*drawn, strict=True))

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        part = slice(round(float(ta) * FINE), round(float(tb) * FINE))
        w = self.w[part]
        before = w.cumsum(0) - w
        results = [w.sum(0), (self.u[part] + before / FINE).sum(0), torch.zeros(*self.shape, 1, dtype=torch.float64)]
        wanted = [result for result, want in zip(results, (True, return_U, return_A), strict=True) if want]
        return tuple(wanted) if len(wanted) > 1 else wanted[0]

    def exact(self, equation: type) -> Tensor:
        if equation is Geometric:
            return torch.exp((MU - SIGMA**2 / 2) + SIGMA * self.w.sum(0))
        left = 1 - torch.arange(1, FINE + 1, dtype=torch.float64)[:, None, None] / FINE
        noise = torch.exp(-THETA * left) * (self.w - THETA * self.u)
        return np.exp(-THETA) + SIGMA * noise.sum(0)


class Quadrature:
    """One step of length h on the nodes of Gauss and Hermite instead of draws: expectations are exact sums."""

    levy_area_approximation = "foster"

    def __init__(self, h: float) -> None:
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        one, two = np.meshgrid(nodes, nodes)
        self.h, self.shape = h, (one.size, 1)
        self.w = torch.from_numpy(one.reshape(-1, 1)) * h**0.5
        self.u = h * (self.w / 2 + torch.from_numpy(two.reshape(-1, 1)) * (h / 12) ** 0.5)
        self.weights = torch.from_numpy(np.outer(weights, weights).flatten() / weights.sum() ** 2)

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        results = [self.w, self.u, torch.zeros(*self.shape, 1, dtype=torch.float64)]
        wanted = [result for result, want in zip(results, (True, return_U, return_A), strict=True) if want]
        return tuple(wanted) if len(wanted) > 1 else wanted[0]

    def step_moments(self, equation: Any, method: str, start: float) -> tuple[float, float]:
        y = torch.full(self.shape, start, dtype=torch.float64)
        times = torch.tensor([0.0, self.h], dtype=torch.float64)
        with torch.no_grad():
            end = torchsde.sdeint(equation, y, times, bm=self, method=method, dt=self.h)[-1, :, 0]
        return float(self.weights @ end), float(self.weights @ end.square())


def slope(levels: np.ndarray, errors: list[float]) -> float:
    return float(np.polyfit(-np.log(levels), np.log(errors), 1)[0])


def strong_error(equation: Any, method: str, motion: Replay) -> list[float]:
    times, errors = torch.tensor([0.0, 1.0], dtype=torch.float64), []
    start = torch.ones(motion.shape, dtype=torch.float64)
    for number in STRONG:
        with torch.no_grad():
            end = torchsde.sdeint(equation, start, times, bm=motion, method=method, dt=1 / int(number))[-1]
        errors.append(float((end - motion.exact(type(equation))).square().mean() ** 0.5))
    return errors


def weak_errors(equation: Any, method: str) -> tuple[list[float], list[float]]:
    """Return the errors of E X and E X² at t = 1 by number of steps, of a method whose step depends on X alone."""
    if isinstance(equation, Geometric):
        exact = np.exp(MU), np.exp(2 * MU + SIGMA**2)
    else:
        exact = np.exp(-THETA), np.exp(-2 * THETA) + SIGMA**2 * (1 - np.exp(-2 * THETA)) / (2 * THETA)
    first, second = [], []
    for number in WEAK:
        step = Quadrature(1 / int(number))
        (a0, b0), (a1, b1), (_, b2) = (step.step_moments(equation, method, start) for start in (0.0, 1.0, -1.0))
        # E[X'|X] = a0 + (a1 − a0) X and E[X'²|X] = b0 + (b1 − b2)/2 X + ((b1 + b2)/2 − b0) X².
        matrix = np.array([[1, 0, 0], [a0, a1 - a0, 0], [b0, (b1 - b2) / 2, (b1 + b2) / 2 - b0]])
        _, mean, square = np.linalg.matrix_power(matrix, int(number)) @ np.ones(3)
        first.append(abs(mean - exact[0]))
        second.append(abs(square - exact[1]))
    return first, second


# Strong order on the geometric and on the Ornstein–Uhlenbeck process, weak order on each.
ORDERS = {
    "euler": (0.5, 1, 1, 1),
    "milstein": (1, 1, 1, 1),
    "srk": (1.5, 2, 1.5, 2),
    "midpoint": (1, 1, 1, 2),
    "heun": (1, 1, 1, 2),
    "euler_heun": (1, 1, 1, 1),
    "reversible_heun": (1, 1),
    "log_ode": (1, 1, 1, 2),
}
FORMS = [(name, form) for name, method in METHODS.items() for form in method.sde_types]


@pytest.mark.parametrize("equation", [Geometric, OrnsteinUhlenbeck])
@pytest.mark.parametrize(("method", "form"), FORMS)
def test_strong_order(method: str, form: str, equation: type) -> None:
    """Slope of the root mean square error at 4 to 32 steps, on paths of the project's Brownian motion.

    Within 0.15, three times the bias that such large steps leave; orders differ by 1/2.
    """
    order = ORDERS[method][0 if equation is Geometric else 1]
    assert abs(slope(STRONG, strong_error(equation(form), method, Replay(2000, 0))) - order) < 0.15


@pytest.mark.parametrize("equation", [Geometric, OrnsteinUhlenbeck])
@pytest.mark.parametrize(("method", "form"), [pair for pair in FORMS if pair[0] != "reversible_heun"])
def test_weak_order(method: str, form: str, equation: type) -> None:
    """Slope of the errors of E X and E X² at 128 to 1,024 steps, not sampled: the lower is the order, within 0.15."""
    order = ORDERS[method][2 if equation is Geometric else 3]
    lower = min(slope(WEAK, errors) for errors in weak_errors(equation(form), method))
    assert abs(lower - order) < 0.15


def test_weak_order_of_reversible_heun() -> None:
    """Its step depends on more than X, so the mean is sampled, less that of the exact solution of the same path.

    Within 0.2 of order 1: the standard error of the slope is below 0.05.
    """
    motion, times = Replay(20_000, 1), torch.tensor([0.0, 1.0], dtype=torch.float64)
    start, errors = torch.ones(motion.shape, dtype=torch.float64), []
    for number in STRONG:
        with torch.no_grad():
            end = torchsde.sdeint(
                Geometric("stratonovich"), start, times, bm=motion, method="reversible_heun", dt=1 / int(number)
            )[-1]
        errors.append(abs(float((end - motion.exact(Geometric)).mean())))
    assert abs(slope(STRONG, errors) - 1) < 0.2


@pytest.mark.parametrize(
    "noise",
    [sb.noise.minibatch(), sb.noise.label(0.4), sb.noise.diagonal(), sb.noise.horizontal(sb.noise.isotropic(0.3))],
    ids=repr,
)
@pytest.mark.parametrize("name", ["problem", "replicated"])
def test_correction_is_half_the_derivative_of_g_along_g(
    name: str, noise: sb.noise.Noise, symmetry: sb.symmetry.Rescaling, request: pytest.FixtureRequest
) -> None:
    """f of the Itô form less f of the Stratonovich form against the whole Jacobian of the dense g, row by row."""
    problem = request.getfixturevalue(name)
    forms: Any = ("ito", "midpoint", "stratonovich")
    ito, stratonovich = (
        sb.SGDSDE(learning_rate=0.1, noise=noise, sde_type=form, method=method).bind(problem, symmetry)
        for form, method in ((forms[0], "euler"), (forms[2], forms[1]))
    )
    rows = 2 * (problem.replicates or 1)
    y = torch.randn(rows, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda point: stratonovich.g(0.0, point), y)
    g, own = stratonovich.g(0.0, y), range(rows)
    if g.ndim == 2:
        g, jacobian = torch.diag_embed(g), torch.diag_embed(jacobian.permute(0, 2, 3, 1)).permute(0, 3, 4, 1, 2)
    expected = 0.5 * torch.einsum("rikj,rjk->ri", jacobian[own, :, :, own], g)
    torch.testing.assert_close(ito.f(0.0, y) - stratonovich.f(0.0, y), expected, rtol=1e-8, atol=1e-11)
    assert float(expected.abs().max()) > 1e-5


@pytest.mark.parametrize(
    "method",
    [
        "heun",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("midpoint", "euler_heun", "reversible_heun", "log_ode")),
    ],
)
def test_stratonovich_form_has_the_law_of_the_ito_form(
    method: str, problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two-sample Kolmogorov–Smirnov on each parameter, Bonferroni at 1e-3; without the correction it is rejected.

    From the least-squares solution, where the drift is small and leaves the solvers' steps no error to show.
    """
    X, y = problem.data["X"][1], problem.data["y"][1]
    best = torch.linalg.lstsq(X, y.unsqueeze(-1)).solution.squeeze(-1)
    problem = sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": best})
    options: dict[str, Any] = {"learning_rate": 0.05, "noise": sb.noise.label(2.5)}
    law: dict[str, Any] = {"trajectories": 3000, "steps": 8, "save_every": 8, "progress": False, "block_size": 3000}

    def end(sde: sb.SGDSDE, seed: int) -> np.ndarray:
        return sb.simulate(problem, sde, seed=seed, save=["theta"], **law)["theta"].values[:, -1]

    def smallest_p() -> float:
        sde = sb.SGDSDE(**options, substeps=4, method=method, sde_type="stratonovich")
        return 6 * min(scipy.stats.ks_2samp(a, b).pvalue for a, b in zip(end(sde, 2).T, ito.T, strict=True))

    ito = end(sb.SGDSDE(**options, substeps=32), 3)
    assert smallest_p() > 1e-3
    monkeypatch.setattr(sb.noise.Label, "ito_correction", lambda self, dynamics, rate, theta: torch.zeros_like(theta))
    assert smallest_p() < 1e-3


@pytest.fixture(scope="module")
def means() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and standard errors of ensembles that have been simulated for another method."""
    return {}


@pytest.mark.parametrize(("method", "form"), FORMS)
@pytest.mark.parametrize("noise", [sb.noise.minibatch(), sb.noise.diagonal(), sb.noise.isotropic(0.01)], ids=repr)
def test_every_method_gives_the_mean_of_euler(
    method: str, form: Any, noise: sb.noise.Noise, problem: sb.problems.HadamardRegression, means: dict[str, Any]
) -> None:
    """A wrong pairing is refused with those that are right; a right one ends within 4 standard errors of euler's mean.

    With 8 substeps, against euler with 16, so that the bias of the solver steps is about one standard error, for the
    mean of six parameters: false-alarm rate 4e-4 each. A learning rate a tenth larger is rejected. Diagonal noise is
    refused to milstein, which solves another equation: its mean was seven standard errors off.
    """
    kind = "additive" if noise.constant else "general"
    if kind not in METHODS[method].noises:
        with pytest.raises(InputError, match=f"for {kind} noise in the {form} form, got '{method}'"):
            sb.SGDSDE(learning_rate=0.05, noise=noise, method=method, sde_type=form)
        return
    law: dict[str, Any] = {"trajectories": 3000, "steps": 4, "save_every": 4, "progress": False, "block_size": 1500}

    def mean(rate: float, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        sde = sb.SGDSDE(learning_rate=rate, noise=noise, **options)
        key = f"{sde!r} {seed}"
        if key not in means:
            end = sb.simulate(problem, sde, seed=seed, save=["theta"], **law)["theta"].values[:, -1]
            means[key] = end.mean(0), end.std(0) / len(end) ** 0.5
        return means[key]

    found, error = mean(0.05, 1, substeps=8, method=method, sde_type=form)
    for rate, agrees in ((0.05, True), (0.055, False)):
        expected, other = mean(rate, 2, substeps=16)
        assert bool((np.abs(found - expected) < 4 * np.hypot(error, other)).all()) is agrees


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"sde_type": "stratonovich"}, "one of midpoint, heun, euler_heun, reversible_heun, log_ode for general"),
            ({"method": "heun"}, "or set sde_type = 'stratonovich'"),
            ({"method": "srk"}, "one of euler for general noise in the ito form"),
            (
                {"method": "srk", "noise": sb.noise.isotropic(1.0), "sde_type": "stratonovich"},
                "or set sde_type = 'ito'",
            ),
            ({"method": "hein"}, "did you mean 'heun'"),
            ({"sde_type": "itoo"}, "did you mean 'ito'"),
            (
                {"method": "heun", "sde_type": "stratonovich", "noise": sb.noise.gaussian(torch.diag_embed)},
                "a noise whose g can be differentiated",
            ),
        ],
    )
    def test_pairings(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            sb.SGDSDE(learning_rate=0.1, **options)

    def test_a_stream(self) -> None:
        problem = sb.problems.ShallowReLU.teacher_student(3, units=2, pool=8)
        with pytest.raises(InputError, match="'euler' and engine 'fused' for a stream"):
            sb.SGDSDE(learning_rate=0.1, method="heun", sde_type="stratonovich").bind(problem)
