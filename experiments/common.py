"""What the figures of the paper have in common: one command line, datasets and figures as separate steps, records.

A module states an `Experiment` and ends in ``EXPERIMENT.main()``; then

    python -m experiments.fig5_spectral simulate|plot|all --scale smoke|paper [--seeds N] [--data DIR] [--out DIR]

simulates its datasets (netCDF), or draws from them the figure (PNG and PDF), its caption (`.md`) and its headline
numbers (`.json`), of which ``python -m experiments.results`` makes RESULTS.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import matplotlib as mpl
import numpy as np
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.errors import SdebiasError, check_count
from sdebias.plotting import STYLE
from sdebias.provenance import PACKAGES
from sdebias.storage import save_dataset

ROOT = Path(__file__).parents[1]
# A figure of this width [inch] fits one column of a page at half its size, its letters (11 pt) then at 5.5 pt.
WIDTH = 6.8
# Central share of the seeds that an interval holds.
SHARE = 0.95
TIMES = ("seconds", "cpu_seconds")
QUANTILES = ((1 - SHARE) / 2, 0.5, (1 + SHARE) / 2)

Scale = Literal["smoke", "paper"]
Datasets = Mapping[str, xr.Dataset]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The frozen configuration of an experiment; a module adds its own numbers.

    Parameters
    ----------
    seeds : int
        Replicates: data, teacher and start differ from seed to seed.
    seed : int
        Of all random streams.
    """

    seeds: int
    seed: int = 0


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Record:
    """A headline number: median and central interval over seeds, beside what was published from one seed.

    `explanation` names the experiment behind a disagreement, and is shown only where there is one.
    """

    quantity: str
    median: float
    lower: float
    upper: float
    seeds: int
    published: float | None = None
    explanation: str = ""

    @property
    def agreement(self) -> str:
        """Whether the published number lies within the interval: yes, no, explained, or a dash without one."""
        if self.published is None:
            return "–"
        if self.lower <= self.published <= self.upper:
            return "yes"
        return "explained" if self.explanation else "no"


def record(quantity: str, values: Any, published: float | None = None, explanation: str = "") -> Record:
    """Return the record of one value for each seed."""
    lower, median, upper = map(float, spread(values))
    return Record(quantity, median, lower, upper, np.size(values), published, explanation)


def spread(values: Any, axis: int = 0) -> np.ndarray:
    """Return lower end, median and upper end of the central 95 % of seeds, along the seeds' axis, as first axis."""
    return np.quantile(np.asarray(values), QUANTILES, axis=axis)


def band(axes: Axes, x: Any, values: Any, *, color: str, label: str | None = None, linestyle: str = "-") -> None:
    """Draw the median over seeds of values (seed, x) as a line, and the central 95 % of seeds as a band."""
    lower, median, upper = spread(values)
    axes.fill_between(x, lower, upper, color=color, alpha=0.2, linewidth=0)
    axes.plot(x, median, color=color, linestyle=linestyle, label=label)


def published(figure: str, *keys: str) -> Any:
    """Return a published number of a figure, see data/published.json."""
    value = json.loads((ROOT / "data" / "published.json").read_text(encoding="utf-8"))[figure]
    for key in keys:
        value = value[key]
    return value


