"""What is kept of the states of an ensemble: observables by name, and the user's own functions of θ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, check_choice, message
from ..imports import import_path
from ..problems.base import Problem
from ..schema import COORDINATES, PATH, SCHEMA
from ..symmetry import Symmetry

OBSERVABLES = ("theta", "loss", "charge_value", "log_orbit_volume", "predictor_value")
ALIASES = {"charge": "charge_value", "predictor": "predictor_value"}

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Observable:
    """A function of θ, from (..., parameter) to (..., *shape), with what a dataset says about it.

    Attributes
    ----------
    name : str
    function : callable
    dims : tuple of str
        Names of the axes that it adds.
    shape : tuple of int
        Their lengths.
    attributes : dict of str to str
        Of its variable.
    labels : sequence of str
        Of its axis, where it has one that is labelled.
    """

    name: str
    function: Function
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, str]
    labels: Sequence[str] = ()

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the values at θ."""
        return self.function(theta)

    @property
    def source(self) -> str:
        """How a configuration names it: by its name, or a function of the user's as ``module:function``."""
        return self.name if self.name in OBSERVABLES else import_path(self.function)


def canonical(name: str) -> str:
    """Return the name of the variable that a name or its short form stands for."""
    return ALIASES.get(name, name)


def choose_observables(
    problem: Problem,
    symmetry: Symmetry | None,
    save: Sequence[str | Function] | None = None,
    theta: bool = True,
) -> dict[str, Observable]:
    """Return the observables that are wanted, by name.

    Parameters
    ----------
    problem : Problem
    symmetry : Symmetry, optional
        Bound; without it there are no charges and no orbit volumes.
    save : sequence of str or callable, optional
        Names of `OBSERVABLES`, or short forms ``charge`` and ``predictor``; or functions of θ, from (..., parameter) to
        (..., *trailing), which are named by their ``__name__`` and tried on a few points. By default all names that the
        call can give.
    theta : bool
        Whether they then include the parameters.

    Raises
    ------
    InputError
        If a name is unknown or needs a symmetry that is not there, or a function has no name of its own, fails, or does
        not treat each trajectory by itself.
    """
    functions: dict[str, Function] = {
        "theta": lambda theta: theta,
        "loss": problem.loss,
        "predictor_value": problem.predictor,
    }
    if symmetry is not None:
        functions["log_orbit_volume"] = symmetry.log_orbit_volume
        if symmetry.charge_labels:
            functions["charge_value"] = symmetry.charge
    labels = {
        "theta": problem.layout.labels,
        "predictor_value": problem.predictor_labels,
        "charge_value": symmetry.charge_labels if symmetry else (),
    }
    point = problem.draw_initial(1, torch.Generator(problem.device).manual_seed(0))
    chosen: dict[str, Observable] = {}
    default = [name for name in OBSERVABLES if name in functions and (theta or name != "theta")]
    if isinstance(save, str) or not isinstance(save, Sequence | None):
        raise InputError(message("save", "a list of observables", repr(save), "write it in brackets"))
    for entry in default if save is None else save:
        if callable(entry):
            found = _of_user(problem, entry)
            if found.name in chosen:
                raise InputError(message("save", "one function of each name", f"two {found.name!r}", "rename one"))
            chosen[found.name] = found
            continue
        name = check_choice("save", canonical(str(entry)), OBSERVABLES)
        if name not in functions:
            got, remedy = "none that has it", "pass symmetry, or leave it out of save"
            raise InputError(message(f"save: {name}", "a symmetry", got, remedy))
        row = SCHEMA[name]
        shape = tuple(functions[name](point).shape[point.ndim - 1 :])
        dims = row.dims[len(PATH) :]
        chosen[name] = Observable(name, functions[name], dims, shape, row.attributes, labels.get(name, ()))
    return chosen


def _of_user(problem: Problem, function: Function) -> Observable:
    """Return a function of the user's as an observable, after trying it."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        got, remedy = name or type(function).__name__, "write it as def name(theta): ..."
        raise InputError(message("save", "a function with a name of its own", got, remedy))
    arrays = problem.arrays()
    taken = {*SCHEMA, *COORDINATES, *ALIASES, *arrays, *(dim for dims, _ in arrays.values() for dim in dims)}
    if name in taken:
        raise InputError(
            message("save", "a function whose name is free", repr(name), "rename it; datasets use that name")
        )

    def refuse(got: str, remedy: str) -> InputError:
        want = "a real tensor of shape (..., *trailing) from theta of shape (..., parameter)"
        return InputError(message(f"save: {name}", want, got, remedy))

    generator = torch.Generator(problem.device).manual_seed(0)
    # As in a run: states at several steps, ([replicate,] trajectory, parameter) each, all different.
    start = torch.stack([problem.draw_initial(3, generator) for _ in range(2)])
    start = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=start.dtype, device=start.device)
    try:
        with torch.no_grad():
            values, alone = function(start), function(start[1:, ..., 1:2, :])
    except Exception as error:  # whatever a function of the user's raises
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise refuse(got, "index parameters on the last axis, as theta[..., 0]") from error
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise refuse(got, "convert with .to(theta.dtype)")
    lead = start.shape[:-1]
    if values.shape[: len(lead)] != lead or 0 in values.shape:
        got = f"shape {tuple(values.shape)} from {tuple(start.shape)}"
        raise refuse(got, "work on the last axis, for instance theta.sum(-1)")
    each = values.narrow(0, 1, 1).narrow(len(lead) - 1, 1, 1)
    if not torch.allclose(each, alone, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise refuse("values that depend on other trajectories", "work on the last axis only, without randomness")
    shape = tuple(values.shape[len(lead) :])
    about = (inspect.getdoc(function) or "").partition("\n")[0] or f"{name}, a function of the parameters"
    return Observable(name, function, tuple(f"{name}_axis{i}" for i in range(len(shape))), shape, {"long_name": about})
