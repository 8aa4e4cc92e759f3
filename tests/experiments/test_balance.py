"""Ratios, conservation and drift over seeds, and the losses that Figures 2 and 4 add."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from experiments import balance, fig2_relu, fig3_attention, fig4_matrix_completion

NETWORK = fig2_relu.Network(seeds=3, steps=200, save_every=20, pool=64)
COMPLETION = fig4_matrix_completion.Completion(seeds=3, size=6, steps=200, save_every=20, census=4)


@pytest.fixture(scope="module")
def datasets() -> dict[str, xr.Dataset]:
    return dict(fig2_relu.simulate(NETWORK))


def test_ratio_product_and_charge_are_those_of_the_norms() -> None:
    problem, start = fig3_attention.student(fig3_attention.Head(seeds=2))
    symmetry = sb.symmetry.Rescaling.columns("W_Q", "W_K")
    ensemble = sb.simulate(
        problem, sb.SGD(learning_rate=1e-3), symmetry=symmetry, trajectories=1, steps=2, save_every=1, initial=start
    )
    run = balance.with_balance(ensemble, problem, symmetry)
    named = problem.layout.unflatten(torch.from_numpy(ensemble["theta"].values).double())
    query, key = (named[name].norm(dim=-2).numpy() for name in ("W_Q", "W_K"))
    np.testing.assert_allclose(run["log_ratio"], np.log(key / query), atol=1e-10)
    np.testing.assert_allclose(run["product"], query * key)
    np.testing.assert_allclose(run["charge_value"], (query**2 - key**2) / 2, atol=1e-12)
    conserved = balance.conserved_log_ratio(run)
    np.testing.assert_allclose(conserved.isel(step=0), run["log_ratio"].isel(step=0), atol=1e-10)


def test_runs_at_other_rates_are_saved_at_the_same_times(datasets: dict[str, xr.Dataset]) -> None:
    runs = balance.runs_of(datasets)
    assert list(runs) == ["sgd", "sde", "descent"]
    for run in runs.values():
        np.testing.assert_array_equal(balance.updates(run, runs), np.arange(0, 201, 20))


def test_runs_start_at_the_same_unbalanced_points(datasets: dict[str, xr.Dataset]) -> None:
    first = [run["log_ratio"].isel(step=0).values for run in balance.runs_of(datasets).values()]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])
    assert len(np.unique(first[0])) == first[0].size
    slope = np.polyfit(np.linspace(-1.2, 1.2, 16), first[0].mean((0, 1)), 1)[0]
    assert slope == pytest.approx(-2, abs=0.7)  # ln(|v|/‖W‖) falls by 2 for each unit of the spread


def test_drift_is_compared_over_seeds(datasets: dict[str, xr.Dataset]) -> None:
    comparison = datasets["drift_sgd"]
    assert comparison.attrs["trajectories"] == 3
    change = datasets["sgd"]["charge_value"].isel(step=-1) - datasets["sgd"]["charge_value"].isel(step=0)
    np.testing.assert_allclose(
        comparison["empirical"].isel(step=-1), change.mean(("replicate", "trajectory")), atol=1e-7
    )


def test_expected_relu_loss_is_the_mean_over_inputs() -> None:
    """Monte Carlo of 200,000 inputs: 6 standard errors, false alarm 1e-8."""
    problem, start = fig2_relu.student(dataclasses.replace(NETWORK, student=1.0, label_noise=0.0, pool=200_000))
    losses = problem.per_sample_loss(start)
    expected = fig2_relu.ExpectedReLU(problem).loss(start)
    error = losses.std(-1) / losses.shape[-1] ** 0.5
    assert ((losses.mean(-1) - expected).abs() < 6 * error).all()
    assert ((losses.mean(-1) - 1.1 * expected).abs() > 6 * error).all()


def test_expected_relu_gradient_is_that_of_the_loss() -> None:
    student, start = fig2_relu.student(dataclasses.replace(NETWORK, student=1.0))
    problem, theta = fig2_relu.ExpectedReLU(student.to(dtype=torch.float64)), start.double().requires_grad_(True)
    # The kernel of a vector with itself has an angle of 0, where acos has no derivative: differences instead.
    step = 1e-5 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = (problem.loss(theta + step) - problem.loss(theta - step)) / 2
    torch.testing.assert_close((problem.gradient(theta) * step).sum(-1), measured, rtol=1e-5, atol=1e-12)
    assert sb.symmetry.check_invariance(problem, student.symmetry()) < 1e-10


def _draw_masks(problem: fig4_matrix_completion.MaskedCompletion, count: int) -> Mapping[str, torch.Tensor]:
    stream = problem.stochastic().stream
    assert stream is not None
    return stream.draw((COMPLETION.seeds, 1, count), torch.Generator().manual_seed(0))


def test_completion_gradients_are_those_of_the_loss() -> None:
    problem, start = fig4_matrix_completion.completion(COMPLETION)
    masks = _draw_masks(problem, 5)
    batch = problem.at(masks)
    weights = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    closed = batch.weighted_gradient(start, weights)
    torch.testing.assert_close(closed, sb.Problem.weighted_gradient(batch, start, weights))
    torch.testing.assert_close(closed, (weights.unsqueeze(-1) * batch.per_sample_gradient(start)).sum(-2))
    whole = problem.at({"mask": torch.ones_like(masks["mask"][:, :, :1])})
    matrix = problem.predictor(start).unflatten(-1, (6, 6)) - problem.samples["M"]
    direct = (matrix.square() * problem.samples["observed"]).sum((-2, -1)) / 36
    torch.testing.assert_close(whole.loss(start), direct)


def test_masks_are_fair_coins() -> None:
    """20,000 masks of 36 entries: means and covariances within 6 standard errors, false alarm 1e-6."""
    problem, _ = fig4_matrix_completion.completion(COMPLETION)
    masks = _draw_masks(problem, 20_000)["mask"]
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    rows = masks[0, 0].flatten(1)
    assert ((rows.mean(0) - 0.5).abs() < 6 * 0.5 / 20_000**0.5).all()
    assert ((torch.cov(rows.T) - 0.25 * torch.eye(36)).abs() < 6 * 0.25 / 20_000**0.5).all()


def test_coins_are_label_noise_on_the_mask() -> None:
    """The SDE's g gᵀ is the covariance of the gradient over all masks, here of 2 × 2 entries: exact."""
    problem, start = fig4_matrix_completion.completion(dataclasses.replace(COMPLETION, size=2, observed=1.0))
    dynamics = sb.SGDSDE(learning_rate=1.0, noise=sb.noise.label(0.5, target="mask")).bind(problem)
    root = dynamics.noise_model.dense(dynamics, 1.0, start)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4).reshape(16, 2, 2)
    covariance = problem.at({"mask": every.expand(3, 1, 16, 2, 2)}).gradient_noise_covariance(start)
    torch.testing.assert_close(root @ root.mT, covariance)


def test_spectrum_is_not_doubled() -> None:
    runs = fig4_matrix_completion.simulate(COMPLETION)
    problem, start = fig4_matrix_completion.completion(COMPLETION)
    values = torch.linalg.svdvals(problem.predictor(start).unflatten(-1, (6, 6)))
    np.testing.assert_allclose(runs["sgd"]["singular_value"].isel(step=0), values.numpy())
    assert dict(runs["census"].sizes) == {
        "replicate": 4,
        "trajectory": 1,
        "step": 2,
        "rank": 6,
        "row": 6,
        "column": 6,
        "sample": 1,
    }
    truth = torch.linalg.svdvals(problem.data["M"][1])
    np.testing.assert_allclose(truth[:, :2].numpy(), [[15, 5]] * 3)
    assert float(truth[:, 2:].max()) < 1e-12
