"""How many trajectories form a seed block, how many steps a chunk, and what an ensemble needs of memory."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics.base import Dynamics
from ..dynamics.walk import Walk, longest_chunk, numbers_drawn
from ..errors import InputError, check_positive, message
from ..problems.base import Problem
from ..problems.cost import OperationCounter

# Numbers that the operations of one step shall write for one block: enough that launching them costs little, few enough
# that they stay in a cache, or on CUDA enough to fill the device.
STEP_NUMBERS = {"cpu": 3 * 2**18, "cuda": 2**26}
LARGEST_BLOCK = {"cpu": 2**11, "cuda": 2**16}
SMALLEST_BLOCK = 64

# Saves that a block is walked through at once, before they are recorded and a run may stop: as many as the second
# number where the steps between them, and their states, are so few numbers. Each time costs a millisecond.
SAVES_PER_SEGMENT = (8, 32)
SEGMENT_NUMBERS = 2**27
STATE_NUMBERS = 2**20

# Operations that one compiled chunk may hold: compilers take seconds for hundreds of them. More pay where a compiler
# fuses the steps with each other, else they only spare a call, of the cost of a few operations.
CHUNK_OPERATIONS = 250
ELEMENTWISE_CHUNK_OPERATIONS = 1000

# Random numbers of a compiled chunk up to which calls cost as much as the steps: blocks are walked side by side then.
GROUP_NUMBERS = 2**17
# Numbers in the widest registers, a few times: where blocks hold whole ones, steps of several round as those of one.
REGISTERS = 64

# What has been counted, by problem and dynamics.
_counted: weakref.WeakKeyDictionary[Problem, dict[Hashable, _Step]] = weakref.WeakKeyDictionary()

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the work on one seed block.

    Attributes
    ----------
    block : int
        Trajectories of each replicate.
    group : int
        Blocks that compiled steps may take side by side.
    saves : int
        Saves of each trajectory that are kept until they are recorded.
    chunk : int
        Solver steps in one call of the engine.
    numbers : int
        Numbers that the operations of one solver step write for one trajectory of all replicates.
    each : int
        Bytes that one trajectory of all replicates needs while it is stepped, an upper bound: the sum of what its
        operations write.
    """

    block: int
    group: int
    saves: int
    chunk: int
    numbers: int
    each: int

    @property
    def bytes(self) -> int:
        """Memory that a group needs while it is stepped, an upper bound."""
        return self.group * self.block * self.each


@dataclass(frozen=True)
class _Step:
    """What a solver step is.

    Attributes
    ----------
    numbers : int
        That it writes for one trajectory of all replicates.
    kept : int
        Of them, those that compiled steps may write, too: they turn random bits to increments where these are used.
    drawn : float
        Random numbers that it takes for one trajectory of all replicates.
    chunk : int
        Steps that one compiled chunk may hold.
    elementwise : bool
        Whether trajectories have nothing to do with each other, not even in the order of sums.
    """

    numbers: int
    kept: int
    drawn: float
    chunk: int
    elementwise: bool


