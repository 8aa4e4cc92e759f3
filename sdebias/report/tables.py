"""Tables and series of a report, as plain data for the template."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..comparison import comparison_table

# Rows of a table, and curves that can be chosen in the page: those with the largest |z|.
ROWS, SERIES, SERIES_STEPS = 200, 60, 81

Table = dict[str, Any]


def drift_table(comparison: xr.Dataset, series: dict[str, int]) -> Table:
    """Return the comparison at the last step; a row whose curve can be chosen names it by its number."""
    table = comparison_table(comparison)
    finite = "z_scheme" in table
    percent = f"{100 * float(comparison.attrs['confidence']):g} % interval"
    heads = ["charge", "predicted", "measured", percent, "deviation", "z"]
    heads += ["finite step", "z less it"] if finite else []
    rows = []
    for name, row in _largest(table, "z_scheme" if finite else "z").iterrows():
        label = _label(table.index.names, name)
        cells = [label, _number(row["predicted"]), _number(row["measured"])]
        cells += [f"{_number(row['lower'])} to {_number(row['upper'])}"]
        cells += [f"{row['deviation_percent']:.2f} %", f"{row['z']:.2f}"]
        cells += [_number(row["finite_step"]), f"{row['z_scheme']:.2f}"] if finite else []
        rows.append({"cells": list(zip(heads, cells, strict=True)), "series": series.get(label)})
    return {"heads": heads, "rows": rows, "note": _cut(len(rows), len(table), "with the largest |z|")}


def summary_table(summary: pd.DataFrame) -> Table:
    """Return the summary of an ensemble."""
    heads = ["observable", "mean", "sd", "interval of the mean", "effective samples"]
    rows = []
    for name, row in summary.head(ROWS).iterrows():
        interval = f"{_number(row['lower'])} to {_number(row['upper'])}"
        cells = [_label(summary.index.names, name), _number(row["mean"]), _number(row["sd"]), interval]
        rows.append({"cells": list(zip(heads, [*cells, f"{row['ess']:.0f}"], strict=True)), "series": None})
    return {"heads": heads, "rows": rows, "note": _cut(len(rows), len(summary), "that come first")}


def drift_series(comparison: xr.Dataset) -> dict[str, Any]:
    """Return the drift over steps of each charge (and replicate), as the script of the page draws it."""
    table = comparison_table(comparison)
    kept = _largest(table, "z_scheme" if "z_scheme" in table else "z", SERIES)
    at = np.unique(np.linspace(0, comparison.sizes["step"] - 1, SERIES_STEPS).round().astype(int))
    thin = comparison.isel(step=at).load()
    predicted = thin["predicted"] + thin.get("finite_step", 0)
    interval = thin["interval"]
    found = []
    for name in kept.index:
        keys = name if isinstance(name, tuple) else (name,)
        one = dict(zip(table.index.names, keys, strict=True))
        lines = {
            "predicted": predicted.sel(one),
            "measured": thin["empirical"].sel(one),
            "lower": interval.sel(bound="lower").sel(one),
            "upper": interval.sel(bound="upper").sel(one),
        }
        label = _label(table.index.names, name)
        found.append({"label": label, **{key: _json(line.values) for key, line in lines.items()}})
    return {
        "steps": [int(step) for step in thin["step"].values],
        "series": found,
        "confidence": f"{100 * float(comparison.attrs['confidence']):g} %",
        "note": _cut(len(found), len(table), "with the largest |z|"),
    }


def _largest(table: pd.DataFrame, column: str, count: int = ROWS) -> pd.DataFrame:
    """Return the rows with the largest |z|, in the order of the table."""
    if len(table) <= count:
        return table
    kept = np.sort(np.argsort(-table[column].abs().to_numpy(), kind="stable")[:count])
    return table.iloc[kept]


def _label(names: Any, index: Any) -> str:
    """Return a row's name: "p:q[a]", or "p:q[a], replicate 2"."""
    keys = index if isinstance(index, tuple) else (index,)
    parts = dict(zip(names, map(str, keys), strict=True))
    replicate = parts.pop("replicate", None)
    label = " ".join(part for part in parts.values() if part)
    return label if replicate is None else f"{label}, replicate {replicate}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "—"


def _json(values: np.ndarray) -> list[float | None]:
    """Return numbers with six digits, and None for what is not finite, for which JSON has no number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _cut(shown: int, total: int, which: str) -> str:
    return "" if shown == total else f"The {shown} of {total} {which}; all are in the dataset."
