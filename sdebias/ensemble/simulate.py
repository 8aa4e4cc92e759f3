"""Run an ensemble in seed blocks and return it as a dataset."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ..dataset import DIVERGENCE_THRESHOLD, config_attributes, make_dataset
from ..dynamics.base import Dynamics
from ..dynamics.schedule import Schedule
from ..dynamics.walk import Walk
from ..errors import InputError, RunError, check_choice, check_count, check_finite, message
from ..problems.base import Problem
from ..symmetry import Symmetry, check_invariance
from .engine import Engine
from .record import Record
from .sizes import choose_sizes, parse_memory, result_bytes
from .streams import block_generators

SAVES_PER_SEGMENT = 8
# Work, in numbers written, above which compiling pays: about a minute without.
COMPILE_NUMBERS = 5e10
OBSERVABLES = ("theta", "loss", "charge_value", "log_orbit_volume", "predictor_value")

Initial = Tensor | Callable[[int, torch.Generator], Tensor]


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
    save: Sequence[str] = OBSERVABLES,
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
    save : sequence of str
        Observables to keep, of ``theta, loss, charge_value, log_orbit_volume, predictor_value``.
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
        Kind "ensemble", see `sdebias.dataset.SCHEMA`. A trajectory that turns non-finite or diverges keeps its rows and
        is flagged in ``status``.

    Raises
    ------
    InputError
        If an argument is out of range, the save grid does not fit, or the results do not fit into `memory`.
    SymmetryError
        If the losses do not have the symmetry.
    RunError
        If memory runs out.
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
    observables = _observables(problem, symmetry, save)
    start = _initial_law(problem, initial, trajectories)
    budget = None if memory is None else parse_memory(memory)
    workers = torch.get_num_threads() if problem.device.type == "cpu" else 1
    if budget is not None:
        budget = _working_memory(budget, result_bytes(problem, observables, trajectories, len(grid))) // workers
    saves = min(SAVES_PER_SEGMENT, len(grid) - 1)
    with _memory_errors():
        sizes = choose_sizes(dynamics, saves=saves, interval=grid[1], block=block_size, budget=budget)
    if compile is None:
        work = sizes.numbers * trajectories * steps * dynamics.substeps
        compile = problem.device.type == "cuda" or work > COMPILE_NUMBERS  # a CUDA graph costs no compiler
    engine = Engine(dynamics) if compile and dynamics.stepwise else None

    lead = () if problem.replicates is None else (problem.replicates,)
    record = Record(observables, lead, trajectories, len(grid))
    instances = math.prod(lead)
    generators = block_generators(seed, math.ceil(trajectories / sizes.block), problem.device)
    stop = threading.Event()

    def block(first: int, rng: torch.Generator) -> None:
        kept = min(sizes.block, trajectories - first)
        walk = Walk(dynamics, start(first, sizes.block, rng), rng, sizes.chunk, advance=engine)
        for at in range(0, len(grid) - 1, SAVES_PER_SEGMENT):
            if stop.is_set():
                return
            segment = grid[at : at + SAVES_PER_SEGMENT + 1]
            record.write(walk.run(segment)[..., :kept, :], first, at)
            bar.update(instances * kept * (segment[-1] - segment[0]))
        bar.set_postfix(flagged=record.flagged)

    with _progress(progress, instances * trajectories * steps, type(dynamics).__name__) as bar, _memory_errors():
        _run_blocks(block, list(zip(range(0, trajectories, sizes.block), generators, strict=True)), workers, stop)

    run: dict[str, Any] = {"trajectories": trajectories, "steps": steps, "save_every": grid[1], "seed": seed}
    run |= {"block_size": sizes.block, "compile": compile, "save": list(observables)}
    run |= {"dtype": dtype_name(problem.dtype), "device": str(problem.device)}
    if initial is not None:
        run["initial"] = "given in the call"
    compiled: dict[str, str | int | float] = {"compile": int(compile)}
    if engine is not None:
        compiled |= {"compile_seconds": engine.seconds, "compile_failure": engine.failure}
    return _dataset(problem, dynamics, symmetry, grid, {**record.arrays, "status": record.status}, run, compiled)


def _run_blocks(
    block: Callable[[int, torch.Generator], None],
    blocks: list[tuple[int, torch.Generator]],
    workers: int,
    stop: threading.Event,
) -> None:
    """Run blocks side by side, each on one thread, so that their numbers do not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if min(workers, len(blocks)) == 1:
            for first, rng in blocks:
                block(first, rng)
            return
        with ThreadPoolExecutor(min(workers, len(blocks))) as pool:
            try:
                for done in as_completed([pool.submit(block, first, rng) for first, rng in blocks]):
                    done.result()
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(threads)


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


