"""Compare the law of an ensemble with a predicted density, or with another ensemble. Takes arrays only.

States of one trajectory are correlated: every p-value here is that of an effective number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import scipy.interpolate
import scipy.special
import scipy.stats
import xarray as xr

from .autocorrelation import autocorrelation_time, trajectory_values
from .comparison import CONFIDENCE, FALSE_ALARM_RATE
from .dataset import make_dataset
from .errors import DataError, InputError, check_count, message

BINS = 40
RESAMPLES = 1000
# Blocks of this many autocorrelation times are independent up to a few per cent of their variance.
BLOCK_TIMES = 20.0
GRID_POINTS = 4097
QUARTILES = (0.25, 0.5, 0.75)

Density = xr.DataArray | Callable[[np.ndarray], np.ndarray]


def compare_law(
    samples: xr.DataArray,
    predicted: Density,
    *,
    interval: tuple[float, float] | None = None,
    bins: int | Sequence[float] | np.ndarray = BINS,
    name: str = "predicted",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the law of one coordinate of an ensemble with a predicted density, both conditioned to an interval.

    With p̂_b and p_b the measured and predicted probabilities of K bins and n the effective number of samples:

    - ``kl`` = Σ p̂ log(p̂/p) − (K−1)/2n, the plug-in value less its bias (Miller 1955), and ``total_variation``
      = ½ Σ |p̂ − p|, of which ``total_variation_noise`` = ½ Σ √(2p(1−p)/(πn)) is expected of a true prediction. Both
      have basic bootstrap intervals over trajectories (2v − quantiles of v*), which correct the bias of v again.
    - G-test: 2N Σ p̂ log(p̂/p) is distributed as Σ λ χ²_1, λ the K−1 eigenvalues of the covariance of N p̂ relative to
      that of independent samples; two of its moments give a χ² (Rao and Scott 1981), and n = N/mean λ. The covariance
      is that of blocks of trajectories, 20 autocorrelation times long or whole.
    - Kolmogorov–Smirnov: √n sup|F̂ − F|, n by the largest `autocorrelation_time` of the indicators of the quartiles of
      F: conservative, since correlation also smooths F̂.

    ``p_value`` is the smaller of the two, times two; the verdict is "consistent" unless it is below 0.001. Of a
    histogram there is the G-test alone; groups of trajectories are its blocks, and what the bootstrap resamples.

    Parameters
    ----------
    samples : xr.DataArray
        Dims `trajectory` and, optionally, `step`, of a stationary stretch, such as
        ``ensemble["predictor_value"].isel(predictor=0)``. Trajectories with values that are not finite are left out. Or
        a histogram, such as ``statistics["predictor_value_histogram"].isel(predictor=0)``.
    predicted : xr.DataArray or callable
        Density, not necessarily normalised: on a grid that is its one coordinate, or a function of an array.
    interval : tuple of float, optional
        By default the extent of the grid; a callable needs one.
    bins : int or sequence of float
        Number of bins of equal predicted probability, or edges. Of a histogram, the largest number of bins, of about
        equal probability, that its own are joined to.
    name : str
        What figures call the prediction.
    confidence : float
        Of the intervals, in (0, 1).
    resamples : int
        Of the bootstrap.
    seed : int

    Returns
    -------
    xr.Dataset
        Kind "law_comparison", see `sdebias.schema.SCHEMA`; attribute ``verdict``.

    Raises
    ------
    DataError
        If samples have other dims, fewer than two trajectories, or none inside the interval, or the density is
        negative, not finite, zero or not on an increasing grid.
    InputError
        If an argument is out of range.
    """
    if not 0 < confidence < 1:
        raise InputError(message("confidence", "a number in (0, 1)", confidence, "for instance 0.95"))
    check_count("resamples", resamples, 2)
    lower, upper, cdf = _distribution(predicted, interval)
    measure = _measure_histogram if "group" in samples.dims else _measure_samples
    found = measure(samples, bins, (lower, upper), cdf)
    counts, probability, total = found.counts, found.probability, int(found.counts.sum())
    count, measured = len(probability), counts.sum(0) / total
    mean, spread = _design_effects(found.blocks, measured, probability, total)
    effective = total / mean
    divergence, variation = _divergences(measured, probability)
    p_values = [float(scipy.stats.chi2.sf(2 * effective * divergence / spread, (count - 1) / spread))]
    extremes = {"g_p_value": p_values[0]}
    if found.distance is not None:
        p_values.append(float(scipy.special.kolmogorov(np.sqrt(total / found.time) * found.distance)))
        extremes |= {"ks_statistic": found.distance, "ks_p_value": p_values[1]}
    p_value = min(len(p_values) * min(p_values), 1.0)

    drawn = _resampled(counts, resamples, np.random.default_rng(seed))
    tails = [0.5 - confidence / 2, 0.5 + confidence / 2]
    intervals = [
        _basic(plain, np.quantile(again, tails))
        for plain, again in zip((divergence, variation), _divergences(drawn, probability), strict=True)
    ]
    noise = 0.5 * np.sum(np.sqrt(2 * probability * (1 - probability) / (np.pi * effective)))
    variables = {
        "bin_probability": measured,
        "bin_interval": np.quantile(drawn, tails, axis=0).T,
        "bin_predicted": probability,
        "bin_lower": found.edges[:-1],
        "bin_upper": found.edges[1:],
        "kl": divergence - (count - 1) / (2 * effective),
        "kl_interval": intervals[0],
        "kl_bias": (count - 1) / (2 * effective),
        "total_variation": variation,
        "total_variation_interval": intervals[1],
        "total_variation_noise": noise,
        **extremes,
        "effective_samples": [effective],
        "inside": total / found.samples,
        "p_value": p_value,
        "trajectories_used": found.trajectories,
    }
    coords = {"bin": np.arange(count), "bound": ["lower", "upper"], "sample": ["measured"]}
    return make_dataset(
        "law_comparison", variables, coords, {"prediction": name, "confidence": confidence, **_verdict(p_value)}
    )


