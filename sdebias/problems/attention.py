"""One head of self-attention without output matrix, mask or pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import DataError, check_count, message
from ..layout import ParameterLayout
from ..symmetry import GeneralLinear, Symmetry
from .arrays import as_data, fan_in_law, linear_map
from .regression import Regression


class SingleHeadAttention(Regression):
    """Regression by softmax(x W_Q (x W_K)ᵀ / √h) x W_V, with the loss averaged over all entries of the output.

    W_Q, W_K and W_V have shape (feature, h). Its symmetry is ``GeneralLinear("W_Q", "W_K")``, of which
    ``Rescaling.columns("W_Q", "W_K")`` is the diagonal part; its predictor coordinates are the entries of W_Q W_Kᵀ
    and W_V (arXiv:2601.06597, Fig. 3).

    Parameters
    ----------
    X : array, shape=([replicate,] sample, token, feature)
    y : array, shape=([replicate,] sample, token, head)
    head : int, optional
        h, by default that of y.
    initial, initial_std : mapping, optional
        Initial law, by default N(0, 1/h).

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    model: ClassVar[str] = "SingleHeadAttention"
    input_dims: ClassVar[tuple[str, ...]] = ("token", "feature")
    output_dims: ClassVar[tuple[str, ...]] = ("token", "head")

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        head: int | None = None,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        targets = as_data("y", y, 3)
        width = targets.shape[-1] if head is None else head
        super().__init__(X, targets, initial=initial, initial_std=initial_std, head=width)
        want = (self.data["X"][1].shape[-2], width)
        if targets.shape[-2:] != want:
            got = tuple(targets.shape)
            raise DataError(message("y", f"shape (..., {want[0]}, {width})", got, "match the tokens of X and the head"))

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], head: int = 8) -> ParameterLayout:
        """Return W_Q, W_K and W_V, each (feature, h)."""
        check_count("head", head)
        return ParameterLayout(dict.fromkeys(("W_Q", "W_K", "W_V"), (input_shape[-1], head)))

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return N(0, 1/h)."""
        return {}, fan_in_law(layout)

    def symmetry(self) -> Symmetry:
        """Return GL(h) between W_Q and W_K."""
        return GeneralLinear("W_Q", "W_K")

    @classmethod
    def _attend(cls, named: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys and values, shape (..., sample, token, head), and the attention of each token."""
        tokens, maps = inputs.flatten(-3, -2), torch.cat([named[name] for name in ("W_Q", "W_K", "W_V")], dim=-1)
        joined = linear_map(tokens, maps.mT).unflatten(-2, inputs.shape[-3:-1])
        query, key, value = joined.chunk(3, dim=-1)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        # By its definition a softmax of rows this short takes a fifth of the time that torch's own does on a CPU.
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        return query, key, value, powers / powers.sum(-1, keepdim=True)

    @classmethod
    def output(cls, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return softmax(x W_Q (x W_K)ᵀ / √h) x W_V, shape (..., sample, token, head)."""
        _, _, value, attention = cls._attend(named, inputs)
        return attention @ value

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇ Σ_i c_i ℓ_i in closed form.

        With errors E = (A V − y) c_i / (tokens · h), A the attention: by V, Aᵀ E; by the scores before their softmax,
        S = A∘(E Vᵀ − rowsum(A∘E Vᵀ)) / √h; by Q and K, S K and Sᵀ Q; and xᵀ times each by its map.
        """
        inputs = self.samples["X"]
        query, key, value, attention = self._attend(self._named(theta), inputs)
        errors = attention @ value - self.samples["y"]
        errors = errors * (weights / (errors.shape[-2] * errors.shape[-1]))[..., None, None]
        slopes = attention * (errors @ value.mT)
        slopes = (slopes - attention * slopes.sum(-1, keepdim=True)) / math.sqrt(query.shape[-1])
        joined = torch.cat([slopes @ key, slopes.mT @ query, attention.mT @ errors], dim=-1).flatten(-3, -2)
        maps = linear_map(inputs.flatten(-3, -2).mT, joined.mT)
        return torch.cat([part.flatten(-2) for part in maps.chunk(3, dim=-1)], dim=-1)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``QK[feature,feature]`` and those of W_V."""
        width = range(self.layout.shape("W_V")[0])
        pairs = [f"QK[{i},{j}]" for i in width for j in width]
        return pairs + [f"W_V[{entry}]" for entry in self.layout.entry_labels("W_V")]

    def predictor(self, theta: Tensor) -> Tensor:
        """Return the entries of W_Q W_Kᵀ and W_V, shape (..., feature² + feature · head)."""
        named = self._named(theta)
        products = (named["W_Q"] @ named["W_K"].mT).flatten(-2)
        return torch.cat([products, named["W_V"].flatten(-2)], dim=-1)
