"""Statistics of parts of an ensemble put together: moments, logarithmic sketches and histograms, and their datasets.

A dataset of kind "statistics" holds all that it takes to add further trajectories or steps to it. Counts add exactly.
Moments do up to rounding, and to the last bit where the order is the same. What follows from them, `derived` adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from .schema import COORDINATES, statistic_attributes


def add_moments(
    count: np.ndarray, mean: np.ndarray, moment: np.ndarray, more: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return count, mean and M = Σ (x − mean)(x − mean)ᵀ, or only its diagonal, of two sets of trajectories.

    M = M_a + M_b + δ δᵀ n_a n_b/n, δ = mean_b − mean_a (Chan, Golub and LeVeque 1983). An empty set changes no bit.

    Parameters
    ----------
    count : array of int, shape=(...)
    mean : array, shape=(..., coordinate)
    moment : array, shape=(..., coordinate[, coordinate])
    more : tuple
        The same of the other set.
    """
    extra, other, scatter = more
    weight = (extra / np.maximum(count + extra, 1))[..., None]
    delta = other - mean
    shift = delta * (weight * count[..., None])
    full = moment.ndim > mean.ndim
    product = delta[..., None] * shift[..., None, :] if full else delta * shift
    return count + extra, mean + delta * weight, moment + scatter + product


def variances(count: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the unbiased (co)variances M/(n − 1); NaN where there are fewer than two values."""
    freedom = np.where(count > 1, count - 1.0, np.nan)
    return moment / freedom.reshape(*count.shape, *[1] * (moment.ndim - count.ndim))


def mean_errors(count: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the standard errors of means, √(variance/n)."""
    return np.sqrt(variance / np.maximum(count, 1)[..., None])


def widen(counts: np.ndarray, first: int, low: int, high: int) -> np.ndarray:
    """Return counts of the keys from `first` on, as counts of all keys from `low` to `high`."""
    if not counts.shape[-1]:
        return np.zeros((*counts.shape[:-1], high - low + 1), counts.dtype)
    sides = (first - low, high + 1 - first - counts.shape[-1])
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [sides])


def sketch_quantiles(
    counts: np.ndarray, first: int, levels: Sequence[float], accuracy: float, smallest: float
) -> np.ndarray:
    """Return estimates of the values of rank ⌊q(n−1)⌋, each within a relative error; NaN where there are no values.

    A value x has the key sgn(x) ⌈log_γ(|x|/s)⌉, γ = (1+α)/(1−α), and 0 where |x| ≤ s; 2sγ^k/(γ+1) is within α|x| of
    every x with key k > 0 (Masson, Rim and Lee 2019, DDSketch).

    Parameters
    ----------
    counts : array of int, shape=(..., key)
        Of successive keys.
    first : int
        The first key.
    levels : sequence of float
        q.
    accuracy, smallest : float
        α and s.

    Returns
    -------
    array, shape=(level, ...)
    """
    if not counts.shape[-1]:
        return np.full((len(levels), *counts.shape[:-1]), np.nan)
    sums = counts.cumsum(-1)
    total = sums[..., -1]
    keys = np.stack([(sums <= np.floor(q * (total - 1))[..., None]).sum(-1) for q in levels]) + first
    base = (1 + accuracy) / (1 - accuracy)
    size = np.exp(np.abs(keys) * math.log(base) + math.log(2 * smallest / (1 + base)))
    return np.where(total > 0, np.sign(keys) * size, np.nan)


