"""What an ensemble keeps of its trajectories: observables at the saved steps, and the worst status of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..schema import DIVERGENCE_THRESHOLD, OK, PATH, SCHEMA, STATUS
from .accumulators import checked_array
from .observables import Observable

# Prefix of the names of observables in a state, beside those of the walk.
OBSERVED = "observed."


class Recorder(ABC):
    """What takes the states of an ensemble, block by block and segment by segment, and keeps something of them.

    Parameters
    ----------
    lead : tuple of int
        (replicate,) or ().
    trajectories, saves : int

    Attributes
    ----------
    saves : int
    status : array of int8, shape=([replicate,] trajectory)
    """

    def __init__(self, lead: tuple[int, ...], trajectories: int, saves: int) -> None:
        self.saves = saves
        self.status = np.zeros((*lead, trajectories), np.int8)

    @property
    def flagged(self) -> int:
        """Number of trajectories whose status is not ok so far."""
        return int(np.count_nonzero(self.status != OK))  # after every block of many: a sum takes ten times as long

    @abstractmethod
    def write(self, path: Tensor, rows: slice, trajectory: int, save: int) -> None:
        """Take some rows of the states of a block.

        The segments of a block come in the order of their steps, blocks in any order, from several threads.
        Observables are evaluated for the whole block: their rounding depends on the shape, and shall not depend on
        which rows are kept.

        Parameters
        ----------
        path : Tensor, shape=(step, [replicate,] trajectory, parameter)
            States of a whole block.
        rows : slice
            Of its trajectories, what is kept.
        trajectory, save : int
            Place of the first of them.
        """

    @abstractmethod
    def variables(self) -> dict[str, Any]:
        """Return what was kept, as variables of a dataset."""

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what was kept so far, by names of its own."""

    @abstractmethod
    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `_arrays` returned.

        Raises
        ------
        DataError
            If an array is missing or has another dtype or shape.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Return statuses and what was kept so far, for `restore`."""
        own = self._arrays()
        return {"status": self.status, **{f"{OBSERVED}{name}": array for name, array in own.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from the state of another record of the same sizes, or only from its status.

        Raises
        ------
        DataError
            If an array is missing or has another dtype or shape.
        """
        if "status" in state:
            self.status = checked_array("status", state, self.status.shape, self.status.dtype)
        arrays = {name.removeprefix(OBSERVED): array for name, array in state.items() if name.startswith(OBSERVED)}
        if arrays:
            self._load(arrays)

    def coords(self) -> dict[str, Any]:
        """Return labels of dims that no other record has."""
        return {}

    def _mark(self, path: Tensor, trajectory: int) -> Tensor | None:
        """Flag states, keep the worst flag of each trajectory, and return which states come before any.

        Returns
        -------
        Tensor of bool, shape=(step, [replicate,] trajectory), or None
            None where no trajectory is flagged.
        """
        status = self.status[..., trajectory : trajectory + path.shape[-2]]
        # Almost always nothing is wrong, which one number tells; NaN compares as False.
        if float(path.abs().amax()) <= DIVERGENCE_THRESHOLD and not status.any():
            return None
        before = torch.from_numpy(status).to(path.device)
        size = path.abs().amax(-1)  # NaN propagates
        flags = torch.where(size > DIVERGENCE_THRESHOLD, STATUS["diverged"], OK)
        flags = torch.where(torch.isfinite(size), flags, STATUS["non_finite"]).to(torch.int8)
        worst = torch.maximum(flags.cummax(0).values, before)
        status[...] = worst[-1].cpu().numpy()
        return worst == OK


class Record(Recorder):
    """Values of every trajectory, in arrays on the host.

    Parameters
    ----------
    observables : mapping of str to Observable
    lead : tuple of int
        (replicate,) or ().
    trajectories, saves : int

    Attributes
    ----------
    arrays : dict of str to array, shape=([replicate,] trajectory, step, *trailing)
    """

    def __init__(
        self,
        observables: Mapping[str, Observable],
        lead: tuple[int, ...],
        trajectories: int,
        saves: int,
    ) -> None:
        super().__init__(lead, trajectories, saves)
        self._observables = observables
        self._lead = lead
        self.arrays: dict[str, np.ndarray] = {}

    def write(self, path: Tensor, rows: slice, trajectory: int, save: int) -> None:
        """Write the values at states; see `Recorder.write`."""
        self._mark(path[..., rows, :], trajectory)
        axis = len(self._lead)
        for name, function in self._observables.items():
            values = np.moveaxis(function(path).cpu().numpy(), 0, axis + 1)
            values = values[(slice(None),) * axis + (rows,)]
            columns = slice(trajectory, trajectory + values.shape[axis])
            shape = (self.status.shape[-1], self.saves, *values.shape[axis + 2 :])
            # Of two threads that come first, one makes the array of both.
            array = self.arrays.get(name)
            if array is None:
                array = self.arrays.setdefault(name, np.zeros((*self._lead, *shape), values.dtype))
            array.reshape(-1, *shape)[:, columns, save : save + len(path)] = values

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what was written so far."""
        return self.arrays

    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from such arrays; see `Recorder.restore`."""
        for name, observable in self._observables.items():
            shape = (*self.status.shape, self.saves, *observable.shape)
            dtype = arrays[name].dtype if name in arrays else np.dtype(float)
            self.arrays[name] = checked_array(name, arrays, shape, dtype)

    def variables(self) -> dict[str, Any]:
        """Return all values and statuses."""
        found: dict[str, Any] = {**self.arrays, "status": self.status}
        lead = ("replicate",) if self._lead else ()
        for name in self.arrays.keys() - SCHEMA.keys():
            observable = self._observables[name]
            dims = (*lead, *PATH, *observable.dims)
            found[name] = xr.DataArray(self.arrays[name], dims=dims, attrs=observable.attributes)
        return found
