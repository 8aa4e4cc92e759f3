"""Walk: trajectories on their way, with random numbers drawn for many steps at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import Dynamics

Rate: TypeAlias = float | Tensor
Draws: TypeAlias = dict[str, Tensor]
# (θ, draws, rates, count, every) → states after the steps of a chunk: all, or only the last.
Advance: TypeAlias = Callable[[Tensor, Draws, Tensor | None, int, bool], list[Tensor]]

# Solver steps that one chunk holds where nothing else limits it: whole words of bits.
CHUNK = 64
# Numbers that the random draws of a chunk may fill: so many that calls cost little, and no more; on CUDA enough to fill
# the device.
CHUNK_NUMBERS = {"cpu": 2**19, "cuda": 2**26}


def numbers_drawn(dynamics: Dynamics) -> float:
    """Return how many random numbers a solver step of one trajectory (of each replicate) takes."""
    problem = dynamics.bound_problem
    lead = (1,) if problem.replicates is None else (problem.replicates, 1)
    generator = torch.Generator(problem.device).manual_seed(0)
    # Bits of one word serve up to 32 steps: what counts is what so many further steps take.
    longest = dynamics.window(1 + 32)
    few, many = (
        sum(value.numel() for value in dynamics.draw(count, lead, generator).values()) for count in (1, longest)
    )
    return (many - few) / (longest - 1) if longest > 1 else many


def longest_chunk(numbers: float, kind: str) -> int:
    """Return how many solver steps, each of so many random numbers, a chunk may hold on a kind of device."""
    return min(CHUNK, max(int(CHUNK_NUMBERS[kind] / max(numbers, 1)), 1))


def advance(
    dynamics: Dynamics, theta: Tensor, draws: Draws, rates: Tensor | None, count: int, every: bool, first: int = 0
) -> list[Tensor]:
    """Return θ after each solver step of a chunk, or after its last one.

    Parameters
    ----------
    dynamics : Dynamics
        Bound.
    theta : Tensor, shape=([replicate,] trajectory, parameter)
    draws : dict of str to Tensor
        See `Dynamics.draw`.
    rates : Tensor, shape=(step,), optional
        η at each step, where it is not constant.
    count : int
        Number of steps.
    every : bool
    first : int
        Place of the first step among the draws.

    Returns
    -------
    list of Tensor, shape=([replicate,] trajectory, parameter)
        One for each step, or one.
    """
    states = []
    for step in range(count):
        theta = dynamics.advance(theta, draws, first + step, dynamics.rate(0) if rates is None else rates[step])
        states.append(theta)
    return states if every else states[-1:]


class Walk:
    """Trajectories of seed blocks from a start, side by side, advanced segment by segment.

    Random numbers are drawn for windows of a fixed number of solver steps, counted from the start, or for several
    windows at once: with the same chunk a path is the same whatever is saved of it.

    Parameters
    ----------
    dynamics : Dynamics
        Bound.
    theta : Tensor, shape=([replicate,] trajectory, parameter)
        Block after block, all of the same size.
    generators : sequence of torch.Generator
        Stream of all random draws of each block, on the device of `theta`.
    chunk : int
        Solver steps that `advance` takes in one call.
    start : int
        Update at which the walk begins.
    advance : callable, optional
        What takes a chunk of steps: `advance`, or a faster function of the same result.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        generators: Sequence[torch.Generator],
        chunk: int,
        start: int = 0,
        advance: Advance | None = None,
    ) -> None:
        self.dynamics = dynamics
        self.theta = dynamics.arrange(theta)
        self.generators = generators
        self._advance = advance
        self._window = dynamics.window(chunk)
        # A window that is longer than a chunk is a whole number of chunks.
        self._chunk = next(size for size in range(min(chunk, self._window), 0, -1) if self._window % size == 0)
        # ([replicate,] trajectory) of one block.
        self._lead = (*theta.shape[:-2], theta.shape[-2] // len(generators))
        self._ahead = dynamics.windows_ahead(self._window, self._lead)
        self._start, self._at = start, 0
        self._draws: list[Draws] = []  # of each window
        self._before_draws = self._rng()

    def state(self) -> dict[str, Tensor]:
        """Return where the walk stands, for `restore`, with an axis of the blocks in front.

        It is θ, the states of the RNGs, the solver steps taken, and the windows whose random numbers are drawn at once.
        """
        blocks = len(self.generators)
        whole = self._at % (self._window * self._ahead) == 0
        return {
            "theta": self.theta.unflatten(-2, (blocks, -1)).movedim(-3, 0),
            "rng": torch.stack(self._rng() if whole else self._before_draws),
            "at": torch.full((blocks,), self._at),
            "ahead": torch.full((blocks,), self._ahead),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where other walks of the same blocks stood; what follows is the same bit for bit."""
        theta = state["theta"].to(self.theta.device)
        self.theta = self.dynamics.arrange(theta.movedim(0, -3).flatten(-3, -2))
        for generator, rng in zip(self.generators, state["rng"], strict=True):
            generator.set_state(rng.clone())  # torch 2.13 crashes on a part of a larger tensor
        self._at, self._ahead = int(state["at"][0]), int(state["ahead"][0])
        if self._at % (self._window * self._ahead):
            self._draw()

    @torch.no_grad()
    def run(self, steps: Sequence[int]) -> Tensor:
        """Advance, and return θ at each of the increasing `steps`, the first of which is where the walk stands.

        Returns
        -------
        Tensor, shape=(len(steps), [replicate,] trajectory, parameter)
        """
        # Rounding depends on the order in memory: it must be the same where another process went on from here.
        self.theta = self.dynamics.arrange(self.theta)
        path = self.dynamics.solve(self.theta, steps, self.generators[0])
        if path is not None:
            self.theta = path[-1]
            return path
        wanted = [(step - self._start) * self.dynamics.substeps for step in steps]
        saved = [self.theta]
        while self._at < wanted[-1]:
            end = min(self._at - self._at % self._chunk + self._chunk, wanted[-1])
            inside = [step for step in wanted[len(saved) :] if step < end]
            states = self._take(end - self._at, every=bool(inside))
            saved += [states[step - self._at - 1] for step in inside]
            self.theta, self._at = states[-1], end
            if end == wanted[len(saved)]:
                saved.append(self.theta)
        return torch.stack(saved)

    def _take(self, count: int, every: bool) -> list[Tensor]:
        """Take `count` solver steps, within one chunk."""
        window, place = divmod(self._at, self._window)
        if window % self._ahead == place == 0:
            self._draw()
        draws = self._draws[window % self._ahead]
        rates = self.dynamics.rates(self._start, self._at, count)
        # A piece of a chunk occurs where the walk is stopped on its way: it is not worth another compiled function.
        if self._advance is None or count < self._chunk:
            return advance(self.dynamics, self.theta, draws, rates, count, every, place)
        if self._chunk < self._window:
            draws = self.dynamics.piece(draws, place, count)
        return self._advance(self.theta, draws, rates, count, every)

    def _draw(self) -> None:
        """Draw the random numbers of a window, or of several."""
        self._before_draws = self._rng()
        self._draws = []  # frees memory, which is still in a cache, for what is drawn now
        lead = self._lead if self._ahead == 1 else (self._ahead, *self._lead)
        blocks = [self.dynamics.draw(self._window, lead, generator) for generator in self.generators]
        drawn = {name: _joined([draws[name] for draws in blocks], len(lead)) for name in blocks[0]}
        if self._ahead == 1:
            self._draws = [drawn]
            return
        apart = [value.unbind(1) for value in drawn.values()]
        self._draws = [dict(zip(drawn, window, strict=True)) for window in zip(*apart, strict=True)]

    def _rng(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]


def _joined(blocks: Sequence[Tensor], axis: int) -> Tensor:
    """Return the draws of blocks joined along the axis of their trajectories, stored in the order of one block."""
    if len(blocks) == 1:
        return blocks[0]
    if blocks[0].is_contiguous():
        return torch.cat(tuple(blocks), axis)
    return torch.cat([block.transpose(axis, -1) for block in blocks], -1).transpose(axis, -1)
