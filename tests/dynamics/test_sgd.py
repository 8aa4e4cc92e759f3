"""Discrete SGD: each update is the gradient of a batch, drawn as declared."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

import sdebias as sb
from sdebias.errors import InputError


def draw(sgd: sb.SGD, problem: sb.Problem, rows: int, seed: int = 0) -> torch.Tensor:
    return sgd.bind(problem).draw(1, (rows,), torch.Generator().manual_seed(seed))["index"][0]


def test_an_update_is_a_batch_gradient_step(problem: sb.problems.HadamardRegression) -> None:
    theta = problem.draw_initial(5, torch.Generator().manual_seed(1))
    sgd = sb.SGD(learning_rate=0.1, batch_size=problem.n_samples, replacement=False).bind(problem)
    path = sgd.integrate(theta, [0, 1, 3], torch.Generator().manual_seed(2))
    assert path.shape == (3, 5, 6)
    expected = theta
    for _ in range(3):
        expected = expected - 0.1 * problem.gradient(expected)
    torch.testing.assert_close(path[2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("replacement", [True, False])
def test_indices_are_uniform(problem: sb.problems.HadamardRegression, replacement: bool) -> None:
    """χ² test at a false-alarm rate of 1e-3; its twin, one sample a tenth more likely, is rejected."""
    indices = draw(sb.SGD(learning_rate=0.1, batch_size=3, replacement=replacement), problem, 40_000)
    counts = np.bincount(indices.flatten(), minlength=12).astype(float)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    tilted = np.full(12, counts.sum() / 12.1)
    tilted[0] *= 1.1
    assert scipy.stats.chisquare(counts, tilted).pvalue < 1e-3


def test_without_replacement_a_batch_has_different_samples(problem: sb.problems.HadamardRegression) -> None:
    sgd = sb.SGD(learning_rate=0.1, batch_size=7, replacement=False)
    indices = draw(sgd, problem, 200).sort(dim=-1).values
    assert bool((indices.diff(dim=-1) > 0).all())


def test_the_save_grid_does_not_change_the_path(problem: sb.problems.HadamardRegression) -> None:
    sgd = sb.SGD(learning_rate=0.1)
    runs = [sb.simulate(problem, sgd, trajectories=4, steps=80, save_every=k, progress=False) for k in (1, 5, 40)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run["theta"], runs[0]["theta"].sel(step=run["step"]))


class TestRefusals:
    @pytest.mark.parametrize("rate", [0, -1e-3, float("nan"), "fast"])
    def test_learning_rate(self, rate: float) -> None:
        with pytest.raises(InputError, match="learning_rate: expected a positive finite number"):
            sb.SGD(learning_rate=rate)

    def test_batch_above_n_without_replacement(self, problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="at most n = 12 without replacement, got 13"):
            sb.SGD(learning_rate=0.1, batch_size=13, replacement=False).bind(problem)
        sb.SGD(learning_rate=0.1, batch_size=13).bind(problem)

    def test_rates_without_replicates(self, problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="2 values for no replicates"):
            sb.SGD(learning_rate=[0.1, 0.2]).bind(problem)
        sb.SGD(learning_rate=[0.1, 0.2]).bind(problem.replicate(2))

    def test_unbound(self, problem: sb.problems.HadamardRegression) -> None:
        with pytest.raises(InputError, match="call dynamics.bind"):
            sb.SGD(learning_rate=0.1).integrate(torch.zeros(1, 6), [0, 1], torch.Generator())


class TestEpochs:
    SGD = sb.SGD(learning_rate=0.05, batch_size=3, replacement=False, epochs=True)

    def test_an_epoch_takes_each_sample_once(self, problem: sb.problems.HadamardRegression) -> None:
        bound = self.SGD.bind(problem)
        assert bound.window(32) == 4  # of 12 samples
        index = bound.draw(4, (50,), torch.Generator().manual_seed(0))["index"]
        assert index.shape == (4, 50, 3)
        assert torch.equal(index.movedim(0, 1).flatten(1).sort(-1).values, torch.arange(12).expand(50, -1))

    def test_the_path_follows_these_batches(self, problem: sb.problems.HadamardRegression) -> None:
        bound, theta = self.SGD.bind(problem), problem.draw_initial(5, torch.Generator())
        path = bound.integrate(theta, [0, 1, 4, 6], torch.Generator().manual_seed(3))
        rng, states = torch.Generator().manual_seed(3), [theta]
        for _ in range(2):
            for batch in bound.draw(4, (5,), rng)["index"]:
                states.append(states[-1] - 0.05 * problem.batch_gradient(states[-1], batch))
        torch.testing.assert_close(path, torch.stack([states[k] for k in (0, 1, 4, 6)]))

    def test_they_are_without_replacement(self) -> None:
        with pytest.raises(InputError, match="epochs: expected replacement = false"):
            sb.SGD(learning_rate=0.1, epochs=True)


def test_the_whole_batch_is_gradient_descent(problem: sb.problems.HadamardRegression) -> None:
    bound = sb.SGD(learning_rate=0.05, batch_size=12, replacement=False).bind(problem)
    theta = problem.draw_initial(3, torch.Generator())
    assert bound.draw(4, (3,), torch.Generator()) == {}
    expected = theta - 0.05 * problem.per_sample_gradient(theta).mean(-2)
    torch.testing.assert_close(bound.integrate(theta, [0, 1], torch.Generator())[-1], expected)