def _dataset(
    problem: Problem,
    dynamics: Dynamics,
    symmetry: Symmetry | None,
    grid: list[int],
    arrays: dict[str, np.ndarray],
    run: dict[str, Any],
    compiled: dict[str, str | int | float],
) -> xr.Dataset:
    """Label the arrays of a run, and write down how they were made."""
    coords: dict[str, Any] = {"trajectory": np.arange(run["trajectories"]), "step": np.asarray(grid)}
    if problem.replicates is not None:
        coords["replicate"] = np.arange(problem.replicates)
    variables: dict[str, Any] = dynamics.variables()
    for name, value in variables.items():
        if isinstance(value, Schedule):
            variables[name] = xr.DataArray([value(k) for k in grid], dims="step")
            coords["time"] = ("step", dynamics.times(value, grid))
    labels = {
        "theta": ("parameter", problem.layout.labels),
        "predictor_value": ("predictor", problem.predictor_labels),
        "charge_value": ("charge", symmetry.charge_labels if symmetry else []),
    }
    coords |= {dim: names for name, (dim, names) in labels.items() if name in arrays}
    config = {"problem": problem.spec(), "dynamics": dynamics.spec(), "run": run}
    if symmetry is not None:
        config["symmetry"] = symmetry.spec()
    attributes: dict[str, str | int | float] = {
        **dynamics.attributes(),
        **{key: run[key] for key in ("seed", "block_size", "dtype", "device")},
        **compiled,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "divergence_threshold": DIVERGENCE_THRESHOLD,
        **config_attributes(config),
    }
    dataset = make_dataset("ensemble", {**arrays, **variables}, coords, attributes)
    return dataset.assign(
        {
            name: (dims, tensor.cpu().numpy(), {"long_name": f"problem data {name}", "units": "1"})
            for name, (dims, tensor) in problem.arrays().items()
        }
    )


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
    problem: Problem, symmetry: Symmetry | None, *, trajectories: int, saves: int, save: Sequence[str] = OBSERVABLES
) -> int:
    """Return the size in bytes of the arrays that `simulate` would return."""
    bound = symmetry.bind(problem, validate=False) if symmetry else None
    return result_bytes(problem, _observables(problem, bound, save), trajectories, saves)


def _observables(
    problem: Problem, symmetry: Symmetry | None, save: Sequence[str]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the function of θ behind each observable that is wanted and that the call can give."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "theta": lambda theta: theta,
        "loss": problem.loss,
        "predictor_value": problem.predictor,
    }
    if symmetry is not None:
        functions["log_orbit_volume"] = symmetry.log_orbit_volume
        if symmetry.charge_labels:
            functions["charge_value"] = symmetry.charge
    for name in save:
        check_choice("save", name, OBSERVABLES)
    return {name: functions[name] for name in save if name in functions}


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


def _progress(progress: bool | None, total: int, name: str) -> tqdm:
    disable = None if progress is None else not progress
    return tqdm(total=total, unit=" updates", unit_scale=True, desc=name, disable=disable)


@contextmanager
def _memory_errors() -> Iterator[None]:
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
