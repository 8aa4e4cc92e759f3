"""Online statistics: what is kept of an ensemble in place of its trajectories.

A run of a million trajectories then takes megabytes. Results do not depend on threads: parts of seed blocks are added
in the order of the blocks. All are built as ``sdebias.statistics.Quantiles((0.1, 0.9))`` and the like, by name, or from
the plain data of `spec`.
"""

from __future__ import annotations

import math
import numbers
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import SUMMARIES
from ..errors import InputError, check_choice, check_count, check_number, check_positive_number, message, nearest, shown
from ..pooling import mean_errors
from .accumulators import Accumulator, Arrays, Counts, Moments, Sketch, checked_array
from .observables import Observable, canonical
from .record import OBSERVED, Recorder

# Arrays by the suffix of their variable, with dims: `replicate` where there are several, `...` for the observable's.
Results = dict[str, tuple[tuple[str, ...], np.ndarray]]
COUNT = ("step", "replicate")
# Many small numbers, which files hold compressed.
LARGE = ("sketch", "histogram")
EACH = (*COUNT, "...")


@dataclass(frozen=True)
class Statistic(ABC):
    """A statistic over trajectories, of every observable that is saved or of one.

    Attributes
    ----------
    kind : type
        Class of what gathers it; one is kept for each observable.
    """

    name: ClassVar[str]
    kind: ClassVar[type[Accumulator]]

    def spec(self) -> dict[str, Any]:
        """Return the statistic as plain data; see `as_statistic`."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {"statistic": self.name, **values}

    def of(self, name: str) -> bool:
        """Return whether it is wanted of an observable."""
        return True

    @abstractmethod
    def accumulator(self, cells: tuple[int, ...], grid: Sequence[int]) -> Accumulator:
        """Return what gathers it, for cells (save, [replicate,] coordinate)."""

    @abstractmethod
    def results(self, accumulator: Any) -> Results:
        """Return its variables, and in ``count`` how many values they are of."""

    def attributes(self) -> dict[str, str | int | float]:
        """Return what its variables say besides."""
        return {}


@dataclass(frozen=True)
class Mean(Statistic):
    """Mean at each step, its standard error, and the variance that it comes from."""

    name: ClassVar[str] = "mean"
    kind: ClassVar[type[Accumulator]] = Moments

    def accumulator(self, cells: tuple[int, ...], grid: Sequence[int]) -> Moments:
        """Return moments."""
        return Moments(cells, full=False)

    def results(self, accumulator: Moments) -> Results:
        """Return mean, standard error and unbiased variance."""
        count, variance = accumulator.arrays["count"], accumulator.variance()
        return {
            "count": (COUNT, count),
            "mean": (EACH, accumulator.mean()),
            "mean_error": (EACH, mean_errors(count, variance)),
            "variance": (EACH, variance),
        }


@dataclass(frozen=True)
class Variance(Mean):
    """Variance at each step, beside the mean."""

    name: ClassVar[str] = "variance"


@dataclass(frozen=True)
class Covariance(Mean):
    """Covariance of the coordinates of an observable at each step, beside their means and variances."""

    name: ClassVar[str] = "covariance"

    def accumulator(self, cells: tuple[int, ...], grid: Sequence[int]) -> Moments:
        """Return moments with all products."""
        return Moments(cells, full=True)

    def results(self, accumulator: Moments) -> Results:
        """Return the unbiased covariance, too."""
        return {**super().results(accumulator), "covariance": ((*EACH, "other_..."), accumulator.covariance())}


@dataclass(frozen=True)
class Quantiles(Statistic):
    """Quantiles at each step, each within a relative error of one of the sample's: the value of rank ⌊q(n−1)⌋.

    Counted in logarithmic bins; see `sdebias.ensemble.accumulators.Sketch`.

    Parameters
    ----------
    levels : sequence of float
        Increasing, within [0, 1].
    accuracy : float
        Largest relative error, in (0, 0.5). At 0.01, one step of one coordinate takes about 8 kB in eight decades.
    smallest : float
        Size up to which a value counts as 0.
    """

    name: ClassVar[str] = "quantiles"
    kind: ClassVar[type[Accumulator]] = Sketch
    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    accuracy: float = 0.01
    smallest: float = 1e-9

    def __post_init__(self) -> None:
        """Check the values."""
        given: Any = self.levels
        levels = list(given) if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str) else []
        real = all(isinstance(q, numbers.Real) and 0 <= float(q) <= 1 for q in levels)
        if not levels or not real or any(a >= b for a, b in pairwise(levels)):
            remedy = "for instance (0.05, 0.5, 0.95)"
            raise InputError(message("levels", "increasing numbers within [0, 1]", repr(given), remedy))
        if check_positive_number("accuracy", self.accuracy) >= 0.5:
            raise InputError(message("accuracy", "a number in (0, 0.5)", self.accuracy, "for instance 0.01"))
        object.__setattr__(self, "levels", tuple(map(float, levels)))
        object.__setattr__(self, "accuracy", float(self.accuracy))
        object.__setattr__(self, "smallest", check_positive_number("smallest", self.smallest))

    def accumulator(self, cells: tuple[int, ...], grid: Sequence[int]) -> Sketch:
        """Return a sketch."""
        return Sketch(cells, self.accuracy, self.smallest)

    def results(self, accumulator: Sketch) -> Results:
        """Return the quantiles, and the counts that they come from."""
        counts = accumulator.arrays["sketch"]
        return {
            "count": (COUNT, counts.sum(-1)[..., 0]),
            "quantile": (("quantile", *EACH), accumulator.quantiles(self.levels)),
            "sketch": ((*EACH, "key"), counts),
        }

    def attributes(self) -> dict[str, str | int | float]:
        """Return how exact they are."""
        return {"relative_accuracy": self.accuracy, "counts_as_zero": self.smallest}


@dataclass(frozen=True)
class Histogram(Statistic):
    """Histogram of one observable, pooled over the saves from one on: of the stationary law, once it is reached.

    Counts are kept for 64 groups of trajectories apart: saves of one trajectory are correlated, groups are independent,
    so that the spread between groups is what an error or a test can be based on. What lies outside is counted, too.

    Parameters
    ----------
    observable : str
    lower, upper : float
    bins : int
        Of equal width; each holds its lower edge.
    since : int
        Update from which on saves count.
    """

    name: ClassVar[str] = "histogram"
    kind: ClassVar[type[Accumulator]] = Counts
    observable: str
    lower: float
    upper: float
    bins: int = 100
    since: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.observable, str):
            raise InputError(message("observable", "a name", shown(self.observable), "for instance 'loss'"))
        object.__setattr__(self, "observable", canonical(self.observable))
        object.__setattr__(self, "lower", check_number("lower", self.lower))
        object.__setattr__(self, "upper", check_number("upper", self.upper))
        if not self.lower < self.upper:
            got = (self.lower, self.upper)
            raise InputError(message("histogram", "lower < upper", got, "give two increasing numbers"))
        check_count("bins", self.bins)
        check_count("since", self.since, minimum=0)

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins."""
        return np.linspace(self.lower, self.upper, self.bins + 1)

    def of(self, name: str) -> bool:
        """Return whether it is wanted of an observable."""
        return name == self.observable

    def accumulator(self, cells: tuple[int, ...], grid: Sequence[int]) -> Counts:
        """Return counts."""
        return Counts(cells, self.edges, int(np.searchsorted(grid, self.since)))

    def results(self, accumulator: Counts) -> Results:
        """Return the counts."""
        dims = ("replicate", "group", "...", "bin")
        return {"histogram": (dims, accumulator.arrays["histogram"])}

    def attributes(self) -> dict[str, str | int | float]:
        """Return what is pooled."""
        return {"since": self.since}