@dataclass(frozen=True)
class _Measured:
    """Counts in bins, of independent rows and of blocks, (row, bin); the bins, and what is predicted of them."""

    edges: np.ndarray
    probability: np.ndarray
    counts: np.ndarray
    blocks: np.ndarray
    samples: int
    trajectories: int
    distance: float | None = None
    time: float = 1.0


def _measure_samples(
    samples: xr.DataArray, bins: Any, ends: tuple[float, float], cdf: Callable[[np.ndarray], np.ndarray]
) -> _Measured:
    """Count samples in bins, and measure the Kolmogorov–Smirnov distance."""
    values = trajectory_values("samples", samples)
    edges = _edges(bins, *ends, cdf)
    low, high = cdf(edges[[0, -1]])
    probability = np.diff(cdf(edges)) / (high - low)
    quantile = (cdf(values) - low) / (high - low)
    inside = (values > edges[0]) & (values < edges[-1])
    total = int(inside.sum())
    if not total:
        raise _none_inside(edges, values.size)
    count = len(probability)
    which = np.where(inside, np.searchsorted(edges, values, side="right") - 1, count)
    time = _indicator_time(quantile, inside)
    order = np.sort(quantile[inside])
    rank = np.arange(total + 1) / total
    distance = float(np.maximum(rank[1:] - order, order - rank[:-1]).max())
    rows, blocks = (_counts(which, count, length) for length in (values.shape[-1], ceil(BLOCK_TIMES * time)))
    return _Measured(edges, probability, rows, blocks, values.size, len(values), distance, time)


def _measure_histogram(
    samples: xr.DataArray, bins: Any, ends: tuple[float, float], cdf: Callable[[np.ndarray], np.ndarray]
) -> _Measured:
    """Join the bins of a histogram within the interval to bins of about equal predicted probability."""
    names = [str(dim) for dim in samples.dims if dim != "group"]
    name = names[0].removesuffix("_bin") if len(names) == 1 else ""
    lower, upper, used = (samples.coords.get(f"{name}_{what}") for what in ("bin_lower", "bin_upper", "trajectories"))
    if lower is None or upper is None or used is None:
        remedy = "select one coordinate and replicate with isel"
        raise DataError(message("samples", "a histogram with dims group and one of bins", samples.dims, remedy))
    if not isinstance(bins, int):
        raise InputError(
            message("bins", "a number, for a histogram", repr(bins), "its edges were chosen before the run")
        )
    counts = samples.transpose("group", ...).values
    counts = counts[counts.sum(-1) > 0]
    within = (lower.values >= ends[0]) & (upper.values <= ends[1])
    own = np.append(lower.values[within], upper.values[within][-1:])
    wanted = _edges(bins, *ends, cdf)
    at = np.unique(np.abs(own - wanted[:, None]).argmin(-1)) if len(own) else np.zeros(0, int)
    if len(at) < 3 or len(counts) < 2:
        got = f"{int(within.sum())} bins and {len(counts)} groups with counts"
        raise DataError(message("samples", "two bins or more within the interval", got, "use a finer histogram"))
    edges = own[at]
    counts_within = counts[:, within][:, at[0] : at[-1]]
    rows = np.add.reduceat(counts_within, at[:-1] - at[0], axis=-1)
    if not rows.sum():
        raise _none_inside(edges, int(counts.sum()))
    low, high = cdf(edges[[0, -1]])
    return _Measured(edges, np.diff(cdf(edges)) / (high - low), rows, rows, int(counts.sum()), int(used))


