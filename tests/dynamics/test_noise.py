"""Noise models: each diffusion is the one that it states, fused or dense, and round-trips as plain data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdebias as sb
from sdebias.dynamics import Dynamics
from sdebias.dynamics.noise import Noise, as_noise
from sdebias.errors import InputError

RATE, BATCH = 0.1, 3
NOISES: dict[str, Noise] = {
    "minibatch": sb.noise.minibatch(),
    "without replacement": sb.noise.minibatch(replacement=False),
    "label": sb.noise.label(0.3),
    "isotropic": sb.noise.isotropic(0.2),
    "diagonal": sb.noise.diagonal(),
    "horizontal isotropic": sb.noise.horizontal(sb.noise.isotropic(0.2)),
    "horizontal diagonal": sb.noise.horizontal(sb.noise.diagonal()),
}
each_noise = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())


def covariance(theta: Tensor) -> Tensor:
    """Return a covariance of rank two that depends on the point."""
    one, two = theta, theta.square()
    return one.unsqueeze(-1) * one.unsqueeze(-2) + two.unsqueeze(-1) * two.unsqueeze(-2)


def points(problem: sb.Problem, seed: int = 3) -> Tensor:
    lead = 1 if problem.replicates is None else problem.replicates
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(lead * 4, problem.layout.size, generator=generator, dtype=torch.float64)


def factorization() -> sb.problems.MatrixFactorization:
    return sb.problems.MatrixFactorization(np.random.default_rng(0).standard_normal((3, 3)), rank=2)


def squared(sde: sb.SGDSDE, y: Tensor) -> Tensor:
    """Return g gᵀ of the bound SDE."""
    g = sde.g(0.0, y)
    g = torch.diag_embed(g) if g.ndim == 2 else g
    return g @ g.mT


@pytest.mark.parametrize("name", ["problem", "replicated"])
@pytest.mark.parametrize("noise", [*NOISES.values(), sb.noise.gaussian(covariance)], ids=[*NOISES, "gaussian"])
def test_product_is_the_dense_one(
    name: str, noise: Noise, symmetry: sb.symmetry.Rescaling, request: pytest.FixtureRequest
) -> None:
    problem = request.getfixturevalue(name)
    sde = sb.SGDSDE(learning_rate=RATE, batch_size=BATCH, noise=noise).bind(problem, symmetry)
    y = points(problem)
    v = torch.randn(len(y), sde.noise_channels, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    g = sde.g(0.0, y)
    dense = g * v if sde.noise_type == "diagonal" else (g @ v.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(sde.g_prod(0.0, y, v), dense, rtol=1e-9, atol=1e-11)


def test_each_covariance_is_as_stated(problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
    y = points(problem)
    sigma = problem.gradient_noise_covariance(y)
    eye = torch.eye(6, dtype=torch.float64)
    project = torch.stack([symmetry.bind(problem).horizontal_projection(eye, point.expand(6, 6)) for point in y])
    X = problem.data["X"][1]
    p, q = y[:, None, :3], y[:, None, 3:]
    slopes = torch.cat([q * X, p * X], dim=-1)  # ∇f_i of f = Σ_j x_ij p_j q_j
    n, unit = problem.n_samples, RATE**2 / BATCH
    expected = {
        "minibatch": unit * sigma,
        "without replacement": RATE**2 * (n - BATCH) / (BATCH * (n - 1)) * sigma,
        "label": unit * 0.3**2 * slopes.mT @ slopes / n,
        "isotropic": (2 * RATE * 0.2 * eye).expand(4, 6, 6),
        "diagonal": unit * torch.diag_embed(sigma.diagonal(dim1=-2, dim2=-1)),
        "horizontal isotropic": 2 * RATE * 0.2 * project,
        "horizontal diagonal": unit * project @ torch.diag_embed(sigma.diagonal(dim1=-2, dim2=-1)) @ project,
    }
    for name, noise in NOISES.items():
        sde = sb.SGDSDE(learning_rate=RATE, batch_size=BATCH, noise=noise).bind(problem, symmetry)
        torch.testing.assert_close(squared(sde, y), expected[name], rtol=1e-9, atol=1e-12, msg=name)
    sde = sb.SGDSDE(learning_rate=RATE, batch_size=BATCH, noise=sb.noise.gaussian(covariance)).bind(problem)
    torch.testing.assert_close(squared(sde, y), unit * covariance(y), rtol=1e-9, atol=1e-12)


def test_label_noise_is_the_change_of_a_gradient_by_the_targets() -> None:
    """Outputs of several entries, and targets of another name: Σ over draws of ε of the change is g gᵀ."""
    rng = np.random.default_rng(1)
    attention = sb.problems.SingleHeadAttention(rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 3, 2)))
    for problem, target in ((attention, "y"), (factorization(), "value")):
        sde = sb.SGDSDE(learning_rate=1.0, batch_size=2, noise=sb.noise.label(0.5, target)).bind(problem)
        theta = points(problem)[:1]
        shape = problem.samples[target].shape
        rows = []
        for entry in range(problem.samples[target].numel()):
            change = torch.zeros(shape, dtype=torch.float64)
            change.view(-1)[entry] = 0.5
            moved = problem.at({target: problem.samples[target] + change})
            rows.append((moved.per_sample_gradient(theta) - problem.per_sample_gradient(theta)).sum(-2))
        stacked = torch.cat(rows)  # one sample's target changes: the sum over samples is its ∇ℓ_i
        expected = stacked.mT @ stacked / (2 * problem.n_samples)
        torch.testing.assert_close(squared(sde, theta)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", [NOISES["minibatch"], NOISES["label"], NOISES["horizontal isotropic"]], ids=repr)
def test_horizontal_noise_moves_nothing_along_orbits(noise: Noise) -> None:
    problem = factorization()
    symmetry = sb.symmetry.GeneralLinear("U", "V")
    noise = sb.noise.label(0.3, "value") if isinstance(noise, sb.noise.Label) else noise
    sde = sb.SGDSDE(learning_rate=RATE, noise=noise).bind(problem, symmetry)
    y = points(problem)
    fields = symmetry.bind(problem).fundamental_vector_fields(y)
    assert float((fields @ sde.g(0.0, y)).abs().max()) < 1e-10
    assert float((fields @ torch.diag_embed(torch.ones_like(y))).abs().max()) > 0.1


@pytest.mark.parametrize("dynamics", [sb.SGD, sb.SGDSDE])
def test_potential_acts_beside_the_loss(
    dynamics: type[Dynamics], problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    """The force is ∇L + γθ + κ Σ_a C_a A_aθ; the curvature of the whole enters at order 2."""
    bound = dynamics(learning_rate=RATE, weight_decay=0.3, gauge_stiffness=0.7).bind(problem, symmetry)
    theta = points(problem).requires_grad_(True)
    charges = symmetry.bind(problem)
    matrices = charges.charge_matrices(theta)
    assert isinstance(matrices, Tensor)
    explicit = problem.gradient(theta) + 0.3 * theta + 0.7 * (charges.charge(theta) @ matrices) * theta
    torch.testing.assert_close(bound.with_potential(theta, problem.gradient(theta)), explicit)
    potential = problem.loss(theta) + 0.15 * theta.square().sum(-1) + charges.gauge_potential(theta, 0.7)
    (expected,) = torch.autograd.grad(potential.sum(), theta, create_graph=True)
    if isinstance(bound, sb.SGDSDE):
        second = sb.SGDSDE(learning_rate=RATE, weight_decay=0.3, gauge_stiffness=0.7, order=2).bind(problem, symmetry)
        modified = (potential + RATE / 4 * expected.square().sum(-1)).sum()
        drift = -RATE * torch.autograd.grad(modified, theta)[0]
        torch.testing.assert_close(second.f(0.0, theta.detach()), drift)


@each_noise
def test_spec_makes_the_noise_again(noise: Noise) -> None:
    spec = json.loads(json.dumps(noise.spec()))
    assert as_noise(spec) == noise
    sde = sb.SGDSDE(learning_rate=RATE, noise=noise)
    plain: dict[str, Any] = json.loads(json.dumps(sde.spec()))
    del plain["type"]
    assert sb.SGDSDE(**plain) == sde
    assert all(isinstance(value, str | int | float) for value in sde.attributes().values())


def test_a_configuration_names_noise_and_schedule_as_tables(
    tmp_path: Any, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    """The ensemble's file runs again to the same numbers."""
    from sdebias import config, storage

    sde = sb.SGDSDE(
        learning_rate=sb.schedule.cosine(0.02, 0.001, 8),
        noise=sb.noise.horizontal(sb.noise.isotropic(0.1)),
        weight_decay=0.1,
        gauge_stiffness=0.5,
    )
    ens = sb.simulate(problem, sde, symmetry=symmetry, trajectories=3, steps=8, progress=False)
    storage.save_dataset(ens, tmp_path / "run.nc")
    run = config.load(tmp_path / "run.nc")
    assert run.dynamics["run"] == sde
    again = sb.simulate(
        run.problem, run.dynamics["run"], symmetry=run.symmetry, trajectories=3, steps=8, progress=False
    )
    np.testing.assert_array_equal(again["theta"], ens["theta"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: as_noise({"noise": "horizontl", "base": "diagonal"}), "did you mean 'horizontal'"),
            (lambda: as_noise({"noise": "label", "sd": 1.0}), "the parameters of label noise"),
            (lambda: as_noise("label"), "the parameters of label noise"),
            (lambda: sb.noise.label(-1.0), "std: expected a positive"),
            (lambda: sb.noise.isotropic(0.0), "temperature: expected a positive"),
            (lambda: sb.noise.horizontal(sb.noise.horizontal(sb.noise.minibatch())), "not projected yet"),
            (lambda: as_noise(sb.noise.gaussian(covariance).spec()), "run from Python with the covariance"),
            (lambda: as_noise({"noise": "minibatch", "replacement": 1}), "replacement: expected true or false"),
            (lambda: sb.SGD(learning_rate=0.1, weight_decay=-1.0), "weight_decay: expected a positive"),
        ],
    )
    def test_values(self, make: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            make()

    @pytest.mark.parametrize(
        "options", [{"noise": {"noise": "horizontal", "base": "diagonal"}}, {"gauge_stiffness": 1}]
    )
    def test_no_symmetry(self, options: dict[str, Any], problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="symmetry: expected one, for horizontal noise or a gauge potential"):
            sb.SGDSDE(learning_rate=RATE, **options).bind(problem)

    def test_a_gauge_without_charges(self, problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="a symmetry with charges"):
            sb.SGD(learning_rate=RATE, gauge_stiffness=1.0).bind(problem, sb.symmetry.Orthogonal("p"))

    def test_no_targets(self) -> None:
        with pytest.raises(InputError, match="a problem with real targets 'y'"):
            sb.SGDSDE(learning_rate=RATE, noise=sb.noise.label(1.0)).bind(factorization())

    def test_temperatures_without_replicates(self, problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="2 values for no replicates"):
            sb.SGDSDE(learning_rate=RATE, noise=sb.noise.isotropic([0.1, 0.2])).bind(problem)
