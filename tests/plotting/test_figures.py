"""The other figures: what is drawn are the numbers of the dataset, for replicates and flagged trajectories too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import regression
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from test_comparison import pair

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.plotting import plot_charges, plot_gram_spectrum, plot_landscape, plot_motion, plot_paths


@pytest.fixture(scope="module")
def problem() -> sb.problems.HadamardRegression:
    X, y = regression()
    return sb.problems.HadamardRegression(X, y, features=["a", "b", "c"], initial={"p": 1.0, "q": 0.3})


@pytest.fixture(scope="module")
def ensemble(problem: sb.problems.HadamardRegression) -> xr.Dataset:
    dynamics = sb.SGD(learning_rate=0.01)
    return sb.simulate(problem, dynamics, symmetry=problem.symmetry(), trajectories=12, steps=20, save_every=5)


@pytest.fixture(scope="module")
def plane() -> xr.Dataset:
    scalar = sb.problems.HadamardRegression(np.ones((4, 1)), np.ones(4))
    grids = {"p[0]": np.linspace(0.1, 2, 21), "q[0]": np.linspace(0.1, 2, 31)}
    return sb.landscape(scalar, scalar.symmetry(), grids, noise="soft_gauge", temperature=0.2, measure="slice")


def curve(axes: Axes, label: str) -> np.ndarray:
    """Return the ordinates of the line with a label."""
    (line,) = [one for one in axes.lines if str(one.get_label()).startswith(label)]
    return ordinates(line)


def ordinates(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata(), float)


def measured_points(axes: Axes) -> np.ndarray:
    """Return the ordinates of the error bars' points."""
    container = axes.containers[0]
    assert isinstance(container, ErrorbarContainer)
    return ordinates(container.lines[0])


def labelled(figure: Figure) -> bool:
    """Return whether every panel has a title and both axes a label somewhere."""
    titles = all(axes.get_title() for axes in figure.axes)
    return titles and any(a.get_xlabel() for a in figure.axes) and any(a.get_ylabel() for a in figure.axes)


def test_charges_show_measured_and_predicted_means() -> None:
    ensemble, prediction = pair()
    figure = plot_charges(ensemble, prediction, panels=2)
    assert [axes.get_title() for axes in figure.axes] == sorted(
        (axes.get_title() for axes in figure.axes),
        key=lambda name: float((ensemble["charge_value"].sel(charge=name)[:, -1]).mean()),
    )
    for axes in figure.axes:
        charge = ensemble["charge_value"].sel(charge=axes.get_title())
        predicted = charge[:, 0].mean() + prediction["predicted_drift"].sel(charge=axes.get_title()).mean("trajectory")
        np.testing.assert_allclose(ordinates(axes.lines[0]), predicted)
        lower, upper = axes.lines[1:3]
        np.testing.assert_allclose(ordinates(lower), charge.quantile(0.05, "trajectory"))
        np.testing.assert_allclose(ordinates(upper), charge.quantile(0.95, "trajectory"))
        np.testing.assert_allclose(measured_points(axes), charge.mean("trajectory"))
    assert labelled(figure)
    assert "2 of 5 charges" in figure.legends[0].get_title().get_text()


def test_charges_leave_flagged_trajectories_out_and_take_one_replicate() -> None:
    ensemble, prediction = pair(replicates=2)
    ensemble["charge_value"][0, 3] = np.nan
    ensemble["status"][0, 3] = 1
    figure = plot_charges(ensemble, prediction, panels=1)
    (axes,) = figure.axes
    kept = ensemble["charge_value"][0].sel(charge=axes.get_title()).drop_sel(trajectory=3)
    np.testing.assert_allclose(measured_points(axes), kept.mean("trajectory"))
    assert "replicate 0" in figure.legends[0].get_title().get_text()
    assert len(plot_charges(ensemble, stacked=True).axes) == 4


def test_paths(ensemble: xr.Dataset) -> None:
    axes = plot_paths(ensemble, "loss", trajectories=3).axes[0]
    np.testing.assert_allclose(curve(axes, "median"), ensemble["loss"].median("trajectory"))
    np.testing.assert_allclose(ordinates(axes.lines[0]), ensemble["loss"][0])
    assert axes.get_ylabel() == "loss over all data"
    with pytest.raises(InputError, match="did you mean 'loss'"):
        plot_paths(ensemble, "losses")


