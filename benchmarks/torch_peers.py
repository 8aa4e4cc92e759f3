"""Contenders in torch: torchsde as its README shows it, a loop by hand, sdebias, and the limits of the machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchsde
import xarray as xr
from torch import Tensor

import sdebias as sb
from sdebias.dynamics.brownian import SequentialBrownian
from sdebias.dynamics.increments import INCREMENTS, draw
from sdebias.dynamics.walk import CHUNK_NUMBERS
from sdebias.ensemble.engine import Engine

from .timing import Contender
from .workloads import Workload

PLAIN = "torchsde"
NORMALS = "limit: the normals alone"
OWN_NORMALS = "sdebias, the normals alone"
PRODUCTS = "limit: the matrix products alone"
REST = "the rest: passes over memory, dispatch"


class PlainSDE(torch.nn.Module):
    """An SDE as the README of torchsde writes one."""

    sde_type = "ito"

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.noise_type = workload.noise_type
        self.workload = workload

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the drift."""
        return self.workload.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the diffusion."""
        return self.workload.diffusion(y)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def starts(workload: Workload, trajectories: int) -> Tensor:
    """Return θ(0) of all trajectories, contiguous."""
    return workload.start.repeat(trajectories, 1)


def solve(workload: Workload, trajectories: int, sequential: bool) -> Callable[[], Tensor]:
    """Return a call of `torchsde.sdeint`, with its own Brownian interval or with a sequential one."""
    sde, y0 = PlainSDE(workload), starts(workload, trajectories)
    ts = torch.tensor([0.0, float(workload.steps)], device=y0.device)
    channels = workload.channels

    def call() -> Tensor:
        bm = None
        if sequential:
            generator = torch.Generator(y0.device).manual_seed(torch.initial_seed())
            bm = SequentialBrownian((trajectories, channels), y0.dtype, generator)
        with torch.no_grad():
            states = torchsde.sdeint(sde, y0, ts, bm=bm, method="euler", dt=1.0)[-1]
        synchronize(y0.device)
        return states

    return call


def loop(workload: Workload, trajectories: int) -> Callable[[], Tensor]:
    """Return the loop that a user writes by hand: normals and the fused step, both in place."""
    y0 = starts(workload, trajectories)
    theta, normals = y0.clone(), y0.new_empty(trajectories, workload.channels)
    step = workload.stepper(theta)

    @torch.no_grad()
    def call() -> Tensor:
        theta.copy_(y0)
        for _ in range(workload.steps):
            step(theta, normals.normal_())
        synchronize(y0.device)
        return theta

    return call


def normals_alone(workload: Workload, trajectories: int) -> Callable[[], None]:
    """Return a call that draws the normals of a run and does nothing with them."""
    normals = torch.empty(trajectories, workload.channels, dtype=workload.dtype, device=workload.device)

    def call() -> None:
        for _ in range(workload.steps):
            normals.normal_()
        synchronize(normals.device)

    return call


def own_normals_alone(workload: Workload, trajectories: int) -> Callable[[], None]:
    """Return a call that draws the normals of a run as sdebias draws them, for some steps at once."""
    chunk = max(1, min(workload.steps, CHUNK_NUMBERS[workload.device.type] // (trajectories * workload.channels)))
    generator = Engine(workload.dynamics().bind(workload.problem())).generator(torch.device(workload.device))
    generator.manual_seed(0)

    def call() -> None:
        for first in range(0, workload.steps, chunk):
            count = min(chunk, workload.steps - first)
            draw("gaussian", count, (trajectories, workload.channels), generator)
        synchronize(workload.device)

    return call


def products_alone(workload: Workload, trajectories: int) -> Callable[[], None]:
    """Return a call that does the matrix products of a run."""
    product = workload.products(starts(workload, trajectories))
    assert product is not None

    @torch.no_grad()
    def call() -> None:
        for _ in range(workload.steps):
            product()
        synchronize(workload.device)

    return call


def sdebias(
    workload: Workload, trajectories: int, run: Mapping[str, Any] | None = None, **options: Any
) -> Callable[[], xr.Dataset]:
    """Return a call of `sdebias.simulate` that saves the start and the end.

    Parameters
    ----------
    workload : Workload
    trajectories : int
    run : mapping, optional
        Further arguments of `simulate`.
    **options
        Of the dynamics.
    """
    problem, dynamics = workload.problem(), workload.dynamics(**options)
    sizes = {"trajectories": trajectories, "steps": workload.steps, "save_every": workload.steps}
    arguments: dict[str, Any] = {**sizes, "save": ["theta"], "progress": False, **(run or {})}
    return lambda: sb.simulate(problem, dynamics, **arguments)


def last_states(ensemble: xr.Dataset) -> Any:
    """Return θ at the end of an ensemble."""
    return ensemble["theta"].isel(step=-1).to_numpy()


def contenders(workload: Workload, by_autograd: Workload | None = None) -> list[Contender]:
    """Return the contenders in torch.

    Parameters
    ----------
    workload : Workload
    by_autograd : Workload, optional
        The same with drift and diffusion by automatic differentiation, where the first has closed forms.
    """
    general = workload.noise_type != "diagonal"
    forms = "closed-form g" if workload.has_closed_form else "vmap(grad) g"
    forming = f"forming and reading the dense {forms}" if general else "Python calls in a tree of intervals"

    def entry(
        name: str,
        bound: str,
        build: Callable[..., Callable[[], Any]],
        states: Callable[[Any], Any] | None,
        trajectories: int = workload.trajectories,
        source: Workload = workload,
        **options: Any,
    ) -> Contender:
        call = functools.partial(build, source, trajectories, **options)
        return Contender(name, call, trajectories, workload.steps, bound, states)

    few = workload.dense_trajectories
    rows = [entry(PLAIN, forming, solve, same, few, sequential=False)]
    if by_autograd is not None:
        bound = "forming and reading the dense g"
        rows.append(entry(f"{PLAIN}, vmap(grad) g", bound, solve, same, few, by_autograd, sequential=False))
    if few == workload.trajectories:  # elsewhere the dense g takes all the time, and no draw is seen
        bound = forming if general else "passes over memory, Python calls"
        rows.append(entry(f"{PLAIN}, sequential bm", bound, solve, same, few, sequential=True))
    rows.append(entry("loop by hand, torch", REST, loop, same))
    plain, compiled = {"compile": False}, {"compile": True}
    rows.append(entry("sdebias, gaussian, not compiled", REST, sdebias, last_states, run=plain))
    rows += [
        entry(f"sdebias, {kind}", REST, sdebias, last_states, run=compiled, increments=kind) for kind in INCREMENTS
    ]
    for name, call in ((NORMALS, normals_alone), (OWN_NORMALS, own_normals_alone)):
        rows.append(entry(name, "random bits and their logarithms and cosines", call, None))
    if workload.products(starts(workload, 2)) is not None:
        rows.append(entry(PRODUCTS, "flops", products_alone, None))
    return rows


def same(states: Tensor) -> Tensor:
    """Return the states as they are."""
    return states
