"""Orbit drift: what is drawn is what was measured and predicted, with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from test_comparison import pair

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.plotting import plot_orbit_drift


def drawn(axes: Axes) -> Any:
    """Return the first error bars' points, caps and bars."""
    container = axes.containers[0]
    assert isinstance(container, ErrorbarContainer)
    return container.lines


def test_points_lie_at_predicted_and_measured() -> None:
    comp = sb.compare(*pair())
    left, right = plot_orbit_drift(comp).axes
    scale = 10.0
    points, _, (bars,) = drawn(left)
    np.testing.assert_allclose(points.get_xdata(), comp["predicted"][-1] / scale)
    np.testing.assert_allclose(points.get_ydata(), comp["empirical"][-1] / scale)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(np.sort(ends, axis=1), comp["interval"][-1] / scale)
    for axes in (left, right):
        assert axes.get_xlabel()
        assert "10^{1}" in axes.get_ylabel()
        assert axes.get_title()
    legend = left.get_legend()
    assert legend is not None
    assert any("SGD: consistent" in text.get_text() for text in legend.get_texts())


def test_curves_are_the_predictions_of_the_labelled_charges() -> None:
    comp = sb.compare(*pair())
    right = plot_orbit_drift(comp, curves=2).axes[1]
    labels = [text.get_text() for text in right.texts]
    assert len(labels) == 2
    lines = [
        line for line in right.lines if np.size(line.get_xdata()) == comp.sizes["step"] and line.get_linestyle() == "-"
    ]
    for label, line in zip(labels, lines, strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), comp["predicted"].sel(charge=label) / 10.0)


def test_replicates_and_two_dynamics() -> None:
    several = sb.compare(*pair(replicates=3))
    left, right = plot_orbit_drift([several, several]).axes
    assert len(left.containers) == 2
    assert np.size(drawn(left)[0].get_xdata()) == 15
    assert "replicate 0" in right.get_title()


def test_zero_drift_is_drawn() -> None:
    ensemble, prediction = pair(noise=0.0)
    ensemble["charge_value"][:] = 2.0
    prediction["predicted_drift"][:] = 0.0
    assert plot_orbit_drift(sb.compare(ensemble, prediction)).axes[0].get_ylabel() == "measured change of charge"


def test_stacked_panels_stand_one_above_the_other() -> None:
    comp = sb.compare(*pair())
    wide, tall = (plot_orbit_drift(comp, stacked=stacked) for stacked in (False, True))
    assert wide.get_figwidth() > wide.get_figheight()
    assert tall.get_figwidth() < tall.get_figheight()
    assert len(tall.axes) == 2


def test_refusals() -> None:
    with pytest.raises(InputError, match="one or more comparisons"):
        plot_orbit_drift([])
    with pytest.raises(DataError, match="kind comparison"):
        plot_orbit_drift(pair()[0])
