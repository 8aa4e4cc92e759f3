"""The ``.sdebias`` accessor of xarray datasets: what can be done with a dataset, where the dataset is."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from . import config, plotting
from .autocorrelation import effective_sample_size
from .comparison import CONFIDENCE, compare, comparison_table
from .dataset import validate
from .errors import ConfigError, DataError, InputError, message
from .prediction import gram_spectrum, predict_orbit_drift, split_dynamics
from .problems import Problem
from .schema import OK, PATH, STATUS
from .symmetry import Symmetry

if TYPE_CHECKING:
    import arviz

# Observables that a summary has rows for.
SUMMARISED = ("loss", "log_orbit_volume", "charge_value", "predictor_value")
# Figures that fit each kind of dataset; the first is what ``plot()`` draws.
FIGURES: dict[str, tuple[str, ...]] = {
    "ensemble": ("orbit_drift", "charges", "paths", "gram_spectrum", "motion"),
    "comparison": ("orbit_drift",),
    "law_comparison": ("law",),
    "split": ("motion",),
    "landscape": ("landscape",),
    "spectrum": ("gram_spectrum",),
}


@xr.register_dataset_accessor("sdebias")
class SdebiasAccessor:
    """What can be done with a dataset of this package, as ``ensemble.sdebias.compare()``.

    Where a method needs the problem and its symmetry, it takes them, or builds them again from the configuration and
    the data that an ensemble of a known model holds.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def kind(self) -> str:
        """Kind of the dataset, see `sdebias.schema.KINDS`; "unknown" for a foreign one."""
        return str(self._dataset.attrs.get("kind", "unknown"))

    @property
    def plot(self) -> Plots:
        """The figures that fit the kind of the dataset; called itself, it draws the first of them."""
        return Plots(self)

    def model(self, problem: Problem | None = None, symmetry: Symmetry | None = None) -> tuple[Problem, Symmetry]:
        """Return problem and symmetry: those given, or those of the configuration that the ensemble holds.

        Raises
        ------
        DataError
            If the dataset is not an ensemble, or they are needed and cannot be built again.
        """
        ensemble = validate(self._dataset, "ensemble")
        if problem is None:
            try:
                problem, stored = config.rebuild(ensemble)
            except ConfigError as error:
                remedy = "pass problem and symmetry"
                raise DataError(message("problem", "one that the ensemble holds", f"none ({error})", remedy)) from None
        else:
            stored = problem.symmetry()
        symmetry = symmetry or stored
        if symmetry is None:
            raise DataError(message("symmetry", "one", "an ensemble and a problem without", "pass symmetry"))
        return problem, symmetry

    def predict(self, problem: Problem | None = None, symmetry: Symmetry | None = None) -> xr.Dataset:
        """Return the predicted orbit drift of an ensemble; see `sdebias.predict_orbit_drift`."""
        return predict_orbit_drift(self._dataset, *self.model(problem, symmetry))

    def compare(
        self, problem: Problem | None = None, symmetry: Symmetry | None = None, *, confidence: float = CONFIDENCE
    ) -> xr.Dataset:
        """Predict the orbit drift of an ensemble and compare; see `sdebias.compare`."""
        return compare(self._dataset, self.predict(problem, symmetry), confidence=confidence)

    def split(self, problem: Problem | None = None, symmetry: Symmetry | None = None) -> xr.Dataset:
        """Split the dynamics of an ensemble at its stored states; see `sdebias.split_dynamics`."""
        return split_dynamics(self._dataset, *self.model(problem, symmetry))

    def gram_spectrum(self, problem: Problem | None = None, symmetry: Symmetry | None = None) -> xr.Dataset:
        """Return the Gram eigenvalues at the stored states of an ensemble; see `sdebias.gram_spectrum`."""
        return gram_spectrum(self._dataset, *self.model(problem, symmetry))

    def table(self) -> pd.DataFrame:
        """Return a comparison at its last step; see `sdebias.comparison.comparison_table`."""
        return comparison_table(self._dataset)

    def summary(self, first_step: int | None = None, *, confidence: float = CONFIDENCE) -> pd.DataFrame:
        """Return a table of an ensemble: one row for each observable, charge and predictor (and replicate).

        Parameters
        ----------
        first_step : int, optional
            First step of the stretch that is summarised, taken to be stationary; by default the last step alone.
        confidence : float
            Of the interval of the mean, in (0, 1).

        Returns
        -------
        pd.DataFrame
            Columns mean, sd (of states), lower, upper (t interval of the mean), ess: the effective number of
            independent samples, which is that of the trajectories where there is one step.

        Raises
        ------
        DataError
            If the dataset is not an ensemble, holds no observable, or has fewer than two trajectories with status ok.
        InputError
            If no step is left, or `confidence` is out of range.
        """
        ensemble = validate(self._dataset, "ensemble")
        if not 0 < confidence < 1:
            raise InputError(message("confidence", "a number in (0, 1)", confidence, "for instance 0.95"))
        last = int(ensemble["step"][-1])
        stretch = ensemble.isel(step=ensemble["step"].values >= (last if first_step is None else first_step))
        if not stretch.sizes["step"]:
            raise InputError(message("first_step", f"at most {last}", first_step, "choose an earlier step"))
        names = [name for name in SUMMARISED if name in ensemble]
        if not names:
            want = f"one of {', '.join(SUMMARISED)}"
            raise DataError(message("ensemble", want, "none", "save some of them"))
        rows = {}
        for one in _replicates(stretch):
            lead = (one["replicate"].item(),) if "replicate" in one.coords else ()
            used = one["status"].values == OK
            for name in names:
                for label, values in _coordinates(one[name].isel(trajectory=np.flatnonzero(used))):
                    rows[(*lead, name, label)] = _moments(values, confidence)
        table = pd.DataFrame.from_dict(rows, orient="index")
        index = ["replicate", "variable", "label"][-len(next(iter(rows))) :]
        table.index = pd.MultiIndex.from_tuples(list(rows), names=index)
        return table

    def to_arviz(self, first_step: int = 0) -> arviz.InferenceData:
        """Return an ensemble as arviz has it, for its diagnostics and figures.

        A trajectory is a *chain* and a saved step a *draw*: R-hat then asks whether the trajectories have forgotten
        their starts, and the effective sample size is that of `sdebias.effective_sample_size`. Charges, predictors,
        orbit volume and parameters are in ``posterior``; the loss in ``sample_stats``; data of the problem and
        the learning rate in ``constant_data``. Flagged trajectories are left out, and counted in the attribute
        ``flagged``, since a chain with NaN has no diagnostics.

        Parameters
        ----------
        first_step : int
            Steps before it are left out, as a start that is not stationary.

        Raises
        ------
        DataError
            If the dataset is not an ensemble, or no trajectory with status ok or no step is left.
        InputError
            If arviz is not installed.
        """
        ensemble = validate(self._dataset, "ensemble")
        try:
            import arviz
        except ImportError:
            remedy = "pip install 'sdebias[arviz]'"
            raise InputError(message("to_arviz", "the package arviz", "none that is installed", remedy)) from None
        fine = (ensemble["status"] == OK).all([dim for dim in ensemble["status"].dims if dim != "trajectory"])
        kept = ensemble.isel(trajectory=fine.values, step=ensemble["step"].values >= first_step)
        if not kept.sizes["trajectory"] or not kept.sizes["step"]:
            got = f"{kept.sizes['trajectory']} and {kept.sizes['step']}"
            raise DataError(
                message("ensemble", "trajectories with status ok, and steps", got, "choose an earlier step")
            )
        chains = kept.drop_vars("status").rename(trajectory="chain", step="draw")
        chains = chains.transpose("chain", "draw", ..., missing_dims="ignore")
        sampled = [name for name in ("theta", *SUMMARISED[1:]) if name in chains]
        groups = {"posterior": chains[sampled], "sample_stats": chains[[n for n in ("loss",) if n in chains]]}
        rest = [str(n) for n, v in chains.data_vars.items() if not {"chain", "draw"} & set(v.dims)]
        groups["constant_data"] = chains[rest]
        flagged = int((~fine).sum())
        for group in groups.values():
            group.attrs = {**ensemble.attrs, "flagged": flagged}
        # From one mapping: arviz types its keywords as options.
        filled: dict[str, Any] = {name: group for name, group in groups.items() if group.data_vars}
        return arviz.InferenceData(**filled)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table>{''.join(cells)}</table>"

    def _facts(self) -> dict[str, str]:
        """Return what a dataset is, in a few lines."""
        dataset = self._dataset
        facts = {"kind": self.kind, "sizes": ", ".join(f"{size} {dim}" for dim, size in dataset.sizes.items())}
        names = ("dynamics", "equation", "verdict", "verdict_scaled", "created_at", "config_hash")
        facts |= {name: str(dataset.attrs[name]) for name in names if dataset.attrs.get(name)}
        if "status" in dataset:
            counts = {name: int((dataset["status"] == code).sum()) for name, code in STATUS.items()}
            facts["status"] = ", ".join(f"{count} {name}" for name, count in counts.items())
        if "p_value" in dataset:
            facts["p_value"] = f"{float(dataset['p_value'].min()):.2g}"
        facts["figures"] = ", ".join(f"plot.{name}()" for name in FIGURES.get(self.kind, ())) or "none"
        return facts


