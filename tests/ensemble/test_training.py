"""Recorded training loops: what a plain loop of torch gives agrees with `simulate` and with the prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import sdebias as sb
from sdebias.errors import DataError, InputError, RunError

SAMPLES = 16
RATE = 0.05


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    return X, X[:, :1] - 0.5 * torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)


def network() -> nn.Sequential:
    with torch.random.fork_rng():  # the loaders draw from the global stream
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()


X, Y = data()
SYMMETRY = sb.symmetry.Rescaling.relu("0", "2")


def problem() -> sb.Problem:
    return sb.Problem.from_module(network(), functional.mse_loss, X, Y)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), **({"batch_size": 4, "shuffle": True} | options))


def independent() -> DataLoader[Any]:
    """Return batches drawn with replacement, for which the prediction of every update is exact."""
    return loader(shuffle=False, sampler=RandomSampler(X, replacement=True))


def train(
    target: sb.Problem,
    epochs: int,
    *,
    optimizer: Any = torch.optim.SGD,
    settings: dict[str, Any] | None = None,
    gamma: float = 1.0,
    batches: DataLoader[Any] | None = None,
    save_every: int = 4,
) -> Any:
    """Return one recorded run of a plain training loop."""
    net, batches = network(), batches or loader()
    steps = optimizer(net.parameters(), lr=RATE, **(settings or {}))
    schedule = torch.optim.lr_scheduler.ExponentialLR(steps, gamma)
    with sb.record(net, steps, target, loader=batches, symmetry=SYMMETRY, save_every=save_every) as run:
        for _ in range(epochs):
            for x, y in batches:
                steps.zero_grad()
                functional.mse_loss(net(x), y).backward()
                steps.step()
            schedule.step()
    return run


def ensemble(runs: int, epochs: int, **options: Any) -> xr.Dataset:
    target = problem()
    torch.manual_seed(0)
    return sb.join_runs([train(target, epochs, **options) for _ in range(runs)])


def test_states_are_those_of_the_loop() -> None:
    torch.manual_seed(0)
    target = problem()
    run = train(target, 2, save_every=2)
    ens = run.dataset()
    torch.manual_seed(0)
    net, batches = network(), loader()
    steps = torch.optim.SGD(net.parameters(), lr=RATE)
    torch.optim.lr_scheduler.ExponentialLR(steps, 1.0)
    states = [nn.utils.parameters_to_vector(net.parameters()).detach()]
    for _ in range(2):
        for x, y in batches:
            steps.zero_grad()
            functional.mse_loss(net(x), y).backward()
            steps.step()
            states.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    assert run.updates == 8
    theta = torch.stack(states[::2])
    np.testing.assert_array_equal(ens["theta"].values[0], theta)
    np.testing.assert_allclose(ens["loss"].values[0], target.loss(theta))
    bound = SYMMETRY.bind(target)
    np.testing.assert_allclose(ens["charge_value"].values[0], bound.charge(theta))
    np.testing.assert_allclose(ens["log_orbit_volume"].values[0], bound.log_orbit_volume(theta))
    assert ens["step"].values.tolist() == [0, 2, 4, 6, 8]
    assert list(ens["parameter"].values) == target.layout.labels
    assert ens["step"].dtype.kind == "i"


def test_it_is_the_dataset_that_simulate_returns() -> None:
    recorded = ensemble(2, 1)
    sgd = sb.SGD(learning_rate=RATE, batch_size=4, replacement=False, epochs=True)
    simulated = sb.simulate(problem(), sgd, symmetry=SYMMETRY, trajectories=2, steps=4, save_every=4)
    assert set(recorded.data_vars) == set(simulated.data_vars)
    for name in recorded.variables:
        assert recorded[name].dims == simulated[name].dims
        np.testing.assert_equal(recorded[name].attrs, simulated[name].attrs)
    told = ("dynamics", "batch_size", "replacement", "epochs", "dtype", "kind")
    assert {k: recorded.attrs[k] for k in told} == {k: simulated.attrs[k] for k in told}
    assert float(recorded["learning_rate"]) == float(simulated["learning_rate"])


def both(runs: int, sgd: sb.SGD, batches: DataLoader[Any]) -> list[xr.Dataset]:
    """Return the comparisons of recorded and of simulated runs with their predictions, 40 updates each."""
    target = problem()
    recorded = ensemble(runs, 10, batches=batches)
    simulated = sb.simulate(target, sgd, symmetry=SYMMETRY, trajectories=runs, steps=40, save_every=4, seed=1)
    return [sb.compare(ens, sb.predict_orbit_drift(ens, target, SYMMETRY)) for ens in (recorded, simulated)]


def largest_difference(one: xr.Dataset, other: xr.Dataset, scale: float = 1.0) -> float:
    """Return the largest difference of measured drifts at the last step, one of them scaled, in standard errors."""
    one, other = one.isel(step=-1), other.isel(step=-1)
    error = np.hypot(one["empirical_error"], other["empirical_error"])
    return float((abs(scale * one["empirical"] - other["empirical"]) / error).max())


@pytest.mark.slow
def test_a_plain_loop_agrees_with_simulate_and_prediction() -> None:
    """False alarm 1e-3 for each verdict and 2e-6 for five standard errors; the 10 % twin of both is rejected."""
    sgd = sb.SGD(learning_rate=RATE, batch_size=4)
    one, other = both(384, sgd, independent())
    assert one.attrs["verdict"] == other.attrs["verdict"] == "consistent"
    assert one.attrs["verdict_scaled"] == other.attrs["verdict_scaled"] == "rejected"
    assert largest_difference(one, other) < 5


@pytest.mark.slow
def test_a_shuffled_loader_is_sgd_in_epochs() -> None:
    """Five standard errors for each charge: false alarm 2e-6, and drifts without epochs differ by more.

    Batches of an epoch depend on each other, which at this learning rate and four updates an epoch shows at O(η³):
    both verdicts say so.
    """
    epochs = sb.SGD(learning_rate=RATE, batch_size=4, replacement=False, epochs=True)
    one, other = both(512, epochs, loader())
    assert one.attrs["verdict"] == other.attrs["verdict"] == "rejected"
    assert largest_difference(one, other) < 5
    assert largest_difference(one, other, scale=1.1) > 5


def test_weight_decay_is_read_from_the_optimizer() -> None:
    """False alarm 1e-3; a prediction that ignores the decay is rejected."""
    ens = ensemble(64, 5, settings={"weight_decay": 0.1}, batches=independent())
    assert ens.attrs["weight_decay"] == 0.1
    comparison = sb.compare(ens, sb.predict_orbit_drift(ens, problem(), SYMMETRY))
    assert comparison.attrs["verdict"] == "consistent"
    without = ens.assign_attrs({k: v for k, v in ens.attrs.items() if k != "weight_decay"})
    without.attrs.pop("weight_decay")
    comparison = sb.compare(ens, sb.predict_orbit_drift(without, problem(), SYMMETRY))
    assert comparison.attrs["verdict"] == "rejected"


def test_a_learning_rate_that_changes_is_kept_for_each_save() -> None:
    """False alarm 1e-3; a prediction with the first learning rate throughout is rejected."""
    ens = ensemble(64, 10, gamma=0.8, batches=independent())
    rates = RATE * 0.8 ** np.arange(11)
    np.testing.assert_allclose(ens["learning_rate"].values[:-1], rates[:-1])
    np.testing.assert_allclose(ens["time"].values, np.concatenate([[0], np.cumsum(4 * rates[:-1])]))
    comparison = sb.compare(ens, sb.predict_orbit_drift(ens, problem(), SYMMETRY))
    assert comparison.attrs["verdict"] == "consistent"
    constant = ens.assign(learning_rate=ens["learning_rate"][0].drop_vars(["step", "time"]))
    comparison = sb.compare(ens, sb.predict_orbit_drift(constant, problem(), SYMMETRY))
    assert comparison.attrs["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("optimizer", "settings", "name"),
    [
        (torch.optim.Adam, {}, "Adam"),
        (torch.optim.SGD, {"momentum": 0.9}, "SGD with momentum 0.9"),
        (torch.optim.SGD, {"maximize": True}, "SGD with maximize 1"),
    ],
)
def test_other_optimizers_are_recorded_but_not_predicted(optimizer: Any, settings: dict[str, Any], name: str) -> None:
    ens = ensemble(2, 2, optimizer=optimizer, settings=settings)
    assert ens.attrs["dynamics"] == name
    with pytest.raises(DataError, match=rf"expected one of SGD, SGDSDE, got '{name}'"):
        sb.predict_orbit_drift(ens, problem(), SYMMETRY)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (4, 0, 1)),
        ({"shuffle": False, "sampler": RandomSampler(X, replacement=True)}, (4, 1, 0)),
        ({"batch_size": 5, "drop_last": True}, (5, 0, 1)),
        ({"batch_size": SAMPLES, "shuffle": False}, (SAMPLES, 0, 1)),
    ],
)
def test_the_loader_says_how_batches_are_drawn(options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    ens = train(problem(), 4, batches=loader(**options)).dataset()
    assert tuple(ens.attrs[key] for key in ("batch_size", "replacement", "epochs")) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"loader": loader(shuffle=False)}, "batches drawn at random.*SequentialSampler"),
            ({"loader": loader(batch_size=5)}, "batches of one size.*drop_last=True"),
            ({"loader": DataLoader(TensorDataset(X[:8]), shuffle=True)}, "the 16 samples of the problem"),
            ({}, "a loader or a batch_size, got neither"),
            ({"loader": loader(), "batch_size": 4}, "got both"),
            ({"batch_size": 17}, "at most n = 16"),
            ({"batch_size": 4, "save_every": 0}, "save_every"),
            ({"batch_size": 4, "symmetry": sb.symmetry.Scaling("0.weight")}, "not invariant"),
        ],
    )
    def test_arguments(self, options: dict[str, Any], words: str) -> None:
        net = network()
        with pytest.raises(InputError, match=words):
            sb.record(net, torch.optim.SGD(net.parameters(), lr=RATE), problem(), **options)

    def test_what_does_not_belong_together(self) -> None:
        net = network()
        plain = torch.optim.SGD(net.parameters(), lr=RATE)
        for model, optimizer, words in (
            (nn.Linear(2, 1).double(), plain, "the parameters of the problem"),
            (net, torch.optim.SGD(network().parameters(), lr=RATE), "parameters of another module"),
            (
                net,
                torch.optim.SGD([net.get_parameter("0.weight")], lr=RATE),
                "one that trains 0.weight, 0.bias.*got 0.weight;",
            ),
            (net, nn.ReLU(), "a torch.optim.Optimizer"),
        ):
            with pytest.raises(InputError, match=words):
                sb.record(model, optimizer, problem(), batch_size=4)  # type: ignore[arg-type]
        replicated = problem().replicate(2)
        with pytest.raises(InputError, match="one without replicates"):
            sb.record(net, plain, replicated, batch_size=4)

    def test_what_changes_in_the_loop(self) -> None:
        net = nn.Sequential(network(), nn.Dropout(0.5))
        target = sb.Problem.from_module(net.eval(), functional.mse_loss, X, Y)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        with sb.record(net, optimizer, target, batch_size=4):
            net.train()
            with pytest.raises(InputError, match="random numbers of its own"):
                optimizer.step()
            net.eval()
            optimizer.step()
            optimizer.param_groups[0]["momentum"] = 0.5
            with pytest.raises(InputError, match="settings that stay"):
                optimizer.step()
        optimizer.step()  # no longer recorded

    def test_groups_must_agree(self) -> None:
        net = network()
        halves: Any = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(halves, lr=RATE)
        with sb.record(net, optimizer, problem(), batch_size=4), pytest.raises(InputError, match="one learning rate"):
            optimizer.step()
        halves = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "weight_decay": 0.1}]
        with pytest.raises(InputError, match="same settings"):
            sb.record(net, torch.optim.SGD(halves, lr=RATE), problem(), batch_size=4)

    def test_runs_that_are_no_ensemble(self) -> None:
        with pytest.raises(InputError, match="none"):
            sb.join_runs([])
        target = problem()
        with pytest.raises(RunError, match="fewer than save_every"):
            train(target, 1, save_every=5).dataset()
        with pytest.raises(DataError, match="learning rates of the runs"):
            sb.join_runs([train(target, 3), train(target, 3, gamma=0.5)])
        with pytest.raises(DataError, match="optimizer of the runs"):
            sb.join_runs([train(target, 3), train(target, 3, settings={"weight_decay": 0.1})])


def test_what_is_saved_may_be_chosen() -> None:
    def size(theta: Tensor) -> Tensor:
        return theta.norm(dim=-1)

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with sb.record(net, optimizer, problem(), batch_size=4, symmetry=SYMMETRY, save=["charge", size]) as run:
        optimizer.step()
    ens = run.dataset()
    assert {"charge_value", "size"} <= set(ens.data_vars)
    assert "theta" not in ens


def test_a_run_that_explodes_is_flagged() -> None:
    target, net = problem(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with sb.record(net, optimizer, target, batch_size=SAMPLES) as run:
        for scale in (1.0, 1e9):
            optimizer.zero_grad()
            (scale * functional.mse_loss(net(X), Y)).backward()
            optimizer.step()
    assert run.dataset()["status"].values.tolist() == [1]
