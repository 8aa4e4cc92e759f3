"""Groups of positive scale factors: rescalings between factors of a product, and overall scale."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import SymmetryError, check_number, message
from ..bundle import Part
from ..linalg import (
    eigenvalue_cutoff,
    log_pseudo_determinant,
    log_sum,
    solve_psd,
    symmetric_eigen,
    symmetric_eigenvalues,
)
from .named import NamedGroup


def _combine(powers: Sequence[int], rows: Sequence[Tensor]) -> Tensor:
    """Return Σ_i powers_i w_i for powers −1, 0 and 1."""
    terms = [row if power > 0 else -row for power, row in zip(powers, rows, strict=True) if power]
    return sum(terms[1:], start=terms[0])


class ScaleGroup(NamedGroup):
    """Positive factors on the rows of slots: row j of slot i is multiplied by Π_k c_kj^{M_ki}.

    The rows j are independent, so that the Gram matrix splits into one small block for each,
    G^{(j)} = M diag(‖row_ij‖²) Mᵀ, and everything costs one pass over the parameters. Directions are ordered (k, j).
    """

    @property
    @abstractmethod
    def exponents(self) -> list[list[int]]:
        """M, one row for each factor k and one column for each slot i."""

    @property
    def units(self) -> int:
        """Number of rows, each with scale factors of its own."""
        return self.slots[0].rows

    @property
    def dim(self) -> int:
        """Number of independent factors."""
        return len(self.exponents) * self.units

    @property
    def direction_labels(self) -> list[str]:
        """Those of the charges."""
        return self.charge_labels

    def _matrix(self, like: Tensor) -> Tensor:
        return torch.tensor(self.exponents, dtype=like.dtype, device=like.device)

    def _over_slots(self, rows: Sequence[Tensor]) -> Tensor:
        """Return Σ_i M_ki w_i for one (..., unit) tensor w_i a slot, shape (..., dim)."""
        return torch.cat([_combine(powers, rows) for powers in self.exponents], dim=-1)

    def _over_factors(self, coefficients: Tensor) -> list[Tensor]:
        """Return Σ_k M_ki ξ_k, one (..., unit) tensor a slot."""
        factors = coefficients.split(self.units, dim=-1)
        return [_combine(powers, factors) for powers in zip(*self.exponents, strict=True)]

    def _scaled(self, factors: Sequence[Tensor], theta: Tensor, background: Tensor | None = None) -> Tensor:
        """Return θ with row j of slot i multiplied by ``factors[i][..., j]``; elsewhere the background, or zero."""
        pieces = {}
        for slot, factor in zip(self.slots, factors, strict=True):
            pieces.update(slot.write(slot.read(theta) * factor.unsqueeze(-1)))
        return self._written(pieces, background)

    def _row_products(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return the inner products of the rows, one (..., unit) tensor a slot."""
        products = [slot.read(first) * slot.read(second) for slot in self.slots]
        return [p.squeeze(-1) if p.shape[-1] == 1 else p.sum(-1) for p in products]

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the factors c = e^ξ, shape (..., dim)."""
        return coefficients.exp()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the products of the factors: the group is abelian."""
        return first * second

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return the rescaled point, all other parameters unchanged.

        Raises
        ------
        SymmetryError
            If a factor is zero, negative or not finite, or their number is not `dim`.
        """
        self.layout.check(theta)
        if element.shape[-1:] != (self.dim,):
            raise SymmetryError(
                message(
                    "group element", f"shape (..., {self.dim})", tuple(element.shape), "give one factor a direction"
                )
            )
        if not bool((torch.isfinite(element) & (element > 0)).all()):
            remedy = "use symmetry.exp(coefficients) to build elements"
            raise SymmetryError(message("group element", "positive finite factors", "others", remedy))
        factors = element.split(self.units, dim=-1)
        scales = []
        for powers in zip(*self.exponents, strict=True):
            used = [c if power > 0 else 1 / c for c, power in zip(factors, powers, strict=True) if power]
            scales.append(math.prod(used[1:], start=used[0]))
        return self._scaled(scales, theta, theta)

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return X ξ: row j of slot i times Σ_k M_ki ξ_kj, shape (..., parameter)."""
        return self._scaled(self._over_factors(coefficients), self.layout.check(base_point))

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return Xᵀ v, shape (..., dim), in one pass."""
        return self._over_slots(self._row_products(tangent_vec, base_point))

    @property
    def charge_labels(self) -> list[str]:
        """One label a factor and unit, such as ``p:q[bmi]``."""
        labels = []
        for row in self.exponents:
            name = ":".join(slot.label for slot, power in zip(self.slots, row, strict=True) if power)
            labels += [f"{name}[{unit}]" if unit else name for unit in self.slots[0].row_labels]
        return labels

    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return the diagonals of the A_a, shape (dim, parameter)."""
        eye = torch.eye(self.dim, dtype=like.dtype, device=like.device)
        return self.infinitesimal_action(eye, like.new_ones(self.layout.size))

    def charge(self, theta: Tensor) -> Tensor:
        """Return C_kj = ½ Σ_i M_ki ‖row_ij‖², shape (..., dim)."""
        self.layout.check(theta)
        return 0.5 * self._over_slots(self._row_products(theta, theta))

    def _gram_blocks(self, theta: Tensor) -> Tensor:
        """Return the Gram block of each unit, shape (..., unit, factor, factor)."""
        squares = self._row_products(theta, theta)
        if len(self.exponents) == 1:
            return _combine([power**2 for power in self.exponents[0]], squares)[..., None, None]
        matrix = self._matrix(theta)
        return (matrix * torch.stack(squares, dim=-1).unsqueeze(-2)) @ matrix.mT

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return Gram blocks, which eigenvalues are not zero, eigenvalues and eigenvectors, by unit."""
        blocks = self._gram_blocks(theta)
        values, vectors = symmetric_eigen(blocks)
        self._warn(values)  # block by block: units of very different size do not disturb each other
        return blocks, values > eigenvalue_cutoff(values.flatten(-2)).unsqueeze(-1), values, vectors

    def gram_matrix(self, theta: Tensor) -> Tensor:
        """Return the Gram matrix, shape (..., dim, dim), with entries between equal units only."""
        blocks = self._gram_blocks(self.layout.check(theta))
        return torch.diag_embed(blocks.movedim(-3, -1)).transpose(-3, -2).flatten(-4, -3).flatten(-2)

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return the eigenvalues of all blocks, shape (..., dim)."""
        return symmetric_eigenvalues(self._gram_blocks(self.layout.check(theta))).flatten(-2)

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return G⁺ c block by block, shape (..., dim)."""
        columns = coefficients.unflatten(-1, (len(self.exponents), self.units)).mT.unsqueeze(-1)
        blocks, *spectrum = self._split(base_point)
        return solve_psd(blocks, columns, *spectrum).squeeze(-1).mT.flatten(-2)

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        """Return ½ Σ_j log pdet of the blocks, shape (...); the group has no compact part."""
        if part == "compact":
            return theta.new_zeros(theta.shape[:-1])
        blocks, kept, _, vectors = self._split(theta)
        if blocks.shape[-1] == 1:
            return 0.5 * log_sum(blocks[..., 0, 0])
        return 0.5 * log_pseudo_determinant(blocks, kept, vectors).sum(-1)

    def _second_derivative_trace(self, theta: Tensor) -> Tensor:
        blocks, *spectrum = self._split(theta)
        matrix = self._matrix(theta)
        inverse = solve_psd(blocks, torch.eye(blocks.shape[-1], dtype=theta.dtype, device=theta.device), *spectrum)
        return self._scaled((matrix * (inverse @ matrix)).sum(-2).unbind(-1), theta)

    def _norms(self, theta: Tensor) -> Tensor:
        """Return the norm of each row, shape (..., slot, unit), with derivative 0 where it is 0."""
        squares = torch.stack(self._row_products(theta, theta), dim=-2)
        zero = squares == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


class Rescaling(ScaleGroup):
    """Rescaling between the factors of a product, with factors c > 0 of its own for each unit j.

    With two slots (p_j, q_j) → (c_j p_j, q_j / c_j): it leaves every function of the products p∘q unchanged. X_j =
    (p_j, −q_j), A_j = diag(+1 at p_j, −1 at q_j), charge C_j = ½ (‖p_j‖² − ‖q_j‖²), Gram matrix diag(‖p_j‖² + ‖q_j‖²).
    With D slots there are D − 1 factors a unit; the k-th multiplies slot k and divides slot k + 1. Group elements are
    tensors of factors of shape (..., dim), ordered (k, j).

    Parameters
    ----------
    *parameters : str or sequence of str
        The slots. ``"p"`` makes each entry of p a unit; ``"W:0"`` makes each row of W a unit, ``"W:1"`` each column; a
        sequence joins several parameters to one slot, as a unit's weights and its bias.
    level : float
        Charge of the slice, on which gauge potential, `balance` and stationary laws hold the points; 0 where all
        factors of a unit have the same norm.

    Examples
    --------
    >>> Rescaling("p", "q")                                             # w = p∘q
    Rescaling('p', 'q')
    >>> Rescaling("u1", "u2", "u3")                                     # w = u1∘u2∘u3
    Rescaling('u1', 'u2', 'u3')
    >>> Rescaling.relu("W", "v", bias="b")                              # v·relu(Wx + b)
    Rescaling(('W:0', 'b:0'), 'v:-1')
    >>> Rescaling.columns("W_Q", "W_K")                                 # W_Q W_Kᵀ
    Rescaling('W_Q:1', 'W_K:1')
    """

    default_axis = "entries"

    def __init__(self, *parameters: str | Sequence[str], level: float = 0.0) -> None:
        super().__init__(*parameters)
        self.level = check_number("level", level, error=SymmetryError)

    def __repr__(self) -> str:
        return super().__repr__() if not self.level else f"{super().__repr__()[:-1]}, level={self.level:g})"

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""
        return {**super().spec(), **({"level": self.level} if self.level else {})}

    def gauge_level(self, like: Tensor) -> Tensor:
        """Return the level of every charge, shape (charge,)."""
        return like.new_full((self.dim,), self.level)

    @classmethod
    def relu(cls, incoming: str, outgoing: str, bias: str | None = None) -> Self:
        """Return the rescaling of units with a homogeneous activation (ReLU): incoming rows up, outgoing columns down.

        Parameters
        ----------
        incoming : str
            Weights of shape (unit, input), or a layer of an ``nn.Module``, whose bias is then included.
        outgoing : str
            Weights of shape (output, unit) or (unit,), or a layer.
        bias : str, optional
            Biases of shape (unit,).
        """
        return cls(f"{incoming}:0" if bias is None else (f"{incoming}:0", f"{bias}:0"), f"{outgoing}:-1")

    @classmethod
    def columns(cls, first: str, second: str) -> Self:
        """Return the scaling of columns of two matrices against each other, as in W_Q W_Kᵀ for a head each column."""
        return cls(f"{first}:1", f"{second}:1")

    @property
    def exponents(self) -> list[list[int]]:
        """Factor k multiplies slot k and divides slot k + 1."""
        slots = len(self.parameters)
        return [[1 if i == k else -1 if i == k + 1 else 0 for i in range(slots)] for k in range(slots - 1)]

    def _check_layout(self) -> None:
        self._check_slots(2, math.inf, "name the factors of the product")
        super()._check_layout()
        entrywise = all(block.axis == "entries" for slot in self.slots for block in slot.blocks)
        sizes = [slot.blocks[0].shape if entrywise else slot.rows for slot in self.slots]
        if len(set(sizes)) != 1:
            got = " and ".join(f"{slot.label!r} {size}" for slot, size in zip(self.slots, sizes, strict=True))
            want = "two parameters of one shape" if entrywise else "slots with the same number of units"
            raise self._error(want, got, "pair entries one to one" if entrywise else "name the axes of the units")

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the point of the orbit where all factors of a unit have the same norm, in closed form.

        ‖row_ij‖ → (Π_l ‖row_lj‖)^{1/D}; for w = p∘q it is (sign(p) √|w|, sign(q) √|w|). If a factor is zero the orbit
        has no balanced point; the result is then the limit, 0, that the orbit comes arbitrarily close to. At a level
        other than 0, the point with these charges, see `Gauge.balance`.
        """
        if self.level:
            return super().balance(theta, tolerance)
        norms = self._norms(self.check_point(theta))
        some_zero = (norms == 0).any(-2, keepdim=True)
        norms = torch.where(some_zero, 1.0, norms)
        target = norms.log().mean(-2, keepdim=True).exp()
        return self._scaled(torch.where(some_zero, 0.0, target / norms).unbind(-2), theta, theta)


class Scaling(ScaleGroup):
    """Overall scale θ_S → c θ_S of the parameters that feed a normalisation layer.

    X = θ_S, A = I on S, charge ½ ‖θ_S‖², Gram matrix ‖θ_S‖². The charge has no zero except θ_S = 0; the balanced slice
    is the unit sphere, `gauge_level` ½.

    Parameters
    ----------
    *parameters : str
        ``"W"`` scales the tensor as a whole, several names all of them together; ``"W:0"`` scales each row by a factor
        of its own (batch and weight normalisation), several names with an axis their rows together.
    """

    default_axis = "whole"
    joint = True

    @property
    def exponents(self) -> list[list[int]]:
        """One factor, one slot."""
        return [[1]]

    def gauge_level(self, like: Tensor) -> Tensor:
        """Return ½, the charge of the unit sphere, shape (charge,)."""
        return like.new_full((self.dim,), 0.5)

    def _check_layout(self) -> None:
        self._check_slots(1, math.inf, "name the parameters that are scaled")
        super()._check_layout()

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return θ with each scaled part at norm 1; a part that is zero stays zero."""
        norms = self._norms(self.check_point(theta))
        zero = norms == 0
        return self._scaled(torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norms)).unbind(-2), theta, theta)
