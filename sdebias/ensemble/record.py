"""What an ensemble keeps of its trajectories: observables at the saved steps, and the worst status of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..dataset import DIVERGENCE_THRESHOLD, STATUS

# Prefix of the names of observables in a state, beside those of the walk.
OBSERVED = "observed."


class Record:
    """Arrays on the host, filled block by block and segment by segment.

    Parameters
    ----------
    observables : mapping of str to callable
        Functions of θ, from (..., parameter) to (..., *trailing).
    lead : tuple of int
        (replicate,) or ().
    trajectories, saves : int

    Attributes
    ----------
    saves : int
    arrays : dict of str to array, shape=([replicate,] trajectory, step, *trailing)
    status : array of int8, shape=([replicate,] trajectory)
    """

    def __init__(
        self,
        observables: Mapping[str, Callable[[Tensor], Tensor]],
        lead: tuple[int, ...],
        trajectories: int,
        saves: int,
    ) -> None:
        self._observables = observables
        self._lead = lead
        self.saves = saves
        self.status = np.zeros((*lead, trajectories), np.int8)
        self.arrays: dict[str, np.ndarray] = {}

    @property
    def flagged(self) -> int:
        """Number of trajectories whose status is not ok so far."""
        return int((self.status != STATUS["ok"]).sum())

    def write(self, path: Tensor, trajectory: int, save: int) -> None:
        """Write states of shape (step, [replicate,] trajectory, parameter), from a trajectory and a save on."""
        columns = slice(trajectory, trajectory + path.shape[-2])
        np.maximum(self.status[..., columns], _status(path), out=self.status[..., columns])
        for name, function in self._observables.items():
            values = np.moveaxis(function(path).cpu().numpy(), 0, len(self._lead) + 1)
            shape = (self.status.shape[-1], self.saves, *values.shape[len(self._lead) + 2 :])
            if name not in self.arrays:
                self.arrays[name] = np.empty((*self._lead, *shape), values.dtype)
            self.arrays[name].reshape(-1, *shape)[:, columns, save : save + len(path)] = values

    def state(self) -> dict[str, np.ndarray]:
        """Return what was written so far, for `restore`."""
        return {"status": self.status, **{f"{OBSERVED}{name}": array for name, array in self.arrays.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from the state of another record of the same sizes, or only from its status."""
        if "status" in state:
            self.status = state["status"].copy()
        self.arrays = {name.removeprefix(OBSERVED): array for name, array in state.items() if name.startswith(OBSERVED)}


def _status(path: Tensor) -> np.ndarray:
    """Return the worst flag of each trajectory over states of shape (step, ..., trajectory, parameter)."""
    size = path.abs().amax(dim=(0, -1))  # NaN propagates
    flags = torch.where(size > DIVERGENCE_THRESHOLD, STATUS["diverged"], STATUS["ok"])
    return torch.where(torch.isfinite(size), flags, STATUS["non_finite"]).to(torch.int8).cpu().numpy()
