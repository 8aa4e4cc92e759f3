"""Trace of a noise covariance against the matrices of the charges: the Itô term of the orbit drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import DataError, check_choice, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.gauge import Matrices, matrix_traces, quadratic_form

# Columns of a root of the covariance are formed in pieces of this many numbers (128 MiB in float64).
CHUNK_ELEMENTS = 2**24
NAMES = ("minibatch", "label", "isotropic", "diagonal", "gaussian")
Covariance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NoiseTrace:
    """tr(N A_a) for the covariance N of a noise at unit strength.

    N is Σ = Cov_i ∇ℓ_i for minibatch noise, its diagonal for diagonal noise, s² mean_i ∇f_i∇f_iᵀ for label noise of
    standard deviation s, I for isotropic noise, the given one for Gaussian noise; P_H N P_H for a horizontal one.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    horizontal : bool
    label_std : float
    label_target : str
        Name of the data that label noise acts on.
    covariance : callable, optional
        θ of shape (..., parameter) to N of shape (..., parameter, parameter), of Gaussian noise.

    Raises
    ------
    DataError
        If the noise is Gaussian and no covariance is given.
    """

    name: str
    horizontal: bool = False
    label_std: float = 0.0
    label_target: str = "y"
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        """Check that the covariance is there."""
        if self.name == "gaussian" and self.covariance is None:
            remedy = "pass covariance=... as given to the noise"
            raise DataError(message("covariance", "that of the Gaussian noise", "none", remedy))

    @classmethod
    def of(cls, attributes: Mapping[str, Any], covariance: Covariance | None = None) -> Self:
        """Return the noise that flat attributes name, see `flat_attributes`.

        Raises
        ------
        DataError
            If they name an unknown one, or the covariance of Gaussian noise is missing.
        """
        return cls(
            check_choice("attribute noise", str(attributes["noise"]), NAMES, DataError),
            bool(attributes.get("horizontal", 0)),
            float(attributes.get("label_std", 0.0)),
            str(attributes.get("label_target", "y")),
            covariance,
        )

    @property
    def symbol(self) -> str:
        """The trace as written in an equation."""
        name = {
            "minibatch": "Sigma",
            "label": "s^2 mean_i grad f_i grad f_i^T",
            "isotropic": "",
            "diagonal": "diag(Sigma)",
            "gaussian": "Sigma",
        }[self.name]
        return f"tr({' '.join(part for part in (name, 'P_H' if self.horizontal else '', 'A_a') if part)})"

    def __call__(self, problem: Problem, symmetry: Symmetry, theta: Tensor, matrices: Matrices) -> Tensor:
        """Return tr(N A_a), shape (..., charge).

        Parameters
        ----------
        problem : Problem
        symmetry : Symmetry
            Bound.
        theta : Tensor, shape=([replicate,] point, parameter)
        matrices : Tensor or QuadraticForms
        """
        if self.name == "minibatch":
            # Gradients of invariant losses are horizontal: the projection changes nothing.
            return problem.gradient_noise_trace(theta, matrices)
        if self.horizontal or self.name in ("label", "gaussian"):
            return self._from_columns(problem, symmetry, theta, matrices)
        eye = torch.eye(theta.shape[-1], dtype=theta.dtype, device=theta.device)
        if self.name == "diagonal":
            return problem.gradient_variance(theta) @ quadratic_form(matrices, eye)
        traces = matrix_traces(matrices)
        return traces.expand(*theta.shape[:-1], len(traces))

    def _from_columns(self, problem: Problem, symmetry: Symmetry, theta: Tensor, matrices: Matrices) -> Tensor:
        """Return Σ_k r_kᵀ A_a r_k over the columns r_k of a root of N, projected where the noise is."""
        width = max(problem.n_samples if self.name == "label" else 1, theta.shape[-1])
        size = max(1, CHUNK_ELEMENTS // (width * theta[..., :1, :].numel()))
        parts = []
        for points in theta.split(size, dim=-2):
            columns = self.columns(problem, symmetry, points)
            parts.append(quadratic_form(matrices, columns).sum(-2))
        return torch.cat(parts, dim=-2)

    def columns(self, problem: Problem, symmetry: Symmetry, theta: Tensor) -> Tensor:
        """Return a root of N by columns, shape (..., column, parameter)."""
        columns = self._columns(problem, theta)
        # Gradients of invariant losses are horizontal as they are.
        if not self.horizontal or self.name == "minibatch":
            return columns
        return symmetry.horizontal_projection(columns, theta.unsqueeze(-2).expand(columns.shape))

    def _columns(self, problem: Problem, theta: Tensor) -> Tensor:
        if self.name == "minibatch":
            gradients = problem.per_sample_gradient(theta)
            return (gradients - gradients.mean(-2, keepdim=True)) / math.sqrt(problem.n_samples)
        if self.name == "label":
            return self._label_columns(problem, theta)
        if self.name == "diagonal":
            return torch.diag_embed(problem.gradient_variance(theta).sqrt())
        if self.name == "gaussian" and self.covariance is not None:
            values, vectors = torch.linalg.eigh(self.covariance(theta))
            return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)).mT
        eye = torch.eye(theta.shape[-1], dtype=theta.dtype, device=theta.device)
        return eye.expand(*theta.shape[:-1], *eye.shape)

    def _label_columns(self, problem: Problem, theta: Tensor) -> Tensor:
        """Return s ∇f_io/√n: a unit more on one entry o of every target takes ∂f_io from each ∇ℓ_i."""
        if self.label_target not in problem.data:
            got = f"data {', '.join(problem.data)}"
            raise DataError(message("label noise", f"targets {self.label_target!r}", got, "pass the simulated problem"))
        dims, tensor = problem.data[self.label_target]
        shape = tensor.shape[dims.index("sample") + 1 :]
        units = torch.eye(math.prod(shape), dtype=theta.dtype, device=theta.device).reshape(-1, *shape)
        here, targets = problem.per_sample_gradient(theta), problem.samples[self.label_target]
        shifted = [problem.at({self.label_target: targets + unit}).per_sample_gradient(theta) for unit in units]
        columns = torch.cat([here - there for there in shifted], dim=-2)
        return columns * (self.label_std / math.sqrt(problem.n_samples))


def flat_attributes(dynamics: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``dynamics.spec()`` with noise that is plain data spread into flat entries, as datasets hold it."""
    found = dict(dynamics)
    if isinstance(noise := found.get("noise"), Mapping) and noise["noise"] == "horizontal":
        found |= {"horizontal": 1, "noise": noise["base"]}
    if isinstance(noise := found.get("noise"), Mapping):
        names: dict[str, str] = {"std": "label_std", "target": "label_target"}
        found |= {names.get(str(key), str(key)): value for key, value in noise.items()}
    return found