def choose_sizes(
    dynamics: Dynamics, *, saves: int, interval: int, block: int | None = None, budget: int | None = None
) -> Sizes:
    """Return the sizes for given dynamics, from one step that is counted, not timed: the same on every run.

    Parameters
    ----------
    dynamics : Dynamics
        Bound.
    saves : int
        Of each trajectory, without the start.
    interval : int
        Updates between saves.
    block : int, optional
        Trajectories of a block where the caller sets it.
    budget : int, optional
        Bytes that a block may need; makes blocks smaller, never larger.

    Raises
    ------
    InputError
        If not even one trajectory fits into the budget.
    """
    problem = dynamics.bound_problem
    kind = problem.device.type
    known = _counted.setdefault(problem, {})
    key = (dataclasses.replace(dynamics, problem=None, symmetry=None), repr(dynamics.symmetry))
    if key not in known:
        known[key] = _count_step(dynamics)
    step = known[key]
    numbers = step.numbers
    if block is None:
        block = _power_of_two(STEP_NUMBERS[kind] // max(step.kept, 1))
        block = min(max(block, SMALLEST_BLOCK), LARGEST_BLOCK[kind])
    chunk = min(longest_chunk(step.drawn * block, kind), step.chunk)
    fewest, most = SAVES_PER_SEGMENT
    # From the fewest saves on, the same chunks, and thus the same paths, however many there are.
    chunk = _fit(chunk, interval * dynamics.substeps, min(saves, fewest))
    size = problem.layout.size * (problem.replicates or 1)
    most = min(
        most, SEGMENT_NUMBERS // max(numbers * block * interval * dynamics.substeps, 1), STATE_NUMBERS // (size * block)
    )
    saves = min(saves, max(most // fewest, 1) * fewest)
    item = torch.finfo(problem.dtype).bits // 8
    each = item * (numbers * (chunk + 1) + (saves + 1) * size)
    if budget is not None and block * each > budget:
        if each > budget:
            remedy = "state more, use fewer replicates, or save less often"
            raise InputError(message("memory", f"at least {each} bytes, for one trajectory", budget, remedy))
        block = _power_of_two(budget // each)
    group = 1
    if kind == "cpu" and step.elementwise and block % REGISTERS == 0:
        together = min(GROUP_NUMBERS / max(step.drawn * chunk, 1), STEP_NUMBERS[kind] / max(step.kept, 1))
        together = together if budget is None else min(together, budget / each)
        group = max(int(together / block), 1)
    return Sizes(block, group, saves, chunk, numbers, each)


def parse_memory(memory: int | str) -> int:
    """Return a number of bytes from it, or from text such as ``"500 MiB"``.

    Raises
    ------
    InputError
        If it is neither.
    """
    number: int | float | str = memory
    unit = "B"
    if isinstance(memory, str):
        text = memory.strip()
        unit = next((name for name in sorted(UNITS, key=len, reverse=True) if text.endswith(name)), "")
        try:
            number = float(text.removesuffix(unit))
        except ValueError:
            unit = ""
        if not unit:
            want = f"bytes, or a number with one of {', '.join(UNITS)}"
            raise InputError(message("memory", want, repr(memory), 'for instance memory = "2 GiB"'))
    value = check_positive("memory", number)
    assert not isinstance(value, Sequence | Tensor)
    return int(value * UNITS[unit])


def result_bytes(
    problem: Problem, observables: Mapping[str, Callable[[Tensor], Tensor]], trajectories: int, saves: int
) -> int:
    """Return the size in bytes of the arrays of an ensemble with these observables."""
    point = torch.zeros(problem.layout.size, dtype=problem.dtype, device=problem.device)
    lead = (1,) if problem.replicates is None else (problem.replicates, 1)
    probe = point.expand(*lead, point.numel())
    per_save = sum(function(probe).numel() for function in observables.values())
    return per_save * trajectories * saves * point.element_size()


def _count_step(dynamics: Dynamics, points: int = 2) -> _Step:
    """Count what a solver step does."""
    counter = _counted_step(dynamics, points)
    operations = max(-(-counter.operations // dynamics.substeps), 1)
    most = ELEMENTWISE_CHUNK_OPERATIONS if counter.elementwise else CHUNK_OPERATIONS
    compiled = dynamics.as_compiled()
    kept = counter.written if compiled is dynamics else _counted_step(compiled, points).written
    each = dynamics.substeps * points
    return _Step(
        numbers=-(-counter.written // each),
        kept=-(-kept // each),
        drawn=numbers_drawn(dynamics),
        chunk=max(most // operations, 1),
        elementwise=counter.elementwise,
    )


def _counted_step(dynamics: Dynamics, points: int) -> OperationCounter:
    problem = dynamics.bound_problem
    generator = torch.Generator(problem.device).manual_seed(0)
    walk = Walk(dynamics, problem.draw_initial(points, generator), [generator], dynamics.substeps)
    with OperationCounter() as counter:
        walk.run([0, 1])
    return counter


def _fit(longest: int, interval: int, saves: int) -> int:
    """Return a chunk length of at most `longest` that fits saves and segments, if there is one that is not short.

    Else that which leaves the fewest steps of a segment over: they are not compiled.
    """
    longest = min(longest, interval * saves)
    sizes = range(longest, longest // 2, -1)
    fitting = [
        size for size in sizes if interval % size == 0 or (size % interval == 0 and (interval * saves) % size == 0)
    ]
    return fitting[0] if fitting else min(sizes, key=lambda size: interval * saves % size)


def _power_of_two(count: int) -> int:
    """Return the largest power of two that is at most `count`, or 1."""
    return 1 << max(count.bit_length() - 1, 0)
