"""Measured moments of what one save interval adds, against the split of the dynamics. Takes datasets only."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from .comparison import (
    CONFIDENCE,
    FALSE_ALARM_RATE,
    POWER_SCALE,
    over_trajectories,
    schema_arrays,
    trajectories_used,
    verdict_of,
)
from .dataset import make_dataset, validate
from .errors import DataError, InputError, message

# Prediction times this, for each test.
TESTS = {"p_value": 1.0, "p_value_scaled": POWER_SCALE}


def compare_moments(ensemble: xr.Dataset, split: xr.Dataset, *, confidence: float = CONFIDENCE) -> xr.Dataset:
    """Compare conditional moments of the increments of charges and predictors with those of the split.

    Each trajectory has its own state θ_k at the start of a save interval, so that the test is on residuals given the
    state: ΔF − E[ΔF | θ_k], and (ΔF_i − E)(ΔF_j − E) − Cov_ij for predictors. E and Cov are the rates of the split at
    both ends of the interval of s updates with the weights (s ± unit)/2: exact for the mean of quadratic F under SGD
    that is saved at every update; in between, a trapezoid rule. What the finite step of a solver adds is accounted for.
    Covariances are those of leading order, relative error
    O(η s). (Kramers–Moyal coefficients: Risken, The Fokker–Planck Equation, 1989, ch. 4.)

    The verdict statistic of a moment is the sum of its residuals over the intervals of a trajectory, a martingale
    difference sum, whose mean over trajectories gets a t-test; the p-value is Bonferroni's over moments and replicates.
    ``p_value_scaled`` is that of a prediction 10 % larger: the power.

    Parameters
    ----------
    ensemble : xr.Dataset
        Kind "ensemble", with ``charge_value`` or ``predictor_value``, saved often: at every update for SGD.
    split : xr.Dataset
        Kind "split", of the same ensemble. Both may be lazy (dask arrays): they are then evaluated in one pass, and
        what is in memory at a time are a few chunks.
    confidence : float
        Of the t intervals of measured moments, in (0, 1).

    Returns
    -------
    xr.Dataset
        Kind "moments": ``moment_measured``, ``moment_interval``, ``moment_predicted``, ``moment_z`` over (step,
        moment), the step being the start of an interval; attributes ``verdict`` and ``verdict_scaled``. Measured
        covariances are centred with the predicted conditional mean.

    Raises
    ------
    DataError
        If the datasets do not belong together, or fewer than two trajectories have status ok.
    InputError
        If `confidence` is out of range.
    """
    validate(ensemble, "ensemble")
    validate(split, "split")
    if not 0 < confidence < 1:
        raise InputError(message("confidence", "a number in (0, 1)", confidence, "for instance 0.95"))
    _check_match(ensemble, split)
    measured, predicted = _moments(ensemble, split)
    used, counts = trajectories_used(ensemble)

    values, expected = measured.where(used), predicted.where(used)
    paths = {"measured": values, "deviation": values - expected}
    for name, scale in TESTS.items():
        paths[name] = (values - scale * expected).sum("step", skipna=False)
    others = {"predicted": expected.mean("trajectory"), "floor": _rounding(ensemble, used, measured.dtype)}
    found = over_trajectories(paths, counts, others)

    half = found["measured_error"] * xr.apply_ufunc(scipy.stats.t.ppf, 0.5 + confidence / 2, counts - 1)

    def z(name: str, terms: int = 1) -> xr.DataArray:
        # Rounding is all that trajectories without noise differ by.
        return found[name] / np.hypot(found[f"{name}_error"], found["floor"] * terms)

    def p_value(name: str) -> xr.DataArray:
        statistic = abs(z(name, measured.sizes["step"]))
        single = xr.apply_ufunc(lambda z, n: 2 * scipy.stats.t.sf(z, n - 1), statistic, counts)
        return np.minimum(single.min("moment") * single.sizes["moment"], 1.0)

    p_values = {name: p_value(name) for name in TESTS}
    verdicts = {f"verdict{name.removeprefix('p_value')}": verdict_of(p) for name, p in p_values.items()}
    results = {
        "moment_measured": found["measured"],
        "moment_interval": xr.concat([found["measured"] - half, found["measured"] + half], "bound"),
        "moment_predicted": found["predicted"],
        "moment_z": z("deviation"),
        **p_values,
        "trajectories_used": counts,
    }
    coords: dict[str, Any] = {"step": measured["step"].values, "moment": measured["moment"].values}
    coords |= {"bound": ["lower", "upper"]}
    coords |= {name: ensemble[name].values for name in ("replicate",) if name in ensemble.coords}
    attributes: dict[str, str | int | float] = {
        "dynamics": str(split.attrs["dynamics"]),
        "equation": str(split.attrs["equation"]),
        "confidence": confidence,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "trajectories": ensemble.sizes["trajectory"],
        **verdicts,
    }
    return make_dataset("moments", schema_arrays(results), coords, attributes)


def _check_match(ensemble: xr.Dataset, split: xr.Dataset) -> None:
    """Raise DataError unless both hold the same states, and the ensemble something to compare."""
    if "charge_value" not in ensemble and "predictor_value" not in ensemble:
        remedy = "simulate with one of them in save"
        raise DataError(message("ensemble", "charge_value or predictor_value", "a dataset without", remedy))
    for name in ("replicate", "trajectory", "step", "charge", "predictor"):
        here, there = (list(d[name].values) if name in d.coords else None for d in (ensemble, split))
        if here != there and (name in ensemble.coords or name == "replicate"):
            want = f"the same {name} labels in ensemble and split"
            raise DataError(message("compare_moments", want, "different ones", "split this ensemble"))
    if ensemble.sizes["step"] < 2:
        raise DataError(message("ensemble", "two or more steps", "one", "save more often"))


def _moments(ensemble: xr.Dataset, split: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return measured and predicted moments of each trajectory and interval, (..., trajectory, step, moment)."""
    measured, predicted = [], []
    for name, kind, rate, finite in (
        ("charge_value", "charge", "charge_rate", "charge_finite_step"),
        ("predictor_value", "predictor", "quotient_drift", "quotient_finite_step"),
    ):
        if name not in ensemble:
            continue
        increment = ensemble[name].diff("step", label="lower")
        mean = _over_interval(split[rate].sum("component", skipna=False) + split.get(finite, 0.0), split)
        labels = [f"mean of {label}" for label in increment[kind].values]
        measured.append(increment.rename({kind: "moment"}).assign_coords(moment=labels))
        predicted.append(mean.rename({kind: "moment"}).assign_coords(moment=labels))
        if kind == "charge":
            continue
        residual = increment - mean
        covariance = _over_interval(split["quotient_diffusion"], split)
        products = residual * residual.rename(predictor="other_predictor")
        rows, columns = np.tril_indices(residual.sizes[kind])
        pairs = {
            "predictor": xr.DataArray(rows, dims="moment"),
            "other_predictor": xr.DataArray(columns, dims="moment"),
        }
        names = residual[kind].values
        labels = [f"covariance of {names[i]}, {names[j]}" for i, j in zip(rows, columns, strict=True)]
        for array, into in ((products, measured), (covariance, predicted)):
            chosen = array.isel(pairs).drop_vars(["predictor", "other_predictor"])
            into.append(chosen.assign_coords(moment=labels))
    joined = []
    for arrays in (measured, predicted):
        plain = [array.drop_vars("time", errors="ignore") for array in arrays]
        whole = xr.concat(plain, "moment", coords="minimal", compat="override")
        joined.append(whole.transpose(..., "trajectory", "step", "moment"))
    return joined[0], joined[1]


def _over_interval(rate: xr.DataArray, split: xr.Dataset) -> xr.DataArray:
    """Return what a rate per update adds over each save interval, labelled by its start."""
    steps = split["step"].values
    starts = rate.isel(step=slice(None, -1))
    lengths = xr.DataArray(np.diff(steps), dims="step", coords={"step": steps[:-1]})
    ends = rate.isel(step=slice(1, None)).assign_coords(step=steps[:-1])
    unit = float(split.attrs["unit"])
    return starts * (lengths + unit) / 2 + ends * (lengths - unit) / 2


def _rounding(ensemble: xr.Dataset, used: xr.DataArray, dtype: np.dtype) -> xr.DataArray:
    """Return the rounding error of an increment."""
    names = [name for name in ("charge_value", "predictor_value") if name in ensemble]
    largest = xr.concat([abs(ensemble[name]).where(used).max() for name in names], "variable").max()
    info = np.finfo(dtype)
    return largest * float(info.eps) + float(info.tiny)