def test_motion_draws_lengths_and_shares(ensemble: xr.Dataset, problem: sb.problems.HadamardRegression) -> None:
    split = sb.split_dynamics(ensemble, problem, problem.symmetry())
    left, right = plot_motion(split).axes
    parts = split["drift_component"]
    second = (parts.sel(component="ito_vertical") ** 2).sum("parameter") ** 0.5
    np.testing.assert_allclose(curve(left, "second order, along"), second.mean("trajectory"))
    assert any(str(line.get_label()).endswith("(zero)") for line in left.lines)
    np.testing.assert_allclose(curve(right, "along orbits") + curve(right, "across orbits"), 100.0)
    assert labelled(left.figure)  # type: ignore[arg-type]
    split["drift_component"][:] = 0.0
    with pytest.raises(DataError, match="components that move"):
        plot_motion(split)


def test_spectrum_draws_eigenvalues(ensemble: xr.Dataset, problem: sb.problems.HadamardRegression) -> None:
    spectrum = sb.gram_spectrum(ensemble, problem, problem.symmetry())
    left, right = plot_gram_spectrum(spectrum).axes
    values = spectrum["gram_eigenvalue"].median("trajectory")
    np.testing.assert_allclose(curve(left, "update 20"), values.sel(step=20))
    np.testing.assert_allclose(curve(right, "number 3"), values.sel(direction=3))
    spectrum["gram_eigenvalue"][:] = 0.0
    with pytest.raises(DataError, match="positive eigenvalues"):
        plot_gram_spectrum(spectrum)


def test_landscape_draws_trajectories_where_they_went(plane: xr.Dataset) -> None:
    scalar = sb.problems.HadamardRegression(np.ones((4, 1)), np.ones(4))
    starts = torch.tensor([[1.5, 0.2], [0.3, 1.1]], dtype=torch.float64)
    runs = sb.simulate(scalar, sb.SGD(learning_rate=0.1), trajectories=2, steps=10, initial=starts)
    figure = plot_landscape(plane, runs, labels=["gradient descent"])
    left, right = figure.axes
    for axes in (left, right):
        paths = [line for line in axes.lines if np.size(line.get_xdata()) == 11]
        for path, theta in zip(paths, runs["theta"].values, strict=True):
            np.testing.assert_allclose(np.transpose([path.get_xdata(), path.get_ydata()]), theta)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("p[0]", "q[0]")
    assert any("gradient descent" in text.get_text() for text in figure.legends[0].get_texts())
    assert "soft gauge, T = 0.2" in right.get_title()


def test_landscape_refuses(plane: xr.Dataset, ensemble: xr.Dataset) -> None:
    with pytest.raises(DataError, match=r"theta with p\[0\] and q\[0\]"):
        plot_landscape(plane, ensemble)
    with pytest.raises(InputError, match="one for each ensemble"):
        plot_landscape(plane, ensemble, labels=["a", "b"])
    with pytest.raises(InputError, match="predictor: expected one of"):
        plot_landscape(plane, predictor="none")


def test_other_kinds_and_lost_ensembles_are_refused(ensemble: xr.Dataset) -> None:
    draws: list[Callable[[xr.Dataset], Figure]] = [plot_motion, plot_gram_spectrum, plot_landscape]
    for draw in draws:
        with pytest.raises(DataError, match="expected a dataset of kind"):
            draw(ensemble)
    lost = ensemble.copy(deep=True)
    lost["status"][:] = 1
    for draw in (plot_charges, plot_paths):
        with pytest.raises(DataError, match="trajectories with status ok"):
            draw(lost)
    with pytest.raises(DataError, match="expected charge_value"):
        plot_charges(ensemble.drop_vars("charge_value"))
    with pytest.raises(DataError, match="expected a variable over trajectory and step"):
        plot_paths(ensemble.drop_vars(["loss", "log_orbit_volume"]))
