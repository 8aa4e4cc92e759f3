"""W3: discrete SGD with B = 1 on the problem of W2: one network after the other against all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import sdebias as sb

from .jax_peers import packages
from .report import table
from .timing import Contender, as_states, compare, moments_about
from .torch_peers import last_states, same, starts, synchronize
from .workloads import Hadamard

TRAJECTORIES, STEPS, ONE_BY_ONE = 1_000, 500, 16
OPTIM, INDICES, ROWS = "torch.optim.SGD, one module", "limit: the indices alone", "limit: the indices and rows alone"
BASELINES = {"torch.optim": OPTIM, "indices": INDICES, "rows": ROWS}


class Network(torch.nn.Module):
    """x·(p∘q), as a user of torch writes it."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        p, q = start.clone().chunk(2)
        self.p, self.q = torch.nn.Parameter(p), torch.nn.Parameter(q)

    def forward(self, x: Tensor) -> Tensor:
        """Return x·(p∘q)."""
        return x @ (self.p * self.q)


def one_by_one(workload: Hadamard) -> Callable[[], Tensor]:
    """Return the loop of the tutorials: a module, a loss, an optimiser; one trajectory after the other."""

    def call() -> Tensor:
        ends = []
        for _ in range(ONE_BY_ONE):
            network = Network(workload.start)
            optimiser = torch.optim.SGD(network.parameters(), lr=workload.rate)
            for i in torch.randint(workload.size, (STEPS,)).tolist():
                optimiser.zero_grad()
                (0.5 * (network(workload.X[i]) - workload.y[i]) ** 2).backward()
                optimiser.step()
            ends.append(torch.cat([p.detach() for p in network.parameters()]))
        return torch.stack(ends)

    return call


def batched(workload: Hadamard, trajectories: int) -> Callable[[], Tensor]:
    """Return the loop by hand over all trajectories at once, in place, with indices drawn step by step."""
    y0 = starts(workload, trajectories)
    theta = y0.clone()
    p, q = theta.chunk(2, -1)

    @torch.no_grad()
    def call() -> Tensor:
        theta.copy_(y0)
        for _ in range(STEPS):
            i = torch.randint(workload.size, (trajectories,), device=theta.device)
            x = workload.X.index_select(0, i)
            residual = torch.linalg.vecdot(x, p * q).sub_(workload.y.index_select(0, i))
            slope = x.mul_(residual.unsqueeze(-1)).mul_(workload.rate)
            change = slope * q
            q.sub_(slope.mul_(p))
            p.sub_(change)
        synchronize(theta.device)
        return theta

    return call


def scan(workload: Hadamard) -> Callable[[], Any]:
    """Return `lax.scan` over steps with all trajectories batched by vmap, jitted."""
    jax, jnp = packages("jax", "jax.numpy")
    X, y = jnp.asarray(workload.X.cpu().numpy()), jnp.asarray(workload.y.cpu().numpy())
    start = jnp.tile(jnp.asarray(workload.start.cpu().numpy()), (TRAJECTORIES, 1))

    def loss(theta: Any, i: Any) -> Any:
        p, q = theta.reshape(2, -1)
        return 0.5 * (X[i] @ (p * q) - y[i]) ** 2

    @jax.jit
    def run(key: Any) -> Any:
        def step(theta: Any, key: Any) -> tuple[Any, None]:
            i = jax.random.randint(key, (TRAJECTORIES,), 0, workload.size)
            return theta - workload.rate * jax.vmap(jax.grad(loss))(theta, i), None

        return jax.lax.scan(step, start, jax.random.split(key, STEPS))[0]

    key = jax.random.key(3)
    return lambda: run(key).block_until_ready()


def simulate(workload: Hadamard) -> Callable[[], xr.Dataset]:
    """Return `sdebias.simulate` with SGD."""
    problem, sgd = workload.problem(), sb.SGD(learning_rate=workload.rate, batch_size=1)
    sizes = {"trajectories": TRAJECTORIES, "steps": STEPS, "save_every": STEPS}
    arguments: dict[str, Any] = {**sizes, "compile": True, "save": ["theta"], "progress": False}
    return lambda: sb.simulate(problem, sgd, **arguments)


def draws(workload: Hadamard, rows: bool) -> Callable[[], None]:
    """Return a call that draws the indices of a run, and reads their rows of X where wanted."""

    def call() -> None:
        for _ in range(STEPS):
            i = torch.randint(workload.size, (TRAJECTORIES,), device=workload.device)
            if rows:
                workload.X.index_select(0, i)
        synchronize(workload.device)

    return call


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the numbers of W3."""
    workload, exact = Hadamard(), Hadamard(dtype=torch.float64)
    reference = as_states(batched(exact, 4 * TRAJECTORIES)())
    moments = moments_about(reference.mean(0), lambda states: exact.loss(torch.as_tensor(states)).numpy())
    many = (TRAJECTORIES, STEPS)
    contenders = [
        Contender(OPTIM, lambda: one_by_one(workload), ONE_BY_ONE, STEPS, "Python, autograd and the optimiser", same),
        Contender("loop by hand, torch", lambda: batched(workload, TRAJECTORIES), *many, "operator calls", same),
        Contender("sdebias", lambda: simulate(workload), *many, "operator calls for each block", last_states),
        Contender("loop by hand, jax", lambda: scan(workload), *many, "drawing indices, gathering rows", np.asarray),
        Contender(INDICES, lambda: draws(workload, False), *many, "random bits", None),
        Contender(ROWS, lambda: draws(workload, True), *many, "random bits and memory", None),
    ]
    return {"rows": compare(contenders, moments, moments(reference))}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section of W3."""
    title = f"## {key}: discrete SGD, B = 1, on the problem of W2, {TRAJECTORIES:,} trajectories × {STEPS} updates"
    return f"{title}\n\n{table(data['rows'], BASELINES)}"