class Plots:
    """Figures of a dataset, as ``comparison.sdebias.plot.orbit_drift()``; see `sdebias.plotting` for what they show.

    On an ensemble they make what they need from it first: options ``problem`` and ``symmetry`` as in the methods of the
    accessor. Other options go to the function of `sdebias.plotting`.
    """

    def __init__(self, accessor: SdebiasAccessor) -> None:
        self._accessor = accessor

    def __dir__(self) -> list[str]:
        return list(FIGURES.get(self._accessor.kind, ()))

    def __call__(self, **options: Any) -> Figure:
        """Draw the first figure that fits the kind of the dataset.

        Raises
        ------
        DataError
            If none does.
        """
        names = dir(self)
        if not names:
            want = f"a dataset of kind {', '.join(FIGURES)}"
            raise DataError(message("plot", want, f"kind {self._accessor.kind!r}", "compare it first"))
        figure: Figure = getattr(self, FIGURES[self._accessor.kind][0])(**options)
        return figure

    def orbit_drift(self, problem: Problem | None = None, symmetry: Symmetry | None = None, **options: Any) -> Figure:
        """Draw measured against predicted orbit drift; see `sdebias.plotting.plot_orbit_drift`."""
        return plotting.plot_orbit_drift(self._made("compare", problem, symmetry), **options)

    def charges(self, problem: Problem | None = None, symmetry: Symmetry | None = None, **options: Any) -> Figure:
        """Draw charges over updates with their prediction; see `sdebias.plotting.plot_charges`.

        An ensemble whose problem is neither given nor known is drawn without a prediction.
        """
        try:
            problem, symmetry = self._accessor.model(problem, symmetry)
        except DataError:
            return plotting.plot_charges(self._dataset, **options)
        return plotting.plot_charges(self._dataset, self._accessor.predict(problem, symmetry), **options)

    def paths(self, name: str = "loss", **options: Any) -> Figure:
        """Draw an observable over updates; see `sdebias.plotting.plot_paths`."""
        return plotting.plot_paths(self._dataset, name, **options)

    def motion(self, problem: Problem | None = None, symmetry: Symmetry | None = None, **options: Any) -> Figure:
        """Draw the shares of motion along orbits and across them; see `sdebias.plotting.plot_motion`."""
        return plotting.plot_motion(self._made("split", problem, symmetry), **options)

    def gram_spectrum(self, problem: Problem | None = None, symmetry: Symmetry | None = None, **options: Any) -> Figure:
        """Draw the spectrum of the Gram matrix; see `sdebias.plotting.plot_gram_spectrum`."""
        return plotting.plot_gram_spectrum(self._made("gram_spectrum", problem, symmetry), **options)

    def law(self, **options: Any) -> Figure:
        """Draw a histogram against a predicted law; see `sdebias.plotting.plot_law`."""
        return plotting.plot_law(self._dataset, **options)

    def landscape(self, ensembles: xr.Dataset | Sequence[xr.Dataset] = (), **options: Any) -> Figure:
        """Draw loss and effective loss with trajectories; see `sdebias.plotting.plot_landscape`."""
        return plotting.plot_landscape(self._dataset, ensembles, **options)

    @property
    def _dataset(self) -> xr.Dataset:
        return self._accessor._dataset

    def _made(self, method: str, problem: Problem | None, symmetry: Symmetry | None) -> xr.Dataset:
        """Return what a method of the accessor makes of an ensemble, or the dataset where it is no ensemble."""
        if self._accessor.kind != "ensemble":
            return self._dataset
        made: xr.Dataset = getattr(self._accessor, method)(problem, symmetry)
        return made


def _replicates(ensemble: xr.Dataset) -> list[xr.Dataset]:
    """Return the replicates of an ensemble, or itself."""
    if "replicate" not in ensemble.dims:
        return [ensemble]
    return [ensemble.isel(replicate=k) for k in range(ensemble.sizes["replicate"])]


def _coordinates(values: xr.DataArray) -> list[tuple[str, xr.DataArray]]:
    """Return an observable by label: one for each charge or predictor, one without label for a scalar."""
    inner = [dim for dim in values.dims if dim not in PATH]
    if not inner:
        return [("", values)]
    return [(str(label), values.sel({inner[0]: label}, drop=True)) for label in values[inner[0]].values]


def _moments(values: xr.DataArray, confidence: float) -> dict[str, float]:
    """Return the row of a summary, of values over trajectory and step."""
    size = effective_sample_size(values)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = spread / np.sqrt(size) * float(scipy.stats.t.ppf(0.5 + confidence / 2, max(size - 1, 1)))
    return {"mean": mean, "sd": spread, "lower": mean - half, "upper": mean + half, "ess": size}
