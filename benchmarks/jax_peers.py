"""Contenders in jax: diffrax as its documentation recommends for fast fixed steps, and a scan written by hand.

Imported only when they are built: jax must see the flags that `machine.pin` sets. The models state the loss of one
sample; everything else is jax.grad, jitted and batched by vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .timing import Contender, NotInstalledError
from .workloads import Factorisation, Hadamard, ReLU, Toy, Workload

DIFFRAX = "diffrax"


def packages(*names: str) -> tuple[Any, ...]:
    """Return imported modules.

    Raises
    ------
    NotInstalledError
        If one is absent.
    """
    import importlib

    try:
        return tuple(importlib.import_module(name) for name in names)
    except ImportError as error:
        raise NotInstalledError(f"{error.name or names[0]} is not installed") from None


class Model:
    """A workload in jax: θ(0), ∇L, ∇ of a weighted loss, and per-sample gradients, of one trajectory.

    Parameters
    ----------
    workload : Workload
        Its numbers, copied from torch.
    """

    def __init__(self, workload: Workload) -> None:
        jax, jnp = packages("jax", "jax.numpy")
        if workload.device.type == "cuda" and jax.default_backend() != "gpu":
            raise NotInstalledError("jax has no CUDA device")
        self.workload = workload
        self.start = jnp.asarray(workload.start.cpu().numpy())
        self.rate, self.channels = workload.rate, workload.channels
        self.samples: tuple[Any, ...] = ()
        if isinstance(workload, Toy):
            return
        self.samples = tuple(jnp.asarray(part.cpu().numpy()) for part in workload.samples)  # type: ignore[attr-defined]
        losses: dict[type[Workload], Callable[..., Any]] = {
            Hadamard: self._hadamard,
            Factorisation: self._factorisation,
            ReLU: self._relu,
        }
        self.losses = next(loss for kind, loss in losses.items() if isinstance(workload, kind))
        self.weighted_gradient = jax.grad(lambda theta, weights: weights @ self.losses(theta, *self.samples))

    def _hadamard(self, theta: Any, X: Any, y: Any) -> Any:
        p, q = theta.reshape(2, -1)
        return 0.5 * (X @ (p * q) - y) ** 2

    def _factorisation(self, theta: Any, row: Any, column: Any, value: Any) -> Any:
        assert isinstance(self.workload, Factorisation)
        left, right = theta.reshape(2, self.workload.side, self.workload.rank)
        return 0.5 * ((left @ right.T)[row, column] - value) ** 2

    def _relu(self, theta: Any, X: Any, y: Any) -> Any:
        (jax,) = packages("jax")
        assert isinstance(self.workload, ReLU)
        shapes, parts, first = self.workload.shapes, [], 0
        for shape in shapes:
            parts.append(theta[first : first + math.prod(shape)].reshape(shape))
            first += math.prod(shape)
        W, b, v, c = parts
        return ((jax.nn.relu(X @ W.T + b) @ v.T + c - y) ** 2)[..., 0]

    def weights(self, increments: Any) -> Any:
        """Return −(1/√n)(ξ_i − ξ̄)η, the weights of the noise."""
        centred = increments - increments.mean(-1, keepdims=True)
        return -self.rate / math.sqrt(self.channels) * centred

    def drift(self, theta: Any) -> Any:
        """Return −η∇L."""
        (jnp,) = packages("jax.numpy")
        if isinstance(self.workload, Toy):
            return -self.rate * (theta[0] * theta[1] - 1) * theta[::-1]
        return -self.rate * self.weighted_gradient(theta, jnp.full(self.channels, 1 / self.channels))

    def dense(self, theta: Any) -> Any:
        """Return g, dense."""
        jax, jnp = packages("jax", "jax.numpy")
        if isinstance(self.workload, Hadamard):
            (X, y), (p, q) = self.samples, theta.reshape(2, -1)
            slopes = (X @ (p * q) - y) * X.T
            slopes = (self.rate / math.sqrt(self.channels)) * (slopes - slopes.mean(1, keepdims=True))
            return jnp.concatenate([slopes * q[:, None], slopes * p[:, None]])
        single = jax.grad(lambda point, *sample: self.losses(point, *(part[None] for part in sample))[0])
        gradients = jax.vmap(single, (None, *(0 for _ in self.samples)))(theta, *self.samples)
        return (self.rate / math.sqrt(self.channels)) * (gradients - gradients.mean(0)).T

    def step(self, theta: Any, normals: Any) -> Any:
        """Return θ after one fused step of one trajectory."""
        if isinstance(self.workload, Toy):
            return theta + self.drift(theta) + self.workload.scale * normals
        return theta - self.weighted_gradient(theta, self.rate / self.channels - self.weights(normals))


def scan(workload: Workload, trajectories: int) -> Callable[[], Any]:
    """Return the loop that a user of jax writes: `lax.scan` over steps, all trajectories batched, jitted."""
    jax, jnp = packages("jax", "jax.numpy")
    model, toy = Model(workload), isinstance(workload, Toy)
    start = jnp.tile(model.start, (trajectories, 1))

    @jax.jit
    def run(key: Any) -> Any:
        def batched(theta: Any, key: Any) -> tuple[Any, None]:
            if toy:  # structure of arrays: twice as fast as an axis of length 2 at the end
                normals = jax.random.normal(key, (model.channels, trajectories))
                return model.step(theta, normals), None
            normals = jax.random.normal(key, (trajectories, model.channels))
            return jax.vmap(model.step)(theta, normals), None

        theta, _ = jax.lax.scan(batched, start.T if toy else start, jax.random.split(key, workload.steps))
        return theta.T if toy else theta

    key = jax.random.key(1)
    return lambda: run(key).block_until_ready()


def diffrax_solve(workload: Workload, trajectories: int, operator: bool) -> Callable[[], Any]:
    """Return a jitted, vmapped `diffeqsolve` with Euler and `UnsafeBrownianPath`.

    Parameters
    ----------
    workload : Workload
    trajectories : int
    operator : bool
        Whether g is a linear operator that multiplies without being formed, or a dense matrix.
    """
    jax, jnp, diffrax, lineax = packages("jax", "jax.numpy", "diffrax", "lineax")
    model = Model(workload)

    def diffusion(t: Any, y: Any, args: Any) -> Any:
        if isinstance(workload, Toy):
            return lineax.DiagonalLinearOperator(jnp.full(2, workload.scale))
        if not operator:
            return model.dense(y)
        return lineax.FunctionLinearOperator(
            lambda v: -model.weighted_gradient(y, model.weights(v)), jax.ShapeDtypeStruct((model.channels,), y.dtype)
        )

    @jax.jit
    def run(keys: Any) -> Any:
        def one(key: Any) -> Any:
            path = diffrax.UnsafeBrownianPath(shape=(model.channels,), key=key)
            terms = diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, y, args: model.drift(y)), diffrax.ControlTerm(diffusion, path)
            )
            return diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                t0=0.0,
                t1=float(workload.steps),
                dt0=1.0,
                y0=model.start,
                saveat=diffrax.SaveAt(t1=True),
                adjoint=diffrax.DirectAdjoint(),
                max_steps=workload.steps,
            ).ys[0]

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(2), trajectories)
    return lambda: run(keys).block_until_ready()


def contenders(workload: Workload) -> list[Contender]:
    """Return the contenders in jax."""
    many, few, steps = workload.trajectories, workload.dense_trajectories, workload.steps

    def solve(trajectories: int, operator: bool) -> Callable[[], Callable[[], Any]]:
        return lambda: diffrax_solve(workload, trajectories, operator)

    keys = "a key for each trajectory and step"
    by_hand = Contender(
        "loop by hand, jax", lambda: scan(workload, many), many, steps, "drawing normals and the step", np.asarray
    )
    if workload.noise_type == "diagonal":
        return [Contender(DIFFRAX, solve(many, False), many, steps, keys, np.asarray), by_hand]
    operator = f"two gradients, one for drift and one for noise; {keys}"
    return [
        Contender(DIFFRAX, solve(few, False), few, steps, "forming and reading the dense g", np.asarray),
        Contender(f"{DIFFRAX}, g as operator", solve(many, True), many, steps, operator, np.asarray),
        by_hand,
    ]
