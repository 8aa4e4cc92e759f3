"""Functions of the stored states of an ensemble, block by block of trajectories: at once, or lazily where they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
import xarray as xr
from numpy.typing import DTypeLike

from ..errors import DataError, message
from ..problems.base import Problem
from ..schema import SCHEMA

StateFunction: TypeAlias = Callable[[np.ndarray, int], Sequence[np.ndarray]]
"""θ of a block of trajectories, ([replicate,] trajectory, step, parameter), and the place of its first trajectory in
the ensemble, to arrays of shape ([replicate,] trajectory, ...)."""


def check_states(ensemble: xr.Dataset, problem: Problem) -> None:
    """Raise DataError unless an ensemble holds states of the problem, at three or more steps."""
    if "theta" not in ensemble or ensemble.sizes["step"] < 3:
        remedy = 'simulate with "theta" in save and a finer save grid'
        got = f"variables {', '.join(map(str, ensemble.data_vars))} at {ensemble.sizes.get('step', 0)} steps"
        raise DataError(message("ensemble", "theta at three or more steps", got, remedy))
    labels = list(ensemble["parameter"].values)
    if labels != problem.layout.labels:
        got = f"{len(labels)} parameters from {labels[0]}" if labels else "no parameters"
        want = f"the {problem.layout.size} parameters of the problem, from {problem.layout.labels[0]}"
        raise DataError(message("ensemble", want, got, "pass the problem that was simulated"))
    if ensemble.sizes.get("replicate") != problem.replicates:
        got = f"{ensemble.sizes.get('replicate')} in the dataset and {problem.replicates} in the problem"
        raise DataError(message("replicates", "the same number", got, "pass the problem that was simulated"))


def map_states(
    function: StateFunction,
    ensemble: xr.Dataset,
    outputs: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    dtype: DTypeLike,
) -> dict[str, xr.Variable]:
    """Evaluate a function of the states of each trajectory.

    Where `theta` is in memory, the function is called once with all of it. Where it is lazy (a dask array), so is the
    result: the function is called once for each chunk of trajectories, when something is computed from it. Chunks run
    side by side on the threads of dask, each with one thread of torch.

    Parameters
    ----------
    function : callable
        See `StateFunction`; what it returns for a trajectory must not depend on the block that the trajectory is in.
    ensemble : xr.Dataset
        With `theta`.
    outputs : mapping of str to tuple of str
        Names of the returned arrays, two or more, and their dims after `trajectory`.
    sizes : mapping of str to int
        Of the dims that `theta` has not.
    dtype : dtype
        Of the returned arrays.

    Returns
    -------
    dict of str to xr.Variable, dims=([replicate,] trajectory, ...)
    """
    theta = ensemble["theta"].variable
    lead = [str(dim) for dim in theta.dims if dim == "replicate"]
    core = [*lead, "step", "parameter"]
    lazy = theta.chunks is not None
    if lazy:
        # A trajectory is evaluated as a whole, and all replicates of a problem together.
        theta = theta.chunk(dict.fromkeys(core, -1))
    found = xr.apply_ufunc(
        partial(_call, function, len(lead), lazy),
        theta,
        xr.Variable("trajectory", np.arange(theta.sizes["trajectory"])),
        input_core_dims=[core, []],
        output_core_dims=[[*lead, *dims] for dims in outputs.values()],
        dask="parallelized",
        output_dtypes=[dtype] * len(outputs),
        dask_gufunc_kwargs={"output_sizes": dict(sizes)},
    )
    return {name: array.transpose(*lead, "trajectory", ...) for name, array in zip(outputs, found, strict=True)}


def path_dims(name: str) -> tuple[str, ...]:
    """Return the dims that a variable of the schema has after `trajectory`."""
    return SCHEMA[name].dims[1:]


def _call(
    function: StateFunction, lead: int, lazy: bool, theta: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Call the function; xarray wants the axis that it splits, `trajectory`, in front of all others."""
    with _one_thread() if lazy else nullcontext():
        found = function(np.moveaxis(theta, 0, lead), int(places[0]))
    return tuple(np.moveaxis(array, lead, 0) for array in found)


_lock = threading.Lock()
_inside = 0
_threads = 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread for each caller; what was set before comes back when the last has left.

    The number of threads is one for the process and one more for each thread that has used torch.
    """
    global _inside, _threads
    with _lock:
        if _inside == 0:
            _threads = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            torch.set_num_threads(_threads)
