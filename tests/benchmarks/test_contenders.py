"""Every contender that needs no further package solves the same SDE."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks import sde, sgd, torch_peers
from benchmarks.timing import Contender, as_states, compare, largest_deviation, moments_about
from benchmarks.workloads import WORKLOADS, Factorisation, Hadamard, HadamardByAutograd, ReLU, Step, Toy, Workload

pytestmark = pytest.mark.usefixtures("plain_steps", "single_calls")

SIZES = {"W1": (2_000, 40), "W1 long": (500, 80), "W2": (200, 10), "W4": (24, 4), "W5": (24, 4)}


@pytest.mark.parametrize("key", WORKLOADS)
def test_contenders_agree(key: str) -> None:
    """False alarms: 1e-6 a contender, some 8 contenders."""
    torch.manual_seed(0)
    trajectories, steps = SIZES[key]
    rows = sde.contest(WORKLOADS[key](trajectories=trajectories, steps=steps), rounds=1, jax=False)["rows"]
    checked = [row["name"] for row in rows if "z" in row]
    assert checked[:1] == [torch_peers.PLAIN]
    assert "sdebias, gaussian" in checked
    assert all(row["rate"] > 0 for row in rows)


@pytest.mark.parametrize("workload", [Hadamard(), HadamardByAutograd(), Factorisation(), ReLU()])
def test_dense_diffusion_is_that_of_the_step(workload: Workload) -> None:
    theta = torch_peers.starts(workload, 3)
    theta += 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    normals = torch.randn(3, workload.channels, generator=torch.Generator().manual_seed(1))
    expected = theta + workload.drift(theta) + (workload.diffusion(theta) @ normals.unsqueeze(-1)).squeeze(-1)
    step = workload.stepper(theta)
    step(theta, normals.clone())
    torch.testing.assert_close(theta, expected, rtol=1e-5, atol=1e-5)


class LouderToy(Toy):
    """The toy with noise 10 % too large."""

    def stepper(self, theta: Tensor) -> Step:
        step = super().stepper(theta)
        return lambda theta, normals: step(theta, normals.mul_(1.1))


def test_noise_that_is_10_percent_wrong_is_found() -> None:
    torch.manual_seed(0)
    toy, exact = LouderToy(trajectories=4_000, steps=100), Toy(dtype=torch.float64, steps=100)
    reference = as_states(torch_peers.loop(exact, 16_000)())
    moments = moments_about(reference.mean(0), lambda states: exact.loss(torch.as_tensor(states)).numpy())
    wrong = Contender("wrong", lambda: torch_peers.loop(toy, 4_000), 4_000, 100, "", torch_peers.same)
    with pytest.raises(RuntimeError, match="wrong: moments deviate by"):
        compare([wrong], moments, moments(reference), rounds=1)


def test_sgd_contenders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """False alarms: 1e-6 a contender, 3 contenders."""
    torch.manual_seed(0)
    monkeypatch.setattr(sgd, "TRAJECTORIES", 200)
    monkeypatch.setattr(sgd, "STEPS", 20)
    exact = Hadamard(dtype=torch.float64)
    reference = as_states(sgd.batched(exact, 2_000)())
    moments = moments_about(reference.mean(0), lambda states: exact.loss(torch.as_tensor(states)).numpy())
    workload = Hadamard()
    ends: Sequence[object] = (
        sgd.one_by_one(workload)(),
        sgd.batched(workload, 200)(),
        torch_peers.last_states(sgd.simulate(workload)()),
    )
    for states in ends:
        z, limit = largest_deviation(moments(as_states(states)), moments(reference))  # type: ignore[arg-type]
        assert z < limit
