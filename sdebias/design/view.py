"""A problem as the search for its symmetries wants to see it."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ..layout import ParameterLayout
from ..problems.base import Problem


class SearchView:
    """Per-sample losses of a problem, with each weight matrix and its bias joined to one matrix [W b].

    A matrix on the axis of the inputs of [W b] then contains b ← b − W s, which undoes a shift s of what the layer is
    fed: a field that couples two tensors and that no matrix on an axis of one of them can hold. Replicates are pooled:
    their samples are samples of one problem.

    Parameters
    ----------
    problem : Problem
    split : bool
        Whether tensors of three axes or more, such as one matrix for each head, are taken as a tensor for each entry of
        the first axis, each with matrices of its own; entries keep their order.
    """

    replicates: int | None = None

    def __init__(self, problem: Problem, *, split: bool = False) -> None:
        self.problem, self.split, self.dtype, self.device = problem, split, problem.dtype, problem.device
        self.n_samples = problem.n_samples * (problem.replicates or 1)
        self.layout, self.places, self.joined = joined_layout(problem.layout, split)
        self.places = self.places.to(problem.device)

    def to(self, *, dtype: torch.dtype) -> Self:
        """Return the view of the problem in another dtype."""
        return self if dtype == self.dtype else type(self)(self.problem.to(dtype=dtype), split=self.split)

    def declared(self, theta: Tensor) -> Tensor:
        """Return a point of the view in the order of the problem, shape (..., parameter)."""
        return theta[..., self.places.argsort()]

    def declared_fields(self, fields: Tensor) -> Tensor:
        """Return homogeneous matrices (field, d + 1, d + 1) of the view in the order of the problem."""
        back = torch.cat([self.places.argsort().cpu(), torch.tensor([self.layout.size])])
        return fields[:, back][:, :, back]

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_i(θ), shape (point, sample), for θ of shape (point, parameter)."""
        theta = self.declared(theta)
        if self.problem.replicates is None:
            return self.problem.per_sample_loss(theta)
        return self.problem.per_sample_loss(theta[None]).movedim(0, 1).flatten(1, 2)

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i(θ), shape (point, sample, parameter), for θ of shape (point, parameter)."""
        return pooled_gradient(self.problem, self.declared(theta))[..., self.places]


def pooled_gradient(problem: Problem, theta: Tensor) -> Tensor:
    """Return ∇ℓ_i(θ) for the samples of all replicates, shape (point, sample, parameter), θ (point, parameter)."""
    if problem.replicates is None:
        return problem.per_sample_gradient(theta)
    return problem.per_sample_gradient(theta[None]).movedim(0, 1).flatten(1, 2)


def joined_layout(layout: ParameterLayout, split: bool) -> tuple[ParameterLayout, Tensor, dict[str, list[str]]]:
    """Return the layout in which ``….weight`` of two axes and ``….bias`` are one tensor, and where its entries were.

    Parameters
    ----------
    layout : ParameterLayout
    split : bool
        Whether tensors of more axes are one tensor for each entry of the first.

    Returns
    -------
    ParameterLayout
    Tensor, shape=(parameter,)
        Places in the old layout of the entries in the order of the new one.
    dict of str to list of str
        The old names of each new tensor.
    """
    pairs = {name: _bias_of(name) for name, shape in layout.shapes.items() if len(shape) == 2}
    pairs = {w: b for w, b in pairs.items() if b != w and layout.shapes.get(b) == layout.shapes[w][:1]}
    shapes, places, names = {}, [], {}
    for name, shape in layout.shapes.items():
        if name in pairs.values():
            continue
        at = torch.arange(layout.size)[layout.slices[name]].reshape(shape)
        if name in pairs:
            bias = torch.arange(layout.size)[layout.slices[pairs[name]]]
            at = torch.cat([at, bias[:, None]], dim=1)
        stack = split and at.ndim > 2
        for key, part in {f"{name}[{i}]": part for i, part in enumerate(at)}.items() if stack else ((name, at),):
            shapes[key], names[key] = tuple(part.shape), [name, *([pairs[name]] if name in pairs else [])]
            places.append(part.flatten())
    return ParameterLayout(shapes), torch.cat(places), names


def _bias_of(name: str) -> str:
    """Return the name of the bias that belongs to a weight: ``0.weight`` to ``0.bias``, ``in_proj_weight`` alike."""
    return f"{name[: -len('weight')]}bias" if name.endswith("weight") else name
