"""Read an existing module: its continuous symmetries, and the bias that noise derives from them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from ..errors import InputError, check_finite, message
from ..problems.base import Problem
from ..symmetry import DiscoveredSymmetry, discover
from ..symmetry.discovery import DENSE_LIMIT
from ..symmetry.gauge import matrix_traces
from .bias import bias_of, bound_part, where
from .parts import Part, by_tensors, take_apart, touched_names
from .probes import fresh_samples, hidden_directions, measure, outside_span
from .report import CHARGE_COLUMNS, COLUMNS, Explanation, none_row
from .view import SearchView

# Fresh samples: twice as many equations as there can be directions, and a number that shows what a domain refuses.
PROBES_PER_PARAMETER, PROBES = 2, 64
# Singular values below this share of the largest count as zero.
RANK_TOLERANCE = 1e-10


class SampleWarning(UserWarning):
    """A sample is too small, or lies in too few directions, to tell what holds for all data."""


def explain(
    module: nn.Module | Problem,
    sample: Any = None,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    theta: Tensor | None = None,
    ansatz: Literal["auto", "dense", "structured"] = "auto",
    seed: int = 0,
) -> Explanation:
    """Find the continuous symmetries of a module and report, for each, the bias that noise derives from it.

    The affine fields Aθ + b that leave every per-sample loss unchanged are found from gradients at random points
    (`symmetry.discover`, each bias joined to its weight matrix) and taken apart by measurement on their Lie algebra:
    translations, shears (b ← b − W s), rescalings and scalings, gl(r), rotations, others. A closed form of the orbit
    volume is named where the fields are measured to have it; the numbers are always those of the fields.

    Three checks guard the answer. Fresh samples in general position tell what the architecture has from what only the
    given samples have. The rank of per-sample gradients at a generic point counts all directions that the losses cannot
    see: those that no affine field explains appear in a row "unresolved" and are not silently missed. Finite group
    elements are tried on random points (`symmetry.check_invariance`).

    Parameters
    ----------
    module : nn.Module or Problem
        Of up to 512 parameters. Take a small instance of a large architecture: its symmetries are of the same kinds.
    sample : array or (X, y), optional
        Inputs alone, for the symmetries of the outputs, or with the targets of `loss_fn`. None for a `Problem`.
    loss_fn : callable
        As `Problem.from_module` takes it.
    theta : Tensor, shape=(parameter,), optional
        The point at which volumes and drifts are given; by default the parameters of the module, or a draw from the
        initial law of the problem (of its first replicate).
    ansatz : {"auto", "dense", "structured"}
        See `symmetry.discover`.
    seed : int
        Of random points and fresh samples.

    Returns
    -------
    Explanation

    Raises
    ------
    InputError
        If the module or the sample is unfit, see `ModuleProblem`, or too large; if the point has another size or is not
        finite.
    SymmetryError
        If symmetries cannot be told from near-symmetries.

    Warns
    -----
    SampleWarning
        If the given samples leave more unchanged than fresh ones do, or fresh ones cannot be evaluated.
    """
    problem = _as_problem(module, sample, loss_fn, seed).to(dtype=torch.float64)
    point = _point(problem, theta, seed)
    view = SearchView(problem)
    count = max(PROBES, PROBES_PER_PARAMETER * problem.layout.size)
    probes = SearchView(fresh_samples(problem, count, seed + 1))
    given = _discover(view, ansatz, seed)
    excitation = measure(view, probes, given, seed + 2)
    general = given
    if excitation.broken is None:
        _warn("fresh samples around the given ones have gradients that are not finite: what holds on all data is open")
        probes = view
    elif bool(excitation.broken.any()):
        general = _discover(probes, ansatz, seed)
        more = f"{given.orbit_dimension} directions unchanged, fresh samples {general.orbit_dimension}"
        _warn(f"the {view.n_samples} given samples leave {more}: give more samples, or inputs in more directions")

    symmetry = dataclasses.replace(general, fields=view.declared_fields(general.fields), parameters=problem.layout)
    symmetry = symmetry.bind(problem)
    rows: list[dict[str, object]] = []
    charges: list[pd.DataFrame] = []
    members: list[set[str]] = []
    if not symmetry.dim:
        rows.append(none_row())
        members.append(set())
    for part in take_apart(symmetry.fields, problem.layout):
        table = _charges(part, problem, symmetry, point, len(rows))
        rows.append(_row(part, problem, point, table))
        charges.append(table)
        members.append(set(touched_names(part.fields, problem.layout)))
    for fields in by_tensors(
        outside_span(view.declared_fields(given.fields), symmetry.fields), problem.layout
    ).values():
        rows.append(_sample_row(fields, problem, point))
        members.append(set(touched_names(fields, problem.layout)))
    if unresolved := problem.layout.size - excitation.probe - general.orbit_dimension:
        hidden = hidden_directions(view, general, excitation)
        rows.append(_unresolved_row(unresolved, hidden))
        members.append({name for joined in hidden for name in view.joined[joined]})
    return Explanation(
        table=pd.DataFrame(rows, columns=list(COLUMNS)),
        charges=pd.concat(charges) if charges else pd.DataFrame(columns=list(CHARGE_COLUMNS)),
        layers=_layers(problem, members),
        symmetry=symmetry,
        theta=point,
        log_orbit_volume=float(symmetry.log_orbit_volume(point)) if symmetry.dim else 0.0,
        predictor_volume=_predictor_volume(problem, point),
        samples=view.n_samples,
        seen=excitation.sample,
        identifiable=excitation.probe,
    )


def _warn(text: str) -> None:
    warnings.warn(f"explain: {text}", SampleWarning, stacklevel=3)


def _discover(view: SearchView, ansatz: Literal["auto", "dense", "structured"], seed: int) -> DiscoveredSymmetry:
    """Return the affine fields of the search that moves more: with stacks of matrices as one tensor each, or apart."""
    found = discover(view, ansatz=ansatz, seed=seed)
    dense = ansatz == "dense" or (ansatz == "auto" and view.layout.size <= DENSE_LIMIT)
    if dense or all(len(shape) < 3 for shape in view.layout.shapes.values()):
        return found
    apart = discover(SearchView(view.problem, split=True), ansatz=ansatz, seed=seed)
    return apart if apart.orbit_dimension > found.orbit_dimension else found


def _as_problem(
    module: nn.Module | Problem, sample: Any, loss_fn: Callable[[Tensor, Tensor], Tensor], seed: int
) -> Problem:
    if isinstance(module, Problem):
        if sample is not None:
            raise InputError(message("sample", "none, since a Problem has its own", "one", "leave it out"))
        return module
    if sample is None:
        raise InputError(message("sample", "inputs X or a pair (X, y)", "none", "give data that the module takes"))
    if isinstance(sample, tuple | list) and len(sample) == 2:
        return Problem.from_module(module, loss_fn, *sample)
    inputs = torch.as_tensor(sample)
    if not isinstance(module, nn.Module):
        raise InputError(message("module", "an nn.Module or a Problem", type(module).__name__, "wrap it in one"))
    try:
        with torch.no_grad():
            outputs = module(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(message("sample", "inputs that the module takes", reason, "give X or (X, y)")) from None
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    return Problem.from_module(module, loss_fn, inputs, targets)


def _point(problem: Problem, theta: Tensor | None, seed: int) -> Tensor:
    """Return the point at which numbers are given, shape (parameter,)."""
    if theta is None:
        drawn = problem.draw_initial(1, torch.Generator(problem.device).manual_seed(seed))
        return drawn.reshape(-1, problem.layout.size)[0]
    if theta.ndim != 1:
        raise InputError(message("theta", "one point, shape (parameter,)", tuple(theta.shape), "take one row"))
    point = problem.layout.check(theta).detach().to(problem.device, problem.dtype)
    return check_finite("theta", point, InputError)


def _batched(problem: Problem, theta: Tensor) -> Tensor:
    """Return one point as the problem takes it, with the axes of trajectory and replicate."""
    return theta[None] if problem.replicates is None else theta[None, None]


def _charges(part: Part, problem: Problem, symmetry: DiscoveredSymmetry, theta: Tensor, row: int) -> pd.DataFrame:
    """Return the charges of a part and the rates at which three noises move them."""
    own = bound_part(part, problem.layout)
    matrices = own.charge_matrices(theta)
    noise = problem.gradient_noise_trace(_batched(problem, theta), matrices).flatten(0, -2)[0]
    _, sizes, directions = torch.linalg.svd(symmetry.fundamental_vector_fields(theta), full_matrices=False)
    vertical = directions[sizes > RANK_TOLERANCE * sizes[:1]]
    full = matrices if matrices.ndim == 3 else matrices.diag_embed()
    along = torch.einsum("vi,aij,vj->a", vertical, full, vertical)
    traces = matrix_traces(matrices)
    values = {"value": own.charge(theta), "minibatch": noise, "isotropic": traces, "horizontal": traces - along}
    columns = {"row": row, **{name: tensor.detach().cpu().numpy() for name, tensor in values.items()}}
    return pd.DataFrame(columns, index=pd.Index(own.charge_labels, name="charge"), columns=list(CHARGE_COLUMNS))


def _row(part: Part, problem: Problem, theta: Tensor, charges: pd.DataFrame) -> dict[str, object]:
    bias = bias_of(part, problem.layout, theta)
    generic = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "symmetry": part.name,
        "parameters": where(part.fields, problem.layout),
        "origin": "architecture",
        "dimension": int(bound_part(part, problem.layout).rank(generic)),
        "charge": bias.charge,
        "isotropic_penalty": bias.isotropic,
        "horizontal_penalty": bias.horizontal,
        "log_orbit_volume": bias.volume,
        "isotropic_value": bias.isotropic_value,
        "charge_norm": float((charges["value"] ** 2).sum() ** 0.5),
        "noise_drift": float((charges["minibatch"] ** 2).sum() ** 0.5),
    }


def _sample_row(fields: Tensor, problem: Problem, theta: Tensor) -> dict[str, object]:
    own = bound_part(Part("algebra", "", fields), problem.layout)
    return {
        "symmetry": f"{len(fields)} field{'s' * (len(fields) > 1)}",
        "parameters": where(fields, problem.layout),
        "origin": "sample",
        "dimension": int(own.rank(theta)),
        "charge": "",
        "isotropic_penalty": "these samples leave it unchanged, fresh ones do not: too few, or in too few directions",
        "horizontal_penalty": "",
        "log_orbit_volume": float(own.log_orbit_volume(theta)),
        "isotropic_value": math.nan,
        "charge_norm": math.nan,
        "noise_drift": math.nan,
    }


def _unresolved_row(count: int, hidden: dict[str, int]) -> dict[str, object]:
    names = ", ".join(f"{name} ({number})" for name, number in hidden.items()) or "several together"
    text = (
        "no prediction: at a generic point no gradient sees these directions, but no affine field of the search "
        "explains them; a nonlinear symmetry, as of weights that are fed a sum known to be 0, or orbits cut with the "
        "spheres of a weight decay"
    )
    numbers = dict.fromkeys(("log_orbit_volume", "isotropic_value", "charge_norm", "noise_drift"), math.nan)
    words = {"symmetry": "not affine", "parameters": names, "origin": "unresolved", "charge": ""}
    return {**words, "dimension": count, "isotropic_penalty": text, "horizontal_penalty": "", **numbers}


def _layers(problem: Problem, members: list[set[str]]) -> pd.DataFrame:
    names = list(problem.layout.shapes)
    rows = [", ".join(str(i) for i, moved in enumerate(members) if name in moved) or "none" for name in names]
    shapes = [problem.layout.shape(name) for name in names]
    return pd.DataFrame({"shape": shapes, "rows": rows}, index=pd.Index(names, name="parameter"))


def _predictor_volume(problem: Problem, theta: Tensor) -> float:
    """Return ½ log pdet J_F J_Fᵀ at the point."""

    def predict(point: Tensor) -> Tensor:
        coordinates = problem.predictor(_batched(problem, point))
        return coordinates.reshape(-1, coordinates.shape[-1])[0]

    sizes = torch.linalg.svdvals(torch.func.jacrev(predict)(theta))
    return float(sizes[sizes > RANK_TOLERANCE * sizes[0]].log().sum())