def _none_inside(edges: np.ndarray, size: int) -> DataError:
    want = f"some in ({edges[0]:g}, {edges[-1]:g})"
    return DataError(message("samples", want, f"none of {size}", "widen the interval"))


def compare_samples(one: xr.DataArray, other: xr.DataArray) -> xr.Dataset:
    """Test whether two ensembles have the same law: Kolmogorov–Smirnov with the effective numbers of samples.

    √(n m/(n+m)) sup|F̂ − Ĝ|, n and m the samples over the largest `autocorrelation_time` of the indicators of the
    quartiles of both together.

    Parameters
    ----------
    one, other : xr.DataArray
        Independent of each other, dims `trajectory` and, optionally, `step`, of stationary stretches.

    Returns
    -------
    xr.Dataset
        Kind "law_comparison": ``ks_statistic``, ``p_value``, ``effective_samples``; attribute ``verdict``.

    Raises
    ------
    DataError
        If samples have other dims or fewer than two trajectories.
    """
    values = [trajectory_values(name, array) for name, array in (("one", one), ("other", other))]
    pooled = np.sort(np.concatenate([v.ravel() for v in values]))
    ranks = [np.searchsorted(pooled, v, side="right") / pooled.size for v in values]
    sizes = [v.size / _indicator_time(r, np.ones(v.shape, bool)) for v, r in zip(values, ranks, strict=True)]
    # scipy's ks_2samp would spend its time on a p-value that takes every save for a sample.
    below = [np.searchsorted(np.sort(v, axis=None), pooled, side="right") / v.size for v in values]
    distance = float(np.abs(below[0] - below[1]).max())
    n, m = sizes
    p_value = float(scipy.special.kolmogorov(np.sqrt(n * m / (n + m)) * distance))
    variables = {
        "ks_statistic": distance,
        "ks_p_value": p_value,
        "effective_samples": sizes,
        "p_value": p_value,
        "trajectories_used": sum(map(len, values)),
    }
    return make_dataset("law_comparison", variables, {"sample": ["one", "other"]}, _verdict(p_value))


def _distribution(
    predicted: Density, interval: tuple[float, float] | None
) -> tuple[float, float, Callable[[np.ndarray], np.ndarray]]:
    """Return the interval and the distribution function of a density conditioned to it."""
    if isinstance(predicted, xr.DataArray):
        if predicted.ndim != 1 or predicted.dims[0] not in predicted.coords or predicted.size < 4:
            got = f"dims {predicted.dims} of sizes {predicted.shape}"
            raise DataError(
                message("predicted", "one dim with a coordinate and four points or more", got, "give a grid")
            )
        grid, density = predicted[predicted.dims[0]].values.astype(float), predicted.values.astype(float)
    elif interval is None:
        raise InputError(
            message("interval", "two ends, for a density that is a function", "none", "give interval=(a, b)")
        )
    else:
        grid = np.linspace(*interval, GRID_POINTS)
        density = np.asarray(predicted(grid), float)
    if not (np.diff(grid) > 0).all() or not np.isfinite(density).all() or (density < 0).any() or not density.any():
        remedy = "give finite values >= 0, not all zero, on an increasing grid"
        raise DataError(message("predicted", "a density", "something else", remedy))
    lower, upper = interval or (grid[0], grid[-1])
    if not grid[0] <= lower < upper <= grid[-1]:
        want = f"two increasing ends within [{grid[0]:g}, {grid[-1]:g}]"
        raise InputError(message("interval", want, (lower, upper), "choose one that the density covers"))
    # Monotone interpolation keeps the density non-negative, so that its integral increases.
    integral = scipy.interpolate.PchipInterpolator(grid, density).antiderivative()
    start, mass = float(integral(lower)), float(integral(upper) - integral(lower))
    return float(lower), float(upper), lambda x: (integral(np.clip(x, lower, upper)) - start) / mass


