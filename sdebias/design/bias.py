"""The bias that one part of a symmetry implies: its closed form where one is measured to hold, else its volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from ..errors import InputError
from ..layout import ParameterLayout
from ..symmetry import DiscoveredSymmetry
from ..symmetry.linalg import eigenvalue_cutoff
from .parts import Part, touched_entries

# Relative deviation from a closed form that passes for agreement.
AGREEMENT = 1e-6
# Ratio of Gram eigenvalues below which the iteration has run off to a point that the orbit does not contain.
COLLAPSED = 1e-10
QUOTIENT = "none against the volume of the quotient"


@dataclass(frozen=True)
class Bias:
    """What noise makes of a symmetry.

    Attributes
    ----------
    charge : str
        The conserved quantity of gradient flow.
    volume : float
        ½ log pdet G at the point.
    isotropic : str
        Effective penalty L_eff − L under isotropic noise at temperature T, charges held at 0 by a gauge potential,
        against length along the balanced slice.
    isotropic_value : float
        Its value at the predictor of the point, divided by T; NaN where there is no such law.
    horizontal : str
        Effective penalty under horizontal noise.
    """

    charge: str
    volume: float
    isotropic: str
    isotropic_value: float
    horizontal: str = QUOTIENT


def bound_part(part: Part, layout: ParameterLayout) -> DiscoveredSymmetry:
    """Return the fields of a part as a symmetry of its own."""
    symmetry = DiscoveredSymmetry(part.fields, layout, orbit_dimension=len(part.fields))
    return symmetry.bind(SimpleNamespace(layout=layout), validate=False)


def bias_of(part: Part, layout: ParameterLayout, theta: Tensor) -> Bias:
    """Return the bias of a part at a point θ of shape (parameter,)."""
    symmetry = bound_part(part, layout)
    volume = float(symmetry.log_orbit_volume(theta))
    if part.kind == "translation":
        return Bias("b·θ", volume, "none: the volume is constant", 0.0)
    if part.kind == "shear":
        text = "no law: no charge can be held, and isotropic noise spreads along the orbits without limit"
        return Bias("none: the fields are no gradients", volume, text, math.nan)
    if part.kind == "scaling":
        text = "none at fixed norm: ½ log det G = Σ log‖θ_S‖ grows along the orbit only; noise raises the norm"
        return Bias("½‖θ_S‖²", volume, text, 0.0)
    if part.kind == "rescaling" and all(unit.is_product for unit in part.units):
        return _product(part, symmetry, theta, volume)
    if part.kind == "rotation":
        return _rotation(symmetry, theta, volume)
    charge = "½ θᵀAθ" if symmetry.charge_labels else "none: the fields are no gradients"
    if len(symmetry.charge_labels) + len(symmetry.compact_basis(theta)) < symmetry.dim:
        return Bias(
            charge, volume, "no law in these coordinates: some fields are neither gradients nor isometries", math.nan
        )
    balanced = _balanced(symmetry, theta)
    if balanced is None:
        return Bias(charge, volume, "no balanced point on this orbit", math.nan)
    value = float(symmetry.log_orbit_volume(balanced, "noncompact") - symmetry.log_orbit_volume(balanced, "compact"))
    sigma = kronecker_sum(symmetry.gram_eigenvalues(balanced)) if part.kind == "general linear" else None
    if sigma is None:
        text = "T (½ log det⟨∇C, ∇C⟩ − log of the rotations' orbit), numeric"
        return Bias(charge, volume, text, value)
    values = ", ".join(f"{s:.3g}" for s in sigma.tolist())
    volume_text = "½ log det G = ½ Σ_ij log(σ_i + σ_j), less the rotations' share"
    text = f"T/2 Σ_i log 2σ_i: low rank ({volume_text}); σ = {values}"
    return Bias("UᵀU − VᵀV", volume, text, value, f"{QUOTIENT}; against dM, M = U Vᵀ, T/2 log det J_F J_Fᵀ")


def _product(part: Part, symmetry: DiscoveredSymmetry, theta: Tensor, volume: float) -> Bias:
    """Return the bias of rescalings between D slots: on the balanced slice all slots have the norm (Π ‖slot‖)^{1/D}."""
    squares = symmetry.fundamental_vector_fields(theta).square()
    value, depths, single = 0.0, set(), True
    for unit in part.units:
        depth = len(unit.slots)
        depths.add(depth)
        product = 0.0
        for place, slot in enumerate(unit.slots):
            # Any field that scales the slot by ±1 has the slot, taken about its centre, as its entries there.
            row = next(f for f, e in zip(unit.fields, unit.exponents[:, place].tolist(), strict=True) if abs(e) > 0.5)
            size = float(squares[row, list(slot)].sum().sqrt())
            product += math.log(size) if size > 0 else -math.inf
            single &= len(slot) == 1
        value += 0.5 * math.log(depth) + (depth - 1) / depth * product
    depth = max(depths)
    share = f"{depth - 1}/{depth}" if len(depths) == 1 else "(D-1)/D"
    what = "|z_j|, z_j = " + "·".join(f"a{k}_j" for k in range(1, depth + 1)) if single else "Π_k ‖a_kj‖"
    favours = "sparsity" if single else "sparsity over units j (as the log of their path norm)"
    horizontal = f"{QUOTIENT}; against dz {share} T Σ_j log|z_j|" if single else QUOTIENT
    charge = "½(‖a1_j‖² − ‖a2_j‖²)" if depth == 2 else "½(‖a_k‖² − ‖a_l‖²) for each unit"
    return Bias(charge, volume, f"{share} T Σ_j log {what}: {favours}", value, horizontal)


def _rotation(symmetry: DiscoveredSymmetry, theta: Tensor, volume: float) -> Bias:
    values = symmetry.gram_eigenvalues(theta)
    kept = values[values > eigenvalue_cutoff(values)]
    text = "−T log of the orbit's volume, numeric"
    m = round((1 + math.sqrt(1 + 8 * symmetry.dim)) / 2)
    if len(kept) == m - 1 and float(kept.max() - kept.min()) <= AGREEMENT * float(kept.max()):
        text = f"−{m - 1} T log r, r = ‖θ_S‖ = {float(kept.mean().sqrt()):.3g}"
    return Bias("none: a compact group, no gauge needed", volume, text, -volume)


def _balanced(symmetry: DiscoveredSymmetry, theta: Tensor) -> Tensor | None:
    """Return the balanced point of the orbit, or None where there is none but a limit that is no part of it."""
    try:
        balanced = symmetry.balance(theta)
    except InputError:
        return None
    before, after = (float(symmetry.gram_eigenvalues(point).max()) for point in (theta, balanced))
    return balanced if after > COLLAPSED * before else None


def kronecker_sum(eigenvalues: Tensor) -> Tensor | None:
    """Return σ, decreasing, if the eigenvalues are all σ_i + σ_j, i and j from 1 to r, else None."""
    left = eigenvalues.sort(descending=True).values.tolist()
    limit, r = AGREEMENT * max(left[0], 0.0), math.isqrt(len(left))
    sigma: list[float] = []
    while len(sigma) < r:
        sigma.append(left[0] / 2 if not sigma else left[0] - sigma[0])
        new = sigma[-1]
        for sum_ in [new + new, *(2 * [new + old for old in sigma[:-1]] if len(sigma) > 1 else [])]:
            nearest = min(left, key=lambda value: abs(value - sum_))
            if abs(nearest - sum_) > limit:
                return None
            left.remove(nearest)
    return torch.tensor(sigma, dtype=eigenvalues.dtype)


def where(fields: Tensor, layout: ParameterLayout) -> str:
    """Return the parameters that fields move, with the ranges of their axes where it moves only some entries."""
    moved = touched_entries(fields)
    names = []
    for name, place in layout.slices.items():
        entries = moved[place].reshape(layout.shape(name) or (1,))
        if not bool(entries.any()):
            continue
        ranges = []
        for axis, length in enumerate(entries.shape):
            here = entries.any(dim=tuple(a for a in range(entries.ndim) if a != axis)).nonzero().flatten().tolist()
            whole = len(here) == length
            ranges.append(":" if whole else _range(here))
        names.append(name if set(ranges) == {":"} else f"{name}[{','.join(ranges)}]")
    return ", ".join(names)


def _range(places: list[int]) -> str:
    """Return places as runs, such as ``0:2+4``."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1] + 1}" for run in runs)
