"""Discrete stochastic gradient descent, every trajectory with its own batches."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError, check_flag, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from .base import Dynamics
from .walk import Draws, Rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Dynamics):
    """θ_{k+1} = θ_k − η [(1/B) Σ_b ∇ℓ_{i_b}(θ_k) + ∇V(θ_k)], V weight decay and gauge potential, see `Dynamics`.

    Of a problem with a stream, the B samples are drawn from its law, afresh for each update and trajectory.

    Parameters
    ----------
    learning_rate, batch_size, weight_decay, gauge_stiffness
        See `Dynamics`.
    replacement : bool
        Whether the B indices of a batch are i.i.d. uniform, or B different samples, independently in each update. With
        B = n different samples an update is gradient descent, the control without noise.
    epochs : bool
        Without replacement only: a batch is the next B samples of a random order of all n, drawn anew after ⌊n/B⌋
        updates, as data loaders do (what is left of the order is dropped). Each batch alone has the law of B different
        samples; but the batches of an epoch depend on each other, so that the exact orbit drift holds for the first
        update of an epoch, and at O(η³) differs for the others.

    Raises
    ------
    InputError
        If a value is out of range or epochs are wanted with replacement; in `bind`, if B > n without replacement or
        without replacement from a stream.

    Examples
    --------
    >>> SGD(learning_rate=5e-3, batch_size=1)
    SGD(learning_rate=0.005, batch_size=1, weight_decay=None, gauge_stiffness=None, replacement=True, epochs=False)
    """

    replacement: bool = True
    epochs: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_flag("replacement", self.replacement)
        if check_flag("epochs", self.epochs) and self.replacement:
            raise InputError(message("epochs", "replacement = false", "true", "an epoch takes each sample once"))

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

    @property
    def full_batch(self) -> bool:
        """Whether a batch is the whole data: gradient descent, without noise."""
        return not self.replacement and self.batch_size == self.bound_problem.n_samples

    def window(self, chunk: int) -> int:
        """Return the number of updates for which batches are drawn at once: an epoch, or a chunk."""
        return self.bound_problem.n_samples // self.batch_size if self.epochs else chunk

    def draw(self, steps: int, lead: tuple[int, ...], generator: torch.Generator) -> Draws:
        """Draw the batches of `steps` updates: indices of shape (step, *lead, B), or the samples of a stream."""
        problem, size = self.bound_problem, (steps, *lead, self.batch_size)
        if self.full_batch:
            return {}
        if problem.stream is not None:
            return dict(problem.stream.draw(size, generator))
        n, device = problem.n_samples, generator.device
        if self.epochs:
            order = torch.rand(*lead, n, generator=generator, device=device).argsort(-1)
            batches = order[..., : steps * self.batch_size].unflatten(-1, (steps, self.batch_size))
            return {"index": batches.movedim(-2, 0).contiguous()}
        if self.replacement:
            return {"index": torch.randint(n, size, generator=generator, device=device)}
        keys = torch.rand(steps, *lead, n, generator=generator, device=device)
        return {"index": keys.topk(self.batch_size, dim=-1).indices}

    def advance(self, theta: Tensor, draws: Draws, step: int, rate: Rate) -> Tensor:
        """Return θ after one update; see `Dynamics.advance`."""
        problem = self.bound_problem
        if self.full_batch:
            gradient = problem.gradient(theta)
        elif problem.stream is None:
            gradient = problem.batch_gradient(theta, draws["index"][step])
        else:
            gradient = problem.at({name: samples[step] for name, samples in draws.items()}).gradient(theta)
        return theta - rate * self.with_potential(theta, gradient)
