"""Split of the dynamics: Itô's formula with dense derivatives, the mean over all batches, and what the parts mean."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import every_model, regression

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.errors import DataError
from sdebias.prediction.split import COMPONENTS, split_states

RATE = 0.02


def covariance(theta: torch.Tensor) -> torch.Tensor:
    """Return a covariance that depends on the state."""
    return torch.diag_embed(0.1 + theta.square()) + 0.05


SDES = {
    "minibatch": sb.SGDSDE(learning_rate=RATE, batch_size=2),
    "second order": sb.SGDSDE(learning_rate=RATE, batch_size=2, order=2),
    "no replacement": sb.SGDSDE(learning_rate=RATE, batch_size=2, noise=sb.noise.minibatch(replacement=False)),
    "potential": sb.SGDSDE(learning_rate=RATE, order=2, weight_decay=0.1, gauge_stiffness=0.3),
    "label": sb.SGDSDE(learning_rate=RATE, batch_size=2, noise=sb.noise.label(0.3)),
    "diagonal": sb.SGDSDE(learning_rate=RATE, batch_size=2, noise="diagonal"),
    "horizontal minibatch": sb.SGDSDE(learning_rate=RATE, noise=sb.noise.horizontal(sb.noise.minibatch())),
    "horizontal isotropic": sb.SGDSDE(learning_rate=RATE, noise=sb.noise.horizontal(sb.noise.isotropic(0.1))),
    "horizontal diagonal": sb.SGDSDE(learning_rate=RATE, noise=sb.noise.horizontal(sb.noise.diagonal()), order=2),
    "gaussian": sb.SGDSDE(learning_rate=RATE, noise=sb.noise.gaussian(covariance)),
    "isotropic": sb.SGDSDE(learning_rate=RATE, noise="isotropic", temperature=0.1),
    "isotropic, second order": sb.SGDSDE(learning_rate=RATE, noise="isotropic", temperature=0.1, order=2),
}


def states(problem: sb.Problem, points: int = 2) -> torch.Tensor:
    lead = () if problem.replicates is None else (problem.replicates,)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*lead, points, problem.layout.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dynamics", SDES.values(), ids=SDES.keys())
def test_sde_rows_are_itos_formula(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, dynamics: sb.SGDSDE
) -> None:
    """Each part is that of the dense f, g of the SDE and dense derivatives of charges and predictors."""
    theta = states(problem)
    parts = split_states(theta, problem, symmetry, dynamics.spec(), covariance=covariance)
    sde, bound = dynamics.bind(problem, symmetry), symmetry.bind(problem)
    f, g = sde.f(0.0, theta), sde.g(0.0, theta)
    g = torch.diag_embed(g) if g.ndim == 2 else g
    diffusion = g @ g.mT
    torch.testing.assert_close(parts["drift_component"][:, :2].sum(1), f)
    for name, function, spread in (
        ("charge_rate", bound.charge, parts["charge_diffusion"]),
        ("quotient_drift", problem.predictor, parts["quotient_diffusion"]),
    ):
        for k in range(len(theta)):
            jacobian = torch.func.jacrev(function)(theta[k])
            hessian = torch.func.hessian(function)(theta[k])
            second = 0.5 * torch.einsum("ij,aij->a", diffusion[k], hessian)
            rows = parts[name][k]
            torch.testing.assert_close(rows[0] + rows[1], jacobian @ f[k], atol=1e-14, rtol=1e-9)
            torch.testing.assert_close(rows[2] + rows[3], second, atol=1e-14, rtol=1e-9)
            finite = torch.einsum("i,j,aij->a", f[k], f[k], hessian) / 2 / dynamics.substeps
            got = parts[name.replace("rate", "finite_step").replace("drift", "finite_step")][k]
            torch.testing.assert_close(got, finite, atol=1e-16, rtol=1e-9)
            want = jacobian @ diffusion[k] @ jacobian.mT
            # Of charges the variances only.
            got, want = (spread[k], want.diagonal()) if spread.ndim == 2 else (spread[k], want)
            torch.testing.assert_close(got, want, atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize(("size", "replacement"), [(1, True), (2, True), (3, True), (2, False), (3, False)])
def test_sgd_row_is_the_mean_over_all_batches(symmetry: sb.symmetry.Rescaling, size: int, replacement: bool) -> None:
    """Charges and predictors p∘q are quadratic: the sum of the parts is the exact mean change, over every batch."""
    X, y = regression(features=2, samples=6)
    problem = sb.problems.HadamardRegression(X, y)
    bound = symmetry.bind(problem)
    theta = torch.tensor([[0.9, -0.4, 0.3, 1.2]], dtype=torch.float64)
    batches = itertools.product(range(6), repeat=size) if replacement else itertools.permutations(range(6), size)
    indices = torch.tensor(list(batches))
    after = theta - RATE * problem.batch_gradient(theta.expand(len(indices), -1), indices)
    sgd = sb.SGD(learning_rate=RATE, batch_size=size, replacement=replacement)
    parts = split_states(theta, problem, symmetry, sgd.spec())
    for name, function in (("charge_rate", bound.charge), ("quotient_drift", problem.predictor)):
        exact = function(after).mean(0) - function(theta)[0]
        torch.testing.assert_close(parts[name].sum(-2)[0], exact, atol=1e-16, rtol=1e-9)
    covariance = torch.cov((after - theta).mT, correction=0)
    jacobian = torch.func.jacrev(problem.predictor)(theta[0])
    want = jacobian @ covariance @ jacobian.mT
    torch.testing.assert_close(parts["quotient_diffusion"][0], want, atol=1e-16, rtol=1e-9)
    # Every batch gradient is horizontal: to first order no batch moves a charge.
    assert float(parts["charge_diffusion"].abs().max()) < 1e-24


# Noise of the gradient or of every parameter alike, which every model can have.
COMMON = {name: sde for name, sde in SDES.items() if isinstance(sde.noise, str) and name != "diagonal"}


@pytest.mark.parametrize("dynamics", [sb.SGD(learning_rate=RATE), *COMMON.values()], ids=["SGD", *COMMON])
@pytest.mark.parametrize("problem", every_model(), ids=lambda problem: type(problem).__name__)
def test_parts_of_the_drift_give_the_rates_of_charges(problem: sb.Problem, dynamics: Dynamics) -> None:
    """⟨∇C_a, P_V b + ito_vertical⟩ is the rate of C_a for every model, and the rest is orthogonal to ∇C_a.

    The twin: P_V b alone, a pointwise projection, is not the rate; under gradient noise at order 1 it is zero.
    """
    symmetry = problem.symmetry()
    assert symmetry is not None
    problem.stream = None
    theta = states(problem)
    parts = split_states(theta, problem, symmetry, dynamics.spec())
    bound = symmetry.bind(problem)
    fields = bound.charge_basis(theta) @ bound.fundamental_vector_fields(theta)
    rates = parts["drift_component"] @ fields.mT
    torch.testing.assert_close(rates, parts["charge_rate"], atol=1e-12, rtol=1e-8)
    total, projected = parts["charge_rate"].sum(-2), rates[..., 0, :]
    if dynamics.spec().get("noise") != "isotropic" and dynamics.spec().get("order") != 2:
        assert float(projected.abs().max()) < 1e-12
        shifts = isinstance(problem, sb.problems.SoftmaxRegression)  # A = 0: nothing drifts
        assert (float(total.abs().max()) < 1e-12) == shifts


def test_horizontal_parts_give_the_drift_of_predictors(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    theta = states(problem)
    parts = split_states(theta, problem, symmetry, SDES["minibatch"].spec())
    jacobian = torch.func.vmap(torch.func.jacrev(problem.predictor))(theta)
    moved = parts["drift_component"] @ jacobian.mT
    torch.testing.assert_close(moved, parts["quotient_drift"], atol=1e-14, rtol=1e-9)


def test_a_dataset_is_split_at_every_state(
    replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge rates cumulate to `predict_orbit_drift`; pieces give the whole; a lost state is NaN alone."""
    sgd = sb.SGD(learning_rate=[0.02, 0.01, 0.03], batch_size=2)
    ens = sb.simulate(replicated, sgd, symmetry=symmetry, trajectories=5, steps=4, save_every=1, seed=1, progress=False)
    split = sb.split_dynamics(ens, replicated, symmetry)
    assert split["charge_rate"].dims == ("replicate", "trajectory", "step", "component", "charge")
    assert list(split["component"].values) == list(COMPONENTS)
    assert split.attrs["unit"] == 1
    drift = sb.predict_orbit_drift(ens, replicated, symmetry)["predicted_drift"]
    rates = split["charge_rate"].sum("component")
    np.testing.assert_allclose(rates[:, :, :-1].cumsum("step"), drift[:, :, 1:], rtol=1e-9, atol=1e-18)
    monkeypatch.setattr("sdebias.prediction.split.CHUNK_ELEMENTS", 1)
    for name, values in sb.split_dynamics(ens, replicated, symmetry).items():
        np.testing.assert_allclose(values, split[name], rtol=1e-12, atol=1e-20)
    ens["theta"][1, 2, 3] = np.nan
    bad = sb.split_dynamics(ens, replicated, symmetry)["quotient_drift"].isnull().any(("component", "predictor"))
    assert bad.sum() == 1
    assert bool(bad[1, 2, 3])


