"""Softmax regression: multinomial logistic classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import DataError, check_count, check_flag, message
from ..layout import ParameterLayout
from ..symmetry import Symmetry, Translation
from .arrays import as_data, linear_map
from .base import Problem


class SoftmaxRegression(Problem):
    """Cross entropy ℓ_i = log Σ_c e^{z_ic} − z_{i,y_i} of the logits z_i = W x_i + b.

    Its symmetry is ``Translation("W", "b")``, ``Translation("W")`` without bias: the same vector added to all rows. Its
    predictor coordinates are the rows minus their mean. The orbit volume is constant: no bias.

    Parameters
    ----------
    X : array, shape=(sample, feature) or (replicate, sample, feature)
    y : int array, shape=(sample,) or (replicate, sample)
        Classes 0, 1, ….
    classes : int, optional
        Their number, by default the largest of y plus 1.
    bias : bool
        Whether the model has b.
    initial, initial_std : mapping, optional
        Initial law, by default 0.

    Raises
    ------
    DataError
        If shapes do not match, entries are not finite, or a class is not a whole number in range.
    """

    model: ClassVar[str] = "SoftmaxRegression"

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        classes: int | None = None,
        bias: bool = True,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        inputs = as_data("X", X, 2)
        targets = torch.as_tensor(y, device=inputs.device)
        if inputs.shape[:-1] != targets.shape:
            got = f"X {tuple(inputs.shape)} and y {tuple(targets.shape)}"
            raise DataError(message("data", "X (sample, feature) and y (sample,)", got, "match the sample axes"))
        if targets.numel() == 0 or bool((targets != targets.long()).any()) or bool((targets < 0).any()):
            raise DataError(
                message("y", "class numbers 0, 1, ...", f"{targets.dtype} with others", "encode the classes")
            )
        top = int(targets.max())
        count = check_count("classes", top + 1 if classes is None else classes, minimum=2)
        if top >= count:
            raise DataError(message("y", f"class numbers below classes = {count}", top, "raise classes"))
        lead = ("replicate",) if inputs.ndim == 3 else ()
        shapes: dict[str, tuple[int, ...]] = {"W": (count, inputs.shape[-1])}
        if check_flag("bias", bias):
            shapes["b"] = (count,)
        data = {"X": ((*lead, "sample", "feature"), inputs), "y": ((*lead, "sample"), targets.long())}
        super().__init__(ParameterLayout(shapes), data, initial, initial_std)

    def symmetry(self) -> Symmetry:
        """Return the shift of all rows of W, and of b, by one vector."""
        return Translation(*self.layout.shapes)

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), "classes": self.layout.shape("W")[0], "bias": "b" in self.layout.shapes}

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return log Σ_c e^{z_ic} − z_{i,y_i}, shape (..., sample)."""
        named = self.layout.unflatten(self.check_theta(theta))
        logits = linear_map(self.samples["X"], named["W"])
        if "b" in named:
            logits = logits + named["b"].unsqueeze(-2)
        targets = self.samples["y"].expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.logsumexp(-1) - logits.gather(-1, targets).squeeze(-1)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels of the parameters."""
        return self.layout.labels

    def predictor(self, theta: Tensor) -> Tensor:
        """Return W and b minus their mean over classes, shape (..., parameter)."""
        named = self.layout.unflatten(self.check_theta(theta))
        axes = {name: -len(self.layout.shape(name)) for name in named}
        return self.layout.flatten({name: t - t.mean(axes[name], keepdim=True) for name, t in named.items()})
