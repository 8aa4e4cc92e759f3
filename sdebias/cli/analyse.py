"""Verbs on stored ensembles: ``compare``, ``plot``, ``report``, ``info``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from tyro.conf import Positional

from .. import config
from ..errors import InputError, SdebiasError
from ..plotting import plot_orbit_drift
from ..report import comparison_text, html_report, reproduce_command
from ..schema import STATUS
from ..storage import check_outputs, open_dataset, save_text
from .options import Files, Flag, OptionalPath
from .report import compare_ensemble


def _some(files: Sequence[Path]) -> Sequence[Path]:
    if not files:
        raise InputError("FILE: expected one or more ensemble files, got none; name them")
    return files


def _compare_files(files: Sequence[Path]) -> dict[str, xr.Dataset]:
    """Predict and compare anew from ensemble files, which hold the problem's data and declaration."""
    comparisons = {}
    for file in _some(files):
        run = config.load(file)
        with open_dataset(file) as ensemble:
            comparisons[file.stem] = compare_ensemble(ensemble, run)
    return comparisons


@dataclass
class CompareCommand:
    """Predict the orbit drift of stored ensembles, and compare."""

    files: Files
    """Ensemble files (.nc) or run directories."""

    def __call__(self) -> int:
        """Print the table, and return the exit code."""
        print(comparison_text(_compare_files(self.files)))
        return 0


@dataclass
class PlotCommand:
    """Draw predicted against measured orbit drift of stored ensembles."""

    files: Files
    """Ensemble files (.nc) or run directories."""
    out: OptionalPath = None
    """Figure file; by default orbit_drift.png beside the first file."""
    overwrite: Flag = False
    """Replace a figure that exists."""

    def __call__(self) -> int:
        """Write the figure, and return the exit code."""
        out = self.out or _some(self.files)[0].parent / "orbit_drift.png"
        check_outputs([out], size=0, overwrite=self.overwrite)
        figure = plot_orbit_drift(list(_compare_files(self.files).values()))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(out)
        except ValueError as error:
            raise InputError(f"out: expected a figure file such as .png or .pdf, got {out}; {error}") from None
        print(out)
        return 0


@dataclass
class ReportCommand:
    """Write what a dataset is and says as one HTML page, which needs no network."""

    file: Positional[Path]
    """Dataset (.nc) or run directory."""
    out: OptionalPath = None
    """Page; by default beside the file, with the ending .html."""
    overwrite: Flag = False
    """Replace a page that exists."""

    def __call__(self) -> int:
        """Write the page, and return the exit code."""
        out = self.out or self.file.with_suffix(".html")
        with open_dataset(self.file) as dataset:
            check_outputs([out], size=0, overwrite=self.overwrite)
            print(save_text(html_report(dataset, source=self.file), out))
        return 0


@dataclass
class InfoCommand:
    """Say what a dataset is, how it was made, and how to make it again."""

    file: Positional[Path]
    """Dataset (.nc) or run directory."""

    def __call__(self) -> int:
        """Print, and return the exit code."""
        with open_dataset(self.file) as dataset:
            print(describe(dataset, self.file))
        return 0


def describe(dataset: xr.Dataset, file: Path) -> str:
    """Return what a dataset is, how it was made, and a command that makes it again."""
    attrs = dataset.attrs
    lines = [f"{file}: {attrs['kind']}, {', '.join(f'{size} {dim}' for dim, size in dataset.sizes.items())}", ""]
    width = max(len(str(name)) for name in dataset.variables)
    for name, variable in dataset.variables.items():
        # A file of another program may have numbers there.
        units = str(variable.attrs.get("units", ""))
        meaning = str(variable.attrs.get("long_name", "")) + (f" [{units}]" if units not in ("", "1") else "")
        lines.append(f"  {name!s:<{width}}  ({', '.join(map(str, variable.dims))})  {meaning}")
    if "status" in dataset:
        counts = {flag: int((dataset["status"] == value).sum()) for flag, value in STATUS.items()}
        lines += ["", "status: " + ", ".join(f"{count} {flag}" for flag, count in counts.items())]
    lines += ["", *(f"{key}: {value}" for key, value in attrs.items() if key not in ("kind", "config_json")), ""]
    if attrs["kind"] == "ensemble":
        try:
            config.load(file)
        except SdebiasError as error:
            return "\n".join([*lines, f"It cannot be made again from the command line: {error}"])
        lines += [f"Make it again, bit for bit with the same versions and cpu_capability:\n  {reproduce_command(file)}"]
    return "\n".join(lines)
