"""The groups: how each acts on the parameters that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, SymmetryError, message
from .bundle import Symmetry, eigenvalue_cutoff


@dataclass(frozen=True)
class Rescaling(Symmetry):
    """Rescaling of paired coordinates: (p_j, q_j) → (c_j p_j, q_j / c_j), c_j > 0, for each entry j.

    It leaves every function of the products p∘q unchanged. X_j = (p_j, −q_j), A_j = diag(+1 at p_j, −1 at q_j),
    charge C_j = ½ (p_j² − q_j²), Gram matrix diag(p_j² + q_j²). Group elements are tensors of factors c of shape
    (..., entries of p).

    Parameters
    ----------
    first, second : str
        Names of two parameters of the same shape.
    """

    first: str
    second: str

    def _check_layout(self) -> None:
        if self.first == self.second:
            remedy = "name the two factors of the product"
            raise SymmetryError(message("Rescaling", "two different parameters", f"{self.first!r} twice", remedy))
        try:
            shapes = [self.layout.shape(name) for name in (self.first, self.second)]
        except InputError as error:
            raise SymmetryError(f"Rescaling: {error}") from None
        if shapes[0] != shapes[1]:
            got = f"{self.first!r} {shapes[0]} and {self.second!r} {shapes[1]}"
            raise SymmetryError(message("Rescaling", "two parameters of one shape", got, "pair entries one to one"))

    @property
    def dim(self) -> int:
        """Number of pairs."""
        span = self.layout.slices[self.first]
        return span.stop - span.start

    @property
    def charge_labels(self) -> list[str]:
        """One label a pair, such as ``p:q[bmi]``."""
        return [f"{self.first}:{self.second}[{entry}]" for entry in self.layout.entry_labels(self.first)]

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""
        return {"group": "Rescaling", "parameters": [self.first, self.second]}

    def _pair(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        self.layout.check(theta)
        return theta[..., self.layout.slices[self.first]], theta[..., self.layout.slices[self.second]]

    def _embed(self, first: Tensor, second: Tensor) -> Tensor:
        """Place two (..., pairs) tensors on the parameter axis, zero elsewhere."""
        given = {self.first: first, self.second: second}
        spans = self.layout.slices.items()
        parts = [
            given[name] if name in given else first.new_zeros(*first.shape[:-1], s.stop - s.start) for name, s in spans
        ]
        return torch.cat(parts, dim=-1)

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the factors c = e^ξ."""
        return coefficients.exp()

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return (c p, q / c), all other parameters unchanged.

        Raises
        ------
        SymmetryError
            If a factor is zero, negative or not finite.
        """
        if not bool((torch.isfinite(element) & (element > 0)).all()):
            remedy = "use symmetry.exp(coefficients) to build elements"
            raise SymmetryError(message("group element", "positive finite factors", "others", remedy))
        first, second = self._pair(theta)
        lead = torch.broadcast_shapes(element.shape[:-1], theta.shape[:-1])
        out = theta.expand(*lead, theta.shape[-1]).clone()
        out[..., self.layout.slices[self.first]] = first * element
        out[..., self.layout.slices[self.second]] = second / element
        return out

    def fundamental_vector_fields(self, theta: Tensor) -> Tensor:
        """Return X_j = (p_j at p_j, −q_j at q_j), shape (..., pairs, parameter). Dense: for small problems."""
        first, second = self._pair(theta)
        return self._embed(torch.diag_embed(first), torch.diag_embed(-second))

    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return the diagonals of A_j, shape (pairs, parameter)."""
        eye = torch.eye(self.dim, dtype=like.dtype, device=like.device)
        return self._embed(eye, -eye)

    def charge(self, theta: Tensor) -> Tensor:
        """Return C_j = ½ (p_j² − q_j²), shape (..., pairs)."""
        first, second = self._pair(theta)
        return 0.5 * (first.square() - second.square())

    def _gram_diagonal(self, theta: Tensor) -> Tensor:
        first, second = self._pair(theta)
        return first.square() + second.square()

    def gram_matrix(self, theta: Tensor) -> Tensor:
        """Return diag(p_j² + q_j²), shape (..., pairs, pairs)."""
        return torch.diag_embed(self._gram_diagonal(theta))

    def rank(self, theta: Tensor) -> Tensor:
        """Return the number of pairs that are not zero, shape (...)."""
        values = self._gram_diagonal(theta)
        return (values > eigenvalue_cutoff(values)).sum(-1)

    def log_orbit_volume(self, theta: Tensor) -> Tensor:
        """Return ½ Σ_j log(p_j² + q_j²) over the pairs that are not zero, shape (...)."""
        values = self._gram_diagonal(theta)
        kept = values > eigenvalue_cutoff(values)
        return 0.5 * torch.where(kept, values, torch.ones_like(values)).log().sum(-1)

    def vertical_projection(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return P_V v in one elementwise pass: the Gram matrix is diagonal, shape (..., parameter)."""
        first, second = self._pair(base_point)
        v_first, v_second = self._pair(tangent_vec)
        values = first.square() + second.square()
        kept = values > eigenvalue_cutoff(values)
        products = first * v_first - second * v_second
        coefficients = torch.where(kept, products / torch.where(kept, values, torch.ones_like(values)), 0.0)
        return self._embed(coefficients * first, -coefficients * second)
