"""Several structures side by side, each on its own entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, message
from ..symmetry import GeneralLinear, Product, Rescaling, Symmetry
from .base import DesignNoise
from .structure import GroupSparse, Structure
from .unit_law import Unit


class Joined(Structure):
    """A w = (w_1, w_2, …) of structures with operators of their own: some entries sparse in groups, others in jumps.

    Factors keep their names, after that of their block and a dot: ``curve.p``. Penalties add up.

    Parameters
    ----------
    blocks : mapping of str to (indices, Structure)
        The entries of A w that each structure makes, in its order. Each entry belongs to exactly one block.
    operator
        A, see `as_operator`; acts on w as a whole.

    Raises
    ------
    InputError
        If blocks overlap, leave entries out, have another number of entries than their structure, or are meant for
        different noises.
    """

    def __init__(self, blocks: Mapping[str, tuple[Sequence[int], Structure]], *, operator: Any = None) -> None:
        self.blocks = {name: block for name, (_, block) in blocks.items()}
        order: list[int] = []
        for name, (indices, block) in blocks.items():
            if len(indices) != block.size:
                want = f"{block.size} entries for this structure"
                raise InputError(message(f"block {name!r}", want, len(indices), "give one index per entry"))
            order += map(int, indices)
        wrong = [i for i in sorted({*order, *range(len(order))}) if order.count(i) != 1]
        if wrong or not order:
            want = f"each of the entries 0 to {len(order) - 1} in one block" if order else "at least one block"
            got = f"entry {wrong[0]} in {order.count(wrong[0])}" if order else "none"
            raise InputError(message("blocks", want, got, "split the entries without overlap"))
        noises: set[DesignNoise] = {block.noise for block in self.blocks.values()}
        if len(noises) != 1:
            raise InputError(message("blocks", "structures for one noise", sorted(noises), "choose one noise for all"))
        self._order = torch.tensor(order)
        self._place = self._order.argsort()
        super().__init__(len(order), operator=operator, scale=0.0, noise=noises.pop())

    @property
    def symmetry(self) -> Symmetry:
        """The product of the blocks' groups."""
        groups = [_renamed(block.symmetry, f"{name}.") for name, block in self.blocks.items()]
        return groups[0] if len(groups) == 1 else Product(*groups)

    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the factors of all blocks."""
        return {
            f"{name}.{factor}": shape
            for name, block in self.blocks.items()
            for factor, shape in block.factor_shapes().items()
        }

    def compose(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the blocks' signals, each entry in its place."""
        signals = [
            block.weight({factor: named[f"{name}.{factor}"] for factor in block.factors})
            for name, block in self.blocks.items()
        ]
        return torch.cat(signals, dim=-1)[..., self._place.to(signals[0].device)]

    def _split(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the entries of each block."""
        pieces = coefficients[..., self._order.to(coefficients.device)].split(
            [block.size for block in self.blocks.values()], dim=-1
        )
        return dict(zip(self.blocks, pieces, strict=True))

    def decompose(self, coefficients: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return the factors of each block: balanced, or with charges as the `scale` of the block says."""
        return {
            f"{name}.{factor}": value
            for name, piece in self._split(coefficients).items()
            for factor, value in self.blocks[name].decomposed(piece, balanced).items()
        }

    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        """Return the sum of the blocks' penalties, shape (...)."""
        pieces = self._split(coefficients)
        return torch.stack([self.blocks[name].penalty(piece) for name, piece in pieces.items()]).sum(0)

    def unit(self) -> Unit:
        """Raise InputError: every block has a unit of its own."""
        remedy = f"verify design.blocks[name] for name in {', '.join(self.blocks)}"
        raise InputError(message("verify", "a design with one kind of unit", f"{len(self.blocks)} blocks", remedy))

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data, with that of each block."""
        return {**super().spec(), "blocks": {name: block.spec() for name, block in self.blocks.items()}}


def grouped(groups: Sequence[Sequence[int]], *, operator: Any = None, scale: float = 0.01) -> Joined:
    """Return w = A⁻¹(s_g v_g)_g for groups of any entries and sizes, a block ``width{k}`` for each number k of entries.

    Parameters
    ----------
    groups : sequence of sequence of int
        Entries of A w; each in exactly one group.
    operator, scale
        See `GroupSparse`.

    Raises
    ------
    InputError
        As `Joined` and `GroupSparse`.

    Examples
    --------
    >>> fourier = Fourier(64)
    >>> waves = grouped(fourier.waves, operator=fourier)  # few frequencies, of any phase
    """
    widths: dict[int, list[Sequence[int]]] = {}
    for group in groups:
        widths.setdefault(len(group), []).append(group)
    blocks = {
        f"width{width}": ([i for group in members for i in group], GroupSparse(len(members), width, scale=scale))
        for width, members in widths.items()
    }
    return Joined(blocks, operator=operator)


def _renamed(symmetry: Symmetry, prefix: str) -> Symmetry:
    """Return a group of named parameters, or a product of such, on parameters whose names have a prefix."""
    if isinstance(symmetry, Product):
        return Product(*(_renamed(factor, prefix) for factor in symmetry.factors))
    assert isinstance(symmetry, Rescaling | GeneralLinear)
    slots = [[slot] if isinstance(slot, str) else slot for slot in symmetry.parameters]
    return type(symmetry)(*([f"{prefix}{name}" for name in slot] for slot in slots))