def pool_trajectories(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the statistics of all trajectories of several datasets of kind "statistics", in their order.

    Parameters
    ----------
    parts : sequence of xr.Dataset
        Of the same observables, statistics and steps.
    """
    first, *others = parts = _same_keys(parts)
    if not others:
        return first
    summed = [
        "trajectories_used",
        *(name for what in ("count", "histogram", "sketch") for name in _named(first, what).values()),
    ]
    found = {name: first[name].copy(data=sum(part[name].values for part in parts)) for name in summed}
    found |= _spread(parts)
    status = xr.concat([part["status"].reset_coords(drop=True) for part in parts], "trajectory")
    dealt = [f"{observable}_trajectories" for observable in _named(first, "histogram")]
    sums = {name: first[name].copy(data=sum(part[name].values for part in parts)) for name in dealt}
    # The variables that were changed still carry the coordinates of the first part.
    changed = {name: variable.reset_coords(drop=True) for name, variable in found.items()}
    return first.drop_vars("status").assign({"status": status, **changed}).assign_coords(sums)


def pool_steps(legs: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the statistics of all steps of several datasets of kind "statistics", of the same trajectories."""
    legs = _same_keys(legs)
    histograms = _named(legs[0], "histogram")
    apart = ["status", *histograms.values()]
    options = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    whole = xr.concat([leg.drop_vars(apart) for leg in legs], "step", combine_attrs="override", **options)  # type: ignore[call-overload]
    sums = {name: legs[0][name].copy(data=sum(leg[name].values for leg in legs)) for name in histograms.values()}
    first = {f"{name}_trajectories" for name in histograms}  # of the leg in which counting begins
    most = {name: legs[0][name].copy(data=np.max([leg[name] for leg in legs], 0)) for name in first}
    return whole.assign(status=legs[-1]["status"], **sums).assign_coords(most)


def derived(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset of kind "statistics" with what follows from what it holds.

    That is standard errors of means, the variances in covariances, and the quantiles of sketches. It adds everything
    that a part in a run directory does not hold.
    """
    found: dict[str, xr.Variable] = {}
    for observable, name in _named(dataset, "mean").items():
        count, mean = dataset.variables[f"{observable}_count"], dataset.variables[name]
        kind = _second(dataset, observable)
        spread = _flat(dataset, observable, kind)
        variance = np.diagonal(spread, axis1=-2, axis2=-1) if kind == "covariance" else spread
        arrays = {"variance": variance, "mean_error": mean_errors(count.values, variance)}
        for what, array in arrays.items():
            described = _attributes(dataset, observable, what)
            found[f"{observable}_{what}"] = xr.Variable(mean.dims, array.reshape(mean.shape), described)
    levels = np.zeros(0)
    for observable, name in _named(dataset, "sketch").items():
        sketch = dataset.variables[name]
        levels = np.atleast_1d(sketch.attrs["levels"])
        lowest = int(dataset[f"{observable}_key"][0]) if sketch.shape[-1] else 0
        exact = {key: float(sketch.attrs[key]) for key in ("relative_accuracy", "counts_as_zero")}
        array = sketch_quantiles(sketch.values, lowest, levels.tolist(), *exact.values())
        described = {**_attributes(dataset, observable, "quantile"), **exact}
        quantile = xr.Variable(("quantile", *sketch.dims[:-1]), array, described)
        lead = ("replicate",) if "replicate" in sketch.dims else ()
        found[f"{observable}_quantile"] = quantile.transpose(*lead, ...)
    coords = {"quantile": ("quantile", levels, COORDINATES["quantile"])} if levels.size else {}
    whole = dataset.assign(found).assign_coords(coords)
    for what in ("sketch", "histogram"):  # many small numbers, which files hold compressed
        for name in _named(whole, what).values():
            whole.variables[name].encoding = {"zlib": True}
    return whole


def _attributes(dataset: xr.Dataset, observable: str, what: str) -> dict[str, Any]:
    """Return the attributes of a statistic of an observable, of which its count tells."""
    told = dataset.variables[f"{observable}_count"].attrs
    return statistic_attributes(what, observable, told["observable_long_name"], told["observable_units"])


def _spread(parts: Sequence[xr.Dataset]) -> dict[str, xr.DataArray]:
    """Return means and second moments of all parts."""
    first = parts[0]
    found: dict[str, xr.DataArray] = {}
    for observable in _named(first, "mean"):
        kind = _second(first, observable)
        count, mean, moment = _moments(first, observable, kind)
        for part in parts[1:]:
            count, mean, moment = add_moments(count, mean, moment, _moments(part, observable, kind))
        new = {"mean": np.where(count[..., None] > 0, mean, np.nan), kind: variances(count, moment)}
        for what, array in new.items():
            name = f"{observable}_{what}"
            found[name] = first[name].copy(data=array.reshape(first[name].shape))
    return found


def _second(dataset: xr.Dataset, observable: str) -> str:
    """Return which second moments there are of an observable."""
    return "covariance" if f"{observable}_covariance" in dataset else "variance"


def _moments(dataset: xr.Dataset, observable: str, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return count, mean and second moments with the coordinates on one axis."""
    count = dataset[f"{observable}_count"].values
    mean, spread = (_flat(dataset, observable, what) for what in ("mean", kind))
    freedom = np.maximum(count - 1, 0).reshape(*count.shape, *[1] * (spread.ndim - count.ndim))
    return count, np.nan_to_num(mean), np.where(freedom > 0, spread, 0.0) * freedom


def _flat(dataset: xr.Dataset, observable: str, what: str) -> np.ndarray:
    """Return a statistic with the coordinates of its observable on one axis, or on two."""
    count, mean, array = (dataset.variables[f"{observable}_{each}"].values for each in ("count", "mean", what))
    width = mean.size // max(count.size, 1)
    return array.reshape(*count.shape, *[width] * (2 if what == "covariance" else 1))


def _same_keys(parts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Give sketches of the same observable the same keys."""
    names = _named(parts[0], "sketch")
    ends = {}
    for key in (f"{observable}_key" for observable in names):
        there = [(int(part[key][0]), int(part[key][-1])) for part in parts if part.sizes[key]]
        ends[key] = min((end[0] for end in there), default=0), max((end[1] for end in there), default=-1)
    found = []
    for part in parts:
        wide = {}
        for observable, name in names.items():
            key, counts = f"{observable}_key", part.variables[name]
            first = int(part[key][0]) if part.sizes[key] else ends[key][0]
            wide[name] = (counts.dims, widen(counts.values, first, *ends[key]), counts.attrs)
        keys = {key: range(low, high + 1) for key, (low, high) in ends.items()}
        found.append(part.drop_vars([*wide, *keys]).assign(wide).assign_coords(keys))
    return found


def _named(dataset: xr.Dataset, what: str) -> dict[str, str]:
    """Return the variables that hold a statistic, by observable."""
    variables = {str(name): variable.attrs for name, variable in dataset.data_vars.items()}
    return {str(a["observable"]): name for name, a in variables.items() if a.get("statistic") == what}
