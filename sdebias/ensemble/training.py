"""Record training loops that are not ours as the dataset that `simulate` would return."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from ..dataset import config_attributes, make_dataset
from ..errors import DataError, InputError, RunError, check_count, check_flag, message
from ..problems.base import Problem
from ..problems.module import refuse_random_layers
from ..schema import DIVERGENCE_THRESHOLD
from ..symmetry import Symmetry, check_invariance
from .observables import Function, choose_observables
from .record import Record

# Settings of torch.optim.SGD that make its update another one than θ − η(∇ + γθ).
PLAIN = {"momentum": 0, "nesterov": False, "maximize": False}


@dataclass(frozen=True)
class Batches:
    """How a training loop draws its samples.

    Parameters
    ----------
    batch_size : int
    replacement : bool
        Whether samples are drawn with replacement.
    epochs : bool
        Whether every sample comes once before any comes again.
    """

    batch_size: int
    replacement: bool = False
    epochs: bool = False

    @classmethod
    def of(cls, loader: DataLoader[Any], n_samples: int) -> Self:
        """Return what a `DataLoader` does.

        Raises
        ------
        InputError
            If its batches are not of one size and drawn at random from all of the data.
        """
        size, sampler, n = loader.batch_size, loader.sampler, len(loader.dataset)  # type: ignore[arg-type]
        whole = size == n
        if size is None or not (whole or isinstance(sampler, RandomSampler)):
            got = f"a loader with {type(sampler if size else loader.batch_sampler).__name__}"
            raise InputError(message("loader", "batches drawn at random", got, "use DataLoader(..., shuffle=True)"))
        if n != n_samples:
            want = f"the {n_samples} samples of the problem"
            raise InputError(message("loader", want, f"{n} samples", "load the data that the problem was made from"))
        replacement = isinstance(sampler, RandomSampler) and sampler.replacement
        if not loader.drop_last and len(sampler) % size:  # type: ignore[arg-type]
            got = f"{size} and a last one of {len(sampler) % size}"  # type: ignore[arg-type]
            raise InputError(message("loader", "batches of one size", got, "use DataLoader(..., drop_last=True)"))
        return cls(size, replacement, not replacement)


class TrainingRun:
    """What `record` keeps of one run of a training loop: θ at every `save_every`-th update, and η of each update.

    Made by `record`; a context manager that stops recording at its end. `dataset` labels it, `join_runs` several.

    Attributes
    ----------
    updates : int
        Calls of ``optimizer.step()`` so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        problem: Problem,
        symmetry: Symmetry | None,
        batches: Batches,
        save_every: int,
        save: Sequence[str | Function] | None,
    ) -> None:
        self.model, self.optimizer, self.problem, self.symmetry = model, optimizer, problem, symmetry
        self.batches, self.save_every = batches, save_every
        self.observables = choose_observables(problem, symmetry, save)
        self._parameters = _matched_parameters(model, optimizer, problem)
        self._settings = _settings(optimizer)
        self._states: list[Tensor] = []
        self._rates: list[float] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def updates(self) -> int:
        """Calls of ``optimizer.step()`` so far."""
        return len(self._rates)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *arguments: Any) -> None:
        if not self._states:
            refuse_random_layers(self.model)
            self._save()
        settings = _settings(self.optimizer)
        if settings != self._settings:
            got = f"{self._settings}, then {settings}"
            remedy = "record each phase of the training as a run of its own"
            raise InputError(message("optimizer", "settings that stay, except the learning rate", got, remedy))
        rates = {float(group["lr"]) for group in self.optimizer.param_groups}
        if len(rates) != 1:
            got = ", ".join(map(str, sorted(rates)))
            raise InputError(message("optimizer", "one learning rate for all parameters", got, "use one"))
        self._rates.append(rates.pop())

    def _after_step(self, *arguments: Any) -> None:
        if self.updates % self.save_every == 0:
            self._save()

    def _save(self) -> None:
        self._states.append(torch.cat([p.detach().reshape(-1) for p in self._parameters]).cpu())

    def dataset(self) -> xr.Dataset:
        """Return the run as an ensemble of one trajectory; see `join_runs`."""
        return join_runs([self])


