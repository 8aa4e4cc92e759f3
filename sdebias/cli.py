"""The command line: ``sdebias run | compare | plot | report | info``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
import xarray as xr
from tyro.conf import Positional, arg

from . import config
from .comparison import compare
from .dataset import STATUS
from .ensemble.plan import ensemble_bytes, save_grid
from .ensemble.simulate import simulate
from .errors import InputError, RunError, SdebiasError, check_count
from .plotting import plot_orbit_drift
from .prediction import predict_orbit_drift
from .report import comparison_text, html_report, reproduce_command
from .storage import check_outputs, open_dataset, save_dataset
from .storage.files import save_text

DESCRIPTION = "Simulate SGD and its SDE, and compare the drift along symmetry orbits with what geometry predicts."


Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Files = Positional[Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]", help_behavior_hint="")]]
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass
class RunCommand:
    """Simulate every dynamics of a configuration, compare with the prediction, and write datasets and a figure."""

    config: Positional[Path]
    """TOML file; or an ensemble file (.nc), which is then made again from the configuration and data that it holds."""
    trajectories: Number = None
    """Trajectories of each replicate, instead of the file's."""
    steps: Number = None
    """Updates, instead of the file's."""
    save_every: Number = None
    """Updates between saves, a divisor of the steps."""
    seed: Number = None
    """Seed, instead of the file's."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """cpu, cuda, cuda:N, or auto."""
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder of the results, instead of the file's."""
    threads: Number = None
    """CPU threads; results are bit-identical for the same number."""
    overwrite: Flag = False
    """Replace results that exist."""

    def __call__(self) -> int:
        """Run, and return the exit code."""
        if self.threads is not None:
            torch.set_num_threads(check_count("threads", self.threads))
        names = ("trajectories", "steps", "save_every", "seed", "device")
        changes = {name: getattr(self, name) for name in names}
        changes["out"] = None if self.out is None else str(self.out)
        run = config.load(self.config, changes)
        arguments = run.settings.simulate_arguments()
        folder = Path(run.settings.out)
        files = {name: folder / f"{name}.nc" for name in run.dynamics}
        figure = folder / "orbit_drift.png"
        saves = len(save_grid(run.settings.steps, run.settings.save_every))
        keep = {"save": arguments["save"]} if "save" in arguments else {}
        bound = run.symmetry.bind(run.problem)
        size = ensemble_bytes(run.problem, bound, trajectories=run.settings.trajectories, saves=saves, **keep)
        for dynamics in run.dynamics.values():
            dynamics.bind(run.problem)
        check_outputs([*files.values(), figure], size=size * len(files), overwrite=self.overwrite)

        comparisons = {}
        for name, dynamics in run.dynamics.items():
            ensemble = simulate(run.problem, dynamics, symmetry=run.symmetry, progress=True, **arguments)
            save_dataset(ensemble, files[name])
            comparisons[name] = _compare(ensemble, run)
        print(comparison_text(comparisons))
        plot_orbit_drift(list(comparisons.values())).savefig(figure)
        for file in (*files.values(), figure):
            print(file)
        return 0


def _compare(ensemble: xr.Dataset, run: config.Run) -> xr.Dataset:
    """Compare an ensemble that was just simulated, or say why that cannot be."""
    flagged = int((ensemble["status"] != STATUS["ok"]).sum())
    if ensemble["status"].size - flagged < 2:
        raise RunError(
            f"{flagged} of {ensemble['status'].size} trajectories are not finite or diverged; the file keeps them; "
            "lower the learning rate or the temperature"
        )
    return compare(ensemble, predict_orbit_drift(ensemble, run.problem, run.symmetry))


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
            comparisons[file.stem] = _compare(ensemble.load(), run)
    return comparisons


@dataclass
class CompareCommand:
    """Predict the orbit drift of stored ensembles, and compare."""

    files: Files
    """Ensemble files (.nc)."""

    def __call__(self) -> int:
        """Print the table, and return the exit code."""
        print(comparison_text(_compare_files(self.files)))
        return 0


@dataclass
class PlotCommand:
    """Draw predicted against measured orbit drift of stored ensembles."""

    files: Files
    """Ensemble files (.nc)."""
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
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
    """Dataset (.nc)."""
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Page; by default beside the file, with the ending .html."""
    overwrite: Flag = False
    """Replace a page that exists."""

    def __call__(self) -> int:
        """Write the page, and return the exit code."""
        out = self.out or self.file.with_suffix(".html")
        with open_dataset(self.file) as dataset:
            check_outputs([out], size=0, overwrite=self.overwrite)
            page = html_report(dataset, source=self.file)
        print(save_text(page, out))
        return 0


@dataclass
class InfoCommand:
    """Say what a dataset is, how it was made, and how to make it again."""

    file: Positional[Path]
    """Dataset (.nc)."""

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
        units = variable.attrs.get("units", "")
        meaning = variable.attrs.get("long_name", "") + (f" [{units}]" if units not in ("", "1") else "")
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
        command = reproduce_command(dataset, file)
        lines += [f"Make it again, bit for bit with the same versions and cpu_capability:\n  {command}"]
    return "\n".join(lines)


Command = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[PlotCommand, tyro.conf.subcommand("plot")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[InfoCommand, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 done, 2 bad input, 1 a run that failed.
    """
    try:
        command = tyro.cli(Command, prog="sdebias", description=DESCRIPTION, args=arguments)
        return command()
    except KeyboardInterrupt:
        print("sdebias: interrupted; ensembles that were finished before are in the output folder", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"sdebias: {error}", file=sys.stderr)
        return 2
    except SdebiasError as error:
        print(f"sdebias: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
