"""Numbers and data arrays as problems take them, and products of the two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, InputError, check_finite, message, shown
from ..layout import ParameterLayout


def as_numbers(name: str, value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number, or nested lists of numbers, as a tensor.

    Raises
    ------
    InputError
        If it is neither, or not finite.
    """
    try:
        tensor = torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        remedy = f"give a number or one value per entry ({error})"
        raise InputError(message(name, "numbers", shown(value), remedy)) from None
    return check_finite(name, tensor, InputError)


def as_data(name: str, value: Any, dims: int, like: Tensor | None = None) -> Tensor:
    """Return a data array as a floating tensor of `dims` or, with replicates, ``dims + 1`` axes.

    Raises
    ------
    DataError
        If it is not numeric or has another number of axes.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(message(name, "a numeric array", type(value).__name__, f"convert it ({error})")) from None
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64 if like is None else like.dtype)
    if tensor.ndim not in (dims, dims + 1):
        want = f"{dims} axes, or {dims + 1} with a leading replicate axis"
        raise DataError(message(name, want, f"shape {tuple(tensor.shape)}", "reshape it"))
    return tensor


def linear_map(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return W x for each sample x, as one matrix product wherever trajectories share their samples.

    Parameters
    ----------
    inputs : Tensor, shape=(sample, in), (..., 1, sample, in) or (..., trajectory, sample, in)
    weights : Tensor, shape=(..., trajectory, out, in) or (out, in)

    Returns
    -------
    Tensor, shape=(..., trajectory, sample, out)
    """
    if weights.ndim == 2 or (inputs.ndim > 2 and inputs.shape[-3] != 1):
        return inputs @ weights.mT
    if inputs.shape[-1] == 1:
        return inputs * weights.mT
    shared = inputs if inputs.ndim == 2 else inputs.squeeze(-3)
    products = weights.flatten(-3, -2) @ shared.mT
    return products.unflatten(-2, weights.shape[-3:-1]).mT


def fan_in_law(layout: ParameterLayout) -> dict[str, float]:
    """Return the standard deviation 1/√(length of the last axis) for each parameter."""
    return {name: shape[-1] ** -0.5 for name, shape in layout.shapes.items()}
