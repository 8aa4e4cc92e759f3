"""The accessor: the same numbers as the functions behind it, from objects or from a file alone."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import every_model, regression
from test_comparison import pair
from test_laws import ar1, normal

import sdebias as sb
from sdebias.accessor import FIGURES
from sdebias.dataset import make_dataset
from sdebias.errors import DataError, InputError
from sdebias.schema import KINDS
from sdebias.storage import save_dataset

SMALL: dict[str, Any] = {"trajectories": 8, "steps": 8, "save_every": 2}


@pytest.fixture
def ensemble(problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> xr.Dataset:
    return sb.simulate(problem, sb.SGD(learning_rate=0.01), symmetry=symmetry, **SMALL)


@pytest.fixture
def stored(ensemble: xr.Dataset, tmp_path: Path) -> xr.Dataset:
    """Return the ensemble as a reader without this package opens it."""
    return xr.open_dataset(save_dataset(ensemble, tmp_path / "run.nc")).load()


def test_a_file_is_enough_to_compare_and_split(
    ensemble: xr.Dataset, stored: xr.Dataset, problem: sb.Problem, symmetry: sb.symmetry.Symmetry
) -> None:
    wanted = {
        "predict": sb.predict_orbit_drift(ensemble, problem, symmetry),
        "split": sb.split_dynamics(ensemble, problem, symmetry),
        "gram_spectrum": sb.gram_spectrum(ensemble, problem, symmetry),
        "compare": sb.compare(ensemble, sb.predict_orbit_drift(ensemble, problem, symmetry)),
    }
    for name, result in wanted.items():
        xr.testing.assert_equal(getattr(stored.sdebias, name)(), result)
        xr.testing.assert_equal(getattr(ensemble.sdebias, name)(problem, symmetry), result)


@pytest.mark.parametrize("model", every_model(), ids=lambda model: model.model)
def test_every_known_model_is_built_again(model: sb.Problem) -> None:
    symmetry = model.symmetry()
    ensemble = sb.simulate(model, sb.SGD(learning_rate=1e-3), symmetry=symmetry, **SMALL)
    problem, again = ensemble.sdebias.model()
    theta = model.draw_initial(2, torch.Generator().manual_seed(0))
    assert torch.equal(problem.loss(theta), model.loss(theta))
    assert symmetry is not None
    assert torch.equal(again.bind(problem).log_orbit_volume(theta), symmetry.bind(model).log_orbit_volume(theta))


def test_models_of_others_are_passed() -> None:
    X, y = regression()
    module = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    problem = sb.Problem.from_module(module, lambda out, target: (out[0] - target) ** 2, torch.tensor(X), y)
    ensemble = sb.simulate(problem, sb.SGD(learning_rate=1e-3), **SMALL)
    with pytest.raises(DataError, match="pass problem and symmetry"):
        ensemble.sdebias.split()
    with pytest.raises(DataError, match="symmetry: expected one"):
        ensemble.sdebias.split(problem)
    with pytest.raises(DataError, match="expected a dataset of kind ensemble"):
        pair()[1].sdebias.split(problem)


def test_summary_of_the_last_step_is_that_of_independent_trajectories(ensemble: xr.Dataset) -> None:
    ensemble["status"][2] = 1
    table = ensemble.sdebias.summary(confidence=0.9)
    assert table.index.names == ["variable", "label"]
    values = ensemble["charge_value"].sel(charge="p:q[b]")[:, -1].drop_sel(trajectory=2).values
    row = table.loc[("charge_value", "p:q[b]")]
    np.testing.assert_allclose([row["mean"], row["sd"], row["ess"]], [values.mean(), values.std(ddof=1), 7])
    np.testing.assert_allclose(row["upper"] - row["mean"], 1.9431802805 * values.std(ddof=1) / np.sqrt(7))
    assert list(table.loc["loss"].index) == [""]
    assert {"loss", "log_orbit_volume", "charge_value", "predictor_value"} == set(table.index.get_level_values(0))


def test_summary_of_a_stretch_counts_effective_samples() -> None:
    samples = ar1(200, 50)
    values = samples.values[..., None]
    variables = {"predictor_value": values, "status": np.zeros(200, np.int8), "learning_rate": 0.1}
    coords = {"trajectory": np.arange(200), "step": np.arange(50), "predictor": ["w"]}
    ensemble = make_dataset("ensemble", variables, coords, {"dynamics": "SGD"})
    row = ensemble.sdebias.summary(first_step=10).loc[("predictor_value", "w")]
    stretch = samples.isel(step=slice(10, None))
    assert row["ess"] == pytest.approx(sb.effective_sample_size(stretch))
    assert row["ess"] < 0.5 * stretch.size
    assert row["lower"] < row["mean"] < row["upper"]


def test_summary_of_replicates(replicated: sb.problems.HadamardRegression) -> None:
    ensemble = sb.simulate(replicated, sb.SGD(learning_rate=0.01), symmetry=replicated.symmetry(), **SMALL)
    table = ensemble.sdebias.summary()
    assert table.index.names == ["replicate", "variable", "label"]
    assert table.loc[(2, "loss", ""), "mean"] == pytest.approx(float(ensemble["loss"][2, :, -1].mean()))
    assert len(ensemble.sdebias.plot.charges().axes) == 3


def test_summary_refuses(ensemble: xr.Dataset) -> None:
    with pytest.raises(InputError, match="first_step: expected at most 8"):
        ensemble.sdebias.summary(first_step=9)
    with pytest.raises(InputError, match="confidence"):
        ensemble.sdebias.summary(confidence=1)
    names = ["loss", "log_orbit_volume", "charge_value", "predictor_value"]
    with pytest.raises(DataError, match="expected one of loss"):
        ensemble.drop_vars(names).sdebias.summary()


def test_plot_offers_the_figures_that_fit(ensemble: xr.Dataset) -> None:
    assert set(FIGURES) <= set(KINDS)
    figures = {name: getattr(ensemble.sdebias.plot, name)() for name in dir(ensemble.sdebias.plot)}
    assert {name: len(figure.axes) for name, figure in figures.items()} == {
        **{"orbit_drift": 2, "charges": 3, "paths": 1, "gram_spectrum": 2, "motion": 2}
    }
    comparison = ensemble.sdebias.compare()
    assert dir(comparison.sdebias.plot) == ["orbit_drift"]
    assert len(comparison.sdebias.plot(stacked=True).axes) == 2
    assert comparison.sdebias.table().equals(sb.comparison.comparison_table(comparison))
    assert len(sb.compare_law(ar1(20, 5), normal(1.0)).sdebias.plot().axes) == 2
    scalar = sb.problems.HadamardRegression(np.ones((4, 1)), np.ones(4))
    grids = {"p[0]": np.linspace(0.1, 2, 5), "q[0]": np.linspace(0.1, 2, 5)}
    plane = sb.landscape(scalar, scalar.symmetry(), grids, noise="soft_gauge", temperature=0.2, measure="slice")
    assert len(plane.sdebias.plot().axes) == 2
    with pytest.raises(DataError, match="plot: expected a dataset of kind ensemble"):
        pair()[1].sdebias.plot()


def test_charges_are_drawn_without_a_prediction_where_the_model_is_unknown() -> None:
    figure = pair()[0].sdebias.plot.charges()
    assert not any("predicted" in text.get_text() for text in figure.legends[0].get_texts())


def test_arviz_takes_trajectories_for_chains(ensemble: xr.Dataset) -> None:
    ensemble["status"][3] = 2
    ensemble["theta"][3] = np.nan
    found = ensemble.sdebias.to_arviz(first_step=2)
    assert found.posterior.sizes["chain"] == 7
    assert list(found.posterior["draw"].values) == [2, 4, 6, 8]
    assert found.posterior.attrs["flagged"] == 1
    kept = ensemble.drop_sel(trajectory=3, step=0)
    np.testing.assert_array_equal(found.posterior["charge_value"], kept["charge_value"])
    np.testing.assert_array_equal(found.sample_stats["loss"], kept["loss"])
    np.testing.assert_array_equal(found.constant_data["X"], ensemble["X"])
    table: Any = arviz.summary(found, var_names=["predictor_value"], kind="stats", round_to="none")
    np.testing.assert_allclose(
        table.loc["predictor_value[w[b]]", "mean"], float(kept["predictor_value"][..., 1].mean())
    )
    with pytest.raises(DataError, match="choose an earlier step"):
        ensemble.sdebias.to_arviz(first_step=9)


def test_without_arviz_the_error_says_what_to_install(ensemble: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def none(name: str, *rest: Any) -> Any:
        if name == "arviz":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(InputError, match=r"pip install 'sdebias\[arviz\]'"):
        ensemble.sdebias.to_arviz()


def test_a_notebook_shows_what_it_is(ensemble: xr.Dataset) -> None:
    comparison = ensemble.sdebias.compare()
    shown = comparison.sdebias._repr_html_()
    assert "<th style='text-align:left'>verdict</th>" in shown
    assert "kind: comparison" in repr(comparison.sdebias)
    assert "8 ok, 0 diverged, 0 non_finite" in repr(ensemble.sdebias)
    comparison.attrs["equation"] = "<script>alert(1)</script>"
    assert "<script>" not in comparison.sdebias._repr_html_()
    assert "kind: unknown" in repr(xr.Dataset().sdebias)
