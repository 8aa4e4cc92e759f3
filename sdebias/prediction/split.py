"""Split of the dynamics at given states: along orbits, across them, and the second-order term of both.

Nothing here knows how the states were made: the dynamics are read from the attributes of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset, validate
from ..errors import DataError, check_choice, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.action import forward_derivative
from ..symmetry.checks import check_symmetry
from ..symmetry.gauge import quadratic_form
from .drift_laws import Potential, sampling_share
from .noise_traces import Covariance, NoiseTrace, flat_attributes
from .states import check_states, map_states, path_dims

# States are evaluated in pieces whose increments take at most this many numbers (128 MiB in float64).
CHUNK_ELEMENTS = 2**24
COMPONENTS = ("vertical", "horizontal", "ito_vertical", "ito_horizontal")
EQUATION = "dF/dk = grad F . b + 1/2 tr(D Hess F)"


def split_dynamics(
    ensemble: xr.Dataset, problem: Problem, symmetry: Symmetry, *, covariance: Covariance | None = None
) -> xr.Dataset:
    """Split the dynamics of an ensemble at each of its stored states.

    See `split_states` for what is computed. Of a lazy ensemble (dask arrays, in chunks of whole trajectories) the split
    is lazy too; see `map_states`.

    Parameters
    ----------
    ensemble : xr.Dataset
        With `theta`, from `simulate` or of the same schema; may be lazy.
    problem : Problem
    symmetry : Symmetry
    covariance : callable, optional
        That of the noise, where it was `noise.gaussian`: a file does not keep it.

    Returns
    -------
    xr.Dataset
        Kind "split", see `sdebias.schema.SCHEMA`; NaN where the states are not finite. The attribute ``unit`` is the
        time in updates during which a rate is held: 1 for SGD, the step of Euler's method, 0 for other solvers.

    Raises
    ------
    DataError
        If the dataset has no `theta` at three or more steps, does not fit the problem, or does not name its dynamics,
        or the covariance of Gaussian noise is missing.
    InputError
        If `symmetry` is None or none.
    SymmetryError
        If it does not fit the problem.
    """
    validate(ensemble, "ensemble")
    symmetry = check_symmetry(symmetry)
    check_states(ensemble, problem)
    dynamics = _specification(ensemble)
    if "step" in ensemble["learning_rate"].dims:
        dynamics["learning_rate"] = ensemble["learning_rate"].values[:, None]
    # Refused here, and not when something lazy is computed.
    _noise_of(dynamics, covariance)
    charges = symmetry.bind(problem).charge_labels
    names = _part_names(bool(charges), _solver_step(dynamics))
    coords: dict[str, Any] = {
        name: ensemble[name].values for name in ("replicate", "trajectory", "step") if name in ensemble.coords
    }
    predictors = problem.predictor_labels
    coords |= {"component": list(COMPONENTS), "parameter": problem.layout.labels}
    coords |= {"predictor": predictors, "other_predictor": predictors}
    if charges:
        coords["charge"] = charges
    sizes = {name: len(coords[name]) for name in set(coords) - set(ensemble["theta"].dims)}
    variables = map_states(
        partial(_split_block, problem, symmetry, dynamics, covariance, names),
        ensemble,
        {name: path_dims(name) for name in names},
        sizes,
        str(problem.dtype).removeprefix("torch."),
    )
    attributes = {
        "dynamics": str(dynamics["type"]),
        "equation": EQUATION,
        "unit": 1.0 if dynamics["type"] == "SGD" else _solver_step(dynamics),
        **({"config_hash": ensemble.attrs["config_hash"]} if "config_hash" in ensemble.attrs else {}),
    }
    return make_dataset("split", variables, coords, attributes)


def split_states(
    theta: Tensor,
    problem: Problem,
    symmetry: Symmetry,
    dynamics: Mapping[str, Any],
    *,
    covariance: Covariance | None = None,
) -> dict[str, Tensor]:
    """Split the dynamics at given states.

    With b the drift of θ per update and D = E[Δθ Δθᵀ] of one update (SGD) or D = g gᵀ (SDE), a function F changes by

        E dF = ∇F·b + ½ tr(D ∇²F)

    per update: Itô's formula for an SDE; for SGD the expansion to second order, exact for quadratic F such as charges.
    Projecting b alone misses the second term, which is a field of its own: the four components of `drift_component` are

    - vertical, horizontal: P_V b and P_H b;
    - ito_vertical: X G⁺ c with c_a = ½ Σ_v ⟨v, (D X_a) v⟩ over the columns v of D = Σ v vᵀ, the second-order term of
      the orbit directions (½ tr(D A_a) where X_a = A_a θ = ∇C_a);
    - ito_horizontal: J⁺ ½ tr(D ∇²F), the horizontal lift of the second-order term of q = F(θ), J = ∂F/∂θ.

    Their sum u is the drift as orbits and predictors see it: ⟨∇C_a, u⟩ is the rate of C_a and J u that of q (as far as
    the curvature of the set of predictors leaves it in the range of J; `quotient_drift` is exact). Under minibatch
    noise at order 1, P_V b = 0: all motion along orbits is ito_vertical (arXiv:2601.06597).

    Parameters
    ----------
    theta : Tensor, shape=([replicate,] point, parameter)
    problem : Problem
        Where dynamics draw fresh samples from a stream, gradients and Σ are those of the problem's own pool.
    symmetry : Symmetry
    dynamics : mapping
        As ``dynamics.spec()`` gives it: type, learning_rate, batch_size, and replacement (SGD) or noise, order and,
        with isotropic noise, temperature (SGDSDE); maybe weight_decay and gauge_stiffness; method and substeps if the
        solver's finite step is wanted. In place of a schedule, learning_rate is a column (point, 1).
    covariance : callable, optional
        θ of shape (..., parameter) to that of Gaussian noise, (..., parameter, parameter).

    Returns
    -------
    dict of str to Tensor
        ``drift_component`` (..., component, parameter), ``charge_rate`` (..., component, charge), ``charge_diffusion``
        (..., charge), ``quotient_drift`` (..., component, predictor), ``quotient_diffusion`` (..., predictor,
        predictor); all per update. Diffusions are ∇C g gᵀ ∇Cᵀ and J g gᵀ Jᵀ (with the covariance of Δθ for SGD). For
        an SDE that Euler's method solves, ``charge_finite_step`` and ``quotient_finite_step`` are what its step dt adds
        to the rates, (dt/2) bᵀ∇²F b: they belong to the solver and not to the SDE. Those of charges are absent if the
        symmetry has none.

    Raises
    ------
    DataError
        If the dynamics are incomplete or unknown, or the covariance of Gaussian noise is missing.
    InputError
        If `theta` does not fit the problem, or `symmetry` is None or none.
    SymmetryError
        If the symmetry does not fit the problem.
    """
    problem.check_theta(theta)
    dynamics = flat_attributes(dynamics)
    trace = _noise_of(dynamics, covariance)
    # States that have diverged are data here: they give NaN in their own rows.
    symmetry = check_symmetry(symmetry).bind(problem, validate=False)
    per_point = (max(problem.n_samples, problem.layout.size) + 1) * theta[..., :1, :].numel()
    size, rate = max(1, CHUNK_ELEMENTS // per_point), np.asarray(dynamics["learning_rate"])
    pieces = []
    for first in range(0, theta.shape[-2], size):
        here = slice(first, first + size)
        rates = {"learning_rate": rate[here] if rate.ndim == 2 else rate}
        pieces.append(_split(theta[..., here, :], problem, symmetry, {**dynamics, **rates}, trace))
    axis = theta.ndim - 2
    return {name: torch.cat([piece[name] for piece in pieces], dim=axis) for name in pieces[0]}


def _split_block(
    problem: Problem,
    symmetry: Symmetry,
    dynamics: Mapping[str, Any],
    covariance: Covariance | None,
    names: Sequence[str],
    theta: np.ndarray,
    first: int,
) -> tuple[np.ndarray, ...]:
    """Split the dynamics at the states of a block, see `map_states`."""
    states = torch.tensor(theta, device=problem.device, dtype=problem.dtype)
    trajectories, steps = states.shape[-3:-1]
    if np.ndim(dynamics["learning_rate"]) == 2:
        # A schedule: the rate of each state, on the axis that trajectories and steps share.
        dynamics = {**dynamics, "learning_rate": np.tile(dynamics["learning_rate"], (trajectories, 1))}
    parts = split_states(states.flatten(-3, -2), problem, symmetry, dynamics, covariance=covariance)
    lead = states.ndim - 3
    return tuple(parts[name].unflatten(lead, (trajectories, steps)).cpu().numpy() for name in names)


def _part_names(charges: bool, solver_step: float) -> list[str]:
    """Return the names of what `split_states` returns."""
    kinds = {"quotient": ["drift", "diffusion"], **({"charge": ["rate", "diffusion"]} if charges else {})}
    more = ["finite_step"] if solver_step else []
    return ["drift_component", *(f"{kind}_{part}" for kind, parts in kinds.items() for part in (*parts, *more))]


class _Increment(NamedTuple):
    """First two moments of the change of θ per update.

    Attributes
    ----------
    drift : Tensor, shape=(..., parameter)
    noise : Tensor, shape=(column, ..., parameter)
        Columns of a square root of its covariance.
    square : Tensor, shape=(column, ..., parameter)
        Columns of a square root of D.
    """

    drift: Tensor
    noise: Tensor
    square: Tensor


def _split(
    theta: Tensor, problem: Problem, symmetry: Symmetry, dynamics: Mapping[str, Any], trace: NoiseTrace
) -> dict[str, Tensor]:
    drift, noise, square = _increment(theta, problem, symmetry, dynamics, trace)
    # Forward mode wants its own memory.
    points = theta.expand(square.shape).contiguous()

    def turning(point: Tensor) -> Tensor:
        return symmetry.infinitesimal_action_adjoint(square, point)

    def along(point: Tensor) -> Tensor:
        return forward_derivative(problem.predictor, point, square)

    vertical = symmetry.vertical_projection(drift, theta)
    turned = forward_derivative(turning, points, square).sum(0) / 2
    curved = forward_derivative(along, points, square).sum(0) / 2
    ito_vertical = symmetry.infinitesimal_action(symmetry.solve_gram(turned, theta), theta)
    ito_horizontal = symmetry.horizontal_lift(curved, theta, problem.predictor)
    moved = forward_derivative(problem.predictor, theta, drift)
    spread = forward_derivative(problem.predictor, points[: len(noise)], noise)
    parts = {
        "drift_component": torch.stack([vertical, drift - vertical, ito_vertical, ito_horizontal], dim=-2),
        # The predictors do not change along orbits, nor do charges across them.
        "quotient_drift": _rows(horizontal=moved, ito_horizontal=curved),
        "quotient_diffusion": torch.einsum("k...i,k...j->...ij", spread, spread),
    }
    half_step = _solver_step(dynamics) / 2
    if half_step:
        bent = forward_derivative(lambda p: forward_derivative(problem.predictor, p, drift), theta, drift)
        parts["quotient_finite_step"] = half_step * bent
    if symmetry.charge_labels:
        matrices = symmetry.charge_matrices(theta)
        first = forward_derivative(symmetry.charge, theta, drift)
        second = quadratic_form(matrices, square).sum(0) / 2
        parts["charge_rate"] = _rows(vertical=first, ito_vertical=second)
        parts["charge_diffusion"] = forward_derivative(symmetry.charge, points[: len(noise)], noise).square().sum(0)
        if half_step:
            parts["charge_finite_step"] = half_step * quadratic_form(matrices, drift)
    return parts


def _rows(**components: Tensor) -> Tensor:
    """Return components stacked before the last axis, zero where none is given."""
    zero = torch.zeros_like(next(iter(components.values())))
    return torch.stack([components.get(name, zero) for name in COMPONENTS], dim=-2)


def _increment(
    theta: Tensor, problem: Problem, symmetry: Symmetry, dynamics: Mapping[str, Any], trace: NoiseTrace
) -> _Increment:
    """Return the first two moments of the change of θ per update that the dynamics make."""
    rate, size, n = _scale(dynamics["learning_rate"], theta), int(dynamics["batch_size"]), problem.n_samples
    sgd = dynamics["type"] == "SGD"
    potential = Potential(*(float(dynamics.get(key) or 0.0) for key in ("weight_decay", "gauge_stiffness")))
    gradient = problem.gradient(theta) + potential.force(symmetry, theta)
    drift = -rate * gradient
    if not sgd and int(dynamics["order"]) == 2:
        curved = problem.hessian_vector_product(theta, gradient) + potential.curvature(symmetry, theta, gradient)
        drift = drift - rate**2 / 2 * curved
    columns = trace.columns(problem, symmetry, theta)
    if columns.shape[-2] > theta.shape[-1]:
        # Rᵀ R is the same covariance in fewer columns, and what is orthogonal to all of them stays so to rounding.
        columns = torch.linalg.qr(columns, mode="r").R
    if trace.name == "isotropic":
        strength = (2 * rate * _scale(dynamics["temperature"], theta)) ** 0.5
    else:
        strength = rate * sampling_share(size, n, bool(dynamics.get("replacement", True))) ** 0.5
    noise = strength * columns.movedim(-2, 0)
    # One update of SGD is a jump: its mean step has a square too.
    return _Increment(drift, noise, torch.cat([noise, drift.unsqueeze(0)]) if sgd else noise)


def _noise_of(dynamics: Mapping[str, Any], covariance: Covariance | None) -> NoiseTrace:
    """Return the noise of flat dynamics; raise DataError unless they are known and have what they need."""
    name = check_choice("dynamics type", str(dynamics.get("type")), ("SGD", "SGDSDE"), DataError)
    needed = ["replacement"] if name == "SGD" else ["noise", "order"]
    needed += ["temperature"] if dynamics.get("noise") == "isotropic" else []
    for key in ("learning_rate", "batch_size", *needed):
        if key not in dynamics:
            remedy = "record the dynamics as simulate does, or pass dynamics.spec()"
            raise DataError(message("dynamics", f"an entry {key!r}", "none", remedy))
    return NoiseTrace("minibatch") if name == "SGD" else NoiseTrace.of(dynamics, covariance)


def _solver_step(dynamics: Mapping[str, Any]) -> float:
    """Return the step of Euler's method in updates; 0 for SGD and for solvers without its error."""
    return 1 / int(dynamics["substeps"]) if dynamics.get("method") == "euler" else 0.0


def _specification(ensemble: xr.Dataset) -> dict[str, Any]:
    """Return what the attributes and scalars of a dataset say of its dynamics, as `Dynamics.spec` would."""
    names = ["batch_size", "replacement", "noise", "horizontal", "label_std", "label_target", "order", "method"]
    names += ["substeps", "weight_decay", "gauge_stiffness"]
    known = {name: ensemble.attrs[name] for name in names if name in ensemble.attrs}
    known |= {name: ensemble[name].values for name in ("learning_rate", "temperature") if name in ensemble}
    return {"type": ensemble.attrs.get("dynamics", "unknown"), **known}


def _scale(value: Any, theta: Tensor) -> Tensor:
    """Return η or T as a tensor, (), (point, 1) or (replicate, 1, 1), that broadcasts against θ."""
    tensor = torch.as_tensor(np.asarray(value)).to(theta.device, theta.dtype)
    return tensor[:, None, None] if tensor.ndim == 1 else tensor