STATISTICS: dict[str, type[Statistic]] = {cls.name: cls for cls in (Mean, Variance, Covariance, Quantiles, Histogram)}


def as_statistic(value: Any) -> Statistic:
    """Return a statistic from itself, its name, or the plain data of its `spec`.

    Raises
    ------
    InputError
        If the name or a parameter is wrong.
    """
    if isinstance(value, Statistic):
        return value
    if not isinstance(value, str | Mapping):
        remedy = "for instance 'mean', or sdebias.statistics.Quantiles((0.1, 0.9))"
        raise InputError(message("statistics", "names or statistics", repr(value), remedy))
    values = dict(value) if isinstance(value, Mapping) else {"statistic": value}
    kind = STATISTICS[check_choice("statistic", values.pop("statistic", "none"), list(STATISTICS))]
    try:
        return kind(**values)
    except TypeError as error:
        remedy = "give its parameters by name"
        raise InputError(message("statistics", f"the parameters of {kind.name}", str(error), remedy)) from None


def choose_statistics(statistics: Any, observables: Mapping[str, Observable], last: int) -> tuple[Statistic, ...]:
    """Return the statistics that are wanted, after checking that each has its observable and is wanted once.

    Raises
    ------
    InputError
        If they are none, one is unknown or wanted twice, or a histogram is of what is not saved or begins after the
        last update.
    """
    if not isinstance(statistics, list | tuple) or not statistics:
        remedy = "for instance statistics=['mean', 'quantiles']"
        raise InputError(message("statistics", "a list of statistics", repr(statistics), remedy))
    chosen = tuple(as_statistic(value) for value in statistics)
    keys = [(s.name, s.observable) if isinstance(s, Histogram) else (s.name, "") for s in chosen]
    for key in keys:
        if keys.count(key) > 1:
            got, remedy = f"two of {' of '.join(filter(None, key))}", "keep one of them"
            raise InputError(message("statistics", "each statistic once", got, remedy))
    for histogram in chosen:
        if not isinstance(histogram, Histogram):
            continue
        if histogram.observable not in observables:
            got = repr(histogram.observable)
            raise InputError(message("histogram", "an observable of save", got, nearest(got, observables)))
        if histogram.since > last:
            want = f"an update of the run, at most {last}"
            raise InputError(message("since", want, histogram.since, "choose an earlier one"))
    return chosen


