"""Compare measured with predicted orbit drift. Takes datasets only, so anybody's runs can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from .dataset import make_dataset, validate
from .errors import DataError, InputError, message
from .schema import OK, SCHEMA

CONFIDENCE = 0.95
FALSE_ALARM_RATE = 1e-3
POWER_SCALE = 1.1


def compare(ensemble: xr.Dataset, prediction: xr.Dataset, *, confidence: float = CONFIDENCE) -> xr.Dataset:
    """Compare the measured change of each charge with the predicted one.

    Both are known for each trajectory, so the test is on their difference, paired: D_i = ΔC_i − predicted_i, whose
    standard error over trajectories is far below that of ΔC_i itself. z = mean(D)/error with error² = standard error²
    + integration_error² + rounding². Where the prediction knows what the solver's finite step adds, ``z_scheme`` and
    the verdict account for it, while ``deviation`` and ``z`` show it.

    Rounding is eps max|C|, that of a charge once. Where the prediction is 0 for all trajectories and steps, nothing but
    rounding moves the charge, and it is that times the updates (and the solver's steps within each): roundings are not
    independent, since states near a minimum are rounded the same way update after update. This is a bound for charges
    whose terms do not cancel; those of a charge near 0 are better kept in float64.

    The verdict statistic is the largest |z| over the charges at the last step, with the t p-value of one charge times
    the number of charges (Bonferroni: valid however charges are correlated). The verdict is "consistent" unless
    p < 0.001, its false-alarm rate over all replicates together. ``p_value_scaled`` is that of a prediction 10 %
    larger: unless ``verdict_scaled`` is "rejected", the comparison has not the power to see such an error.

    Parameters
    ----------
    ensemble : xr.Dataset
        Kind "ensemble", with ``charge_value``.
    prediction : xr.Dataset
        Kind "prediction", of the same trajectories, steps and charges. Both may be lazy (dask arrays): they are then
        evaluated in one pass, and what is in memory at a time are a few chunks.
    confidence : float
        Of the t interval of the measured mean, in (0, 1).

    Returns
    -------
    xr.Dataset
        Kind "comparison", see `sdebias.schema.SCHEMA`; attributes ``verdict`` and ``verdict_scaled``.

    Raises
    ------
    DataError
        If the datasets do not belong together, or fewer than two trajectories have status ok.
    InputError
        If `confidence` is out of range.

    Notes
    -----
    Flagged trajectories are left out, and counted. Leaving them out conditions on survival: with many, neither side
    means what it says.
    """
    validate(ensemble, "ensemble")
    validate(prediction, "prediction")
    if not 0 < confidence < 1:
        raise InputError(message("confidence", "a number in (0, 1)", confidence, "for instance 0.95"))
    _check_match(ensemble, prediction)
    used, counts = trajectories_used(ensemble)
    charges = ensemble["charge_value"].where(used)
    change = charges - charges.isel(step=0, drop=True)
    predicted = prediction["predicted_drift"].where(used)
    integration_error = prediction["integration_error"]
    paths = {"change": change, "deviation": change - predicted}
    others = {"predicted": predicted.mean("trajectory"), "integration_error": integration_error}
    residual, moves = paths["deviation"], abs(predicted)
    if "finite_step_drift" in prediction:
        finite = prediction["finite_step_drift"].where(used)
        others["finite_step"] = finite.mean("trajectory")
        residual = paths["residual"] = residual - finite
        moves = moves + abs(finite)
    conserved = moves.max(("trajectory", "step")) == 0
    roundings = xr.where(conserved, _roundings(ensemble), 1)
    others["floor"] = _hypot(integration_error, roundings * _rounding(charges))
    paths["scaled"] = (residual - (POWER_SCALE - 1) * predicted).isel(step=-1)
    found = over_trajectories(paths, counts, others)

    half = found["change_error"] * xr.apply_ufunc(scipy.stats.t.ppf, 0.5 + confidence / 2, counts - 1)
    error = _hypot(found["deviation_error"], found["floor"])
    results = {
        "empirical": found["change"],
        "empirical_error": found["change_error"],
        "interval": xr.concat([found["change"] - half, found["change"] + half], "bound"),
        "predicted": found["predicted"],
        "deviation": found["deviation"],
        "deviation_error": error,
        "z": found["deviation"] / error,
    }
    z = results["z"]
    if "finite_step" in found:
        z = found["residual"] / _hypot(found["residual_error"], found["floor"])
        results |= {"finite_step": found["finite_step"], "z_scheme": z}
    z_scaled = found["scaled"] / _hypot(found["scaled_error"], found["floor"].isel(step=-1))
    statistic, p_value = _largest(z.isel(step=-1), counts)
    _, p_value_scaled = _largest(z_scaled, counts)
    results |= {"statistic": statistic, "p_value": p_value, "p_value_scaled": p_value_scaled}
    results |= {"integration_error": found["integration_error"], "trajectories_used": counts}

    coords: dict[str, Any] = {name: ensemble[name].values for name in ("replicate", "step") if name in ensemble.coords}
    coords |= {"charge": prediction["charge"].values, "bound": ["lower", "upper"]}
    attributes: dict[str, str | int | float] = {
        "dynamics": str(ensemble.attrs.get("dynamics", "unknown")),
        "equation": str(prediction.attrs.get("equation", "")),
        "confidence": confidence,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "trajectories": ensemble.sizes["trajectory"],
        "verdict": verdict_of(p_value),
        "verdict_scaled": verdict_of(p_value_scaled),
    }
    return make_dataset("comparison", schema_arrays(results), coords, attributes)


def comparison_table(comparison: xr.Dataset) -> pd.DataFrame:
    """Return the comparison at the last step, one row for each charge (and replicate).

    Columns: predicted, measured, lower, upper, deviation_percent, z, and, where the solver has a finite step,
    finite_step and z_scheme.

    Raises
    ------
    DataError
        If the dataset is not a comparison.
    """
    last = validate(comparison, "comparison").isel(step=-1)
    columns = {
        "predicted": last["predicted"],
        "measured": last["empirical"],
        "lower": last["interval"].sel(bound="lower", drop=True),
        "upper": last["interval"].sel(bound="upper", drop=True),
        "deviation_percent": 100 * last["deviation"] / abs(last["predicted"]).where(last["predicted"] != 0),
        "z": last["z"],
    }
    columns |= {name: last[name] for name in ("finite_step", "z_scheme") if name in last}
    return xr.Dataset(columns).reset_coords(drop=True).to_dataframe()


def _check_match(ensemble: xr.Dataset, prediction: xr.Dataset) -> None:
    """Raise DataError unless prediction and ensemble hold the same trajectories, steps and charges."""
    if "charge_value" not in ensemble:
        remedy = "simulate with a symmetry, and charge_value in save"
        raise DataError(message("ensemble", "charge_value", "a dataset without", remedy))
    for name in ("replicate", "trajectory", "step", "charge"):
        here, there = (list(d[name].values) if name in d.coords else None for d in (ensemble, prediction))
        if here != there:
            want = f"the same {name} labels in ensemble and prediction"
            raise DataError(message("compare", want, "different ones", "predict from this ensemble"))


def trajectories_used(ensemble: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return which trajectories have status ok, and how many of each replicate.

    Raises
    ------
    DataError
        If fewer than two have.
    """
    used = ensemble["status"].compute() == OK
    counts = used.sum("trajectory")
    if int(counts.min()) < 2:
        got = f"{int(counts.min())} of {ensemble.sizes['trajectory']}"
        raise DataError(message("ensemble", "two or more trajectories with status ok", got, "lower the learning rate"))
    return used, counts


def over_trajectories(
    paths: Mapping[str, xr.DataArray], counts: xr.DataArray, others: Mapping[str, xr.DataArray]
) -> xr.Dataset:
    """Return the mean of each quantity over trajectories, and its standard error as ``NAME_error``, in memory.

    Everything is computed at once, so that each chunk of lazy data is read and predicted a single time.

    Parameters
    ----------
    paths : mapping of str to xr.DataArray
        With a dim `trajectory`, NaN for those left out.
    counts : xr.DataArray
        Number of trajectories that are not.
    others : mapping of str to xr.DataArray
        Reduced already, to be computed in the same pass.
    """
    means = {name: path.mean("trajectory") for name, path in paths.items()}
    errors = {f"{name}_error": path.std("trajectory", ddof=1) / np.sqrt(counts) for name, path in paths.items()}
    reduced = {**means, **errors, **others}
    # Labels beside the dims, such as the time of a step, are not needed and may differ.
    return xr.Dataset({name: array.reset_coords(drop=True) for name, array in reduced.items()}).compute()


def schema_arrays(results: Mapping[str, xr.DataArray]) -> dict[str, np.ndarray]:
    """Return arrays in the order of dims that the schema has."""
    return {
        name: array.transpose("replicate", *SCHEMA[name].dims, missing_dims="ignore").values
        for name, array in results.items()
    }


def verdict_of(p_value: xr.DataArray) -> str:
    """Return the verdict of a p-value, over all replicates together (Bonferroni)."""
    return "consistent" if float(p_value.min()) * p_value.size >= FALSE_ALARM_RATE else "rejected"


def _hypot(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Add two independent errors."""
    return (one**2 + other**2) ** 0.5


def _rounding(charges: xr.DataArray) -> xr.DataArray:
    """Return the error of rounding a charge once: without noise it is all that the trajectories differ by."""
    info = np.finfo(charges.dtype)
    return abs(charges).max(("trajectory", "step")) * info.eps + info.tiny


def _roundings(ensemble: xr.Dataset) -> xr.DataArray:
    """Return how often the states were rounded up to each step, at least once."""
    updates = ensemble["step"] - ensemble["step"][0]
    return (updates * int(ensemble.attrs.get("substeps", 1))).clip(min=1)


def _largest(z: xr.DataArray, counts: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return max |z| over charges, and its Bonferroni p-value, for each replicate."""
    largest = abs(z).max("charge")
    single = xr.apply_ufunc(lambda z, n: 2 * scipy.stats.t.sf(z, n - 1), largest, counts)
    return largest, np.minimum(single * z.sizes["charge"], 1.0)
