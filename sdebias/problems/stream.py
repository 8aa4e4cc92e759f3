"""A law from which a problem draws fresh samples at every step and for every trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Sampler = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True)
class Stream:
    """Samples drawn from a law instead of taken from fixed arrays.

    `Problem.with_stream` attaches it. SGD then draws a fresh batch for each update and trajectory. The SDE takes drift
    and noise of each solver step from a fresh pool of P samples, as many as the problem's own data have: its drift
    fluctuates like the mean of P samples, so per update the noise is (1 − 1/P) η²Σ/B + η²Σ/(P substeps) instead of
    η²Σ/B. Take P ≫ B.

    Parameters
    ----------
    sampler : callable
        ``sampler(shape, generator, **tensors)`` returns for each data array of the problem that has a sample axis a
        tensor of shape (shape..., rest...), all entries drawn with `generator` on its device; the last axis of `shape`
        counts samples, the ones before are (replicate,) and (trajectory,).
    tensors : mapping of str to Tensor
        Parameters of the law, such as those of a teacher: they follow the problem to its device and dtype.
    declaration : mapping
        The law as plain data, kept in the problem's `spec`.
    """

    sampler: Sampler
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    declaration: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Mapping[str, Tensor]:
        """Draw samples: tensors of shape (shape..., rest...) by name."""
        return self.sampler(shape, generator, **self.tensors)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Stream:
        """Return the stream with its tensors on another device or in another floating dtype."""
        moved = {name: cast(tensor, device, dtype) for name, tensor in self.tensors.items()}
        return Stream(self.sampler, moved, self.declaration)


def cast(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """Return `tensor` on another device and, if its entries are real numbers, in another dtype."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
