"""Plan of an ensemble: everything that is decided before the first step, and the walk of each seed block."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import config_attributes, make_dataset
from ..dynamics.base import Dynamics
from ..dynamics.schedule import Schedule
from ..dynamics.walk import Walk
from ..errors import InputError, check_count, check_finite, check_memory, message, out_of_memory
from ..pooling import derived
from ..problems.base import Problem
from ..schema import DIVERGENCE_THRESHOLD
from ..storage import Manifest
from ..symmetry import Symmetry, check_invariance
from .engine import Engine
from .observables import Function, Observable, choose_observables
from .record import Record, Recorder
from .sizes import Sizes, choose_sizes, parse_memory, result_bytes
from .statistics import Statistic, choose_statistics
from .statistics.summary import Summary
from .streams import block_seeds

# Work, in numbers written, above which compiling pays: about a minute without.
COMPILE_NUMBERS = 5e10
# A whole number in a list of Python's.
NUMBER_BYTES = 40
# Up to which the divisors of a number of steps are looked for, one by one.
DIVISORS = 10**6

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
    grid: range
    seed: int
    start: Callable[[int, int, torch.Generator], Tensor]
    sizes: Sizes
    compile: bool
    settings: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; compiled steps are of one process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def lead(self) -> tuple[int, ...]:
        """(replicate,) or ()."""
        return () if self.problem.replicates is None else (self.problem.replicates,)

    @property
    def blocks(self) -> int:
        """Number of seed blocks."""
        return math.ceil(self.trajectories / self.sizes.block)

    @property
    def instances(self) -> int:
        """Number of replicates, at least 1."""
        return math.prod(self.lead)

    def segments(self, since: int, until: int) -> list[tuple[int, range]]:
        """Return the pieces that a walk takes at once from save `since` to before `until`: first save, and steps."""
        starts = range(since, until - 1, self.sizes.saves)
        return [(at, self.grid[at : min(at + self.sizes.saves + 1, until)]) for at in starts]

    @cached_property
    def engine(self) -> Engine | None:
        """What takes chunks of steps, where they are compiled."""
        return Engine(self.dynamics) if self.compile and self.dynamics.stepwise else None

    @cached_property
    def _seeds(self) -> list[int]:
        return block_seeds(self.seed, self.blocks)

    def groups(self, blocks: Sequence[int]) -> list[tuple[int, ...]]:
        """Return which seed blocks are walked side by side.

        Groups are of one length, for which steps are compiled: the last one may repeat its last block.
        """
        most = 1 if self.engine is None else self.sizes.group
        # Compiled steps of few random numbers: a call costs about as much as the steps of one block.
        length = min(range(1, most + 1), key=lambda length: -(-len(blocks) // length) * (length + 1))
        return [
            tuple(blocks[min(at + place, len(blocks) - 1)] for place in range(length))
            for at in range(0, len(blocks), length)
        ]

    def walk(self, blocks: Sequence[int]) -> Walk:
        """Return the walk of seed blocks from their start, side by side; a block is always walked whole."""
        device, size = self.problem.device, self.sizes.block
        generators, starts = [], []
        for block in blocks:
            rng = torch.Generator(device) if self.engine is None else self.engine.generator(device)
            generators.append(rng.manual_seed(self._seeds[block]))
            starts.append(self.start(block * size, size, rng))
        theta = starts[0] if len(starts) == 1 else torch.cat(starts, -2)
        return Walk(self.dynamics, theta, generators, self.sizes.chunk, advance=self.engine)

    def apart(self, blocks: Sequence[int], path: Tensor) -> dict[int, Tensor]:
        """Return the states of each of the blocks that were walked side by side, in memory as if walked alone."""
        if len(blocks) == 1:
            return {blocks[0]: path}
        parts = path.unflatten(-2, (len(blocks), self.sizes.block)).unbind(-3)
        return {block: part.contiguous() for block, part in zip(blocks, parts, strict=True)}

    def record(self, trajectories: int, since: int, until: int) -> Recorder:
        """Return an empty record of that many trajectories, and of the saves from one to before another."""
        if self.statistics:
            return Summary(self.observables, self.statistics, self.lead, trajectories, self.grid[since:until])
        return Record(self.observables, self.lead, trajectories, until - since)

    def result_bytes(self, trajectories: int, saves: int) -> int:
        """Return the size of what is kept of that many trajectories and saves."""
        return _kept_bytes(self.problem, self.observables, self.statistics, trajectories, self.grid[:saves])

    def dataset(self, record: Recorder) -> xr.Dataset:
        """Label the record of the whole ensemble, and write down how it was made."""
        problem = self.problem
        machine: dict[str, str | int | float] = {"compile": int(self.compile)}
        if self.engine is not None:
            machine |= {"compile_seconds": self.engine.seconds, "compile_failure": self.engine.failure}
        machine["threads"] = torch.get_num_threads()
        data = {name: (dims, tensor.cpu().numpy()) for name, (dims, tensor) in problem.arrays().items()}
        dataset = self._label(record, 0, 0, machine, data)
        return derived(dataset) if self.statistics else dataset

    def part(self, record: Recorder, first: int, since: int, manifest: Manifest) -> xr.Dataset:
        """Label the record of trajectories from `first` and saves from `since` on, a part of a run directory.

        The problem's data, which the directory holds, are not repeated, nor is what follows from the rest, nor anything
        that differs between two processes that compute the same part.
        """
        of_run: dict[str, str | int | float] = {
            **manifest.provenance,
            "compile": int(self.compile),
            "identity": manifest.identity,
        }
        return self._label(record, first, since, of_run, {})

    def _label(
        self,
        record: Recorder,
        first: int,
        since: int,
        attributes: Mapping[str, str | int | float],
        data: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    ) -> xr.Dataset:
        problem, dynamics = self.problem, self.dynamics
        saves = slice(since, since + record.saves)
        coords = {**record.coords(), "step": self.grid[saves]}
        if not self.statistics:
            coords["trajectory"] = range(first, first + record.status.shape[-1])
        if problem.replicates is not None:
            coords["replicate"] = range(problem.replicates)
        rates: dict[str, Any] = dynamics.variables()
        for name, value in rates.items():
            if isinstance(value, Schedule):
                rates[name] = xr.DataArray([value(k) for k in self.grid[saves]], dims="step")
                coords["time"] = ("step", dynamics.times(value, self.grid)[saves])
        coords |= {o.dims[0]: list(o.labels) for o in self.observables.values() if len(o.labels)}
        described: dict[str, str | int | float] = {
            **dynamics.attributes(),
            **{key: self.settings[key] for key in ("seed", "block_size", "dtype", "device")},
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "divergence_threshold": DIVERGENCE_THRESHOLD,
            **config_attributes(self.config()),
            **attributes,
        }
        kind = "statistics" if self.statistics else "ensemble"
        return make_dataset(kind, {**record.variables(), **rates}, coords, described, data)

    def config(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        config = {"problem": self.problem.spec(), "dynamics": self.dynamics.spec(), "run": self.settings}
        return config if self.symmetry is None else {**config, "symmetry": self.symmetry.spec()}


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
    held: int | None = None,
) -> Plan:
    """Check the arguments of `simulate`, which describes them, and decide what they leave open.

    `held` is the number of bytes that results take in memory at most, where they are written to files as they come.
    """
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
        results = _kept_bytes(problem, observables, chosen, trajectories, grid)
        results = results if held is None else min(results, held)
        budget = _working_memory(budget, results) // workers(problem)
    with memory_errors():
        sizes = choose_sizes(dynamics, saves=len(grid) - 1, interval=grid[1], block=block_size, budget=budget)
    # No thread shall be idle.
    share = math.ceil(trajectories / sizes.block / workers(problem))
    sizes = dataclasses.replace(sizes, group=min(sizes.group, share))
    if compile is None:
        work = sizes.numbers * trajectories * steps * dynamics.substeps
        compile = problem.device.type == "cuda" or work > COMPILE_NUMBERS  # a CUDA graph costs no compiler
    settings: dict[str, Any] = {"trajectories": trajectories, "steps": steps, "save_every": grid[1], "seed": seed}
    settings |= {"block_size": sizes.block, "compile": compile, "save": [one.source for one in observables.values()]}
    if chosen:
        settings["statistics"] = [statistic.spec() for statistic in chosen]
    settings |= {"dtype": dtype_name(problem.dtype), "device": str(problem.device)}
    if initial is not None:
        # A run that goes on must go on with the same; the first trajectory tells.
        rng = torch.Generator(problem.device).manual_seed(block_seeds(seed, 1)[0])
        first = start(0, sizes.block, rng)[..., 0, :].cpu().numpy()
        settings["initial"] = f"given in the call ({hashlib.sha256(first.tobytes()).hexdigest()[:16]})"
    return Plan(
        problem, dynamics, symmetry, observables, chosen, trajectories, grid, seed, start, sizes, compile, settings
    )


def _kept_bytes(
    problem: Problem,
    observables: Mapping[str, Observable],
    statistics: tuple[Statistic, ...],
    trajectories: int,
    grid: range,
) -> int:
    """Return the size of what is kept of an ensemble; of sketches, a forecast."""
    if not statistics:
        return result_bytes(problem, observables, trajectories, len(grid))
    lead = () if problem.replicates is None else (problem.replicates,)
    return Summary(observables, statistics, lead, trajectories, grid).nbytes


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


def save_grid(steps: int, save_every: int | None = None) -> range:
    """Return the steps that are saved, from 0 to `steps`.

    Raises
    ------
    InputError
        If `save_every` does not divide `steps`: saves between updates do not exist.
    """
    if save_every is None:
        save_every = steps // 20 if steps % 20 == 0 else 1
    check_count("save_every", save_every)
    check_memory("save_every", NUMBER_BYTES * (steps // save_every), "save less often, or take fewer steps")
    if steps % save_every:
        small = [k for k in range(1, min(math.isqrt(steps), DIVISORS) + 1) if steps % k == 0]
        near = min(sorted([*small, *(steps // k for k in small)]), key=lambda k: abs(k - save_every))
        raise InputError(message("save_every", f"a divisor of steps = {steps}", save_every, f"use {near}"))
    return range(0, steps + 1, save_every)


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


def memory_errors() -> AbstractContextManager[None]:
    """Turn the ways in which memory runs out in a simulation into one error with a remedy."""
    remedy = "lower trajectories or block_size, save less often, or leave observables out of save"
    return out_of_memory("simulate", remedy)
