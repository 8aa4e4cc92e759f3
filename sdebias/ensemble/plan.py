"""Plan of an ensemble: everything that is decided before the first step, and the walk of each seed block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import DIVERGENCE_THRESHOLD, config_attributes, make_dataset
from ..dynamics.base import Dynamics
from ..dynamics.schedule import Schedule
from ..dynamics.walk import Walk
from ..errors import InputError, RunError, check_count, check_finite, message
from ..problems.base import Problem
from ..symmetry import Symmetry, check_invariance
from .engine import Engine
from .observables import Function, Observable, choose_observables
from .record import Record, Recorder
from .sizes import Sizes, choose_sizes, parse_memory, result_bytes
from .statistics import Statistic, Summary, choose_statistics
from .streams import block_seeds

SAVES_PER_SEGMENT = 8
# Work, in numbers written, above which compiling pays: about a minute without.
COMPILE_NUMBERS = 5e10

Initial = Tensor | Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Plan:
    """What `simulate` will do.

    Attributes
    ----------
    problem : Problem
    dynamics : Dynamics
        Bound.
    symmetry : Symmetry or None
        Bound.
    observables : mapping of str to Observable
    statistics : tuple of Statistic
        What is kept of them in place of the values of each trajectory; empty where those are kept.
    trajectories : int
        Of each replicate.
    grid : list of int
        Steps that are saved, from 0 on.
    seed : int
    start : callable
        (first trajectory, count, generator) → θ(0) of a block.
    sizes : Sizes
    compile : bool
    settings : dict
        Entries of the configuration's section ``run``.
    """

    problem: Problem
    dynamics: Dynamics
    symmetry: Symmetry | None
    observables: Mapping[str, Observable]
    statistics: tuple[Statistic, ...]
    trajectories: int
    grid: list[int]
    seed: int
    start: Callable[[int, int, torch.Generator], Tensor]
    sizes: Sizes
    compile: bool
    settings: dict[str, Any]

    @property
    def lead(self) -> tuple[int, ...]:
        """(replicate,) or ()."""
        return () if self.problem.replicates is None else (self.problem.replicates,)

    @property
    def blocks(self) -> int:
        """Number of seed blocks."""
        return math.ceil(self.trajectories / self.sizes.block)

    @cached_property
    def segments(self) -> list[tuple[int, list[int]]]:
        """Pieces of the save grid that a walk takes at once: number of the first save, steps of the saves."""
        starts = range(0, len(self.grid) - 1, SAVES_PER_SEGMENT)
        return [(at, self.grid[at : at + SAVES_PER_SEGMENT + 1]) for at in starts]

    @cached_property
    def engine(self) -> Engine | None:
        """What takes chunks of steps, where they are compiled."""
        return Engine(self.dynamics) if self.compile and self.dynamics.stepwise else None

    @cached_property
    def _seeds(self) -> list[int]:
        return block_seeds(self.seed, self.blocks)

    def walk(self, block: int) -> Walk:
        """Return the walk of a seed block from its start; a block is always walked whole."""
        rng = torch.Generator(self.problem.device).manual_seed(self._seeds[block])
        theta = self.start(block * self.sizes.block, self.sizes.block, rng)
        return Walk(self.dynamics, theta, rng, self.sizes.chunk, advance=self.engine)

    def kept(self, block: int) -> int:
        """Return the number of trajectories of a block that belong to the ensemble."""
        return min(self.sizes.block, self.trajectories - block * self.sizes.block)

    def record(self) -> Recorder:
        """Return an empty record of the whole ensemble."""
        if self.statistics:
            return Summary(self.observables, self.statistics, self.lead, self.trajectories, self.grid)
        return Record(self.observables, self.lead, self.trajectories, len(self.grid))

    def dataset(self, variables: Mapping[str, Any], coords: Mapping[str, Any]) -> xr.Dataset:
        """Label the variables of a record of the ensemble, and write down how they were made."""
        problem, dynamics, grid = self.problem, self.dynamics, self.grid
        coords = {**coords, "step": np.asarray(grid)}
        if not self.statistics:
            coords["trajectory"] = np.arange(self.trajectories)
        if problem.replicates is not None:
            coords["replicate"] = np.arange(problem.replicates)
        rates: dict[str, Any] = dynamics.variables()
        for name, value in rates.items():
            if isinstance(value, Schedule):
                rates[name] = xr.DataArray([value(k) for k in grid], dims="step")
                coords["time"] = ("step", dynamics.times(value, grid))
        coords |= {o.dims[0]: list(o.labels) for o in self.observables.values() if len(o.labels)}
        attributes: dict[str, str | int | float] = {
            **dynamics.attributes(),
            **{key: self.settings[key] for key in ("seed", "block_size", "dtype", "device")},
            **self._compiled(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "divergence_threshold": DIVERGENCE_THRESHOLD,
            **config_attributes(self.config()),
        }
        data = {name: (dims, tensor.cpu().numpy()) for name, (dims, tensor) in problem.arrays().items()}
        kind = "statistics" if self.statistics else "ensemble"
        return make_dataset(kind, {**variables, **rates}, coords, attributes, data)

    def config(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        config = {"problem": self.problem.spec(), "dynamics": self.dynamics.spec(), "run": self.settings}
        return config if self.symmetry is None else {**config, "symmetry": self.symmetry.spec()}

    def _compiled(self) -> dict[str, str | int | float]:
        compiled: dict[str, str | int | float] = {"compile": int(self.compile)}
        if self.engine is not None:
            compiled |= {"compile_seconds": self.engine.seconds, "compile_failure": self.engine.failure}
        return compiled


def make_plan(
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
) -> Plan:
    """Check the arguments of `simulate`, which describes them, and decide what they leave open."""
    check_count("trajectories", trajectories)
    check_count("steps", steps)
    if block_size is not None:
        check_count("block_size", block_size)
    check_count("seed", seed, minimum=0)
    grid = save_grid(steps, save_every)
    if symmetry is not None:
        check_invariance(problem, symmetry)
        # A trajectory that has diverged is data here, not an error.
        symmetry = symmetry.bind(problem, validate=False)
    dynamics = dynamics.bind(problem, symmetry)
    observables = choose_observables(problem, symmetry, save, theta=statistics is None)
    chosen = () if statistics is None else choose_statistics(statistics, observables, steps)
    start = _initial_law(problem, initial, trajectories)
    budget = None if memory is None else parse_memory(memory)
    if budget is not None:
        lead = () if problem.replicates is None else (problem.replicates,)
        summary = Summary(observables, chosen, lead, trajectories, grid) if chosen else None
        results = summary.nbytes if summary else result_bytes(problem, observables, trajectories, len(grid))
        budget = _working_memory(budget, results) // workers(problem)
    saves = min(SAVES_PER_SEGMENT, len(grid) - 1)
    with memory_errors():
        sizes = choose_sizes(dynamics, saves=saves, interval=grid[1], block=block_size, budget=budget)
    if compile is None:
        work = sizes.numbers * trajectories * steps * dynamics.substeps
        compile = problem.device.type == "cuda" or work > COMPILE_NUMBERS  # a CUDA graph costs no compiler
    settings: dict[str, Any] = {"trajectories": trajectories, "steps": steps, "save_every": grid[1], "seed": seed}
    settings |= {"block_size": sizes.block, "compile": compile, "save": list(observables)}
    if chosen:
        settings["statistics"] = [statistic.spec() for statistic in chosen]
    if not all(isinstance(entry, str) for entry in save or ()):
        settings["functions"] = "given in the call"
    settings |= {"dtype": dtype_name(problem.dtype), "device": str(problem.device)}
    if initial is not None:
        settings["initial"] = "given in the call"
    return Plan(
        problem, dynamics, symmetry, observables, chosen, trajectories, grid, seed, start, sizes, compile, settings
    )


def workers(problem: Problem) -> int:
    """Return how many blocks run side by side."""
    return torch.get_num_threads() if problem.device.type == "cpu" else 1


def _working_memory(budget: int, results: int) -> int:
    """Return what a budget of memory leaves beside the results.

    Raises
    ------
    InputError
        If it leaves nothing.
    """
    if results >= budget:
        want = f"more than {results} bytes, the size of the results"
        raise InputError(message("memory", want, budget, "state more, save less often, or leave theta out of save"))
    return budget - results


def save_grid(steps: int, save_every: int | None = None) -> list[int]:
    """Return the steps that are saved, from 0 to `steps`.

    Raises
    ------
    InputError
        If `save_every` does not divide `steps`: saves between updates do not exist.
    """
    if save_every is None:
        save_every = steps // 20 if steps % 20 == 0 else 1
    check_count("save_every", save_every)
    if steps % save_every:
        divisors = [k for k in range(1, steps + 1) if steps % k == 0]
        near = min(divisors, key=lambda k: abs(k - save_every))
        raise InputError(message("save_every", f"a divisor of steps = {steps}", save_every, f"use {near}"))
    return list(range(0, steps + 1, save_every))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as numpy has it."""
    return str(dtype).removeprefix("torch.")