class Summary(Recorder):
    """Sufficient statistics of observables over trajectories, in place of their values.

    A trajectory counts until it is flagged. A value of an observable that is not finite though its trajectory is ok
    does not count; ``{observable}_count`` says how many do.

    Parameters
    ----------
    observables : mapping of str to Observable
    statistics : sequence of Statistic
    lead : tuple of int
        (replicate,) or ().
    trajectories : int
    grid : sequence of int
        Steps that are saved.
    """

    def __init__(
        self,
        observables: Mapping[str, Observable],
        statistics: Sequence[Statistic],
        lead: tuple[int, ...],
        trajectories: int,
        grid: Sequence[int],
    ) -> None:
        super().__init__(lead, trajectories, len(grid))
        self._observables, self._statistics, self._lead, self._grid = observables, statistics, lead, grid
        self._kept: dict[str, dict[type[Accumulator], Accumulator]] = {}
        for name, observable in observables.items():
            cells = (len(grid), *lead, math.prod(observable.shape))
            found = [statistic.accumulator(cells, grid) for statistic in statistics if statistic.of(name)]
            # Of two moments, the last and full one serves both.
            found.sort(key=lambda each: isinstance(each, Moments) and each.full)
            self._kept[name] = {type(each): each for each in found}
        # Trajectories that have been added at each save; a block's part waits until all blocks before it are in.
        self._written = np.zeros(len(grid), np.int64)
        self._used = np.zeros((len(grid), *lead), np.int64)
        self._waiting: dict[int, dict[int, _Part]] = {}
        self._lock = threading.Lock()

    def state(self) -> dict[str, np.ndarray]:
        """Return what was added so far, for `restore`."""
        own: Arrays = {"trajectories_written": self._written, "trajectories_used": self._used}
        parts = [(name, found) for name, mine in self._kept.items() for found in mine.values()]
        own |= {f"{name}_{key}": array for name, found in parts for key, array in found.arrays.items()}
        return {"status": self.status, **{f"{OBSERVED}{name}": array for name, array in own.items()}}

    @property
    def nbytes(self) -> int:
        """Size of the arrays in the end, as far as it is known before."""
        parts = sum(found.nbytes for mine in self._kept.values() for found in mine.values())
        return self.status.nbytes + self._written.nbytes + self._used.nbytes + parts

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state; see `Recorder.restore`.

        Raises
        ------
        DataError
            If an array is missing or has another dtype or shape.
        """
        if "status" in state:
            self.status = checked_array("status", state, self.status.shape, self.status.dtype)
        arrays = {name.removeprefix(OBSERVED): array for name, array in state.items() if name.startswith(OBSERVED)}
        if not arrays:
            return
        self._written = checked_array("trajectories_written", arrays, self._written.shape, self._written.dtype)
        self._used = checked_array("trajectories_used", arrays, self._used.shape, self._used.dtype)
        for name, mine in self._kept.items():
            prefix = f"{name}_"
            own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            for found in mine.values():
                found.load(own)

    def write(self, path: Tensor, rows: slice, trajectory: int, save: int) -> None:
        """Add the values at states; see `Recorder.write`."""
        kept_path = path[..., rows, :]
        ok = self._mark(kept_path, trajectory)
        count = kept_path.shape[-2]
        arrays = {}
        for name, observable in self._observables.items():
            x, kept = _prepared(observable, path, rows, ok)
            arrays[name] = {kind: found.part(x, kept, save) for kind, found in self._kept[name].items()}
        everyone = np.full(self._used[: len(path)].shape, count)
        used = everyone if ok is None else ok.sum(-1).cpu().numpy()
        part = _Part(count, slice(save, save + len(path)), used, arrays)
        with self._lock:
            waiting = self._waiting.setdefault(save, {})
            waiting[trajectory] = part
            while (following := waiting.pop(int(self._written[save]), None)) is not None:
                self._add(following)

    def _add(self, part: _Part) -> None:
        self._written[part.saves] += part.trajectories
        self._used[part.saves] += part.used
        for name, mine in self._kept.items():
            for kind, found in mine.items():
                found.add(part.arrays[name][kind], part.saves)

    def variables(self) -> dict[str, Any]:
        """Return the statistics, as variables of a dataset of kind "statistics"."""
        found: dict[str, Any] = {"status": self.status, "trajectories_used": self._labelled(COUNT, self._used, None)}
        for statistic in self._statistics:
            for name, observable in self._observables.items():
                if not statistic.of(name):
                    continue
                for suffix, (dims, array) in statistic.results(self._kept[name][statistic.kind]).items():
                    variable = self._labelled(dims, array, observable)
                    of = {"observable": name, "statistic": suffix}
                    attributes = SUMMARIES[suffix].attributes_of(observable.attributes) | of
                    if suffix in LARGE:
                        variable.encoding = {"zlib": True}
                    found[f"{name}_{suffix}"] = variable.assign_attrs(attributes | statistic.attributes())
        return found

    def _labelled(self, dims: Sequence[str], array: np.ndarray, observable: Observable | None) -> xr.DataArray:
        """Return an array with the dims of an observable, replicates first."""
        names: list[str] = []
        shape: list[int] = []
        sizes = iter(array.shape)
        for dim in dims:
            if dim == "replicate" and not self._lead:
                continue
            size = next(sizes)
            if observable is not None and dim.endswith("..."):
                names += [dim.removesuffix("...") + own for own in observable.dims]
                shape += observable.shape
            else:
                # Bins and keys are those of the one observable.
                names.append(f"{observable.name}_{dim}" if observable and dim in ("bin", "key") else dim)
                shape.append(size)
        variable = xr.DataArray(array.reshape(shape), dims=names)
        return variable.transpose("replicate", ...) if self._lead else variable

    def coords(self) -> dict[str, Any]:
        """Return the labels of dims that only statistics have."""
        found: dict[str, Any] = {}
        for statistic in self._statistics:
            if isinstance(statistic, Quantiles):
                found["quantile"] = list(statistic.levels)
                for name, mine in self._kept.items():
                    counts, first = (mine[Sketch].arrays[key] for key in ("sketch", "sketch_first"))
                    found[f"{name}_key"] = np.arange(int(first), int(first) + counts.shape[-1])
            if isinstance(statistic, Histogram):
                # Trajectories that were ok at the first save that counts go with the counts wherever these go.
                dim, edges = f"{statistic.observable}_bin", [-np.inf, *statistic.edges, np.inf]
                found |= {f"{dim}_lower": (dim, edges[:-1]), f"{dim}_upper": (dim, edges[1:])}
                since = int(np.searchsorted(self._grid, statistic.since))
                used = self._used[since] if since < self.saves else np.zeros_like(self._used[0])
                found[f"{statistic.observable}_trajectories"] = (("replicate",) if self._lead else (), used)
            if isinstance(statistic, Covariance):
                labelled = [o for o in self._observables.values() if len(o.labels)]
                found |= {f"other_{o.dims[0]}": list(o.labels) for o in labelled}
        return found


def _prepared(observable: Observable, path: Tensor, rows: slice, ok: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return values of shape (step, [replicate,] coordinate, trajectory) in float64, and which trajectories count."""
    values = observable(path)
    values = values.flatten(path.ndim - 1) if observable.shape else values.unsqueeze(-1)
    # Trajectories on the last axis: sums over them, and all else, on contiguous memory.
    x = values.mT[..., rows].to(torch.float64).contiguous()
    if ok is None and bool(torch.isfinite(x.sum())):
        return x, None
    finite = torch.isfinite(x).all(-2)
    kept = finite if ok is None else finite & ok
    return torch.where(kept.unsqueeze(-2), x, 0.0), kept


@dataclass(frozen=True)
class _Part:
    """What one seed block adds at some saves."""

    trajectories: int
    saves: slice
    used: np.ndarray
    arrays: dict[str, dict[type[Accumulator], Arrays]]
