"""Take a Lie algebra of affine fields apart into the symmetries that a reader knows by name, by measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import SymmetryError
from ..layout import ParameterLayout
from ..symmetry import lie_algebra
from ..symmetry.lie_algebra import TOLERANCE

Kind: TypeAlias = Literal["translation", "shear", "rescaling", "scaling", "general linear", "rotation", "algebra"]
# What is left of a unit field after projection on others, below which it depends on them.
INDEPENDENT = 1e-3


@dataclass(frozen=True)
class Unit:
    """Factors of one product: rescalings of slots against each other that share their entries.

    Parameters
    ----------
    fields : tuple of int
        Rows of the part's fields.
    slots : tuple of tuple of int
        Flat entries that scale alike.
    exponents : Tensor, shape=(field, slot)
    """

    fields: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    exponents: Tensor

    @property
    def is_product(self) -> bool:
        """Whether the orbits are those of a product of all slots: D − 1 rescalings by ±1 that keep Π_i ‖slot_i‖."""
        depth = len(self.slots)
        unit = bool((self.exponents.abs() - self.exponents.abs().round()).abs().max() < TOLERANCE)
        kept = bool(self.exponents.sum(1).abs().max() < TOLERANCE)
        # Equal volumes need a basis of the lattice of all such exponents: det(M Mᵀ) = D.
        volume = float(torch.linalg.det(self.exponents @ self.exponents.mT))
        return unit and kept and len(self.fields) == depth - 1 and abs(volume - depth) < TOLERANCE


@dataclass(frozen=True)
class Part:
    """Fields that belong together.

    Parameters
    ----------
    kind : str
    name : str
        Such as ``gl(2)`` or ``rescaling of 3 units``.
    fields : Tensor, shape=(field, d + 1, d + 1)
        Charges first. Of general linear parts the fields are orthonormal in the metric tr(aᵀb) of gl(r), elsewhere the
        largest singular value of A is 1.
    units : tuple of Unit
        Of a rescaling.
    """

    kind: Kind
    name: str
    fields: Tensor
    units: tuple[Unit, ...] = ()


def take_apart(fields: Tensor, layout: ParameterLayout) -> list[Part]:
    """Return the parts of a Lie algebra of affine fields.

    Translations; the other fields X with tr(A_X A_Y) = 0 for all Y, which for the algebra of an algebraic group is its
    unipotent radical: shears, as b ← b − W s; and, modulo those, the commuting simple or one-dimensional pieces of
    what is left, one-parameter rescalings and scalings of the same tensors being counted together.

    Parameters
    ----------
    fields : Tensor, shape=(field, d + 1, d + 1)
        In the order of `DiscoveredSymmetry`.
    layout : ParameterLayout
    """
    constant = (fields[:, :, :-1] == 0).flatten(1).all(1)
    parts = _by_tensors("translation", fields[constant], layout)
    rest = fields[~constant]
    if not len(rest):
        return parts
    linear = rest[:, :-1, :-1]
    form = torch.einsum("aij,bji->ab", linear, linear)
    shears = lie_algebra.sparse_basis(lie_algebra.span(lie_algebra.combine(lie_algebra.null_combinations(form), rest)))
    reductive = _complement(rest, shears)
    single: list[Tensor] = []
    for piece in _pieces(reductive, shears):
        if len(piece) == 1 and _is_diagonal(piece[0]):
            single.append(piece[0])
        else:
            parts.append(_named(piece))
    if single:
        parts += _scalings(torch.stack(single), layout)
    return parts + _by_tensors("shear", shears, layout)


def touched_entries(fields: Tensor) -> Tensor:
    """Return which entries the fields move, a bool tensor of shape (parameter,)."""
    return fields[:, :-1].abs().amax((0, 2)) > 0


def touched_names(fields: Tensor, layout: ParameterLayout) -> tuple[str, ...]:
    """Return the names of the parameters that the fields move."""
    moved = touched_entries(fields)
    return tuple(name for name, place in layout.slices.items() if bool(moved[place].any()))


def by_tensors(fields: Tensor, layout: ParameterLayout) -> dict[tuple[str, ...], Tensor]:
    """Return fields by the names of the tensors that they move."""
    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for field in fields:
        groups.setdefault(touched_names(field[None], layout), []).append(field)
    return {names: torch.stack(group) for names, group in groups.items()}


def _by_tensors(kind: Kind, fields: Tensor, layout: ParameterLayout) -> list[Part]:
    groups = by_tensors(fields, layout).values()
    return [Part(kind, f"{kind} in {len(group)} direction{'s' * (len(group) > 1)}", group) for group in groups]


def _complement(fields: Tensor, others: Tensor) -> Tensor:
    """Return those of the fields, in their order, that are independent of `others` and of those before."""
    basis = lie_algebra.span(others).flatten(1)
    chosen = []
    for field in fields:
        unit = torch.nn.functional.normalize(field.flatten(), dim=0)
        left = unit - basis.mT @ (basis @ unit)
        if float(left.norm()) > INDEPENDENT:
            chosen.append(field)
            left = torch.nn.functional.normalize(left - basis.mT @ (basis @ left), dim=0)
            basis = torch.cat([basis, left[None]])
    return torch.stack(chosen) if chosen else fields[:0]


def _pieces(fields: Tensor, modulo: Tensor) -> list[Tensor]:
    """Return the fields in groups that do not commute, brackets being taken modulo others."""
    count = len(fields)
    if not count:
        return []
    basis = torch.cat([fields, modulo]).flatten(1)
    inverse = torch.linalg.pinv(basis)
    linked = torch.zeros(count, count, dtype=torch.bool)
    for a, field in enumerate(fields):
        constants = ((field @ fields - fields @ field).flatten(1) @ inverse)[:, :count].abs() > TOLERANCE
        linked[a] |= constants.any(1)
        linked[a] |= constants.any(0)
        linked |= constants
    found, labels = connected_components((linked | linked.mT).numpy(), directed=False)
    return [fields[torch.as_tensor(labels == label)] for label in range(found)]


def _is_diagonal(field: Tensor) -> bool:
    linear = field[:-1, :-1]
    return torch.equal(linear, linear.diagonal().diag())


def _named(piece: Tensor) -> Part:
    """Return a part that is no set of scale factors, by the name of its algebra."""
    if len(piece) == 1:
        if lie_algebra.compact_dim(piece):
            return Part("rotation", "so(2)", piece)
        linear = piece[0, :-1, :-1]
        if (
            float((linear - linear.mT).abs().max()) < TOLERANCE
            and float((linear @ linear - linear).abs().max()) < TOLERANCE
        ):
            return Part("scaling", "scaling of a subspace", piece)
        return Part("algebra", "one-parameter group", piece)
    try:
        name = lie_algebra.algebra_name(piece)
    except SymmetryError:  # closed only modulo shears
        name = None
    if name is None:
        compact = lie_algebra.compact_dim(piece)
        return Part("algebra", f"algebra of dimension {len(piece)} ({compact} compact)", piece)
    if name.startswith("gl"):
        return Part("general linear", name, _orthonormal(piece, int(name[3:-1])))
    return Part("rotation" if name.startswith("so") and "," not in name else "algebra", name, piece)


def _orthonormal(piece: Tensor, r: int) -> Tensor:
    """Return a basis of gl(r) that is orthonormal in tr(aᵀb), symmetric A before antisymmetric; others as they are.

    On n copies of the representation and of its dual ‖A‖² = n tr(aᵀa), and n r entries are moved.
    """
    linear = piece[:, :-1, :-1]
    symmetric, antisymmetric = ((linear - s * linear.mT).flatten(1).abs().amax(1) < TOLERANCE for s in (1, -1))
    if not bool((symmetric | antisymmetric).all()):
        return piece
    copies = int(touched_entries(piece).sum()) / r
    ordered = [piece[symmetric], piece[~symmetric]]
    return torch.cat([_frobenius(group) for group in ordered if len(group)]) * copies**0.5


def _frobenius(fields: Tensor) -> Tensor:
    linear = fields[:, :-1, :-1].flatten(1)
    mixing = torch.linalg.cholesky(linear @ linear.mT)
    return torch.linalg.solve_triangular(mixing, fields.flatten(1), upper=False).reshape(fields.shape)


def _scalings(fields: Tensor, layout: ParameterLayout) -> list[Part]:
    """Return rescalings and scalings, those of the same tensors counted together."""
    parts: list[Part] = []
    signs = fields[:, :-1, :-1].diagonal(dim1=-2, dim2=-1)
    mixed = ((signs > 0).any(1) & (signs < 0).any(1)).tolist()
    for group in by_tensors(fields[[not m for m in mixed]], layout).values():
        factors = f"{len(group)} factors" if len(group) > 1 else "1 factor"
        parts.append(Part("scaling", f"scaling by {factors}", group))
    rescalings = fields[mixed]
    alike: dict[tuple[tuple[str, ...], int], list[Tensor]] = {}
    for unit in _units(rescalings, layout):
        alike.setdefault((touched_names(unit, layout), len(unit)), []).append(unit)
    for units in alike.values():
        counted, start = [], 0
        for unit in units:
            counted.append(_unit(unit, start))
            start += len(unit)
        name = f"rescaling of {len(units)} unit{'s' * (len(units) > 1)}"
        depth = {len(unit.slots) for unit in counted}
        if depth != {2}:
            name += f", {'/'.join(map(str, sorted(depth)))} factors each"
        parts.append(Part("rescaling", name, torch.cat(units), tuple(counted)))
    return parts


def _units(fields: Tensor, layout: ParameterLayout) -> list[Tensor]:
    """Return fields in groups that share, in some tensor, exactly the entries that they scale."""
    if not len(fields):
        return []
    moved = fields[:, :-1].abs().amax(2) > 0
    linked = torch.eye(len(fields), dtype=torch.bool)
    for place in layout.slices.values():
        here = moved[:, place]
        same = (here[:, None] == here[None, :]).all(-1) & here.any(-1)[:, None]
        linked |= same
    count, labels = connected_components(linked.numpy(), directed=False)
    return [fields[torch.as_tensor(labels == label)] for label in range(count)]


def _unit(fields: Tensor, start: int) -> Unit:
    diagonals = fields[:, :-1, :-1].diagonal(dim1=-2, dim2=-1)
    entries = diagonals.abs().amax(0).nonzero().flatten()
    slots: list[tuple[Tensor, list[int]]] = []
    for entry in entries.tolist():
        column = diagonals[:, entry]
        for exponents, members in slots:
            if float((exponents - column).abs().max()) < TOLERANCE:
                members.append(entry)
                break
        else:
            slots.append((column, [entry]))
    return Unit(
        tuple(range(start, start + len(fields))),
        tuple(tuple(members) for _, members in slots),
        torch.stack([exponents for exponents, _ in slots], dim=1),
    )
