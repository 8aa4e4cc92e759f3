"""Predicted strengths of a bias as differentiable functions of what one can tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError, check_choice, check_finite, check_flag, message, nearest
from ..prediction import stationary_law
from ..prediction.nodes import Nodes
from ..prediction.stationary import REFERENCES, VOLUMES, Measure, Noise, Section
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_charges, check_symmetry
from ..symmetry.gauge import quadratic_form


@dataclass(frozen=True)
class PenaltyExponent:
    """Coefficient a of the penalty a Σ_j log|w_j| that noise of temperature T adds to the loss of w = u_1∘…∘u_D.

    With e = (D−1)/D, ½ log det G on the balanced slice and ½ log det J_F J_Fᵀ are both e Σ_j log|w_j| up to a constant,
    so that a/T is e for each of the two that the law has: the first with a soft gauge, the second where the reference
    measure is dw (arXiv:2601.06597 for the slice; `log_stationary_density` for the laws). It is defined for real D.

    Parameters
    ----------
    noise : {"soft_gauge", "horizontal"}
    measure : {"predictor", "slice", "quotient"}

    Raises
    ------
    InputError
        If a choice is unknown.
    """

    noise: Noise = "soft_gauge"
    measure: Measure = "slice"

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice("noise", self.noise, [noise for noise in VOLUMES if noise != "isotropic"])
        check_choice("measure", self.measure, tuple(REFERENCES))

    def __call__(self, depth: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Return a, in units of the loss, for D >= 1 and T."""
        count = (self.noise == "soft_gauge") + (self.measure == "predictor")
        return temperature * count * (depth - 1) / depth


@dataclass(frozen=True, eq=False)
class OrbitDrift:
    """Predicted drift of a charge per update at a point: (η²/2)[s tr(Σ A_a) + ∇LᵀA_a∇L] for SGD, exact.

    s = 1/B, or (n−B)/(B(n−1)) without replacement; for the SDE of order 1 the second term is absent. The trace and the
    form are evaluated once.

    Parameters
    ----------
    problem : Problem
        Without replicates.
    symmetry : Symmetry
        With charges.
    theta : Tensor, shape=(parameter,)
    charge : str, optional
        One of its ``charge_labels``; without it, the Euclidean norm of the drifts of all.
    dynamics : {"SGD", "SGDSDE"}
    replacement : bool

    Raises
    ------
    InputError
        If the point does not fit or the charge is unknown.
    SymmetryError
        If the symmetry has no charges, or does not fit the problem.
    """

    problem: Problem
    symmetry: Symmetry
    theta: Tensor
    charge: str | None = None
    dynamics: str = "SGD"
    replacement: bool = True

    def __post_init__(self) -> None:
        """Check the choices, and evaluate what does not depend on the learning rate and the batch size."""
        check_choice("dynamics", self.dynamics, ("SGD", "SGDSDE"))
        check_flag("replacement", self.replacement)
        if self.problem.replicates is not None or self.theta.ndim != 1:
            got = f"theta {tuple(self.theta.shape)}, {self.problem.replicates or 'no'} replicates"
            raise InputError(message("OrbitDrift", "one point of one problem", got, "take one replicate and one row"))
        check_finite("theta", self.problem.check_theta(self.theta), InputError)
        symmetry = check_charges(check_symmetry(self.symmetry).bind(self.problem), "there is no drift")
        labels = symmetry.charge_labels
        if self.charge is not None and self.charge not in labels:
            remedy = nearest(self.charge, labels)
            raise InputError(message("charge", "a label of the symmetry", repr(self.charge), remedy))

    @cached_property
    def _terms(self) -> tuple[Tensor, Tensor]:
        """tr(Σ A_a) and ∇LᵀA_a∇L of the charges, in float64; the latter 0 for the SDE."""
        symmetry, theta = self.symmetry.bind(self.problem), self.theta.detach()[None]
        matrices = symmetry.charge_matrices(theta)
        trace = self.problem.gradient_noise_trace(theta, matrices)[0].detach().double()
        square = quadratic_form(matrices, self.problem.gradient(theta))[0].detach().double()
        first = 0 if self.charge is None else symmetry.charge_labels.index(self.charge)
        chosen = slice(first, None if self.charge is None else first + 1)
        return trace[chosen], square[chosen] * (self.dynamics == "SGD")

    def __call__(self, learning_rate: Tensor, batch_size: Tensor | float = 1.0) -> Tensor:
        """Return the drift per update."""
        trace, square = self._terms
        n = self.problem.n_samples
        share = 1 / batch_size if self.replacement else (n / batch_size - 1) / max(n - 1, 1)
        drift = learning_rate**2 / 2 * (share * trace + square)
        return drift.norm() if self.charge is None else drift[0]


@dataclass(frozen=True)
class StationaryMean:
    """Stationary mean of a function of the predictors, E f(s) under `stationary_law` at temperature T.

    The law is normalised anew at each T; its derivative is that of the reweighting e^{−L(1/T' − 1/T)} at T' = T, which
    gives dE f/dT = Cov(f, L)/T².

    Parameters
    ----------
    statistic : callable
        Coordinates (point, coordinate) to values (point,).
    problem, symmetry, section, nodes, noise, measure, log_jacobian
        As `stationary_law` takes them.
    """

    statistic: Callable[[Tensor], Tensor]
    problem: Problem
    symmetry: Symmetry
    section: Section
    nodes: Nodes
    noise: Noise
    measure: Measure = "predictor"
    log_jacobian: Callable[[Tensor], Tensor] | None = None

    def __call__(self, temperature: Tensor) -> Tensor:
        """Return E f."""
        law = stationary_law(
            self.problem,
            self.symmetry,
            self.section,
            self.nodes,
            noise=self.noise,
            temperature=float(temperature.detach()),
            measure=self.measure,
            log_jacobian=self.log_jacobian,
        )
        points = self.nodes.nodes()[0].to(self.problem.device, self.problem.dtype)
        with torch.no_grad():
            losses = self.problem.loss(self.section(points)).cpu()
            values = self.statistic(points).cpu()
        probability = torch.as_tensor(law["probability"].values)
        change = -(losses - losses.min()) * (1 / temperature - 1 / temperature.detach())
        weights = probability * change.exp()
        return (weights * values).sum() / weights.sum()
