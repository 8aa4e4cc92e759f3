"""Histograms against predicted laws: what is drawn is what was measured and predicted, with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from test_laws import ar1, normal

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.plotting import plot_law


def steps(axes: Axes) -> list[Any]:
    """Return values, edges and baseline of every histogram that is drawn."""
    return [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]


def test_laws_are_drawn_as_measured_and_predicted() -> None:
    samples = ar1(300, 20)
    laws = [sb.compare_law(samples, normal(scale), bins=12, name=f"scale {scale}") for scale in (1.0, 1.5)]
    figure = plot_law(laws, label="x")
    above, below = figure.axes
    band, measured, *predicted = steps(above)
    widths = (laws[0]["bin_upper"] - laws[0]["bin_lower"]).values
    np.testing.assert_allclose(measured.values * widths, laws[0]["bin_probability"])
    np.testing.assert_allclose(band.baseline * widths, laws[0]["bin_interval"].sel(bound="lower"))
    for one, line in zip(laws, predicted, strict=True):
        np.testing.assert_allclose(line.values * np.diff(line.edges), one["bin_predicted"])
    for one, line in zip(laws, steps(below)[1::2], strict=True):
        np.testing.assert_allclose(line.values, 100 * (one["bin_probability"] / one["bin_predicted"] - 1))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("scale 1.0" in text and "consistent" in text for text in texts)
    assert any("scale 1.5" in text and "rejected" in text for text in texts)
    assert below.get_xlabel() == "x"


def test_refusals() -> None:
    with pytest.raises(InputError, match="one or more comparisons"):
        plot_law([])
    with pytest.raises(DataError, match="a comparison with a prediction"):
        plot_law(sb.compare_samples(ar1(4, 4), ar1(4, 4, 1)))
