"""What a report says in words: verdicts, the table of a comparison, the command that makes a file again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from ..comparison import FALSE_ALARM_RATE, POWER_SCALE, comparison_table


def comparison_text(comparisons: Mapping[str, xr.Dataset]) -> str:
    """Return the table of comparisons at the last step, and a verdict for each.

    Parameters
    ----------
    comparisons : mapping of str to xr.Dataset
        By name, of kind "comparison".
    """
    lines: list[str] = []
    for name, comparison in comparisons.items():
        table = comparison_table(comparison)
        interval = f"{100 * comparison.attrs['confidence']:g} % interval"
        header = f"{'charge':<16}{'predicted':>12}{'measured':>12}  {interval:^24}{'deviation':>11}{'z':>8}"
        finite = "z_scheme" in table
        header += f"{'finite step':>13}{'z less it':>11}" if finite else ""
        steps, total = int(comparison["step"][-1]), comparison.attrs["trajectories"]
        used = int(comparison["trajectories_used"].min())
        lines += [
            "",
            f"{name}: orbit drift over {steps} updates, {used} of {total} trajectories used",
            f"  {comparison.attrs['equation']}",
            f"  {header}",
        ]
        for label, row in table.iterrows():
            shown = label if isinstance(label, str) else " ".join(map(str, label))
            line = f"  {shown:<16}{row['predicted']:>12.4e}{row['measured']:>12.4e}"
            line += f"  [{row['lower']:.4e}, {row['upper']:.4e}]{row['deviation_percent']:>9.2f} %{row['z']:>8.2f}"
            lines.append(line + (f"{row['finite_step']:>13.2e}{row['z_scheme']:>11.2f}" if finite else ""))
        lines.append(f"  {verdict(comparison)}")
    return "\n".join(lines[1:])


def verdict(comparison: xr.Dataset) -> str:
    """Return the verdict of a comparison as a sentence."""
    last = comparison.isel(step=-1)
    size = abs(last["predicted"]).where(last["predicted"] != 0)
    error, integration = (float((100 * last[n] / size).max()) for n in ("deviation_error", "integration_error"))
    less = ", the solver's finite step accounted for" if "z_scheme" in comparison else ""
    power = (
        "is rejected" if comparison.attrs["verdict_scaled"] == "rejected" else "is NOT rejected: too few trajectories"
    )
    return (
        f"verdict: {comparison.attrs['verdict']}{less}: largest |z| = {float(comparison['statistic'].max()):.2f}, "
        f"p {_shown(comparison['p_value'])} (false-alarm rate {FALSE_ALARM_RATE:g})\n"
        f"  error of the comparison: at most {error:.2g} % of the prediction, of which integrating it on the save grid "
        f"at most {integration:.2g} %\n"
        f"  power: a prediction {100 * (POWER_SCALE - 1):.0f} % larger {power} "
        f"(p {_shown(comparison['p_value_scaled'])})"
    )


def _shown(p_value: xr.DataArray) -> str:
    smallest = float(p_value.min())
    return f"= {smallest:.2g}" if smallest > 1e-300 else "< 1e-300"


def reproduce_command(file: Path) -> str:
    """Return the command that makes an ensemble again from its file or its run directory."""
    again = file.parent / f"{file.stem}-again"
    return f"sdebias run {shlex.quote(str(file))} --out {shlex.quote(str(again))}"
