"""The property of configurations: each runs and gives what it says, or is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from outcomes import REFUSED, RIGHT, BugError, command_line, limited

import sdebias as sb
from sdebias import config
from sdebias.dataset import validate
from sdebias.ensemble.run import planned
from sdebias.errors import SdebiasError
from sdebias.storage import save_dataset

# Numbers that steps of an ensemble write, up to which an accepted configuration is simulated.
WORK = 5e6
SECONDS = 20.0
FILES = "fuzz"


def check(text: str, folder: Path, *, whole: bool) -> str:
    """Load a configuration, simulate what is small, and compare the datasets with what the configuration says.

    Parameters
    ----------
    text : str
    folder : Path
        Where its data lie.
    whole : bool
        Whether an accepted one is run by the command line, too; a refused one always is.

    Returns
    -------
    str
        The outcome.

    Raises
    ------
    BugError
        If a result is wrong.
    Exception
        Whatever it raises that is not an error of the package.
    """
    path = folder / f"{FILES}.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    out = folder / "out"
    command = ("run", str(path), "--out", str(out), "--overwrite")
    with limited(SECONDS):
        try:
            run = config.load(path, {"out": str(out)})
            arguments = {"symmetry": run.symmetry, **run.settings.simulate_arguments()}
            plans = {name: planned(run.problem, each, None, **arguments) for name, each in run.dynamics.items()}
        except SdebiasError as error:
            if "\n" in str(error) or not str(error):
                raise BugError(f"not one line: {error}") from error
            if command_line(*command) not in (1, 2):
                raise BugError(f"refused by load, run by the command line: {error}") from error
            return REFUSED
        work = {name: p.sizes.numbers * p.trajectories * p.grid[-1] * p.dynamics.substeps for name, p in plans.items()}
        for name, plan in plans.items():
            if work[name] > WORK:
                continue
            ensemble = sb.simulate(run.problem, run.dynamics[name], progress=False, **arguments)
            _check_dataset(ensemble, plan, folder)
        if whole and max(work.values()) < WORK:
            command_line(*command)
    return RIGHT


def _check_dataset(ensemble: xr.Dataset, plan: Any, folder: Path) -> None:
    """Raise unless a dataset is what was asked for, and holds the configuration that makes it again."""
    validate(ensemble)
    if not np.array_equal(ensemble["step"], plan.grid):
        raise BugError(f"steps {ensemble['step'].values} of a grid {plan.grid}")
    if not plan.statistics and ensemble.sizes["trajectory"] != plan.trajectories:
        raise BugError(f"{ensemble.sizes} of {plan.trajectories} trajectories")
    good = ensemble["status"] == 0 if "status" in ensemble else None
    for name in set(plan.observables) & set(ensemble) - {"log_orbit_volume"}:
        if good is not None and not bool(np.isfinite(ensemble[name].where(good, 0)).all()):
            raise BugError(f"{name} is not finite in a trajectory that is ok")
    again = config.load(save_dataset(ensemble, folder / f"{FILES}.nc"))
    made = planned(
        again.problem, again.dynamics[FILES], None, symmetry=again.symmetry, **again.settings.simulate_arguments()
    )
    if made.config() != plan.config():
        raise BugError(f"another configuration comes back from the file: {made.config()} for {plan.config()}")