def ensemble_bytes(
    problem: Problem,
    symmetry: Symmetry | None,
    *,
    trajectories: int,
    saves: int,
    save: Sequence[str | Function] | None = None,
) -> int:
    """Return the size in bytes of the arrays that `simulate` would return."""
    bound = symmetry.bind(problem, validate=False) if symmetry else None
    return result_bytes(problem, choose_observables(problem, bound, save), trajectories, saves)


def _initial_law(problem: Problem, initial: Initial | None, trajectories: int) -> Callable[..., Tensor]:
    """Return a function (first, count, rng) that gives θ(0) of a block."""
    lead = () if problem.replicates is None else (problem.replicates,)
    width = problem.layout.size
    if initial is None:
        return lambda first, count, rng: problem.draw_initial(count, rng)

    def check(theta: Any, count: int) -> Tensor:
        shape = (*lead, count, width)
        if not isinstance(theta, Tensor) or theta.shape != shape:
            got = f"shape {tuple(theta.shape)}" if isinstance(theta, Tensor) else type(theta).__name__
            remedy = "give one row for each trajectory, or a function (trajectories, generator)"
            raise InputError(message("initial", f"a tensor of shape {shape}", got, remedy))
        return check_finite("initial", theta, InputError).to(problem.device, problem.dtype)

    if callable(initial):
        return lambda first, count, rng: check(initial(count, rng), count)
    fixed = check(initial, trajectories)
    # The rows that fill up the last block are simulated and dropped; any point will do for them.
    return lambda first, count, rng: fixed[
        ..., torch.arange(first, first + count, device=fixed.device).clamp(max=trajectories - 1), :
    ]


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the ways in which memory runs out into one error with a remedy."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) and "memory" not in str(error):
            raise
        raise RunError(
            "simulate: not enough memory; lower trajectories or block_size, save less often, or leave observables out "
            "of save"
        ) from error
