"""Scheduled learning rates: the formula, the time that they cover, and the dynamics that follow them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import sdebias as sb
from sdebias.dynamics.schedule import Schedule, from_spec
from sdebias.errors import InputError

SCHEDULES = [sb.schedule.linear(0.1, 0.02, 8), sb.schedule.cosine(0.1, 0.02, 8), sb.schedule.power(0.1, 0.6, 4)]


def test_formulas() -> None:
    assert sb.schedule.linear(0.1, 0.02, 8)(2) == pytest.approx(0.08)
    assert sb.schedule.cosine(0.1, 0.02, 8)(4) == pytest.approx(0.06)
    assert sb.schedule.power(0.1, 0.5, 4)(12) == pytest.approx(0.05)
    for schedule in SCHEDULES[:2]:
        assert schedule(8) == schedule(80) == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_is_the_sum_or_the_integral(schedule: Schedule) -> None:
    steps = [0, 3, 6, 12]
    np.testing.assert_allclose(schedule.sums(steps), [sum(schedule(j) for j in range(k)) for k in steps])
    fine = (np.arange(120_000) + 0.5) / 10_000
    rates = np.array([schedule(k) for k in fine]) / 10_000
    np.testing.assert_allclose(schedule.integrals(steps)[1:], [rates[fine < k].sum() for k in steps[1:]], rtol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_spec_makes_it_again(schedule: Schedule) -> None:
    assert from_spec(json.loads(json.dumps(schedule.spec()))) == schedule
    assert sb.SGD(learning_rate=schedule.spec()) == sb.SGD(learning_rate=schedule)


def test_sgd_takes_the_rate_of_its_update(problem: sb.problems.HadamardRegression) -> None:
    schedule = SCHEDULES[0]
    sgd = sb.SGD(learning_rate=schedule, batch_size=12, replacement=False).bind(problem)
    theta = expected = problem.draw_initial(3, torch.Generator().manual_seed(1))
    for k in range(5):
        expected = expected - schedule(k) * problem.gradient(expected)
    torch.testing.assert_close(sgd.integrate(theta, [0, 5], torch.Generator())[-1], expected)
    half = sgd.integrate(sgd.integrate(theta, [0, 3], torch.Generator())[-1], [3, 5], torch.Generator())[-1]
    torch.testing.assert_close(half, expected)


@pytest.mark.parametrize("noise", ["minibatch", {"noise": "isotropic", "temperature": 0.1}])
def test_sde_has_the_rate_of_its_time(problem: sb.problems.HadamardRegression, noise: Any) -> None:
    schedule = SCHEDULES[1]
    sde = sb.SGDSDE(learning_rate=schedule, noise=noise).bind(problem)
    y = problem.draw_initial(3, torch.Generator().manual_seed(1)) + 0.1
    now = sb.SGDSDE(learning_rate=schedule(2.5), noise=noise).bind(problem)
    torch.testing.assert_close(sde.f(2.5, y), now.f(0.0, y))
    torch.testing.assert_close(sde.g(torch.tensor(2.5), y), now.g(0.0, y))


def test_the_dataset_holds_rate_and_time(problem: sb.problems.HadamardRegression) -> None:
    schedule = SCHEDULES[0]
    for dynamics, time in ((sb.SGD, schedule.sums), (sb.SGDSDE, schedule.integrals)):
        ens = sb.simulate(problem, dynamics(learning_rate=schedule), trajectories=2, steps=8, progress=False)
        assert ens["learning_rate"].dims == ("step",)
        np.testing.assert_allclose(ens["learning_rate"], [schedule(k) for k in range(9)])
        np.testing.assert_allclose(ens["time"], time(list(range(9))))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"schedule": "cosin", "initial": 0.1}, "did you mean 'cosine'"),
        ({"initial": 0.1}, "^schedule: expected one of"),
        ({"schedule": "linear", "initial": 0.1}, "the parameters of linear schedule"),
        ({"schedule": "power", "initial": -0.1, "exponent": 0.5}, "initial: expected a positive"),
    ],
)
def test_refusals(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_spec(spec)
