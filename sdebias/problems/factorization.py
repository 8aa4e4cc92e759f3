"""Matrix factorisation and completion, M = U Vᵀ from observed entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import DataError, check_count, message
from ..layout import ParameterLayout
from ..symmetry import GeneralLinear, Symmetry
from .arrays import as_data, fan_in_law
from .base import GATHER_SHARE, Problem


class MatrixFactorization(Problem):
    """Squared loss ℓ_s = ½ ((U Vᵀ)_{ij} − M_ij)² over the observed entries s = (i, j): they are the samples.

    Its symmetry is ``GeneralLinear("U", "V")``; its predictor coordinates are the entries of U Vᵀ. The orbit volume on
    the balanced slice is ½ Σ_{ij} log(σ_i + σ_j): noise favours low rank (arXiv:2601.06597, Fig. 4, whose batch loss
    Σ err²/400 has no ½ and another mean).

    Parameters
    ----------
    M : array, shape=(row, column) or (replicate, row, column)
        Only observed entries are read; others may be NaN.
    mask : bool array, shape=(row, column) or (replicate, row, column), optional
        Which entries are observed, in each replicate the same number; all where absent.
    rank : int, optional
        Columns of U and V, by default the smaller side of M.
    initial, initial_std : mapping, optional
        Initial law, by default N(0, 1/rank).

    Raises
    ------
    DataError
        If the mask has another shape, observes nothing or not the same number in each replicate, or an observed entry
        is not finite.
    InputError
        If the rank is not a positive whole number.
    """

    model: ClassVar[str] = "MatrixFactorization"

    def __init__(
        self,
        M: Any,
        mask: Any = None,
        *,
        rank: int | None = None,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        matrix = as_data("M", M, 2)
        observed = _as_mask(mask, matrix)
        lead, sides = matrix.shape[:-2], matrix.shape[-2:]
        counts = observed.flatten(-2).sum(-1)
        if bool((counts == 0).any()) or bool((counts != counts.flatten()[0]).any()):
            want = "at least one observed entry, and the same number in each replicate"
            raise DataError(message("mask", want, counts.tolist(), "observe entries, or run replicates apart"))
        row, column = (
            index.broadcast_to(matrix.shape)[observed].reshape(*lead, -1)
            for index in torch.meshgrid(*(torch.arange(side, device=matrix.device) for side in sides), indexing="ij")
        )
        dims = (*(("replicate",) if lead else ()), "sample")
        rank = check_count("rank", min(sides) if rank is None else rank)
        layout = ParameterLayout({"U": (sides[0], rank), "V": (sides[1], rank)})
        if initial is None and initial_std is None:
            initial_std = fan_in_law(layout)
        value = matrix[observed].reshape(*lead, -1)
        data = {"row": (dims, row), "column": (dims, column), "value": (dims, value)}
        super().__init__(layout, data, initial, initial_std)

    def symmetry(self) -> Symmetry:
        """Return GL(rank) between U and V."""
        return GeneralLinear("U", "V")

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), "rank": self.layout.shape("U")[1]}

    def arrays(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Return M, zero where it is not observed, and the mask."""
        dims, value = self.data["value"]
        dims = (*dims[:-1], "row", "column")
        lead = value.shape[:-1]
        cells = (self.data["row"][1] * self.layout.shape("V")[0] + self.data["column"][1]).expand(value.shape)
        sides = (self.layout.shape("U")[0], self.layout.shape("V")[0])
        matrix = value.new_zeros(*lead, sides[0] * sides[1])
        filled = matrix.scatter(-1, cells, value).unflatten(-1, sides)
        mask = matrix.scatter(-1, cells, torch.ones_like(value)).unflatten(-1, sides)
        return {"M": (dims, filled), "mask": (dims, mask.to(torch.int8))}

    def _factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        named = self.layout.unflatten(self.check_theta(theta))
        return named["U"], named["V"]

    def _cells(self, lead: tuple[int, ...]) -> Tensor:
        """Return the place of each observed entry in the flattened matrix, shape (*lead, sample)."""
        cells = self.samples["row"] * self.layout.shape("V")[0] + self.samples["column"]
        return cells.expand(*lead, cells.shape[-1])

    def _scatter(self, values: Tensor) -> Tensor:
        """Return the (..., row, column) matrix that has the sum of the values (..., sample) of each entry, else 0."""
        sides = (self.layout.shape("U")[0], self.layout.shape("V")[0])
        empty = values.new_zeros(*values.shape[:-1], sides[0] * sides[1])
        return empty.scatter_add(-1, self._cells(values.shape[:-1]), values).unflatten(-1, sides)

    def _residual(self, theta: Tensor) -> Tensor:
        products = self.predictor(theta)
        return products.gather(-1, self._cells(products.shape[:-1])) - self.samples["value"]

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ½ ((U Vᵀ)_{ij} − M_ij)², shape (..., sample)."""
        return 0.5 * self._residual(theta).square()

    def predictor(self, theta: Tensor) -> Tensor:
        """Return the entries of U Vᵀ, shape (..., row · column)."""
        left, right = self._factors(theta)
        return (left @ right.mT).flatten(-2)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``M[row,column]``."""
        rows, columns = (range(self.layout.shape(name)[0]) for name in ("U", "V"))
        return [f"M[{i},{j}]" for i in rows for j in columns]

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (E V, Eᵀ U), E the matrix of weighted residuals: two matrix products."""
        left, right = self._factors(theta)
        errors = self._scatter(weights * self._residual(theta))
        return torch.cat([(errors @ right).flatten(-2), (errors.mT @ left).flatten(-2)], dim=-1)

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return (1/B) Σ_b ∇ℓ_{i_b}: when the batch is a small part of the data, only its rows of U and V are read."""
        if indices.shape[-1] > GATHER_SHARE * self.n_samples or self._samples_per_point:
            return super().batch_gradient(theta, indices)
        theta, batch = theta.detach(), self._take(indices)
        rank = self.layout.shape("U")[1]
        places = [batch[name].unsqueeze(-1).expand(*indices.shape, rank) for name in ("row", "column")]
        factors = [factor.expand(*indices.shape[:-1], *factor.shape[-2:]) for factor in self._factors(theta)]
        left, right = (factor.gather(-2, place) for factor, place in zip(factors, places, strict=True))
        errors = (torch.linalg.vecdot(left, right) - batch["value"]).unsqueeze(-1) / indices.shape[-1]
        sums = [
            torch.zeros_like(factor).scatter_add_(-2, place, errors * other)
            for factor, place, other in zip(factors, places, (right, left), strict=True)
        ]
        return torch.cat([part.flatten(-2) for part in sums], dim=-1)

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return the diagonal of Σ: mean of squares, (E∘E) V∘V and its like, minus the squared mean."""
        left, right = self._factors(theta)
        squares = self._scatter(self._residual(theta).square() / self.n_samples)
        second = [(squares @ right.square()).flatten(-2), (squares.mT @ left.square()).flatten(-2)]
        return (torch.cat(second, dim=-1) - self.gradient(theta).square()).clamp_min(0)


def _as_mask(mask: Any, matrix: Tensor) -> Tensor:
    """Return the mask as a bool tensor of the shape of the matrix.

    Raises
    ------
    DataError
        If it has another shape or entries other than 0 and 1.
    """
    if mask is None:
        return torch.ones_like(matrix, dtype=torch.bool)
    observed = torch.as_tensor(mask, device=matrix.device)
    if observed.dtype != torch.bool and not bool(((observed == 0) | (observed == 1)).all()):
        raise DataError(message("mask", "entries 0 and 1", f"{observed.dtype} with others", "give a bool array"))
    if observed.shape not in (matrix.shape, matrix.shape[-2:]):
        got = tuple(observed.shape)
        raise DataError(message("mask", f"the shape of M, {tuple(matrix.shape)}", got, "give one value per entry"))
    return observed.bool().expand(matrix.shape)
