"""What the verbs share: comparing an ensemble with its prediction, statistics in words."""

from __future__ import annotations

import xarray as xr

from .. import config
from ..comparison import compare
from ..errors import RunError
from ..prediction import predict_orbit_drift
from ..schema import STATUS


def compare_ensemble(ensemble: xr.Dataset, run: config.Run) -> xr.Dataset:
    """Predict the orbit drift of an ensemble and compare, or say why that cannot be.

    Raises
    ------
    RunError
        If fewer than two trajectories are left.
    """
    flagged = int((ensemble["status"] != STATUS["ok"]).sum())
    if ensemble["status"].size - flagged < 2:
        raise RunError(
            f"{flagged} of {ensemble['status'].size} trajectories are not finite or diverged; the file keeps them; "
            "lower the learning rate or the temperature"
        )
    return compare(ensemble, predict_orbit_drift(ensemble, run.problem, run.symmetry))


def summary(name: str, statistics: xr.Dataset) -> str:
    """Return the means at the last step of a dataset of kind "statistics", and how many trajectories are in them."""
    last = statistics.isel(step=-1)
    used, total = int(last["trajectories_used"].min()), statistics.sizes["trajectory"]
    lines = [f"{name}: statistics at step {int(last['step'])} of {used} of {total} trajectories"]
    for key, mean in last.data_vars.items():
        if not str(key).endswith("_mean"):
            continue
        error = last.get(f"{key}_error")
        shown = f"{float(mean.min()):.4g}" if mean.size == 1 else f"{float(mean.min()):.4g} to {float(mean.max()):.4g}"
        lines.append(f"  {key}: {shown}" + (f" (error at most {float(error.max()):.2g})" if error is not None else ""))
    return "\n".join(lines)
