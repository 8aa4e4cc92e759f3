"""Checks of a symmetry at the boundary: that there is one, and that it has charges."""

from __future__ import annotations

import torch

from ..errors import InputError, SymmetryError, message
from .bundle import Symmetry


def check_symmetry(symmetry: object) -> Symmetry:
    """Return `symmetry` if it is one.

    Raises
    ------
    InputError
        If it is not: None, as `of_module` gives it where nothing holds, the result of `of_module` itself, or another
        object.
    """
    if isinstance(symmetry, Symmetry):
        return symmetry
    remedy = "declare one, such as sb.symmetry.Rescaling('p', 'q'), or let sb.symmetry.discover search the losses"
    if isinstance(getattr(symmetry, "symmetry", None), Symmetry):
        remedy = "pass its attribute symmetry"
    got = "None" if symmetry is None else type(symmetry).__name__
    raise InputError(message("symmetry", "a Symmetry", got, remedy))


def acts_by_isometries(symmetry: Symmetry) -> bool:
    """Return whether every direction turns and none stretches or shifts, so that orbits are compact."""
    return len(symmetry.compact_basis(torch.empty(0, dtype=torch.float64))) == symmetry.dim


def check_charges(symmetry: Symmetry, without: str) -> Symmetry:
    """Return a bound symmetry if it has charges.

    Parameters
    ----------
    symmetry : Symmetry
    without : str
        What cannot be said where it has none, such as "there is no drift to predict".

    Raises
    ------
    SymmetryError
        If it has none; the message says why.
    """
    if symmetry.charge_labels:
        return symmetry
    if not symmetry.dim:
        why = "it has no directions"
    elif acts_by_isometries(symmetry):
        why = "it has no charges (its group is compact)"
    else:
        why = "it has no charges (none of its fields is a gradient)"
    raise SymmetryError(f"{symmetry!r}: {why}, so that {without}")
