"""What an ensemble keeps in place of its trajectories: sufficient statistics that blocks add to, in their order."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ...schema import statistic_attributes
from ..accumulators import Accumulator, Arrays, Moments, Sketch, checked_array
from ..observables import Observable
from ..record import Recorder
from .kinds import COUNT, Covariance, Histogram, Quantiles, Statistic


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

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what was added so far, by names of its own."""
        own: Arrays = {"trajectories_written": self._written, "trajectories_used": self._used}
        parts = [(name, found) for name, mine in self._kept.items() for found in mine.values()]
        return own | {f"{name}_{key}": array for name, found in parts for key, array in found.arrays.items()}

    @property
    def nbytes(self) -> int:
        """Size of the arrays in the end, as far as it is known before."""
        parts = sum(found.nbytes for mine in self._kept.values() for found in mine.values())
        return self.status.nbytes + self._written.nbytes + self._used.nbytes + parts

    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from such arrays; see `Recorder.restore`."""
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
        """Return the statistics, as variables of a dataset of kind "statistics"; see `pooling.derived` for others."""
        found: dict[str, Any] = {"status": self.status, "trajectories_used": self._labelled(COUNT, self._used, None)}
        for statistic in self._statistics:
            for name, observable in self._observables.items():
                if not statistic.of(name):
                    continue
                given = observable.attributes
                told = {"observable_long_name": given["long_name"], "observable_units": given.get("units", "1")}
                for suffix, (dims, array) in statistic.results(self._kept[name][statistic.kind]).items():
                    variable = self._labelled(dims, array, observable)
                    attributes = statistic_attributes(suffix, name, *told.values())
                    more = told if suffix == "count" else statistic.attributes()
                    found[f"{name}_{suffix}"] = variable.assign_attrs(attributes | more)
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
