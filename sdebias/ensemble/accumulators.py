"""Sufficient statistics of an observable: moments, a sketch of quantiles, a histogram; in float64.

Everything is an array with a leading save axis where it is kept for each step, then replicates, then the coordinates
of the observable on one axis.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, message
from ..pooling import add_moments, variances, widen

Arrays = dict[str, np.ndarray]

# Trajectories are dealt to this many groups, whose counts are kept apart: the spread between independent groups says
# how much a histogram that is pooled over correlated steps is worth.
GROUPS = 64
# A sketch that was written by somebody else may be this wide; one of float64 at an accuracy of 0.1 % is narrower.
WIDEST_SKETCH = 2**20
# Distance from an edge, in bins, within which rounding may decide; far above what it does in float64.
CLOSE = 1e-6
# How far values of an observable are expected to spread, for forecasts of size.
DECADES = 8


class Accumulator(ABC):
    """Sufficient statistics that grow by parts: one part for each seed block and segment.

    Attributes
    ----------
    arrays : dict of str to array
        All of the state.
    """

    arrays: Arrays

    @property
    def nbytes(self) -> int:
        """Size in the end, as far as it is known before."""
        return sum(array.nbytes for array in self.arrays.values())

    @abstractmethod
    def part(self, x: Tensor, kept: Tensor | None, save: int) -> Arrays:
        """Return the statistics of a piece of the ensemble alone.

        Parameters
        ----------
        x : Tensor of float64, shape=(step, [replicate,] coordinate, trajectory)
            Values, 0 where they are not kept.
        kept : Tensor of bool, shape=(step, [replicate,] trajectory), optional
            Which trajectories count; None for all.
        save : int
            Index of the first step.
        """

    @abstractmethod
    def add(self, part: Arrays, save: slice) -> None:
        """Add a part that holds the steps of a slice."""

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the state by one that was stored.

        Raises
        ------
        DataError
            If an array is missing or has another dtype or shape.
        """
        for name, own in self.arrays.items():
            self.arrays[name] = checked_array(name, arrays, own.shape, own.dtype)


