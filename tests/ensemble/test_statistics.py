"""Statistics in place of trajectories: equal to those of the stored trajectories, whatever the threads and order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import DEVICES

import sdebias as sb
from sdebias.ensemble.observables import choose_observables
from sdebias.ensemble.statistics import (
    STATISTICS,
    Covariance,
    Histogram,
    Mean,
    Quantiles,
    Variance,
    as_statistic,
)
from sdebias.ensemble.statistics.summary import Summary
from sdebias.errors import DataError, InputError

SGD = sb.SGD(learning_rate=0.05)
LEVELS = (0.0, 0.05, 0.5, 0.9, 1.0)
EVERY = [Mean(), Covariance(), Quantiles(LEVELS), Histogram("predictor", lower=-0.5, upper=0.8, bins=37, since=12)]
SAVE = ["theta", "loss", "charge", "predictor"]
NAMES = ["theta", "loss", "charge_value", "predictor_value", "squares", "table"]


def squares(theta: torch.Tensor) -> torch.Tensor:
    """Sum of squares."""
    return theta.square().sum(-1)


def table(theta: torch.Tensor) -> torch.Tensor:
    return theta[..., :4].unflatten(-1, (2, 2))


def run(problem: sb.Problem, **arguments: Any) -> xr.Dataset:
    options: dict[str, Any] = {
        "symmetry": sb.symmetry.Rescaling("p", "q"),
        "trajectories": 150,
        "steps": 20,
        "save_every": 1,
        "block_size": 32,
        "progress": False,
        "save": [*SAVE, squares, table],
    }
    return sb.simulate(problem, SGD, **(options | arguments))


def assert_exact(found: xr.Dataset, stored: xr.Dataset, names: list[str], tolerance: float = 1e-12) -> None:
    """Compare with numpy's statistics of the stored trajectories, in float64."""
    for name in names:
        values = stored[name].astype(float)
        count = stored.sizes["trajectory"]
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(found[f"{name}_mean"], values.mean("trajectory"), rtol=0, atol=tolerance * scale)
        variance = values.var("trajectory", ddof=1)
        np.testing.assert_allclose(found[f"{name}_variance"], variance, rtol=0, atol=tolerance * scale**2)
        error = np.sqrt(found[f"{name}_variance"] / count)
        np.testing.assert_allclose(found[f"{name}_mean_error"], error, rtol=1e-12)
        others = {dim: f"other_{dim}" for dim in values.dims if dim not in ("replicate", "trajectory", "step")}
        centred = values - values.mean("trajectory")
        covariance = xr.dot(centred, centred.drop_vars(others, errors="ignore").rename(others), dim="trajectory")
        covariance = (covariance / (count - 1)).transpose(*found[f"{name}_covariance"].dims)
        np.testing.assert_allclose(found[f"{name}_covariance"], covariance, rtol=0, atol=tolerance * scale**2)
        assert (found[f"{name}_count"] == count).all()


