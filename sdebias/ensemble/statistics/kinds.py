"""The statistics that there are: what each keeps, and how it is named."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ...errors import (
    InputError,
    check_count,
    check_number,
    check_positive_number,
    message,
    nearest,
    shown,
)
from ...specs import from_named
from ..accumulators import Accumulator, Counts, Moments, Sketch
from ..observables import Observable, canonical

# Arrays by the suffix of their variable, with dims: `replicate` where there are several, `...` for the observable's.
Results = dict[str, tuple[tuple[str, ...], np.ndarray]]
COUNT = ("step", "replicate")
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
        """Return its variables, and in ``count`` how many values they are of; see `pooling.derived` for others."""

    def attributes(self) -> dict[str, Any]:
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
        """Return mean and unbiased variance, or where there are all products, covariance."""
        found = {"count": (COUNT, accumulator.arrays["count"]), "mean": (EACH, accumulator.mean())}
        if accumulator.full:
            return {**found, "covariance": ((*EACH, "other_..."), accumulator.spread())}
        return {**found, "variance": (EACH, accumulator.spread())}


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
        """Return the counts that quantiles come from."""
        counts = accumulator.arrays["sketch"]
        return {"count": (COUNT, counts.sum(-1)[..., 0]), "sketch": ((*EACH, "key"), counts)}

    def attributes(self) -> dict[str, Any]:
        """Return which quantiles are wanted, and how exact they are."""
        return {"levels": list(self.levels), "relative_accuracy": self.accuracy, "counts_as_zero": self.smallest}


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

    def attributes(self) -> dict[str, Any]:
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
    return from_named("statistic", STATISTICS, value if isinstance(value, Mapping) else {"statistic": value})


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