def styled(height: float) -> Figure:
    """Return an empty figure of one column's width; draw on it within the context of an `Experiment`."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """A figure: how its datasets are made, how it is drawn from them, what it says and in which numbers.

    Parameters
    ----------
    name : str
        Of the module, and of all files.
    scales : mapping of str to Settings
        ``"smoke"``, which runs in seconds, and ``"paper"``.
    simulate : callable
        Settings to datasets, by name.
    draw : callable
        Settings and datasets to the figure; within the common style.
    caption : callable
        Settings and datasets to what the figure shows; seeds, settings, versions and command are added.
    records : callable
        Settings and datasets to the headline numbers.
    """

    name: str
    scales: Mapping[Scale, S]
    simulate: Callable[[S], Datasets]
    draw: Callable[[S, Datasets], Figure]
    caption: Callable[[S, Datasets], str]
    records: Callable[[S, Datasets], Sequence[Record]]

    def run_simulate(self, settings: S, folder: Path, command: str) -> None:
        """Simulate, and write ``folder/<name>/<dataset>.nc``."""
        start, spent = time.perf_counter(), _cpu_seconds()
        datasets = self.simulate(settings)
        attributes = {
            "experiment": self.name,
            "settings_json": json.dumps(dataclasses.asdict(settings)),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": _cpu_seconds() - spent,
            "command": command,
        }
        for name, dataset in datasets.items():
            save_dataset(dataset.assign_attrs(attributes), folder / self.name / f"{name}.nc")

    def run_plot(self, scale: Scale, data: Path, out: Path) -> None:
        """Draw from stored datasets: ``out/<name>.png``, ``.pdf``, ``.md`` and ``.json``."""
        files = sorted((data / self.name).glob("*.nc"))
        if not files:
            raise SdebiasError(f"{data / self.name}: no datasets there; run `simulate` first, or `all`")
        datasets = {}
        for file in files:
            with sb.open(file) as dataset:
                datasets[file.stem] = dataset.load()
        made = next(iter(datasets.values())).attrs
        settings = type(self.scales[scale])(**json.loads(made["settings_json"]))
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({**STYLE, "legend.fontsize": "small"}):
            figure = self.draw(settings, datasets)
            # Without dates, so that the same data give the same files.
            figure.savefig(out / f"{self.name}.png", metadata={"Software": None})
            figure.savefig(out / f"{self.name}.pdf", metadata={"CreationDate": None})
        (out / f"{self.name}.md").write_text(self._caption(settings, datasets, made), encoding="utf-8")
        summary = {
            "figure": self.name,
            "scale": scale,
            **{name: round(float(made[name]), 1) for name in TIMES if name in made},
            "command": made["command"],
            "settings": dataclasses.asdict(settings),
            "versions": _versions(made),
            "records": [dataclasses.asdict(one) for one in self.records(settings, datasets)],
        }
        (out / f"{self.name}.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def _caption(self, settings: S, datasets: Datasets, made: Mapping[str, Any]) -> str:
        values = ", ".join(f"{name} = {value}" for name, value in dataclasses.asdict(settings).items())
        versions = ", ".join(f"{name} {version}" for name, version in _versions(made).items())
        return (
            f"{self.caption(settings, datasets)}\n\nLines and points are medians over {settings.seeds} seeds, bands "
            f"and bars hold the central {SHARE:.0%} of them, unless stated otherwise. Settings: {values}. "
            f"Made with {versions} by `{made['command']}`.\n"
        )

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command line; an error is one line and exit code 2."""
        run = tyro.cli(_Command, prog=f"python -m experiments.{self.name}", args=arguments)
        settings = self.scales[run.scale]
        command = f"python -m experiments.{self.name} all --scale {run.scale}"
        data = run.data or ROOT / "results" / "figures" / run.scale
        out = run.out or (ROOT / "docs" / "figures" / "paper" if run.scale == "paper" else data)
        try:
            if run.seeds is not None:
                settings = dataclasses.replace(settings, seeds=check_count("seeds", run.seeds))
                command += f" --seeds {run.seeds}"
            if run.action != "plot":
                self.run_simulate(settings, data, command)
            if run.action != "simulate":
                self.run_plot(run.scale, data, out)
                print(out / f"{self.name}.png")
        except SdebiasError as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            sys.exit(2)


@dataclass(frozen=True)
class _Command:
    """Simulate the datasets of a figure, draw it from them, or both."""

    action: tyro.conf.Positional[Literal["simulate", "plot", "all"]]
    scale: Scale = "paper"
    """smoke takes seconds; paper is the size of the published runs."""
    seeds: int | None = None
    """Instead of those of the scale."""
    data: Path | None = None
    """Folder of the datasets; by default results/figures/SCALE."""
    out: Path | None = None
    """Folder of figure, caption and records; by default docs/figures/paper, or results/figures/smoke."""


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the compilers that it has started."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def _versions(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions with which a dataset was made."""
    versions = {"sdebias": str(attributes["creation_library_version"])}
    return versions | {name: str(attributes[f"{name}_version"]) for name in PACKAGES}