def _edges(
    bins: int | Sequence[float] | np.ndarray, lower: float, upper: float, cdf: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the edges of bins of equal predicted probability, or those given."""
    if isinstance(bins, int):
        check_count("bins", bins, 2)
        grid = np.linspace(lower, upper, GRID_POINTS)
        levels, first = np.unique(cdf(grid), return_index=True)
        inner = np.interp(np.arange(1, bins) / bins, levels, grid[first])
        return np.concatenate([[lower], inner, [upper]])
    edges = np.asarray(bins, float)
    if edges.ndim != 1 or len(edges) < 3 or not (np.diff(edges) > 0).all() or edges[0] < lower or edges[-1] > upper:
        want = f"three or more increasing edges within [{lower:g}, {upper:g}]"
        raise InputError(message("bins", want, np.array2string(edges, threshold=6), "or give a number of bins"))
    return edges


def _counts(which: np.ndarray, bins: int, length: int) -> np.ndarray:
    """Return how many samples of each block fall into each bin, (block, bin); the last of a path may be longer."""
    blocks = max(which.shape[-1] // length, 1)
    number = np.minimum(np.arange(which.shape[-1]) // length, blocks - 1)
    rows = np.arange(len(which))[:, None] * blocks + number
    size = len(which) * blocks
    return np.bincount((rows * (bins + 1) + which).ravel(), minlength=size * (bins + 1)).reshape(size, -1)[:, :bins]


def _design_effects(
    counts: np.ndarray, measured: np.ndarray, probability: np.ndarray, total: int
) -> tuple[float, float]:
    """Return the mean of the eigenvalues λ of the bins' design effects, and the mean of λ² over its square."""
    blocks, ranks = len(counts), len(probability) - 1
    # Of a ratio of counts: its linearisation, relative to the multinomial law of independent samples.
    residual = (counts - counts.sum(-1, keepdims=True) * measured) / np.sqrt(np.where(probability > 0, probability, 1))
    relative = residual.T @ residual / total
    trace, square = float(np.trace(relative)), float(np.sum(relative**2))
    # What estimating the covariance from so few blocks adds to the trace of its square (Wishart moments).
    square = blocks**2 / ((blocks + 2) * (blocks - 1)) * (square - trace**2 / blocks)
    return trace / ranks, max(square * ranks / trace**2, 1.0)


def _divergences(measured: np.ndarray, probability: np.ndarray) -> tuple[Any, Any]:
    """Return Σ p̂ log(p̂/p) and ½ Σ |p̂ − p| over the last axis."""
    return scipy.special.rel_entr(measured, probability).sum(-1), np.abs(measured - probability).sum(-1) / 2


def _indicator_time(quantile: np.ndarray, inside: np.ndarray) -> float:
    """Return the largest autocorrelation time of the indicators of quartiles among the samples inside."""
    below = [(quantile <= level) & inside for level in QUARTILES]
    return max(autocorrelation_time(b - b.sum() / inside.sum() * inside) for b in below)


def _resampled(counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return bin probabilities of ensembles of as many trajectories drawn with replacement, (resample, bin)."""
    kinds, repeats = np.unique(counts, axis=0, return_counts=True)
    # Trajectories with equal counts are one kind: what is drawn is how often each kind occurs.
    part = max(1, 2**24 // len(kinds))
    sizes = [min(part, resamples - first) for first in range(0, resamples, part)]
    drawn = np.concatenate([rng.multinomial(len(counts), repeats / len(counts), size=size) @ kinds for size in sizes])
    return drawn / drawn.sum(-1, keepdims=True)


def _basic(value: float, quantiles: np.ndarray) -> np.ndarray:
    """Return the basic bootstrap interval of a quantity that is not negative."""
    return np.maximum(2 * value - quantiles[::-1], 0.0)


def _verdict(p_value: float) -> dict[str, str | int | float]:
    verdict = "consistent" if p_value >= FALSE_ALARM_RATE else "rejected"
    return {"false_alarm_rate": FALSE_ALARM_RATE, "verdict": verdict}
