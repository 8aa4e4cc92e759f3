"""Measured moments of increments against the split of the dynamics.

Each verdict has a false-alarm rate of 0.1 %; seeds are fixed. Its twin is ``verdict_scaled``: the same test on a
prediction that is 10 % larger must reject.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from sdebias.comparison import FALSE_ALARM_RATE
from sdebias.dynamics.base import Dynamics
from sdebias.errors import DataError, InputError

RATE = 2e-3
CASES = {
    "SGD": sb.SGD(learning_rate=RATE),
    "SGD, four different": sb.SGD(learning_rate=RATE, batch_size=4, replacement=False),
    "SDE": sb.SGDSDE(learning_rate=RATE, substeps=8),
    "SDE of order 2": sb.SGDSDE(learning_rate=RATE, order=2, substeps=8),
    "isotropic noise": sb.SGDSDE(learning_rate=RATE, noise="isotropic", temperature=0.05),
}


def run(
    problem: sb.Problem, symmetry: sb.symmetry.Symmetry, dynamics: Dynamics, trajectories: int = 2048, seed: int = 0
) -> tuple[xr.Dataset, xr.Dataset]:
    ens = sb.simulate(
        problem,
        dynamics,
        symmetry=symmetry,
        trajectories=trajectories,
        steps=8,
        save_every=1,
        seed=seed,
        progress=False,
    )
    return ens, sb.split_dynamics(ens, problem, symmetry)


@pytest.mark.parametrize("dynamics", CASES.values(), ids=CASES.keys())
def test_moments_agree_and_a_tenth_more_do_not(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, dynamics: Dynamics
) -> None:
    result = sb.compare_moments(*run(problem, symmetry, dynamics))
    assert result.attrs["verdict"] == "consistent", result["moment_z"]
    assert result.attrs["verdict_scaled"] == "rejected"
    assert list(result["step"].values) == list(range(8))
    assert {"mean of w[a]", "covariance of w[b], w[a]"} <= set(result["moment"].values)


def test_projection_alone_is_rejected(problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
    """Without the second-order terms the mean of the charges is wrong, for SGD and for its SDE."""
    for name in ("SGD", "SDE"):
        ens, split = run(problem, symmetry, CASES[name])
        first_order = split["component"].isin(["vertical", "horizontal"])
        wrong = split.assign(charge_rate=split["charge_rate"].where(first_order, 0.0))
        assert sb.compare_moments(ens, wrong).attrs["verdict"] == "rejected"


def test_one_state_repeated(problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
    """From one state the first step's measured moments are the plain mean and covariance of the increments.

    Over 100 groups of 400 trajectories the 90 % intervals of the first predictor's mean cover the predicted one in
    90 % ± 3.3 standard errors (false-alarm rate 1e-3); those of a mean 10 % larger are covered in less than 1 %. The
    p-values of the groups are below 5 % in at most 5 % + 3.3 standard errors.
    """
    start = torch.tensor([[0.9, -0.4, 0.7, 0.3, 1.2, -1.0]], dtype=torch.float64).expand(100 * 400, -1)
    sgd = sb.SGD(learning_rate=RATE, batch_size=12)
    ens = sb.simulate(
        problem, sgd, symmetry=symmetry, trajectories=len(start), steps=2, save_every=1, initial=start, progress=False
    )
    split = sb.split_dynamics(ens, problem, symmetry)
    covered, wrong, p_values = [], [], []
    for first in range(0, len(start), 400):
        group = {"trajectory": slice(first, first + 400)}
        result = sb.compare_moments(ens.isel(group), split.isel(group), confidence=0.9)
        p_values.append(float(result["p_value"]))
        mean = result.isel(step=0).sel(moment="mean of w[a]")
        lower, upper = mean["moment_interval"].values
        covered.append(lower < float(mean["moment_predicted"]) < upper)
        wrong.append(lower < 1.1 * float(mean["moment_predicted"]) < upper)
    increments = ens["predictor_value"].isel(group).diff("step").isel(step=0, predictor=0)
    np.testing.assert_allclose(mean["moment_measured"], increments.mean())
    assert abs(np.mean(covered) - 0.9) < 3.3 * np.sqrt(0.09 / 100)
    assert np.mean(wrong) < 0.01
    assert np.mean(np.array(p_values) < 0.05) <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 100)


def test_replicates_and_flagged_trajectories(
    replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    ens, split = run(replicated, symmetry, sb.SGD(learning_rate=[RATE, 2 * RATE, RATE]), trajectories=512)
    ens["status"][0, :12] = 2
    ens["predictor_value"][0, :12] = np.nan
    result = sb.compare_moments(ens, split)
    assert result["moment_z"].dims == ("replicate", "step", "moment")
    assert list(result["trajectories_used"].values) == [500, 512, 512]
    assert result.attrs["verdict"] == "consistent"
    shuffled = split.assign(quotient_diffusion=split["quotient_diffusion"].roll(replicate=1, roll_coords=False))
    assert float(sb.compare_moments(ens, shuffled)["p_value"].min()) < FALSE_ALARM_RATE


class TestRefusals:
    def test_what_does_not_belong_together(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        ens, split = run(problem, symmetry, CASES["SGD"], trajectories=4)
        with pytest.raises(DataError, match="the same trajectory labels"):
            sb.compare_moments(ens, split.isel(trajectory=slice(2)))
        with pytest.raises(DataError, match="charge_value or predictor_value"):
            sb.compare_moments(ens.drop_vars(["charge_value", "predictor_value"]), split)
        with pytest.raises(DataError, match="kind split"):
            sb.compare_moments(ens, ens)
        with pytest.raises(InputError, match="confidence"):
            sb.compare_moments(ens, split, confidence=95)
        ens["status"][1:] = 1
        with pytest.raises(DataError, match="two or more trajectories with status ok, got 1 of 4"):
            sb.compare_moments(ens, split)
