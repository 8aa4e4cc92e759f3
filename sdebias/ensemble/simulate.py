"""Run an ensemble in seed blocks and return it as a dataset."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from tqdm import tqdm

from ..dynamics.base import Dynamics
from ..problems.base import Problem
from ..symmetry import Symmetry
from .observables import Function
from .plan import Initial, make_plan, memory_errors, workers
from .statistics import Statistic
from .threads import side_by_side


def simulate(
    problem: Problem,
    dynamics: Dynamics,
    *,
    symmetry: Symmetry | None = None,
    trajectories: int,
    steps: int,
    save_every: int | None = None,
    seed: int = 0,
    initial: Initial | None = None,
    save: Sequence[str | Function] | None = None,
    statistics: Sequence[Statistic | str | Mapping[str, Any]] | None = None,
    block_size: int | None = None,
    memory: int | str | None = None,
    compile: bool | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Simulate an ensemble.

    Trajectories run in seed blocks, each with its own RNG stream, side by side on as many threads as torch has. A block
    is always simulated whole: the first 1,000 trajectories of a run of 4,000 equal a run of 1,000 bit for bit on the
    same device with the same `block_size` and `compile`, whatever the number of threads.

    Parameters
    ----------
    problem : Problem
        Its data decide dtype and device.
    dynamics : SGD or SGDSDE
    symmetry : Symmetry, optional
        Checked against the losses; adds charges and orbit volume to the result.
    trajectories : int
        Of each replicate.
    steps : int
        Updates.
    save_every : int, optional
        Updates between saves; must divide `steps`. By default `steps`/20 where that is whole, else 1.
    seed : int
        At least 0.
    initial : Tensor or callable, optional
        θ(0) of shape ([replicate,] trajectory, parameter), or a function (trajectories, generator) that draws it for a
        block; by default the problem's initial law.
    save : sequence of str or callable, optional
        Observables to keep, of ``theta, loss, charge_value, log_orbit_volume, predictor_value``, or ``charge`` and
        ``predictor`` for short; by default all that there are. A function of θ, from (..., parameter) to
        (..., *trailing), is an observable that is called as it is.
    statistics : sequence of str or Statistic, optional
        What to keep of observables in place of the values of each trajectory: ``mean``, ``variance``, ``covariance``,
        ``quantiles``, or objects of `sdebias.statistics`. θ is then among the observables only where `save` names it.
    block_size : int, optional
        Trajectories of a seed block; by default from the size of one step, so that it stays in a cache. It decides the
        random streams, and is reported in the attributes.
    memory : int or str, optional
        Budget in bytes, or as ``"2 GiB"``, for the results and the blocks under way; makes blocks smaller where they
        would not fit.
    compile : bool, optional
        Compile the steps (`torch.compile`'s backend on the CPU, CUDA graphs on a GPU), which takes seconds once in a
        process; by default on a GPU, and where there is work for more than about a minute. Compiled steps may differ
        in the last bits. Where compiling fails, the reason is logged and steps are taken one by one.
    progress : bool, optional
        Show a progress bar on stderr; by default where that is a terminal.

    Returns
    -------
    xr.Dataset
        Kind "ensemble", see `sdebias.schema.SCHEMA`. A trajectory that turns non-finite or diverges keeps its rows and
        is flagged in ``status``. With `statistics`, kind "statistics": a trajectory counts until it is flagged.

    Raises
    ------
    InputError
        If an argument is out of range, the save grid does not fit, or the results do not fit into `memory`.
    SymmetryError
        If the losses do not have the symmetry.
    RunError
        If memory runs out.
    """
    plan = make_plan(
        problem,
        dynamics,
        symmetry=symmetry,
        trajectories=trajectories,
        steps=steps,
        save_every=save_every,
        seed=seed,
        initial=initial,
        save=save,
        statistics=statistics,
        block_size=block_size,
        memory=memory,
        compile=compile,
    )
    record = plan.record(trajectories, 0, len(plan.grid))
    stop = threading.Event()

    def walked(blocks: Sequence[int]) -> None:
        walk, size = plan.walk(blocks), plan.sizes.block
        for at, segment in plan.segments(0, len(plan.grid)):
            if stop.is_set():
                return
            fresh = 0 if at == 0 else 1  # the first state of a segment is the last of the one before
            for block, path in plan.apart(blocks, walk.run(segment)[fresh:]).items():
                kept = min(size, trajectories - block * size)
                record.write(path, slice(kept), block * size, at + fresh)
                bar.update(plan.instances * kept * (segment[-1] - segment[0]))
        if not bar.disable:  # counting takes as long as some steps
            bar.set_postfix(flagged=record.flagged)

    total = plan.instances * trajectories * steps
    with progress_bar(progress, total, type(dynamics).__name__) as bar, memory_errors():
        side_by_side(walked, plan.groups(range(plan.blocks)), workers(problem), stop)
    return plan.dataset(record)


def progress_bar(progress: bool | None, total: int, name: str) -> tqdm:
    """Return a bar over updates on stderr; None shows it where that is a terminal."""
    disable = None if progress is None else not progress
    return tqdm(total=total, unit=" updates", unit_scale=True, desc=name, disable=disable)
