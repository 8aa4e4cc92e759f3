"""Groups that are declared by the names of the parameters that they act on, and the blocks that these stand for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, SymmetryError, message, shown
from ...layout import ParameterLayout
from ..bundle import Symmetry

Axis: TypeAlias = int | Literal["entries", "whole"]
"""What indexes the rows of a block: an axis of the tensor, each entry on its own, or nothing (one row)."""


# A name with an axis, a range of that axis, and a number of groups: "W:0", "W:0[4:8]", "W:1/3".
_SLOT = re.compile(
    r"(?P<name>.+):(?P<axis>-?\d{1,9})(?:\[(?P<start>\d{1,9}):(?P<stop>\d{1,9})\])?(?:/(?P<groups>\d{1,9}))?"
)


@dataclass(frozen=True)
class Block:
    """One parameter tensor, or a part of it, seen as a matrix (rows, columns).

    `axis` indexes the rows, all other axes the columns. Of a range ``start:stop`` of the axis only that part belongs to
    the block; `groups` neighbours along it of equal number form one row each.
    """

    name: str
    axis: Axis
    shape: tuple[int, ...]
    range: tuple[int, int] | None = None
    groups: int | None = None

    @property
    def part(self) -> tuple[int, ...]:
        """Shape of the part of the tensor that belongs to the block."""
        if self.range is None:
            return self.shape
        return tuple(self.range[1] - self.range[0] if k == self.axis else n for k, n in enumerate(self.shape))

    @property
    def rows(self) -> int:
        """Number of rows."""
        if isinstance(self.axis, int):
            return self.part[self.axis] if self.groups is None else self.groups
        return math.prod(self.shape) if self.axis == "entries" else 1

    @property
    def columns(self) -> int:
        """Number of columns."""
        return math.prod(self.part) // max(self.rows, 1)

    def cut(self, flat: Tensor) -> Tensor:
        """Return the part (..., *part) of the tensor's flat entries (..., entries)."""
        tensor = flat.reshape((*flat.shape[:-1], *self.shape))
        if self.range is None:
            return tensor
        assert isinstance(self.axis, int)
        return tensor.narrow(self.axis - len(self.shape), self.range[0], self.range[1] - self.range[0])

    def paste(self, part: Tensor, flat: Tensor) -> Tensor:
        """Return the tensor's flat entries with those of the block's part, flat too, in their place."""
        assert isinstance(self.axis, int)
        assert self.range is not None
        lead = np.broadcast_shapes(part.shape[:-1], flat.shape[:-1])
        whole = flat.expand(*lead, flat.shape[-1]).reshape((*lead, *self.shape))
        part = part.expand(*lead, part.shape[-1]).reshape(*lead, *self.part)
        return torch.slice_scatter(whole, part, len(lead) + self.axis, *self.range).reshape(*lead, flat.shape[-1])

    def read(self, flat: Tensor) -> Tensor:
        """View (..., entries) as (..., rows, columns)."""
        if not isinstance(self.axis, int):
            return flat.unsqueeze(-1 if self.axis == "entries" else -2)
        lead = flat.shape[:-1]
        tensor = self.cut(flat).movedim(len(lead) + self.axis, len(lead))
        return tensor.reshape(*lead, self.rows, self.columns)

    def write(self, matrix: Tensor) -> Tensor:
        """Undo `read`: return the flat entries of the part."""
        lead = matrix.shape[:-2]
        if isinstance(self.axis, int):
            rest = [n for k, n in enumerate(self.part) if k != self.axis]
            matrix = matrix.reshape(*lead, self.part[self.axis], *rest).movedim(len(lead), len(lead) + self.axis)
        return matrix.reshape(*lead, math.prod(self.part))


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

    def write(self, matrix: Tensor) -> dict[Block, Tensor]:
        """Return flat (..., entries) pieces by block from a matrix (..., rows, columns)."""
        parts = matrix.split([block.columns for block in self.blocks], dim=-1)
        return {block: block.write(part) for block, part in zip(self.blocks, parts, strict=True)}

    @property
    def row_labels(self) -> list[str]:
        """Label of each row, without the name."""
        first = self.blocks[0]
        if first.axis == "entries":
            return self.layout.entry_labels(first.name)
        if first.axis == "whole":
            return [""]
        axes = self.layout.axis_labels.get(first.name)
        if first.groups is not None:
            return [str(i) for i in range(first.rows)]
        labels = list(axes[first.axis]) if axes else [str(i) for i in range(first.shape[first.axis])]
        return labels if first.range is None else labels[slice(*first.range)]

    @property
    def column_labels(self) -> list[str]:
        """Label of each column with its parameter's name, such as ``W[:,2]``."""
        labels = []
        for block in self.blocks:
            given = self.layout.axis_labels.get(block.name) or [[str(i) for i in range(n)] for n in block.shape]
            axes = [self._within_rows(block, axis) if k == block.axis else list(axis) for k, axis in enumerate(given)]
            labels += [f"{block.name}[{','.join(entry)}]" for entry in itertools.product(*axes)]
        return labels

    @staticmethod
    def _within_rows(block: Block, labels: Sequence[str]) -> list[str]:
        """Return labels of the entries along the axis of the rows that one row holds."""
        first, last = block.range or (0, len(labels))
        if block.groups is None:
            return [":" if block.range is None else f"{first}:{last}"]
        each = (last - first) // block.groups
        return list(labels[first:last]) if block.groups == 1 else [f"{first + i}:{last}:{each}" for i in range(each)]


