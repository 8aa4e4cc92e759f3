"""The SDE that models SGD, as an object that `torchsde.sdeint` solves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import torchsde
from torch import Tensor

from ..errors import InputError, check_choice, check_count, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from . import increments
from .base import Dynamics
from .brownian import SequentialBrownian
from .noise import NOISES, Noise, as_noise
from .schedule import Schedule
from .solvers import METHODS, check_method
from .walk import CHUNK, Draws, Rate

# Name of the Brownian increments among the draws; the arrays of a stream have the names of the problem's data.
INCREMENT = "increment"
# Words of random bits, and windows of them, that are drawn at once at most; and normals.
WORDS_AHEAD, WINDOWS_AHEAD = 2**16, 5
NORMALS_AHEAD = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDSDE(Dynamics):
    """dθ = −η ∇(L + V) dk + g dW_k in iteration time k (Itô); V is weight decay and gauge potential.

    With minibatch noise g gᵀ = (η²/B) Σ(θ), Σ = Cov_i ∇ℓ_i, exactly: g dW = (η/√(nB)) Σ_i ∇ℓ_i (dW_i − dW̄). Other noise
    is in `sdebias.noise`. At order 2, U = L + V is replaced by U + (η/4)‖∇U‖² (Li, Tai, E 2017). A scheduled learning
    rate is η(t) at every time, also between updates.

    Bound to a problem it is a torchsde SDE over rows (trajectory, parameter), replicates flattened into the rows:
    ``torchsde.sdeint(sde.bind(problem), theta, ts, dt=1 / substeps)``, with `ts` in updates, has the same law as
    `simulate`.

    Of a problem with a stream, `integrate` takes drift and noise of each solver step and trajectory from a fresh pool
    of as many samples as the problem's own data have, see `Stream`; the plain torchsde object has those data for ever.

    Parameters
    ----------
    learning_rate, batch_size, weight_decay, gauge_stiffness
        See `Dynamics`; the batch size is that of minibatch, label, diagonal and Gaussian noise.
    noise : Noise, str or mapping
        An object of `sdebias.noise`, the name of one without parameters, ``"isotropic"`` with `temperature`, or the
        plain data of one.
    temperature : float or sequence of float, optional
        T > 0, with ``noise="isotropic"`` only.
    order : {1, 2}
        Order of the modified equation in η.
    substeps : int
        A power of two: solver steps per update, dt = 1/substeps exactly. The finite step adds
        (η²/2) ∇LᵀA∇L / substeps to the drift of a charge: at one substep that is as large as the effect itself.
    method : str
        torchsde solver that is valid for the form and the noise: euler; srk and milstein for isotropic noise; midpoint,
        heun, euler_heun, reversible_heun, log_ode (and milstein) for the Stratonovich form.
    sde_type : {"ito", "stratonovich"}
        Form in which the SDE is solved. The Stratonovich form has the drift less ½ Σ_k (∂g_k) g_k, which costs the
        derivative of every column of g, and is the same process.
    increments : {"gaussian", "rademacher", "three-point"}
        Law of the Brownian increments of a step. Expectations of smooth functions of θ need only its first moments:
        ±1 (a random bit) has those of a normal up to the third and keeps the weak order 1 of euler; the values 0, ±√3
        up to the fifth, which weak order 2 asks for. Paths, tails and strong orders need "gaussian", and so do methods
        that draw areas.
    engine : {"fused", "torchsde"}
        Who solves method "euler": a loop that takes drift and noise from one gradient, or `torchsde.sdeint`. With the
        same increments the two agree up to rounding. Every other method is torchsde's.

    Raises
    ------
    InputError
        If a value is out of range, or a method does not solve this form; the message lists those that do.
    """

    noise: Noise | str | Mapping[str, Any] = "minibatch"
    temperature: float | Sequence[float] | None = None
    order: Literal[1, 2] = 1
    substeps: int = 8
    method: str = "euler"
    sde_type: Literal["ito", "stratonovich"] = "ito"
    increments: Literal["gaussian", "rademacher", "three-point"] = "gaussian"
    engine: Literal["fused", "torchsde"] = "fused"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.order not in (1, 2):
            raise InputError(message("order", "1 or 2", repr(self.order), "set order to one of them"))
        check_count("substeps", self.substeps)
        if self.substeps & (self.substeps - 1):
            remedy = "then dt = 1/substeps is exact in binary"
            raise InputError(message("substeps", "a power of two", self.substeps, remedy))
        if isinstance(self.noise, str):
            check_choice("noise", self.noise, list(NOISES))
        if (self.temperature is None) == (self.noise == "isotropic"):
            want = "a temperature > 0 with isotropic noise and none with minibatch noise"
            raise InputError(message("temperature", want, repr(self.temperature), f"noise is {self.noise!r}"))
        super().__post_init__()
        if isinstance(self.noise, Mapping):
            object.__setattr__(self, "noise", as_noise(self.noise))
        model = self.noise_model
        check_method(self.method, self.sde_type, "additive" if model.constant else "general")
        if self.sde_type == "stratonovich" and not model.differentiable:
            want = "a noise whose g can be differentiated, for the stratonovich form"
            raise InputError(message("noise", want, repr(model), "use euler in the ito form"))
        check_choice("engine", self.engine, ["fused", "torchsde"])
        check_choice("increments", self.increments, list(increments.INCREMENTS))
        if self.increments != "gaussian" and METHODS[self.method].levy_area != "none":
            want = f"'gaussian' with {self.method}, which draws areas of the Brownian motion"
            raise InputError(message("increments", want, repr(self.increments), "use it, or another method"))

    @property
    def per_replicate(self) -> tuple[str, ...]:
        """Parameters that may differ by replicate."""
        return (*super().per_replicate, *(() if self.temperature is None else ("temperature",)))

    @functools.cached_property
    def noise_model(self) -> Noise:
        """The noise as an object."""
        return as_noise(self.noise, **({} if self.temperature is None else {"temperature": self.temperature}))

    def variables(self) -> dict[str, Any]:
        """Return the parameters that may differ by replicate or by step; see `Dynamics.variables`."""
        temperature = self.noise_model.temperature
        return {**super().variables(), **({} if temperature is None else {"temperature": temperature})}

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know; see `Dynamics.attributes`."""
        return {**super().attributes(), **self.noise_model.attributes()}

    def times(self, schedule: Schedule, steps: Sequence[int]) -> np.ndarray:
        """Return ∫_0^k η at each of `steps`."""
        return schedule.integrals(steps)

    def bind(self, problem: Problem, symmetry: Symmetry | None = None) -> Self:
        """Return these dynamics tied to `problem`, and to `symmetry` where they use one.

        Raises
        ------
        InputError
            If the noise does not fit the problem or needs a symmetry that is missing, if a stream shall be solved by
            another method than euler, or see `Dynamics.bind`.
        """
        if problem.stream is not None and not self.stepwise:
            want = "method 'euler' and engine 'fused' for a stream, whose samples change with each solver step"
            raise InputError(message("dynamics", want, f"{self.method!r} and {self.engine!r}", "use those"))
        bound = super().bind(problem, symmetry)
        if self.noise_model.needs_symmetry:
            _ = bound.bound_symmetry
        self.noise_model.channels(problem)
        return bound

    # -- the torchsde contract -------------------------------------------------------------------------------------

    @property
    def noise_type(self) -> str:
        """The name that torchsde has for the shape of g."""
        return self.noise_model.noise_type

    @property
    def noise_channels(self) -> int:
        """Dimension of the Brownian motion."""
        return self.noise_model.channels(self.bound_problem)

    def _points(self, rows: Tensor) -> Tensor:
        """View torchsde's rows (row, x) as ([replicate,] trajectory, x)."""
        replicates = self.bound_problem.replicates
        return rows if replicates is None else rows.reshape(replicates, -1, rows.shape[-1])

    def drift(self, rate: Rate, theta: Tensor) -> Tensor:
        """Return the drift of the Itô form, −η ∇U, with −(η²/2) ∇²U ∇U at order 2."""
        gradient = self.with_potential(theta, self.bound_problem.gradient(theta))
        drift = -rate * gradient
        if self.order == 2:
            curved = self.bound_problem.hessian_vector_product(theta, gradient)
            drift = drift - 0.5 * rate**2 * (curved + self._potential_curvature(theta, gradient))
        return drift

    def _potential_curvature(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²V v."""
        if self.weight_decay is None and self.gauge_stiffness is None:
            return torch.zeros_like(theta)
        with torch.enable_grad():
            point = theta.detach().requires_grad_(True)
            force = self.with_potential(point, torch.zeros_like(point))
            return torch.autograd.grad((force * vector.detach()).sum(), point)[0]

    def f(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Return the drift of the form `sde_type`, shape (row, parameter)."""
        rate, theta = self.rate(t), self._points(y)
        drift = self.drift(rate, theta)
        if self.sde_type == "stratonovich":
            drift = drift - self.noise_model.ito_correction(self, rate, theta)
        return drift.reshape(y.shape)

    def g(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Return the diffusion, dense.

        Shape (row, parameter, channel), which is large, for general noise; (row, parameter) for diagonal noise.
        """
        g = self.noise_model.dense(self, self.rate(t), self._points(y))
        return g.reshape(*y.shape, *g.shape[y.ndim + (self.bound_problem.replicates is not None) :])

    def g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> Tensor:
        """Return g v, shape (row, parameter); the matrix g is not formed."""
        product = self.noise_model.product(self, self.rate(t), self._points(y), self._points(v))
        return product.reshape(y.shape)

    def f_and_g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift and g v."""
        return self.f(t, y), self.g_prod(t, y, v)

    # -- the solve -------------------------------------------------------------------------------------------------

    @property
    def stepwise(self) -> bool:
        """Whether the solve is a loop over `advance`, or torchsde's own."""
        return self.engine == "fused" and self.method == "euler"

    def window(self, chunk: int) -> int:
        """Return the number of solver steps for which increments are drawn at once: of bits, the chunks of one word."""
        if self.increments == "gaussian" or self.bound_problem.stream is not None:
            return chunk
        return max(increments.WORD_STEPS[self.increments] // chunk, 1) * chunk

    def piece(self, draws: Draws, first: int, count: int) -> Draws:
        """Return the increments of `count` steps of a window; see `Dynamics.piece`."""
        return {name: increments.piece(self.increments, drawn, first, count) for name, drawn in draws.items()}

    def windows_ahead(self, window: int, lead: tuple[int, ...]) -> int:
        """Return how many windows are drawn at once: several where they are few numbers, for which calls take longest.

        Of normals, two, if they are short: a walk draws for its last steps and those after it, and normals are dear.
        """
        if self.bound_problem.stream is not None:
            return 1
        numbers = increments.rows(self.increments, window) * math.prod(lead) * self.noise_channels
        if self.increments == "gaussian":
            return 2 if 2 * window <= CHUNK and 2 * numbers <= NORMALS_AHEAD else 1
        return min(max(WORDS_AHEAD // numbers, 1), WINDOWS_AHEAD)

    def as_compiled(self) -> Self:
        """Return the dynamics with normals: compiled steps turn bits to increments where they are used."""
        return self if self.increments == "gaussian" else dataclasses.replace(self, increments="gaussian")

    def draw(self, steps: int, lead: tuple[int, ...], generator: torch.Generator) -> Draws:
        """Draw increments, and the fresh pools of a stream, for `steps` solver steps; see `Dynamics.draw`."""
        *replicates, trajectories = lead
        size = self.noise_channels
        shape = (*replicates, trajectories, size) if self.interleaved else (*replicates, size, trajectories)
        drawn = increments.draw(self.increments, steps, shape, generator)
        draws = {INCREMENT: drawn if self.interleaved else drawn.mT}
        if self.bound_problem.stream is not None:
            draws |= self.bound_problem.stream.draw((steps, *lead, self.bound_problem.n_samples), generator)
        return draws

    def advance(self, theta: Tensor, draws: Draws, step: int, rate: Rate) -> Tensor:
        """Return θ after one step of the Euler–Maruyama method; see `Dynamics.advance`."""
        dynamics, dt = self, 1 / self.substeps
        if self.bound_problem.stream is not None:
            dynamics = self.at({name: drawn[step] for name, drawn in draws.items() if name != INCREMENT})
        v = increments.read(self.increments, draws[INCREMENT], step, theta.dtype)
        v = v if dt == 1 else v * math.sqrt(dt)
        return theta + self.noise_model.euler_step(dynamics, rate, theta, v, dt)

    def solve(self, theta: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Return θ at each of `steps`, solved by `torchsde.sdeint`, or None where `stepwise`."""
        if self.stepwise:
            return None
        rows, method = theta.reshape(-1, theta.shape[-1]), METHODS[self.method]
        shape = (rows.shape[0], self.noise_channels)
        brownian = SequentialBrownian(shape, theta.dtype, generator, method.levy_area, self.increments)
        # On the CPU whatever the device of the state: the solver compares times on the host without waiting for it.
        times = torch.tensor(list(steps), dtype=torch.float64)
        sde = self if method.dense else _Fused(self)
        saved = torchsde.sdeint(sde, rows, times, bm=brownian, method=self.method, dt=1 / self.substeps)
        return saved.reshape(len(steps), *theta.shape)


class _Fused:
    """The same SDE without its dense `g`, which torchsde would evaluate once in each call to check shapes."""

    def __init__(self, sde: SGDSDE) -> None:
        self.noise_type = sde.noise_type
        self.sde_type = sde.sde_type
        self.f, self.g_prod, self.f_and_g_prod = sde.f, sde.g_prod, sde.f_and_g_prod
