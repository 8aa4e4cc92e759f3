"""Landscape of effective losses: the closed form of w = uv, constant along orbits, holes where orbits collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from sdebias.errors import InputError

T = 0.3
AXES = {"p[0]": np.linspace(-1, 2, 13), "q[0]": np.linspace(-1, 2, 7)}


def problem() -> sb.problems.HadamardRegression:
    return sb.problems.HadamardRegression(np.ones((3, 1)), np.ones(3))


def plane(**options: Any) -> xr.Dataset:
    one = problem()
    arguments = {"noise": "soft_gauge", "temperature": T, "measure": "slice", **options}
    return sb.landscape(one, one.symmetry(), arguments.pop("axes", AXES), **arguments)


def difference_from(exponent: float, **options: Any) -> float:
    """Return the spread of L_eff − L − T · exponent · log|w| over the plane: 0 where that is the law."""
    found = plane(**options)
    w = found["abscissa"] * found["ordinate"]
    rest = found["landscape_effective_loss"] - found["landscape_loss"]
    rest = rest - T * exponent * np.log(abs(w.where(w != 0)))
    return float(rest.max() - rest.min())


@pytest.mark.parametrize(
    ("options", "exponent"),
    [
        ({"measure": "slice"}, 0.5),
        ({"measure": "predictor"}, 1.0),
        ({"noise": "horizontal", "measure": "predictor"}, 0.5),
    ],
)
def test_closed_form_of_a_pair(options: dict[str, Any], exponent: float) -> None:
    assert difference_from(exponent, **options) < 1e-12
    assert difference_from(1.1 * exponent, **options) > 1e-2


def test_predictors_charges_and_holes() -> None:
    found = plane()
    x, y = found["abscissa"], found["ordinate"]
    np.testing.assert_allclose(found["landscape_predictor"][..., 0], y * x, atol=1e-15)
    np.testing.assert_allclose(found["landscape_charge"][..., 0], 0.5 * (x**2 - y**2).transpose("ordinate", "abscissa"))
    hole = np.isnan(found["landscape_effective_loss"])
    np.testing.assert_array_equal(hole, (y * x == 0).values)


def test_a_plane_through_more_parameters_needs_a_base_point() -> None:
    one = sb.problems.HadamardRegression(np.eye(2), np.ones(2))
    arguments: dict[str, Any] = {"noise": "soft_gauge", "temperature": T, "measure": "slice"}
    grids = {"p[0]": [0.5, 1.0, 2.0], "q[0]": [0.5, 1.0, 2.0, 3.0]}
    with pytest.raises(InputError, match=r"base_point: expected shape \(4,\), got none"):
        sb.landscape(one, one.symmetry(), grids, **arguments)
    base = torch.tensor([9.0, 2.0, 9.0, 0.5], dtype=torch.float64)
    found = sb.landscape(one, one.symmetry(), grids, base_point=base, **arguments)
    assert found["landscape_loss"].shape == (4, 3)
    np.testing.assert_allclose(found["landscape_predictor"].isel(predictor=1), 1.0)
    w = float(found["abscissa"][2] * found["ordinate"][3])
    np.testing.assert_allclose(found["landscape_loss"][3, 2], 0.25 * (w - 1) ** 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"axes": {"p[0]": [1, 2, 3]}}, "axes: expected two parameters"),
    ({"axes": {"p[0]": [1, 2, 3], "x": [1, 2, 3]}}, "axes: expected one of"),
    ({"axes": {"p[0]": [1, 2, 3], "q[0]": [1, 1, 2]}}, "three or more increasing finite values"),
    ({"temperature": -1.0}, "temperature"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[text for _, text in BAD])
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        plane(**options)


def test_replicates_are_refused() -> None:
    several = problem().replicate(2)
    with pytest.raises(InputError, match="without replicates"):
        sb.landscape(several, several.symmetry(), AXES, noise="soft_gauge", temperature=T, measure="slice")