def checked_array(
    name: str, arrays: Mapping[str, np.ndarray], shape: tuple[int | None, ...], dtype: np.dtype
) -> np.ndarray:
    """Return a copy of a stored array of a shape, in which None stands for any length.

    Raises
    ------
    DataError
        If it is missing, or has another dtype or shape.
    """
    found = arrays.get(name)
    if found is None:
        raise DataError(message("statistics", f"an array {name!r}", "none", "the file is not of this run"))
    same = len(found.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
    if not same or found.dtype != dtype:
        want, got = f"{name!r} of {dtype} and shape {shape}", f"{found.dtype} and shape {found.shape}"
        raise DataError(message("statistics", want, got, "the file is not of this run"))
    return np.array(found)


class Moments(Accumulator):
    """Count, mean and centred second moments at each step.

    Parameters
    ----------
    cells : tuple of int
        (save, [replicate,] coordinate).
    full : bool
        Keep all products of two coordinates, not only squares.
    """

    def __init__(self, cells: tuple[int, ...], full: bool) -> None:
        self.full = full
        square = (*cells, cells[-1]) if full else cells
        self.arrays = {"count": np.zeros(cells[:-1], np.int64), "mean": np.zeros(cells), "moment": np.zeros(square)}

    def part(self, x: Tensor, kept: Tensor | None, save: int) -> Arrays:
        """Return count, mean and Σ (x − mean)(x − mean)ᵀ; see `Accumulator.part`."""
        lead = (*x.shape[:-2], x.shape[-1])
        count = torch.full(lead[:-1], lead[-1], device=x.device) if kept is None else kept.sum(-1)
        mean = x.sum(-1) / count.clamp_min(1).unsqueeze(-1)
        centred = x - mean.unsqueeze(-1)
        if kept is not None:
            centred *= kept.unsqueeze(-2)
        moment = centred @ centred.mT if self.full else centred.square().sum(-1)
        return {"count": count.cpu().numpy(), "mean": mean.cpu().numpy(), "moment": moment.cpu().numpy()}

    def add(self, part: Arrays, save: slice) -> None:
        """Add a part; see `add_moments`."""
        names = ("count", "mean", "moment")
        count, mean, moment = (self.arrays[name][save] for name in names)
        more = (part["count"], part["mean"], part["moment"])
        for name, array in zip(names, add_moments(count, mean, moment, more), strict=True):
            self.arrays[name][save] = array

    def mean(self) -> np.ndarray:
        """Return the means; NaN where there are no values."""
        return np.where(self.arrays["count"][..., None] > 0, self.arrays["mean"], np.nan)

    def spread(self) -> np.ndarray:
        """Return the unbiased variances, or covariances."""
        return variances(self.arrays["count"], self.arrays["moment"])


class Sketch(Accumulator):
    """Counts in logarithmic bins at each step, which give quantiles with a relative accuracy: see `sketch_quantiles`.

    The array covers the keys that occur, from ``sketch_first`` on.

    Parameters
    ----------
    cells : tuple of int
        (save, [replicate,] coordinate).
    accuracy : float
        α.
    smallest : float
        s.
    """

    def __init__(self, cells: tuple[int, ...], accuracy: float, smallest: float) -> None:
        self.accuracy, self.smallest = accuracy, smallest
        self.gamma = (1 + accuracy) / (1 - accuracy)
        self.arrays = {"sketch": np.zeros((*cells, 0), np.int64), "sketch_first": np.zeros((), np.int64)}

    @property
    def nbytes(self) -> int:
        """Size where values spread over eight decades."""
        keys = max(math.log(10.0**DECADES) / math.log(self.gamma), self.arrays["sketch"].shape[-1])
        return int(8 * math.prod(self.arrays["sketch"].shape[:-1]) * keys)

    def part(self, x: Tensor, kept: Tensor | None, save: int) -> Arrays:
        """Return the counts of a piece; see `Accumulator.part`."""
        keys = x.abs().mul_(1 / self.smallest).clamp_min_(1).log_().mul_(1 / math.log(self.gamma)).ceil_().copysign_(x)
        inside = keys if kept is None else keys[kept.unsqueeze(-2).expand_as(keys)]
        if not inside.numel():
            return {"sketch": np.zeros((*x.shape[:-1], 0), np.int64), "sketch_first": np.zeros((), np.int64)}
        low, high = (int(end) for end in inside.aminmax())
        counts = count_cells(keys, kept, high - low + 1, low)
        return {"sketch": counts.cpu().numpy(), "sketch_first": np.asarray(low)}

    def add(self, part: Arrays, save: slice) -> None:
        """Add a part; the array grows where it has new keys."""
        more, first = part["sketch"], int(part["sketch_first"])
        own, start = self.arrays["sketch"], int(self.arrays["sketch_first"])
        if not more.shape[-1]:
            return
        low, high = first, first + more.shape[-1] - 1
        if own.shape[-1]:
            low, high = min(low, start), max(high, start + own.shape[-1] - 1)
        if own.shape[-1] != high - low + 1:
            own = widen(own, start, low, high)
        own[save, ..., first - low : first - low + more.shape[-1]] += more
        self.arrays = {"sketch": own, "sketch_first": np.asarray(low)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the state; see `Accumulator.load`."""
        shape = (*self.arrays["sketch"].shape[:-1], None)
        counts = checked_array("sketch", arrays, shape, np.dtype(np.int64))
        first = checked_array("sketch_first", arrays, (), np.dtype(np.int64))
        if counts.shape[-1] > WIDEST_SKETCH or abs(int(first)) > WIDEST_SKETCH:
            got = f"{counts.shape[-1]} from {int(first)} on"
            raise DataError(message("statistics", f"at most {WIDEST_SKETCH} keys", got, "the file is not of this run"))
        self.arrays = {"sketch": counts, "sketch_first": first}


class Counts(Accumulator):
    """Counts in given bins, pooled over the saves from one on, for each of `GROUPS` groups of trajectories.

    The first and the last bin are what lies below and above the edges. Trajectory t of a block is in group t mod 64.

    Parameters
    ----------
    cells : tuple of int
        (save, [replicate,] coordinate).
    edges : array, shape=(edge,)
        Increasing; a bin holds its lower edge.
    since : int
        Index of the first save that counts.
    """

    def __init__(self, cells: tuple[int, ...], edges: np.ndarray, since: int) -> None:
        self.edges, self.since = edges, since
        self.arrays = {"histogram": np.zeros((*cells[1:-1], GROUPS, cells[-1], len(edges) + 1), np.int64)}

    def part(self, x: Tensor, kept: Tensor | None, save: int) -> Arrays:
        """Return the counts of a piece; see `Accumulator.part`."""
        skip = max(self.since - save, 0)
        # Steps are pooled: ([replicate,] coordinate, step, trajectory).
        x = x[skip:].movedim(0, -2)
        kept = None if kept is None else kept[skip:].movedim(0, -2)
        bins = len(self.edges) - 1
        lower, upper = self.edges[[0, -1]]
        exact = (x - lower).mul_(bins / (upper - lower))
        place = exact.floor().clamp_(-1, bins).add_(1)
        if bool((exact.sub_(exact.round()).abs_() < CLOSE).any()):
            # Rounding puts what is close to an edge on either side of it; the edges decide.
            edges = torch.as_tensor(np.r_[-np.inf, self.edges, np.inf], device=x.device)
            index = place.long()
            place += (x >= edges[index + 1]).to(x.dtype) - (x < edges[index]).to(x.dtype)
        place += (torch.arange(x.shape[-1], device=x.device) % GROUPS) * (bins + 2)
        kept = None if kept is None else kept.flatten(-2)
        counts = count_cells(place.flatten(-2), kept, GROUPS * (bins + 2))
        return {"histogram": counts.unflatten(-1, (GROUPS, -1)).transpose(-3, -2).cpu().numpy()}

    def add(self, part: Arrays, save: slice) -> None:
        """Add a part."""
        self.arrays["histogram"] += part["histogram"]


def count_cells(places: Tensor, kept: Tensor | None, width: int, first: int = 0) -> Tensor:
    """Return how often each of `width` places from `first` on occurs along the last axis.

    Parameters
    ----------
    places : Tensor of float64, shape=(..., coordinate, n)
        Whole numbers.
    kept : Tensor of bool, shape=(..., n), optional
        What counts.
    width, first : int

    Returns
    -------
    Tensor of int64, shape=(..., coordinate, width)
    """
    lead = places.shape[:-1]
    total = lead.numel() * width
    dtype = torch.int32 if total < 2**31 - 1 else torch.int64  # the narrower one is counted in half the time
    rows = torch.arange(lead.numel(), dtype=dtype, device=places.device) * width - first
    index = places.to(dtype).add_(rows.view(*lead, 1))
    if kept is not None:  # what does not count goes to one place beyond all others
        index = torch.where(kept.unsqueeze(-2), index, total)
    return torch.bincount(index.flatten(), minlength=total + 1)[:total].view(*lead, width)
