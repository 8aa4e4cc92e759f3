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


def longest_chunk(dynamics: Dynamics, trajectories: int) -> int:
    """Return how many solver steps of trajectories (of each replicate) a chunk may hold."""
    problem = dynamics.bound_problem
    lead = (1,) if problem.replicates is None else (problem.replicates, 1)
    generator = torch.Generator(problem.device).manual_seed(0)
    # Bits of one word serve up to 32 steps: what counts is what so many further steps take.
    longest = dynamics.window(1 + 32)
    few, many = (
        sum(value.numel() for value in dynamics.draw(count, lead, generator).values()) for count in (1, longest)
    )
    each = (many - few) / (longest - 1) if longest > 1 else many
    return min(CHUNK, max(int(CHUNK_NUMBERS[problem.device.type] / max(each * trajectories, 1)), 1))


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
    """Trajectories of one seed block from a start, advanced segment by segment.

    Random numbers are drawn for windows of a fixed number of solver steps, counted from the start, or for several
    windows at once: with the same chunk a path is the same whatever is saved of it.

    Parameters
    ----------
    dynamics : Dynamics
        Bound.
    theta : Tensor, shape=([replicate,] trajectory, parameter)
    generator : torch.Generator
        Stream of all random draws, on the device of `theta`.
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
        generator: torch.Generator,
        chunk: int,
        start: int = 0,
        advance: Advance | None = None,
    ) -> None:
        self.dynamics = dynamics
        self.theta = dynamics.arrange(theta)
        self.generator = generator
        self._advance = advance
        self._window = dynamics.window(chunk)
        # A window that is longer than a chunk is a whole number of chunks.
        self._chunk = next(size for size in range(min(chunk, self._window), 0, -1) if self._window % size == 0)
        self._ahead = dynamics.windows_ahead(self._window, tuple(theta.shape[:-1]))
        self._start, self._at = start, 0
        self._draws: list[Draws] = []  # of each window
        self._before_draws = generator.get_state()

    def state(self) -> dict[str, Tensor]:
        """Return where the walk stands, for `restore`: θ, the state of the RNG, and the solver steps taken."""
        whole = self._at % (self._window * self._ahead) == 0
        rng = self.generator.get_state() if whole else self._before_draws
        return {"theta": self.theta, "rng": rng, "at": torch.tensor(self._at)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where another walk of the same block stood; what follows is the same bit for bit."""
        self.theta = self.dynamics.arrange(state["theta"].to(self.theta.device))
        self.generator.set_state(state["rng"])
        self._at = int(state["at"])
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
        path = self.dynamics.solve(self.theta, steps, self.generator)
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
        self._before_draws = self.generator.get_state()
        lead = tuple(self.theta.shape[:-1])
        if self._ahead == 1:
            self._draws = [self.dynamics.draw(self._window, lead, self.generator)]
            return
        drawn = self.dynamics.draw(self._window, (self._ahead, *lead), self.generator)
        apart = [value.unbind(1) for value in drawn.values()]
        self._draws = [dict(zip(drawn, window, strict=True)) for window in zip(*apart, strict=True)]