class TestExactness:
    @pytest.mark.parametrize("name", ["problem", "replicated"])
    @pytest.mark.parametrize("device", DEVICES)
    def test_moments(self, name: str, device: str, request: pytest.FixtureRequest) -> None:
        problem = request.getfixturevalue(name).to(device)
        assert_exact(run(problem, statistics=EVERY), run(problem), NAMES)

    def test_float32_is_accumulated_in_float64(self, problem: sb.problems.HadamardRegression) -> None:
        single = problem.to(dtype=torch.float32)
        found = run(single, statistics=["covariance"])
        assert found["loss_mean"].dtype == np.float64
        assert_exact(found, run(single), NAMES)

    def test_a_large_offset_does_not_cancel(self, problem: sb.problems.HadamardRegression) -> None:
        def shifted(theta: torch.Tensor) -> torch.Tensor:
            return theta + 1e8

        found, stored = (run(problem, save=["theta", shifted], **options) for options in ({"statistics": ["mean"]}, {}))
        variance = stored["shifted"].var("trajectory", ddof=1)
        np.testing.assert_allclose(found["shifted_variance"], variance, rtol=1e-6, atol=1e-12)

    @pytest.mark.parametrize("accuracy", [0.05, 0.001])
    def test_quantiles_are_within_their_accuracy(
        self, problem: sb.problems.HadamardRegression, accuracy: float
    ) -> None:
        found, stored = run(problem, statistics=[Quantiles(LEVELS, accuracy=accuracy)]), run(problem)
        largest = 0.0
        for name in NAMES:
            expected = stored[name].quantile(list(LEVELS), "trajectory", method="lower").values
            error = np.abs(found[f"{name}_quantile"].values - expected)
            assert (error <= accuracy * (1 + 1e-9) * np.abs(expected)).all()
            largest = max(largest, float((error / np.abs(expected)).max()))
            assert found[f"{name}_quantile"].attrs["relative_accuracy"] == accuracy
        assert largest > 0.8 * accuracy  # the bound is not idle

    def test_quantiles_of_many_sizes_and_both_signs(self, problem: sb.problems.HadamardRegression) -> None:
        def wide(theta: torch.Tensor) -> torch.Tensor:
            return torch.sinh(40 * (theta - 0.7))

        found, stored = (
            run(problem, save=["theta", wide], **options) for options in ({"statistics": [Quantiles(LEVELS)]}, {})
        )
        expected = stored["wide"].quantile(list(LEVELS), "trajectory", method="lower").values
        assert expected.min() < -1e3
        assert expected.max() > 1e3
        np.testing.assert_allclose(found["wide_quantile"], expected, rtol=0.0100001, atol=1e-9)

    @pytest.mark.parametrize("name", ["problem", "replicated"])
    def test_histogram_counts_equal_numpys(self, name: str, request: pytest.FixtureRequest) -> None:
        problem = request.getfixturevalue(name)
        found, stored = run(problem, statistics=EVERY), run(problem)["predictor_value"].sel(step=slice(12, None))
        counts = found["predictor_value_histogram"]
        for where in np.ndindex(stored.shape[0] if "replicate" in stored.dims else 1, stored.sizes["predictor"]):
            at = (
                {"replicate": where[0], "predictor": where[1]}
                if "replicate" in stored.dims
                else {"predictor": where[1]}
            )
            values = stored.isel(at).values.ravel()
            mine = counts.isel(at).values.sum(0)
            np.testing.assert_array_equal(mine[1:-1], np.histogram(values, np.linspace(-0.5, 0.8, 38))[0])
            assert mine[0] == (values < -0.5).sum()
            assert mine[-1] == (values >= 0.8).sum()
        assert found["predictor_value_bin_lower"].values[0] == -np.inf
        np.testing.assert_allclose(found["predictor_value_bin_upper"].values[:-1], np.linspace(-0.5, 0.8, 38))

    def test_groups_are_of_trajectories(self, problem: sb.problems.HadamardRegression) -> None:
        found = run(problem, statistics=EVERY)["predictor_value_histogram"]
        # Blocks of 32, the last one of 22: groups 0 to 21 hold five trajectories, up to 31 four, the rest none.
        totals = found.isel(predictor=0).sum("predictor_value_bin").values
        np.testing.assert_array_equal(totals, 9 * np.repeat([5, 4, 0], [22, 10, 32]))

    def test_values_on_edges_are_in_the_bin_above(self, problem: sb.problems.HadamardRegression) -> None:
        edges = np.linspace(0.1, 0.7, 13)

        def on_edges(theta: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(edges).expand(*theta.shape[:-1], -1).contiguous()

        histogram = Histogram("on_edges", lower=0.1, upper=0.7, bins=12)
        counts = run(problem, save=[on_edges], statistics=[histogram])["on_edges_histogram"].sum("group")
        assert (counts.values.argmax(-1) == np.arange(1, 14)).all()


class TestOrder:
    def test_threads_do_not_matter(self, problem: sb.problems.HadamardRegression) -> None:
        threads = torch.get_num_threads()
        runs = []
        try:
            for count in (1, 2, 4):
                torch.set_num_threads(count)
                runs.append(run(problem, statistics=EVERY))
        finally:
            torch.set_num_threads(threads)
        assert runs[0].equals(runs[1])
        assert runs[0].equals(runs[2])

    def test_blocks_in_any_order_give_the_same_bits(self, problem: sb.problems.HadamardRegression) -> None:
        observables = choose_observables(problem, None, SAVE[:2])
        path = torch.randn(4, 40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        states = []
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
            summary = Summary(observables, [Covariance(), Quantiles()], (), 40, [0, 1, 2, 3])
            for first in (0, 2):  # segment after segment
                for block in order:
                    rows = slice(10 * block, 10 * block + 10)
                    summary.write(path[first : first + 2, rows], slice(10), 10 * block, first)
            states.append(summary.state())
        for name, array in states[0].items():
            np.testing.assert_array_equal(array, states[1][name])
            np.testing.assert_array_equal(array, states[2][name])
        assert (states[0]["observed.trajectories_written"] == 40).all()

    def test_a_state_is_gone_on_from(self, problem: sb.problems.HadamardRegression) -> None:
        observables = choose_observables(problem, None, SAVE[:2])
        path = torch.randn(4, 10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        path[1, 3] = torch.nan

        def empty() -> Summary:
            histogram = Histogram("loss", lower=0, upper=9, since=1)
            return Summary(observables, [Covariance(), Quantiles(), histogram], (), 10, [0, 1, 2, 3])

        whole, half, rest = empty(), empty(), empty()
        whole.write(path, slice(10), 0, 0)
        half.write(path[:2], slice(10), 0, 0)
        rest.restore({name: array.copy() for name, array in half.state().items()})
        rest.write(path[2:], slice(10), 0, 2)
        assert whole.state().keys() == rest.state().keys()
        for name, array in whole.state().items():
            np.testing.assert_array_equal(array, rest.state()[name], err_msg=name)

    def test_a_state_of_another_run_is_refused(self, problem: sb.problems.HadamardRegression) -> None:
        observables = choose_observables(problem, None, SAVE[:2])
        state = Summary(observables, [Mean(), Quantiles()], (), 10, [0, 1]).state()
        for changed in ([0, 1, 2], [0]):
            with pytest.raises(DataError, match="not of this run"):
                Summary(observables, [Mean(), Quantiles()], (), 10, changed).restore(state)
        with pytest.raises(DataError, match="an array 'moment', got none"):
            Summary(observables, [Mean()], (), 10, [0, 1]).restore(
                {name: array for name, array in state.items() if name != "observed.loss_moment"}
            )
        state["observed.loss_sketch_first"] = np.asarray(2**40)
        with pytest.raises(DataError, match="keys"):
            Summary(observables, [Mean(), Quantiles()], (), 10, [0, 1]).restore(state)


class TestFlagged:
    def test_trajectories_count_until_they_are_flagged(self, problem: sb.problems.HadamardRegression) -> None:
        start = torch.ones(150, 6, dtype=torch.float64)
        start[[3, 77]] = 1e3
        start[140] = 2e6  # diverged from the start
        found, stored = (run(problem, initial=start, **options) for options in ({"statistics": EVERY}, {}))
        np.testing.assert_array_equal(found["status"], stored["status"])
        size = abs(stored["theta"]).max("parameter").transpose("trajectory", "step")
        ok = ~np.logical_or.accumulate(~(size.values <= 1e6), axis=1)
        np.testing.assert_array_equal(found["trajectories_used"], ok.sum(0))
        assert set(ok.sum(0)) >= {147, 149}
        for step in range(21):
            values = stored["charge_value"].values[ok[:, step], step]
            np.testing.assert_allclose(found["charge_value_mean"][step], values.mean(0), rtol=1e-12)
            covariance = np.cov(values.T)
            np.testing.assert_allclose(
                found["charge_value_covariance"][step], covariance, rtol=1e-9, atol=1e-12 * np.abs(values).max() ** 2
            )
        assert found["predictor_value_histogram"].isel(predictor=0).sum() == ok[:, 12:].sum()

    def test_a_value_that_is_not_finite_does_not_count(self, problem: sb.problems.HadamardRegression) -> None:
        def root(theta: torch.Tensor) -> torch.Tensor:
            return (theta[..., 3:4] - 0.3).sqrt()

        found, stored = (
            run(problem, save=[root], **options) for options in ({"statistics": ["mean", "quantiles"]}, {})
        )
        finite = stored["root"].notnull().sum("trajectory").squeeze("root_axis0")
        np.testing.assert_array_equal(found["root_count"], finite)
        assert (finite[1:] < 150).all()
        assert (found["trajectories_used"] == 150).all()
        np.testing.assert_allclose(found["root_mean"], stored["root"].mean("trajectory", skipna=True), rtol=1e-12)

    def test_nothing_left_is_nan_and_said(self, problem: sb.problems.HadamardRegression) -> None:
        start = torch.full((150, 6), 2e6, dtype=torch.float64)
        found = run(problem, initial=start, statistics=["covariance", "quantiles"])
        assert (found["trajectories_used"] == 0).all()
        assert np.isnan(found["loss_mean"]).all()
        assert np.isnan(found["loss_quantile"]).all()


class TestDataset:
    def test_what_is_in_it(self, problem: sb.problems.HadamardRegression) -> None:
        found = run(problem, save=["loss", "charge", squares], statistics=["mean", "covariance", "quantiles"])
        assert found.attrs["kind"] == "statistics"
        assert {"loss", "charge_value", "squares", "theta"}.isdisjoint(found.variables)
        assert found["charge_value_covariance"].dims == ("step", "charge", "other_charge")
        assert list(found["other_charge"].values) == list(found["charge"].values)
        assert found["squares_quantile"].dims == ("quantile", "step")
        assert found["squares_mean"].attrs["long_name"] == "mean over trajectories of: Sum of squares."
        assert found["charge_value_variance"].attrs["units"] == "(parameter^2)^2"
        assert found["status"].sizes == {"trajectory": 150}
        config = json.loads(found.attrs["config_json"])["run"]
        assert [as_statistic(s) for s in config["statistics"]] == [Mean(), Covariance(), Quantiles()]

    def test_theta_only_on_request(self, problem: sb.problems.HadamardRegression) -> None:
        found = run(problem, save=None, statistics=["mean"])
        assert "theta_mean" not in found
        assert {"loss_mean", "charge_value_mean", "log_orbit_volume_mean", "predictor_value_mean"} <= set(found)

    def test_it_is_small_and_survives_a_file(self, problem: sb.problems.HadamardRegression, tmp_path: Any) -> None:
        found = run(problem, statistics=EVERY)
        found.to_netcdf(tmp_path / "statistics.nc")
        with sb.open(tmp_path / "statistics.nc") as again:
            assert again.equals(found)

    def test_memory_is_that_of_the_statistics(self, problem: sb.problems.HadamardRegression) -> None:
        run(problem, statistics=["mean"], memory=200_000)
        with pytest.raises(InputError, match="size of the results"):
            run(problem, memory=200_000)

    @pytest.mark.parametrize("since", [7, 20])
    def test_a_run_directory_holds_the_same(
        self, problem: sb.problems.HadamardRegression, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, since: int
    ) -> None:
        monkeypatch.setattr("sdebias.ensemble.run.SHARD_NUMBERS", 2**14)  # a shard for each block
        if since < 20:  # legs of eight saves
            monkeypatch.setattr("sdebias.ensemble.run.LEG_BYTES", 2**17)
            monkeypatch.setattr("sdebias.ensemble.sizes.SAVES_PER_SEGMENT", (8, 8))
        statistics = [Covariance(), Quantiles(LEVELS), Histogram("predictor", lower=0, upper=1, since=since)]
        options: dict[str, Any] = {"save": SAVE[1:], "trajectories": 100, "block_size": 32, "steps": 20}
        options |= {"statistics": statistics, "symmetry": sb.symmetry.Rescaling("p", "q"), "save_every": 1}
        alone = sb.simulate(problem, SGD, progress=False, **options)
        parts = sb.run(problem, SGD, tmp_path / "run", progress=False, **options)
        assert len(list((tmp_path / "run").glob("part-*"))) >= (4 if since == 20 else 8)
        assert set(alone.variables) == set(parts.variables)
        for name, variable in alone.data_vars.items():
            assert parts[name].dims == variable.dims
            np.testing.assert_allclose(parts[name], variable, rtol=1e-12, atol=1e-15, err_msg=str(name))
            if variable.dtype.kind == "i":
                np.testing.assert_array_equal(parts[name], variable)


class TestRefusals:
    @pytest.mark.parametrize(
        ("statistics", "words"),
        [
            ("mean", "a list of statistics"),
            ([], "a list of statistics"),
            (["median"], "statistic: expected one of mean"),
            ([3], "names or statistics"),
            (["mean", "mean"], "two of mean"),
            ([{"statistic": "quantiles", "level": [0.5]}], "the parameters of quantiles"),
            ([{"statistic": "histogram", "observable": "loss"}], "the parameters of histogram"),
            ([Histogram("losses", lower=0, upper=1)], "did you mean 'loss'"),
            ([Histogram("loss", lower=0, upper=1, since=21)], "since: expected an update of the run, at most 20"),
            ([Histogram("loss", lower=0, upper=1), Histogram("loss", lower=0, upper=2)], "two of histogram of loss"),
        ],
    )
    def test_statistics(self, problem: sb.problems.HadamardRegression, statistics: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            run(problem, save=["loss"], statistics=statistics)

    @pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.5, 1.1), "median", 0.5, ("a",)])
    def test_levels(self, levels: Any) -> None:
        with pytest.raises(InputError, match="levels: expected increasing numbers"):
            Quantiles(levels)

    @pytest.mark.parametrize(
        "values", [{"accuracy": 0}, {"accuracy": 0.5}, {"accuracy": "fine"}, {"smallest": 0}, {"smallest": np.inf}]
    )
    def test_quantiles(self, values: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(values))):
            Quantiles(**values)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"lower": 1}, "lower < upper"),
            ({"upper": np.nan}, "upper: expected a finite number"),
            ({"upper": "high"}, "upper: expected a finite number"),
            ({"bins": 0}, "bins"),
            ({"since": -1}, "since"),
        ],
    )
    def test_histogram(self, values: dict[str, Any], words: str) -> None:
        base: dict[str, Any] = {"observable": "loss", "lower": 0, "upper": 1}
        with pytest.raises(InputError, match=words):
            Histogram(**(base | values))


@pytest.mark.parametrize("statistic", [*EVERY, Variance(), Quantiles([0.5], accuracy=0.1, smallest=1e-3)])
def test_plain_data_and_back(statistic: Any) -> None:
    spec = json.loads(json.dumps(statistic.spec()))
    assert as_statistic(spec) == statistic
    assert STATISTICS[spec["statistic"]] is type(statistic)
