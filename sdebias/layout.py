"""Named parameter tensors, flattened in declared order into the one axis `parameter`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, check_memory, message, nearest

# What a parameter takes at least: its values, and its label.
PARAMETER_BYTES = 100


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named parameter tensor lies on the flat `parameter` axis.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Name and shape of each parameter tensor; the order of declaration is the order on the axis.
    axis_labels : mapping of str to sequence of sequence of str, optional
        Labels of the entries along each axis of a tensor; indices where absent.

    Raises
    ------
    InputError
        If no parameter is declared, the labels do not fit the shapes, or the memory is too small for them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    axis_labels: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that labels fit shapes."""
        if not self.shapes:
            raise InputError(message("parameters", "at least one named tensor", "none", "declare name and shape"))
        check_memory("parameters", PARAMETER_BYTES * self.size, "make the model smaller")
        for name, labels in self.axis_labels.items():
            lengths = tuple(len(axis) for axis in labels)
            if lengths != self.shape(name):
                want = f"labels for shape {self.shape(name)}"
                raise InputError(message(f"labels of {name!r}", want, lengths, "give one label per entry of each axis"))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Slice of each parameter on the flat axis."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        return {name: slice(a, b) for name, a, b in zip(self.shapes, [0, *ends[:-1]], ends, strict=True)}

    @cached_property
    def size(self) -> int:
        """Number of scalar parameters d."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one parameter.

        Raises
        ------
        InputError
            If there is no such parameter; the message names the nearest.
        """
        if name not in self.shapes:
            raise InputError(message("parameter", "a declared name", repr(name), nearest(name, self.shapes)))
        return tuple(self.shapes[name])

    @cached_property
    def labels(self) -> list[str]:
        """Label of every scalar parameter, such as ``W1[0,2]`` or ``p[bmi]``, in flat order."""
        return [f"{name}[{entry}]" if entry else name for name in self.shapes for entry in self.entry_labels(name)]

    def entry_labels(self, name: str) -> list[str]:
        """Return the labels of the entries of one parameter, without its name."""
        shape = self.shape(name)
        axes = self.axis_labels.get(name) or [[str(i) for i in range(n)] for n in shape]
        return [",".join(entry) for entry in itertools.product(*axes)]

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Split ``theta`` of shape (..., parameter) into views of shape (..., *shape) by name."""
        self.check(theta)
        return {
            name: theta[..., self.slices[name]].reshape(*theta.shape[:-1], *shape)
            for name, shape in self.shapes.items()
        }

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Join named tensors of shape (..., *shape), whose leading dims broadcast, to (..., parameter)."""
        leading = [named[name].shape[: named[name].ndim - len(shape)] for name, shape in self.shapes.items()]
        lead = np.broadcast_shapes(*leading)
        parts = [named[name].expand(*lead, *shape).reshape(*lead, -1) for name, shape in self.shapes.items()]
        return torch.cat(parts, dim=-1)

    def check(self, theta: Tensor) -> Tensor:
        """Return ``theta`` if its last axis has the length of the parameter axis.

        Raises
        ------
        InputError
            If it has not.
        """
        if theta.ndim == 0 or theta.shape[-1] != self.size:
            want = f"shape (..., {self.size})"
            raise InputError(message("theta", want, tuple(theta.shape), "flatten the parameters in declared order"))
        return theta