def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    *,
    loader: DataLoader[Any] | None = None,
    batch_size: int | None = None,
    replacement: bool = False,
    epochs: bool = False,
    symmetry: Symmetry | None = None,
    save_every: int = 1,
    save: Sequence[str | Function] | None = None,
) -> TrainingRun:
    """Record a training loop of your own, from the calls of ``optimizer.step()``.

    θ is kept before the first update and after every `save_every`-th one, with the learning rate of each update;
    loss, charges and orbit volume are evaluated from θ when the dataset is made.

    Parameters
    ----------
    model : nn.Module
        The module that is trained.
    optimizer : torch.optim.Optimizer
        Learning rate, weight decay and the kind of the dynamics are read from it. Of optimisers that are not plain
        SGD, and of SGD with momentum, ensembles are made too, but no prediction.
    problem : Problem
        The losses that are trained on, for instance ``Problem.from_module(model, loss_fn, X, y)``. Its parameters are
        those of the module, by name; their gradients must be those of the loop, also in their normalisation.
    loader : DataLoader, optional
        Where the batches come from: it says how large they are and how they are drawn.
    batch_size, replacement, epochs
        The same for loops without `DataLoader`; see `SGD`.
    symmetry : Symmetry, optional
        Checked against the losses; adds charges and orbit volume.
    save_every : int
        Updates between saves.
    save : sequence of str or callable, optional
        Observables of the dataset; see `simulate`.

    Returns
    -------
    TrainingRun

    Raises
    ------
    InputError
        If module, optimiser, problem and loader do not belong together, or batches are not drawn at random.
    SymmetryError
        If the losses do not have the symmetry.

    Examples
    --------
    >>> import torch, sdebias as sb
    >>> X, y = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).double()
    >>> problem = sb.Problem.from_module(net, torch.nn.functional.mse_loss, X, y)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    >>> with sb.record(net, optimizer, problem, batch_size=20) as run:
    ...     for _ in range(2):
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.mse_loss(net(X), y).backward()
    ...         _ = optimizer.step()
    >>> run.dataset().sizes["step"]
    3
    """
    given: Any = optimizer
    if not isinstance(given, torch.optim.Optimizer):
        remedy = "pass the optimizer of your loop"
        raise InputError(message("optimizer", "a torch.optim.Optimizer", type(given).__name__, remedy))
    if problem.replicates is not None:
        got = f"one of {problem.replicates} replicates"
        raise InputError(message("problem", "one without replicates", got, "record one loop for each"))
    if (loader is None) == (batch_size is None):
        got = "neither" if loader is None else "both"
        raise InputError(message("batches", "a loader or a batch_size", got, "pass the DataLoader of your loop"))
    if loader is not None:
        batches = Batches.of(loader, problem.n_samples)
    else:
        batches = Batches(
            check_count("batch_size", batch_size), check_flag("replacement", replacement), check_flag("epochs", epochs)
        )
    if not batches.replacement and batches.batch_size > problem.n_samples:
        want = f"at most n = {problem.n_samples} without replacement"
        raise InputError(message("batch_size", want, batches.batch_size, "pass that of your loop"))
    if symmetry is not None:
        check_invariance(problem, symmetry)
        symmetry = symmetry.bind(problem, validate=False)
    return TrainingRun(model, optimizer, problem, symmetry, batches, check_count("save_every", save_every), save)


def join_runs(runs: Sequence[TrainingRun]) -> xr.Dataset:
    """Return recorded runs as one ensemble, each a trajectory.

    Parameters
    ----------
    runs : sequence of TrainingRun
        Of the same problem, symmetry, optimiser settings, learning rates and batches. They are cut to the shortest.

    Returns
    -------
    xr.Dataset
        Kind "ensemble", as `simulate` returns it. ``learning_rate`` has a dim `step` where it changes.

    Raises
    ------
    InputError
        If there are no runs, or they differ in what makes them one ensemble.
    RunError
        If a run has fewer updates than `save_every`.
    """
    if not runs:
        raise InputError(message("runs", "one or more", "none", "record a training loop"))
    first = runs[0]
    saves = min(len(run._states) for run in runs)
    if saves < 2:
        raise RunError(f"join_runs: a run has {min(run.updates for run in runs)} updates, fewer than save_every")
    updates = (saves - 1) * first.save_every
    for run in runs[1:]:
        for what, got, want in (
            ("problem", run.problem.layout.shapes, first.problem.layout.shapes),
            ("symmetry", repr(run.symmetry), repr(first.symmetry)),
            ("optimizer", run._settings, first._settings),
            ("batches", run.batches, first.batches),
            ("save_every", run.save_every, first.save_every),
            ("observables", list(run.observables), list(first.observables)),
            ("learning rates", run._rates[:updates], first._rates[:updates]),
        ):
            if got != want:
                remedy = "make one ensemble of runs that differ in seed only"
                raise DataError(message(f"{what} of the runs", "the same", "different ones", remedy))
    problem = first.problem
    kept = Record(first.observables, (), len(runs), saves)
    with torch.no_grad():
        for save in range(saves):
            states = torch.stack([run._states[save] for run in runs])
            kept.write(states[None].to(problem.device, problem.dtype), slice(None), 0, save)
    return _labelled(first, kept, updates)