@pytest.mark.parametrize(
    "dynamics",
    [
        sb.SGD(learning_rate=sb.schedule.cosine(0.1, 0.01, steps=4)),
        sb.SGDSDE(learning_rate=sb.schedule.linear(0.1, 0.01, steps=4), noise=sb.noise.horizontal(sb.noise.diagonal())),
    ],
    ids=["SGD", "SDE"],
)
def test_a_schedule_gives_each_state_its_rate(
    problem: sb.problems.HadamardRegression,
    symmetry: sb.symmetry.Rescaling,
    dynamics: Dynamics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"symmetry": symmetry, "trajectories": 3, "steps": 4, "save_every": 1}
    ens = sb.simulate(problem, dynamics, progress=False, **options)
    monkeypatch.setattr("sdebias.prediction.split.CHUNK_ELEMENTS", 200)
    split = sb.split_dynamics(ens, problem, symmetry)
    rate = dynamics.learning_rate
    assert isinstance(rate, sb.schedule.Schedule)
    for k in range(4):
        constant = type(dynamics)(**{**_options(dynamics), "learning_rate": rate(k)})
        theta = torch.from_numpy(ens["theta"].values[:, k])
        for name, values in split_states(theta, problem, symmetry, constant.spec()).items():
            np.testing.assert_allclose(split[name].isel(step=k), values, rtol=1e-10, atol=1e-18)


