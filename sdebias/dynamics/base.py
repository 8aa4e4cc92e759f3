"""What SGD and its SDE have in common: parameters, binding to a problem, and the call that integrates."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import InputError, check_count, check_positive, message
from ..problems.base import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamics(ABC):
    """Dynamics of θ in iteration time: one unit of time is one update.

    Parameters
    ----------
    learning_rate : float or sequence of float
        η > 0; a sequence gives each replicate of the problem its own.
    batch_size : int
        B >= 1, samples per update.
    problem : Problem, optional
        Set by `bind`.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    learning_rate: float | Sequence[float]
    batch_size: int = 1
    problem: Problem | None = dataclasses.field(default=None, repr=False, compare=False)

    per_replicate: ClassVar[tuple[str, ...]] = ("learning_rate",)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in self.per_replicate:
            value = check_positive(name, getattr(self, name))
            plain = value.tolist() if isinstance(value, Tensor) else value
            object.__setattr__(self, name, tuple(map(float, plain)) if isinstance(plain, Sequence) else float(plain))
        check_count("batch_size", self.batch_size)

    def bind(self, problem: Problem) -> Self:
        """Return these dynamics tied to `problem`, ready to integrate.

        Raises
        ------
        InputError
            If values per replicate do not match the problem's replicates.
        """
        for name in self.per_replicate:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != problem.replicates:
                want = "one value, or one for each replicate of the problem"
                got = f"{len(value)} values for {problem.replicates or 'no'} replicates"
                raise InputError(message(name, want, got, "use problem.replicate(R), or give one value"))
        return dataclasses.replace(self, problem=problem)

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

    def scale(self, value: float | Sequence[float]) -> Tensor:
        """Return a parameter as a tensor, () or (replicate, 1, 1), that broadcasts against θ."""
        problem = self.bound_problem
        tensor = torch.as_tensor(value, dtype=problem.dtype, device=problem.device)
        return tensor[:, None, None] if tensor.ndim else tensor

    @abstractmethod
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

    def spec(self) -> dict[str, Any]:
        """Return the parameters as plain data from which a configuration can build the dynamics again."""
        fields = [f.name for f in dataclasses.fields(self) if f.name != "problem"]
        values = {name: getattr(self, name) for name in fields}
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
        return {"type": type(self).__name__, **plain}
