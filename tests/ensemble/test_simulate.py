"""Ensembles: reproducible by block, labelled, and honest about trajectories that fail."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from conftest import DEVICES, regression

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.ensemble.plan import Plan, ensemble_bytes, save_grid
from sdebias.errors import InputError, RunError, SymmetryError

SGD = sb.SGD(learning_rate=0.05)
SDE = sb.SGDSDE(learning_rate=0.05, substeps=2)


def run(problem: sb.Problem, dynamics: Dynamics = SGD, **arguments: Any) -> xr.Dataset:
    defaults = {"trajectories": 10, "steps": 12, "save_every": 3, "progress": False}
    return sb.simulate(problem, dynamics, **(defaults | arguments))


class TestReproducibility:
    @pytest.mark.parametrize("dynamics", [SGD, SDE], ids=["SGD", "SDE"])
    @pytest.mark.parametrize("few", [1000, 513, 1])
    def test_the_first_trajectories_are_those_of_a_smaller_run(
        self, problem: sb.problems.HadamardRegression, dynamics: Dynamics, few: int
    ) -> None:
        large, small = (run(problem, dynamics, trajectories=count) for count in (4000, few))
        for name in ("theta", "loss", "predictor_value"):
            np.testing.assert_array_equal(large[name][:few], small[name])

    def test_the_same_seed_gives_the_same_run_and_another_does_not(
        self, problem: sb.problems.HadamardRegression
    ) -> None:
        one, again, other = (run(problem, seed=seed) for seed in (1, 1, 2))
        assert one.equals(again)
        assert not one["theta"].equals(other["theta"])

    def test_segments_join_to_one_path(
        self, problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(problem, SDE, steps=20, save_every=1)
        monkeypatch.setattr(
            Plan, "segments", lambda *_: [(at, list(range(at, min(at + 3, 20) + 1))) for at in range(0, 20, 3)]
        )
        np.testing.assert_array_equal(run(problem, SDE, steps=20, save_every=1)["theta"], whole["theta"])

    @pytest.mark.parametrize("dynamics", [SGD, SDE], ids=["SGD", "SDE"])
    def test_the_number_of_threads_does_not_matter(
        self, problem: sb.problems.HadamardRegression, dynamics: Dynamics
    ) -> None:
        threads = torch.get_num_threads()
        try:
            runs = []
            for count in (1, 3):
                torch.set_num_threads(count)
                runs.append(run(problem, dynamics, trajectories=100, block_size=16))
                assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        assert runs[0].equals(runs[1])

    def test_blocks_have_their_own_noise(self, problem: sb.problems.HadamardRegression) -> None:
        theta = run(problem, trajectories=20, block_size=5)["theta"].isel(step=-1).values
        assert len(np.unique(theta, axis=0)) == 20


def test_replicates_equal_separate_runs_in_law() -> None:
    """Two-sample Kolmogorov–Smirnov for each parameter, Bonferroni at 1e-3; a tenth more η is rejected."""
    data = [regression(seed=seed) for seed in range(8)]
    starts, rates = np.linspace(0.1, 0.4, 8), np.linspace(0.02, 0.1, 8).tolist()
    X, y = (np.stack(arrays) for arrays in zip(*data, strict=True))
    replicated = sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": starts[:, None]})
    size = {"trajectories": 4000, "steps": 30, "save_every": 30}
    together = run(replicated, sb.SGD(learning_rate=rates), **size)["theta"].isel(step=-1)

    def smallest_p(factor: float) -> float:
        found = []
        for r, rate in enumerate(rates):
            single = sb.problems.HadamardRegression(*data[r], initial={"p": 1.0, "q": starts[r]})
            alone = run(single, sb.SGD(learning_rate=rate * factor), seed=r + 1, **size)["theta"].isel(step=-1)
            found += [
                scipy.stats.ks_2samp(a, b).pvalue for a, b in zip(together[r].values.T, alone.values.T, strict=True)
            ]
        return len(found) * min(found)

    assert smallest_p(1.0) > 1e-3
    assert smallest_p(1.1) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamics", [SGD, SDE], ids=["SGD", "SDE"])
def test_every_device_gives_the_predicted_drift(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, dynamics: Dynamics, device: str
) -> None:
    """The verdict has a false-alarm rate of 1e-3, and rejects a prediction that is a tenth larger."""
    there = problem.to(device)
    ens = run(there, dynamics, symmetry=symmetry, trajectories=4096, steps=24, save_every=1)
    assert ens.attrs["device"].startswith(device)
    comp = sb.compare(ens, sb.predict_orbit_drift(ens, there, symmetry))
    assert (comp.attrs["verdict"], comp.attrs["verdict_scaled"]) == ("consistent", "rejected")


class TestDataset:
    def test_shapes_and_labels(
        self, replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        ens = run(replicated, sb.SGD(learning_rate=[0.01, 0.02, 0.03]), symmetry=symmetry)
        assert dict(ens["theta"].sizes) == {"replicate": 3, "trajectory": 10, "step": 5, "parameter": 6}
        assert list(ens["parameter"].values) == replicated.layout.labels
        assert list(ens["charge"].values) == ["p:q[0]", "p:q[1]", "p:q[2]"]
        assert ens["time"].dims == ("replicate", "step")
        np.testing.assert_allclose(ens["time"][1], 0.02 * ens["step"])
        assert ens["trajectory"].attrs["standard_name"] == "realization"

    @pytest.mark.parametrize("name", ["problem", "replicated"])
    def test_observables_are_those_of_the_stored_states(
        self, name: str, symmetry: sb.symmetry.Rescaling, request: pytest.FixtureRequest
    ) -> None:
        problem = request.getfixturevalue(name)
        ens = run(problem, SDE, symmetry=symmetry)
        theta = torch.from_numpy(ens["theta"].values)
        at_step = theta.movedim(-2, 0)
        for variable, function in {
            "loss": problem.loss,
            "predictor_value": problem.predictor,
            "charge_value": symmetry.bind(problem).charge,
            "log_orbit_volume": symmetry.bind(problem).log_orbit_volume,
        }.items():
            axis = (problem.replicates is not None and 2) or 1
            np.testing.assert_allclose(ens[variable], np.moveaxis(function(at_step).numpy(), 0, axis), rtol=1e-12)

    def test_save_keeps_what_is_named(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        ens = run(problem, symmetry=symmetry, save=["charge_value"])
        assert {"theta", "loss", "predictor_value"}.isdisjoint(ens.data_vars)
        full = run(problem, symmetry=symmetry)
        np.testing.assert_array_equal(ens["charge_value"], full["charge_value"])

    def test_size_forecast(self, replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = run(replicated, symmetry=symmetry)
        names = ("theta", "loss", "charge_value", "log_orbit_volume", "predictor_value")
        assert ensemble_bytes(replicated, symmetry, trajectories=10, saves=5) == sum(ens[n].nbytes for n in names)

    def test_the_configuration_holds_all_that_made_it(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        config = json.loads(run(problem, SDE, symmetry=symmetry, seed=4).attrs["config_json"])
        assert config["problem"]["initial"] == {"p": 1.0, "q": 0.3}
        assert config["symmetry"] == {"group": "Rescaling", "parameters": ["p", "q"]}
        assert config["dynamics"]["substeps"] == 2
        assert config["run"]["seed"] == 4

    def test_float32_stays_float32(self, problem: sb.problems.HadamardRegression) -> None:
        ens = run(problem.to(dtype=torch.float32), SDE)
        assert ens["theta"].dtype == np.float32
        np.testing.assert_allclose(ens["loss"][:, 0], run(problem)["loss"][:, 0], rtol=1e-5)


class TestInitial:
    def test_tensor(self, problem: sb.problems.HadamardRegression) -> None:
        theta = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ens = run(problem, initial=theta, block_size=4)
        np.testing.assert_array_equal(ens["theta"].isel(step=0), theta)

    def test_function_draws_from_the_blocks_stream(self, problem: sb.problems.HadamardRegression) -> None:
        def initial(count: int, generator: torch.Generator) -> torch.Tensor:
            return torch.rand(count, 6, dtype=torch.float64, generator=generator)

        one, two = (run(problem, initial=initial, trajectories=count) for count in (10, 300))
        np.testing.assert_array_equal(one["theta"], two["theta"][:10])

    @pytest.mark.parametrize("bad", [torch.zeros(9, 6), np.zeros((10, 6)), torch.full((10, 6), torch.nan)])
    def test_refusals(self, problem: sb.problems.HadamardRegression, bad: Any) -> None:
        with pytest.raises(InputError, match="initial"):
            run(problem, initial=bad)


class TestFailures:
    def test_divergence_is_flagged_and_kept(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        start = torch.ones(10, 6, dtype=torch.float64)
        start[3] = 1e4
        ens = run(problem, symmetry=symmetry, initial=start, steps=60, save_every=20)
        assert ens["status"].attrs["flag_meanings"].split()[int(ens["status"][3])] == "non_finite"
        assert ens.sizes["trajectory"] == 10
        assert int((ens["status"] == 0).sum()) == 9
        comp = sb.compare(ens, sb.predict_orbit_drift(ens, problem, symmetry))
        assert int(comp["trajectories_used"]) == 9
        assert np.isfinite(comp["empirical"]).all()

    def test_a_large_finite_state_is_diverged(self, problem: sb.problems.HadamardRegression) -> None:
        start = torch.zeros(10, 6, dtype=torch.float64)
        start[2, 0] = 2e6
        status = run(problem, initial=start, steps=3, save_every=3, save=["loss"])["status"]
        assert status.attrs["flag_meanings"].split()[int(status[2])] == "diverged"

    def test_memory(self, problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(sb.SGD, "advance", fail)
        with pytest.raises(RunError, match="not enough memory; lower trajectories"):
            run(problem)

    def test_other_errors_pass(self, problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("something else")

        monkeypatch.setattr(sb.SGD, "advance", fail)
        with pytest.raises(RuntimeError, match="something else"):
            run(problem)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"trajectories": 0}, "trajectories: expected a whole number >= 1"),
            ({"steps": 2.5}, "steps: expected a whole number >= 1"),
            ({"seed": -1}, "seed: expected a whole number >= 0"),
            ({"block_size": 0}, "block_size"),
            ({"save_every": 5}, "save_every: expected a divisor of steps = 12, got 5; use 4"),
            ({"save": ["charges"]}, "did you mean 'charge_value'"),
        ],
    )
    def test_arguments(self, problem: sb.problems.HadamardRegression, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            run(problem, **arguments)

    def test_a_symmetry_that_the_loss_does_not_have(self) -> None:
        class Broken(sb.problems.HadamardRegression):
            def per_sample_loss(self, theta: torch.Tensor) -> torch.Tensor:
                return super().per_sample_loss(theta) + theta[..., 1:2].square()

        with pytest.raises(SymmetryError, match=r"not invariant.*p:q\[1\]"):
            run(Broken(*regression()), symmetry=sb.symmetry.Rescaling("p", "q"))


def test_save_grid_defaults() -> None:
    assert save_grid(40) == range(0, 41, 2)
    assert save_grid(7) == range(8)
