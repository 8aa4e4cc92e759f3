"""What SGD and its SDE have in common: parameters, binding to a problem, and the call that integrates."""

from __future__ import annotations

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, check_count, check_positive, check_positive_number, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_symmetry
from . import schedule
from .schedule import Schedule
from .walk import Draws, Rate, Walk, longest_chunk, numbers_drawn

# Points of so few parameters are stored one parameter after the other: a SIMD instruction then works on the same
# parameter of neighbouring trajectories.
FEW_PARAMETERS = 8

BOUND = ("problem", "symmetry")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamics(ABC):
    """Dynamics of θ in iteration time: one unit of time is one update.

    Beside the loss, θ follows the gradient of V = (γ/2)‖θ‖² + (κ/2)‖C − level‖²: weight decay and soft gauge fixing
    (`Symmetry.gauge_potential`), which act in the drift and leave the loss, and with it the symmetry, as they are
    (`problems.WeightDecay` changes the loss instead).

    Parameters
    ----------
    learning_rate : float, sequence of float, Schedule or mapping
        η > 0; a sequence gives each replicate of the problem its own, a schedule, or its plain data, each update.
    batch_size : int
        B >= 1, samples per update.
    weight_decay : float, optional
        γ > 0. Alone it makes charges decay by the factor (1 − ηγ)² an update, at the rate 2ηγ in the SDE.
    gauge_stiffness : float, optional
        κ > 0; needs a symmetry with charges.
    problem, symmetry : optional
        Set by `bind`.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    learning_rate: float | Sequence[float] | Schedule | Mapping[str, Any]
    batch_size: int = 1
    weight_decay: float | None = None
    gauge_stiffness: float | None = None
    problem: Problem | None = dataclasses.field(default=None, repr=False, compare=False)
    symmetry: Symmetry | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def per_replicate(self) -> tuple[str, ...]:
        """Parameters that may differ by replicate."""
        return () if isinstance(self.learning_rate, Schedule) else ("learning_rate",)

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.learning_rate, Mapping):
            object.__setattr__(self, "learning_rate", schedule.from_spec(self.learning_rate))
        for name in self.per_replicate:
            value = check_positive(name, getattr(self, name))
            plain = value.tolist() if isinstance(value, Tensor) else value
            object.__setattr__(self, name, tuple(map(float, plain)) if isinstance(plain, Sequence) else float(plain))
        check_count("batch_size", self.batch_size)
        for name in ("weight_decay", "gauge_stiffness"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_positive_number(name, value))

    def bind(self, problem: Problem, symmetry: Symmetry | None = None) -> Self:
        """Return these dynamics tied to `problem`, and to `symmetry` where they use one, ready to integrate.

        Raises
        ------
        InputError
            If values per replicate do not match the problem's replicates, or a symmetry that is needed is missing.
        """
        for name, value in self.variables().items():
            if isinstance(value, tuple) and len(value) != problem.replicates:
                want = "one value, or one for each replicate of the problem"
                got = f"{len(value)} values for {problem.replicates or 'no'} replicates"
                raise InputError(message(name, want, got, "use problem.replicate(R), or give one value"))
        if symmetry is not None:
            symmetry = check_symmetry(symmetry).bind(problem, validate=False)
        bound = dataclasses.replace(self, problem=problem, symmetry=symmetry)
        if self.gauge_stiffness is not None and not bound.bound_symmetry.charge_labels:
            want = "a symmetry with charges"
            raise InputError(message("gauge_stiffness", want, repr(symmetry), "leave it out: there is nothing to fix"))
        return bound

    @property
    def bound_symmetry(self) -> Symmetry:
        """The symmetry that the dynamics are bound to.

        Raises
        ------
        InputError
            If there is none.
        """
        if self.symmetry is None:
            remedy = "pass symmetry=... to simulate, or as second argument to dynamics.bind"
            raise InputError(message("symmetry", "one, for horizontal noise or a gauge potential", "none", remedy))
        return self.symmetry

    @property
    def bound_problem(self) -> Problem:
        """The problem that the dynamics are bound to.

        Raises
        ------
        InputError
            If they are not.
        """
        if self.problem is None:
            raise InputError(f"{self!r} is not bound to a problem; call dynamics.bind(problem) first")
        return self.problem

    def scale(self, value: float | Sequence[float]) -> Rate:
        """Return a parameter as a number, or as a tensor (replicate, 1, 1) that broadcasts against θ."""
        if not isinstance(value, Sequence):
            return value
        key = tuple(value)
        if key not in self._scaled:
            problem = self.bound_problem
            self._scaled[key] = torch.tensor(key, dtype=problem.dtype, device=problem.device)[:, None, None]
        return self._scaled[key]

    @functools.cached_property
    def _scaled(self) -> dict[tuple[float, ...], Tensor]:
        """Values by replicate on the device: a copy to it in each step would wait, and cannot be captured."""
        return {}

    def at(self, samples: Mapping[str, Tensor]) -> Self:
        """Return the same dynamics of the losses on other samples; see `Problem.at`."""
        view = copy.copy(self)
        object.__setattr__(view, "problem", self.bound_problem.at(samples))
        return view

    def rate(self, k: float | Tensor) -> Rate:
        """Return η at iteration time k, as by `scale`."""
        rate = self.learning_rate
        assert not isinstance(rate, Mapping)
        # Only a schedule reads the time, which would make the host wait for a time on the device.
        return self.scale(rate(float(k)) if isinstance(rate, Schedule) else rate)

    def with_potential(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Return ∇L + ∇V for ∇L, shape (..., parameter)."""
        if self.weight_decay is not None:
            gradient = gradient + self.weight_decay * theta
        if self.gauge_stiffness is not None:
            with torch.enable_grad():
                point = theta if theta.requires_grad else theta.detach().requires_grad_(True)
                potential = self.bound_symmetry.gauge_potential(point, self.gauge_stiffness)
                (force,) = torch.autograd.grad(potential.sum(), point, create_graph=theta.requires_grad)
            gradient = gradient + force
        return gradient

    def less_potential(self, step: Tensor, scale: Rate, theta: Tensor) -> Tensor:
        """Return `step` less scale · ∇V, shape (..., parameter)."""
        if self.weight_decay is None and self.gauge_stiffness is None:
            return step
        return step - scale * self.with_potential(theta, torch.zeros_like(theta))

    # -- stepping --------------------------------------------------------------------------------------------------

    @property
    def substeps(self) -> int:
        """Solver steps of an update."""
        return 1

    @property
    def stepwise(self) -> bool:
        """Whether the dynamics are a loop over `advance`, or have a solver of their own."""
        return True

    def solve(self, theta: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Return θ at each of `steps` where the dynamics have a solver of their own, else None; see `integrate`."""
        return None

    @property
    def interleaved(self) -> bool:
        """Whether the parameters of a trajectory are neighbours in memory, or the trajectories of a parameter are."""
        return self.bound_problem.layout.size > FEW_PARAMETERS

    def arrange(self, theta: Tensor) -> Tensor:
        """Return θ, stored in the order in which steps are fastest."""
        return theta.contiguous() if self.interleaved else theta.mT.contiguous().mT

    def window(self, chunk: int) -> int:
        """Return the number of solver steps for which random numbers are drawn at once."""
        return chunk

    def piece(self, draws: Draws, first: int, count: int) -> Draws:
        """Return the draws of `count` steps of a window, from one on."""
        return {name: drawn[first : first + count] for name, drawn in draws.items()}

    def windows_ahead(self, window: int, lead: tuple[int, ...]) -> int:
        """Return the number of windows whose random numbers are drawn at once, on an axis after that of the steps."""
        return 1

    def as_compiled(self) -> Self:
        """Return dynamics whose plain steps write as many numbers as compiled steps of these."""
        return self

    @abstractmethod
    def draw(self, steps: int, lead: tuple[int, ...], generator: torch.Generator) -> Draws:
        """Draw the random numbers of `steps` solver steps of trajectories ([replicate,] trajectory)."""

    @abstractmethod
    def advance(self, theta: Tensor, draws: Draws, step: int, rate: Rate) -> Tensor:
        """Return θ after one solver step.

        Parameters
        ----------
        theta : Tensor, shape=([replicate,] trajectory, parameter)
        draws : dict of str to Tensor
            See `draw`.
        step : int
            Place of the step among the draws.
        rate : float or Tensor
            η, as by `scale`.
        """

    def rates(self, start: int, first: int, count: int) -> Tensor | None:
        """Return η at `count` solver steps from the `first` after update `start` on, (step,); None if constant."""
        if not isinstance(self.learning_rate, Schedule):
            return None
        rates = [self.learning_rate(start + (first + k) / self.substeps) for k in range(count)]
        return torch.tensor(rates, dtype=self.bound_problem.dtype, device=self.bound_problem.device)

    def integrate(self, theta: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return θ at each of the increasing integer `steps`, the first of which is the time of `theta`.

        Parameters
        ----------
        theta : Tensor, shape=([replicate,] trajectory, parameter)
        steps : sequence of int
        generator : torch.Generator
            Stream of all random draws, on the device of `theta`.

        Returns
        -------
        Tensor, shape=(len(steps), [replicate,] trajectory, parameter)
        """
        longest = longest_chunk(numbers_drawn(self) * theta.shape[-2], theta.device.type)
        chunk = min(longest, (steps[-1] - steps[0]) * self.substeps)
        return Walk(self, theta, [generator], chunk, steps[0]).run(steps)

    def spec(self) -> dict[str, Any]:
        """Return the parameters as plain data from which a configuration can build the dynamics again."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in BOUND}
        plain = {name: _plain(value) for name, value in values.items() if value is not None}
        return {"type": type(self).__name__, **plain}

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know of the dynamics, and how they were solved, as strings and numbers."""
        spec = {name: value for name, value in self.spec().items() if name not in self.variables()}
        spec["dynamics"] = spec.pop("type")
        return {name: int(value) if isinstance(value, bool) else value for name, value in spec.items()}

    def variables(self) -> dict[str, Any]:
        """Return the parameters that may differ by replicate or by step: numbers, tuples or a schedule, by name."""
        return {"learning_rate": self.learning_rate}

    def times(self, schedule: Schedule, steps: Sequence[int]) -> np.ndarray:
        """Return the time ∫η dk that the dynamics have covered at each of `steps`: for updates, Σ_{j<k} η(j)."""
        return schedule.sums(steps)


def _plain(value: Any) -> Any:
    """Return a parameter as plain data."""
    if hasattr(value, "spec"):
        return value.spec()
    return list(value) if isinstance(value, tuple) else value
