"""Groups that are declared by the names of the parameters that they act on, and the blocks that these stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from ...errors import InputError, SymmetryError, message
from ...layout import ParameterLayout
from ..bundle import Symmetry

Axis: TypeAlias = int | Literal["entries", "whole"]
"""What indexes the rows of a block: an axis of the tensor, each entry on its own, or nothing (one row)."""


@dataclass(frozen=True)
class Block:
    """One parameter tensor seen as a matrix (rows, columns): `axis` indexes the rows, all other axes the columns."""

    name: str
    axis: Axis
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        if isinstance(self.axis, int):
            return self.shape[self.axis]
        return math.prod(self.shape) if self.axis == "entries" else 1

    @property
    def columns(self) -> int:
        """Number of columns."""
        return math.prod(self.shape) // max(self.rows, 1)

    def read(self, flat: Tensor) -> Tensor:
        """View (..., entries) as (..., rows, columns)."""
        if not isinstance(self.axis, int):
            return flat.unsqueeze(-1 if self.axis == "entries" else -2)
        lead = flat.shape[:-1]
        tensor = flat.reshape(*lead, *self.shape).movedim(len(lead) + self.axis, len(lead))
        return tensor.reshape(*lead, self.rows, self.columns)

    def write(self, matrix: Tensor) -> Tensor:
        """Undo `read`."""
        lead = matrix.shape[:-2]
        if isinstance(self.axis, int):
            rest = [n for k, n in enumerate(self.shape) if k != self.axis]
            matrix = matrix.reshape(*lead, self.rows, *rest).movedim(len(lead), len(lead) + self.axis)
        return matrix.reshape(*lead, math.prod(self.shape))


@dataclass(frozen=True)
class Slot:
    """Blocks with the same rows, side by side: what a group treats as one matrix (rows, columns)."""

    layout: ParameterLayout
    blocks: tuple[Block, ...]
    label: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.blocks[0].rows

    @property
    def columns(self) -> int:
        """Number of columns of all blocks."""
        return sum(block.columns for block in self.blocks)

    def read(self, theta: Tensor) -> Tensor:
        """Return the matrix (..., rows, columns) from (..., parameter); a view if there is one block."""
        parts = [block.read(theta[..., self.layout.slices[block.name]]) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def write(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return flat (..., entries) pieces by parameter name from a matrix (..., rows, columns)."""
        parts = matrix.split([block.columns for block in self.blocks], dim=-1)
        return {block.name: block.write(part) for block, part in zip(self.blocks, parts, strict=True)}

    @property
    def row_labels(self) -> list[str]:
        """Label of each row, without the name."""
        first = self.blocks[0]
        if first.axis == "entries":
            return self.layout.entry_labels(first.name)
        if first.axis == "whole":
            return [""]
        axes = self.layout.axis_labels.get(first.name)
        return list(axes[first.axis]) if axes else [str(i) for i in range(first.rows)]

    @property
    def column_labels(self) -> list[str]:
        """Label of each column with its parameter's name, such as ``W[:,2]``."""
        labels = []
        for block in self.blocks:
            given = self.layout.axis_labels.get(block.name) or [[str(i) for i in range(n)] for n in block.shape]
            axes = [[":"] if k == block.axis else list(axis) for k, axis in enumerate(given)]
            labels += [f"{block.name}[{','.join(entry)}]" for entry in itertools.product(*axes)]
        return labels


class NamedGroup(Symmetry):
    """A group declared by the parameters that it acts on.

    Each argument is a slot: one name or several, with the axis that the group acts on after a colon, ``"W:0"``.
    Without axis, the group's own default holds. A name may be a layer of an ``nn.Module``: it stands for the layer's
    weight, and on axis 0, the layer's outputs, for its bias too: ``"2:0"`` means ``2.weight`` and ``2.bias``.
    """

    default_axis: ClassVar[Axis]
    joint: ClassVar[bool] = False  # whether all arguments are parts of one slot

    def __init__(self, *parameters: str | Sequence[str]) -> None:
        self.parameters = tuple(
            slot if isinstance(slot, str) else (slot[0] if len(slot) == 1 else tuple(slot)) for slot in parameters
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parameters))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedGroup) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash((type(self), self.parameters))

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""
        plain = [slot if isinstance(slot, str) else list(slot) for slot in self.parameters]
        return {"group": type(self).__name__, "parameters": plain}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The matrices that the group acts on."""
        if not self.joint:
            return tuple(self._slot(names) for names in self.parameters)
        parts = [(names,) if isinstance(names, str) else names for names in self.parameters]
        return (self._slot(tuple(itertools.chain.from_iterable(parts))),)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that the group changes."""
        return tuple(block.name for slot in self.slots for block in slot.blocks)

    def _slot(self, names: str | tuple[str, ...]) -> Slot:
        names = (names,) if isinstance(names, str) else names
        blocks = tuple(block for name in names for block in self._blocks(name))
        rows = {block.name: block.rows for block in blocks}
        if len(set(rows.values())) != 1:
            got = ", ".join(f"{name!r} {n}" for name, n in rows.items()) or "none"
            raise self._error("parts of one slot with the same length", got, "name the axis that they share, as 'W:0'")
        return Slot(self.layout, blocks, names[0].rpartition(":")[0] or names[0])

    def _blocks(self, text: str) -> list[Block]:
        name, _, number = text.rpartition(":")
        axis: Axis = self.default_axis
        if name and number.lstrip("-").isdigit():
            axis = int(number)
        else:
            name = text
        if name not in self.layout.shapes and f"{name}.weight" in self.layout.shapes:
            names = [f"{name}.weight"]
            if axis == 0 and f"{name}.bias" in self.layout.shapes:
                names.append(f"{name}.bias")
        else:
            names = [name]
        return [self._block(each, axis) for each in names]

    def _block(self, name: str, axis: Axis) -> Block:
        try:
            shape = self.layout.shape(name)
        except InputError as error:
            raise SymmetryError(f"{type(self).__name__}: {error}") from None
        if isinstance(axis, int):
            if not -len(shape) <= axis < len(shape):
                raise self._error(f"an axis of {name!r}, shape {shape}", axis, "count axes from 0, or from the end")
            axis %= len(shape)
        return Block(name, axis, shape)

    def _check_layout(self) -> None:
        names = self.parameter_names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            got = f"{repeated[0]!r} twice"
            raise self._error(f"{'two ' if len(self.slots) == 2 else ''}different parameters", got, "name each once")

    def _check_slots(self, minimum: int, maximum: float, remedy: str) -> None:
        if not minimum <= len(self.parameters) <= maximum:
            want = f"{minimum} slots" if minimum == maximum else f"{minimum} slots or more"
            raise self._error(want, len(self.parameters), remedy)

    def _error(self, expected: str, got: Any, remedy: str) -> SymmetryError:
        return SymmetryError(message(type(self).__name__, expected, got, remedy))
