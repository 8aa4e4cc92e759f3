"""Autocorrelation within trajectories: how many independent samples correlated saves are worth. Takes arrays only."""

from __future__ import annotations

import numpy as np
import scipy.fft
import xarray as xr

from .errors import DataError, message

# The sum of autocorrelations is cut at the first lag beyond this many times its own value.
WINDOW = 5.0


def autocorrelation_time(values: np.ndarray) -> float:
    """Return the integrated autocorrelation time τ: the variance of the mean is τ times that of independent samples.

    τ = 1 + 2 Σ_t (1 − t/S) ρ_t over lags up to the first t > 5 max(τ, 1) (Sokal 1997), or over all of them in
    trajectories that are shorter; then τ is exactly the variance of the trajectories' means over that of independent
    samples. ρ_t is averaged over trajectories about the mean of all, by FFT. For AR(1) with coefficient φ it is
    (1+φ)/(1−φ) as S → ∞.

    Parameters
    ----------
    values : array, shape=(trajectory, step)
        Stationary.

    Returns
    -------
    float
        In steps of the save grid; 1 where there is one step or no variance, and at least 1/S.
    """
    steps = values.shape[-1]
    centred = values - values.mean()
    variance = float(np.mean(centred**2))
    if steps == 1 or variance == 0.0:
        return 1.0
    size = scipy.fft.next_fast_len(2 * steps, real=True)
    power = np.zeros(size // 2 + 1)
    # In pieces: the padded transform of a whole large ensemble would not fit.
    for piece in np.array_split(centred, max(1, len(centred) * size // 2**22)):
        power += (np.abs(scipy.fft.rfft(piece, size, axis=-1)) ** 2).sum(0)
    # A sum over steps − t pairs divided by steps: the weight 1 − t/S is there already.
    weighted = scipy.fft.irfft(power, size)[:steps] / (len(values) * steps * variance)
    sums = 2 * np.cumsum(weighted) - 1
    beyond = np.arange(steps) > WINDOW * np.maximum(sums, 1.0)
    return max(float(sums[np.argmax(beyond)] if beyond.any() else sums[-1]), 1 / steps)


def effective_sample_size(samples: xr.DataArray) -> float:
    """Return the number of independent samples whose mean is as precise: samples over `autocorrelation_time`.

    Raises
    ------
    DataError
        If samples have other dims than `trajectory` and `step`, or fewer than two trajectories.
    """
    values = trajectory_values("samples", samples)
    return values.size / autocorrelation_time(values)


def trajectory_values(name: str, samples: xr.DataArray) -> np.ndarray:
    """Return samples as (trajectory, step), without trajectories that are not finite throughout."""
    dims = set(samples.dims)
    if "trajectory" not in dims or dims - {"trajectory", "step"}:
        got, remedy = ", ".join(map(str, samples.dims)) or "none", "select one coordinate and replicate with isel"
        raise DataError(message(name, "dims trajectory and, optionally, step", got, remedy))
    whole = samples if "step" in dims else samples.expand_dims("step")
    values = whole.transpose("trajectory", "step").values.astype(float)
    values = values[np.isfinite(values).all(-1)]
    if len(values) < 2:
        raise DataError(message(name, "two or more finite trajectories", len(values), "simulate more of them"))
    return values