class NamedGroup(Symmetry):
    """A group declared by the parameters that it acts on.

    Each argument is a slot: one name or several, with the axis that the group acts on after a colon, ``"W:0"``.
    Without axis, the group's own default holds. A name may be a layer of an ``nn.Module``: it stands for the layer's
    weight, and on axis 0, the layer's outputs, for its bias too: ``"2:0"`` means ``2.weight`` and ``2.bias``.

    ``"W:0[4:8]"`` is a range of the axis, such as one head of an attention layer. ``"W:1/3"`` divides the axis, or the
    range, into 3 groups of neighbours, each of which counts as one row, such as the pixels of a channel in a linear
    layer after a convolution.
    """

    default_axis: ClassVar[Axis]
    joint: ClassVar[bool] = False  # whether all arguments are parts of one slot

    def __init__(self, *parameters: str | Sequence[str]) -> None:
        for slot in parameters:
            names = [slot] if isinstance(slot, str) else slot
            if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
                raise self._error("a name or a list of names for each slot", shown(slot), "write it as 'W:0'")
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
        found = _SLOT.fullmatch(names[0])
        label = found["name"] if found else names[0]
        limits = "" if blocks[0].range is None else "[{}:{}]".format(*blocks[0].range)
        return Slot(self.layout, blocks, f"{label}{limits}")

    def _blocks(self, text: str) -> list[Block]:
        found = _SLOT.fullmatch(text)
        name, axis = (found["name"], int(found["axis"])) if found else (text, self.default_axis)
        if name not in self.layout.shapes and f"{name}.weight" in self.layout.shapes:
            names = [f"{name}.weight"]
            if axis == 0 and f"{name}.bias" in self.layout.shapes:
                names.append(f"{name}.bias")
        else:
            names = [name]
        return [self._block(each, axis, found) for each in names]

    def _block(self, name: str, axis: Axis, found: re.Match[str] | None) -> Block:
        try:
            shape = self.layout.shape(name)
        except InputError as error:
            raise SymmetryError(f"{type(self).__name__}: {error}") from None
        if not isinstance(axis, int):
            return Block(name, axis, shape)
        if not -len(shape) <= axis < len(shape):
            raise self._error(f"an axis of {name!r}, shape {shape}", axis, "count axes from 0, or from the end")
        axis %= len(shape)
        if found is None or found["start"] is None:
            limits, length = None, shape[axis]
        else:
            limits = int(found["start"]), int(found["stop"])
            length = limits[1] - limits[0]
            if not 0 <= limits[0] < limits[1] <= shape[axis]:
                got = f"{limits[0]}:{limits[1]}"
                raise self._error(f"a range of the {shape[axis]} rows of {name!r}", got, "end it within the axis")
        groups = int(found["groups"]) if found and found["groups"] else None
        if groups is not None and (groups == 0 or length % groups):
            raise self._error(f"a divisor of {length}, to group {name!r}", groups, "make groups of equal size")
        return Block(name, axis, shape, limits, groups)

    @cached_property
    def moved_entries(self) -> Tensor:
        """Which entries the group changes, a bool tensor (parameter,)."""
        return self._times_named > 0

    @property
    def _times_named(self) -> Tensor:
        counts = torch.zeros(self.layout.size, dtype=torch.int64)
        places = torch.arange(self.layout.size)
        for block in (block for slot in self.slots for block in slot.blocks):
            counts[block.cut(places[self.layout.slices[block.name]])] += 1
        return counts

    def _written(self, pieces: Mapping[Block, Tensor], background: Tensor | None = None) -> Tensor:
        """Join flat (..., entries) pieces by block on the parameter axis; elsewhere `background`, or zero."""
        named: dict[str, Tensor] = {}
        for block, piece in pieces.items():
            if block.range is None:
                named[block.name] = piece
                continue
            if block.name in named:
                whole = named[block.name]
            elif background is not None:
                whole = background[..., self.layout.slices[block.name]]
            else:
                whole = piece.new_zeros(math.prod(block.shape))
            named[block.name] = block.paste(piece, whole)
        return self._assemble(named, background)

    def _check_layout(self) -> None:
        twice = (self._times_named > 1).nonzero()
        if len(twice):
            got = f"{self.layout.labels[int(twice[0])]} twice"
            names = [block.name for slot in self.slots for block in slot.blocks if block.range is None]
            repeated = sorted({name for name in names if names.count(name) > 1})
            got = f"{repeated[0]!r} twice" if repeated else got
            raise self._error(f"{'two ' if len(self.slots) == 2 else ''}different parameters", got, "name each once")

    def _check_slots(self, minimum: int, maximum: float, remedy: str) -> None:
        if not minimum <= len(self.parameters) <= maximum:
            want = f"{minimum} slots" if minimum == maximum else f"{minimum} slots or more"
            raise self._error(want, len(self.parameters), remedy)

    def _error(self, expected: str, got: Any, remedy: str) -> SymmetryError:
        return SymmetryError(message(type(self).__name__, expected, got, remedy))