def _labelled(run: TrainingRun, kept: Record, updates: int) -> xr.Dataset:
    steps = np.arange(0, updates + 1, run.save_every)
    coords: dict[str, Any] = {"trajectory": np.arange(len(kept.status)), "step": steps}
    coords |= {o.dims[0]: list(o.labels) for o in run.observables.values() if len(o.labels)}
    rates = run._rates[:updates]
    variables: dict[str, Any] = {**kept.variables(), "learning_rate": rates[0]}
    if len(set(rates)) > 1:
        # η of the update that follows a save; the last save is followed by an update only where the run was cut.
        following = [*rates, run._rates[updates] if run.updates > updates else rates[-1]]
        variables["learning_rate"] = xr.DataArray([following[k] for k in steps], dims="step")
        coords["time"] = ("step", np.array([0.0, *itertools.accumulate(rates)])[steps])
    dynamics: dict[str, str | int | float] = {
        **run._settings,
        "batch_size": run.batches.batch_size,
        "replacement": int(run.batches.replacement),
        "epochs": int(run.batches.epochs),
    }
    config: dict[str, Any] = {"problem": run.problem.spec(), "dynamics": dynamics}
    config["run"] = {"trajectories": len(kept.status), "steps": updates, "save_every": run.save_every}
    config["run"]["save"] = list(run.observables)
    if run.symmetry is not None:
        config["symmetry"] = run.symmetry.spec()
    attributes: dict[str, str | int | float] = {
        **dynamics,
        "recorded": "a training loop of the user's own",
        "dtype": str(run.problem.dtype).removeprefix("torch."),
        "device": str(run._parameters[0].device),
        "divergence_threshold": DIVERGENCE_THRESHOLD,
        **config_attributes(config),
    }
    data = {name: (dims, tensor.cpu().numpy()) for name, (dims, tensor) in run.problem.arrays().items()}
    return make_dataset("ensemble", variables, coords, attributes, data)


def _matched_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, problem: Problem) -> list[nn.Parameter]:
    """Return the parameters of the module in the order of the problem.

    Raises
    ------
    InputError
        If names or shapes differ, or the optimiser trains others.
    """
    named = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    shapes = {name: tuple(p.shape) for name, p in named.items() if name in problem.layout.shapes}
    if shapes != {name: tuple(shape) for name, shape in problem.layout.shapes.items()}:
        want, got = ", ".join(problem.layout.shapes), ", ".join(named) or type(model).__name__
        raise InputError(message("model", f"the parameters of the problem, {want}", got, "make both from one module"))
    parameters = [named[name] for name in problem.layout.shapes]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if trained != {id(p) for p in parameters}:
        names = [name for name, p in named.items() if id(p) in trained]
        got = ", ".join(names) or "parameters of another module"
        want = f"one that trains {', '.join(problem.layout.shapes)}"
        raise InputError(message("optimizer", want, got, "freeze the others before making the problem"))
    return parameters


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, str | float]:
    """Return the name of the dynamics, SGD where the update is θ − η(∇ + γθ), and γ.

    Raises
    ------
    InputError
        If parameters have different settings.
    """
    groups = [{k: v for k, v in group.items() if k in (*PLAIN, "weight_decay")} for group in optimizer.param_groups]
    if any(group != groups[0] for group in groups):
        raise InputError(message("optimizer", "the same settings for all parameters", groups, "use one group"))
    name = type(optimizer).__name__
    if name == "SGD":
        odd = [f"{key} {groups[0][key]:g}" for key, plain in PLAIN.items() if groups[0].get(key, plain) != plain]
        name += f" with {' and '.join(odd)}" if odd else ""
    decay = float(groups[0].get("weight_decay", 0.0))
    return {"dynamics": name, **({"weight_decay": decay} if decay else {})}