def _options(dynamics: Dynamics) -> dict[str, Any]:
    return {
        f.name: getattr(dynamics, f.name) for f in dataclasses.fields(dynamics) if f.name not in ("problem", "symmetry")
    }


def test_compact_groups_have_no_charges() -> None:
    """Rotations of p and of the rest: no charge, yet a second-order term along the orbit where the noise has one."""
    rng = np.random.default_rng(0)
    problem = sb.problems.MatrixFactorization(rng.standard_normal((3, 2)), np.ones((3, 2), bool), rank=2)
    symmetry = sb.symmetry.Orthogonal("U", "V")
    theta = states(problem)
    parts = split_states(theta, problem, symmetry, SDES["minibatch"].spec())
    assert "charge_rate" not in parts
    # For an isometry ⟨v, (D X_a) v⟩ = 0: nothing drifts along a compact orbit to second order either.
    assert float(parts["drift_component"][:, [0, 2]].abs().max()) < 1e-14


class TestRefusals:
    def test_unknown_dynamics(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        with pytest.raises(DataError, match="dynamics type"):
            split_states(states(problem), problem, symmetry, {"type": "Adam"})
        with pytest.raises(DataError, match="an entry 'replacement'"):
            split_states(states(problem), problem, symmetry, {"type": "SGD", "learning_rate": 0.1, "batch_size": 1})

    def test_a_covariance_of_ones_own(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        noise = sb.noise.gaussian(lambda theta: torch.eye(6, dtype=theta.dtype).expand(*theta.shape, 6))
        with pytest.raises(DataError, match="covariance: expected that of the Gaussian noise"):
            split_states(states(problem), problem, symmetry, sb.SGDSDE(learning_rate=RATE, noise=noise).spec())

    def test_no_theta(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = sb.simulate(
            problem, SDES["minibatch"], trajectories=2, steps=4, save_every=1, save=["loss"], progress=False
        )
        with pytest.raises(DataError, match="theta at"):
            sb.split_dynamics(ens, problem, symmetry)
