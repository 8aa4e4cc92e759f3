"""Discrete stochastic gradient descent, every trajectory with its own batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError, check_flag, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from .base import Dynamics
from .schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Dynamics):
    """θ_{k+1} = θ_k − η [(1/B) Σ_b ∇ℓ_{i_b}(θ_k) + ∇V(θ_k)], V weight decay and gauge potential, see `Dynamics`.

    Of a problem with a stream, the B samples are drawn from its law, afresh for each update and trajectory.

    Parameters
    ----------
    learning_rate, batch_size, weight_decay, gauge_stiffness
        See `Dynamics`.
    replacement : bool
        Whether the B indices of a batch are i.i.d. uniform, or B different samples. Batches of different updates are
        independent in both cases.

    Raises
    ------
    InputError
        If a value is out of range; in `bind`, if B > n without replacement or without replacement from a stream.

    Examples
    --------
    >>> SGD(learning_rate=5e-3, batch_size=1)
    SGD(learning_rate=0.005, batch_size=1, weight_decay=None, gauge_stiffness=None, replacement=True)
    """

    replacement: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_flag("replacement", self.replacement)

    def bind(self, problem: Problem, symmetry: Symmetry | None = None) -> Self:
        """Return these dynamics tied to `problem`, and to `symmetry` where they use one.

        Raises
        ------
        InputError
            If the batch is larger than the data without replacement, if a stream shall be sampled without
            replacement, or see `Dynamics.bind`.
        """
        if not self.replacement and problem.stream is not None:
            want = "true for a stream, whose samples are drawn afresh"
            raise InputError(message("replacement", want, "false", "set replacement = true"))
        if not self.replacement and self.batch_size > problem.n_samples:
            want = f"at most n = {problem.n_samples} without replacement"
            raise InputError(message("batch_size", want, self.batch_size, "lower it or set replacement = true"))
        return super().bind(problem, symmetry)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw batch indices of shape (*shape, B)."""
        n = self.bound_problem.n_samples
        if self.replacement:
            return torch.randint(n, (*shape, self.batch_size), generator=generator, device=generator.device)
        keys = torch.rand(*shape, n, generator=generator, device=generator.device)
        return keys.topk(self.batch_size, dim=-1).indices

    def integrate(self, theta: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return θ after each of `steps` updates; see `Dynamics.integrate`."""
        problem, rate = self.bound_problem, self.rate(steps[0])
        saved, wanted = [theta], set(steps)
        for step in range(steps[0], steps[-1]):
            if problem.stream is None:
                gradient = problem.batch_gradient(theta, self._draw(theta.shape[:-1], generator))
            else:
                batch = problem.stream.draw((*theta.shape[:-1], self.batch_size), generator)
                gradient = problem.at(batch).gradient(theta)
            if isinstance(self.learning_rate, Schedule):
                rate = self.rate(step)
            theta = torch.addcmul(theta, self.with_potential(theta, gradient), rate, value=-1)
            if step + 1 in wanted:
                saved.append(theta)
        return torch.stack(saved)
