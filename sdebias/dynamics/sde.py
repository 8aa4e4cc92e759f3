"""The SDE that models SGD, as an object that `torchsde.sdeint` solves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torchsde
from torch import Tensor

from ..errors import InputError, check_choice, check_count, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from .base import Dynamics
from .brownian import SequentialBrownian
from .noise import NOISES, Noise, as_noise
from .schedule import Schedule

METHODS = ("euler",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDSDE(Dynamics):
    """dθ = −η ∇(L + V) dk + g dW_k in iteration time k, an Itô SDE; V is weight decay and gauge potential.

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
    method : {"euler"}
        torchsde solver.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    noise: Noise | str | Mapping[str, Any] = "minibatch"
    temperature: float | Sequence[float] | None = None
    order: Literal[1, 2] = 1
    substeps: int = 8
    method: Literal["euler"] = "euler"

    sde_type: ClassVar[str] = "ito"

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("method", self.method, METHODS)
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
        _ = self.noise_model

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
            If the noise does not fit the problem or needs a symmetry that is missing, or see `Dynamics.bind`.
        """
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

    def _drift(self, rate: Tensor, theta: Tensor) -> Tensor:
        """Return −η ∇U, with −(η²/2) ∇²U ∇U at order 2."""
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
        """Return the drift, shape (row, parameter)."""
        return self._drift(self.rate(float(t)), self._points(y)).reshape(y.shape)

    def g(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Return the diffusion, dense.

        Shape (row, parameter, channel), which is large, for general noise; (row, parameter) for diagonal noise.
        """
        g = self.noise_model.dense(self, self.rate(float(t)), self._points(y))
        return g.reshape(*y.shape, *g.shape[y.ndim + (self.bound_problem.replicates is not None) :])

    def g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> Tensor:
        """Return g v, shape (row, parameter); the matrix g is not formed."""
        product = self.noise_model.product(self, self.rate(float(t)), self._points(y), self._points(v))
        return product.reshape(y.shape)

    def f_and_g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift and g v."""
        return self.f(t, y), self.g_prod(t, y, v)

    # -- the solve -------------------------------------------------------------------------------------------------

    def integrate(self, theta: Tensor, steps: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return θ at each of `steps`, solved by `torchsde.sdeint`; see `Dynamics.integrate`."""
        rows = theta.reshape(-1, theta.shape[-1])
        shape, fused = (rows.shape[0], self.noise_channels), _Fused(self)
        if self.bound_problem.stream is None:
            brownian = SequentialBrownian(shape, theta.dtype, generator)
        else:
            brownian = _FreshPools(shape, theta.dtype, generator, fused, theta.shape[:-1])
        # On the CPU whatever the device of the state: the solver compares times on the host without waiting for it.
        times = torch.tensor(list(steps), dtype=torch.float64)
        with torch.no_grad():
            saved = torchsde.sdeint(fused, rows, times, bm=brownian, method=self.method, dt=1 / self.substeps)
        return saved.reshape(len(steps), *theta.shape)


class _Fused:
    """The same SDE without its dense `g`, which torchsde would evaluate once in each call to check shapes."""

    def __init__(self, sde: SGDSDE) -> None:
        self.noise_type = sde.noise_type
        self.sde_type = sde.sde_type
        self.sde = sde

    def f(self, t: Tensor | float, y: Tensor) -> Tensor:
        return self.sde.f(t, y)

    def g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> Tensor:
        return self.sde.g_prod(t, y, v)

    def f_and_g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.sde.f_and_g_prod(t, y, v)


class _FreshPools(SequentialBrownian):
    """Brownian motion that gives the SDE of a stream a fresh pool with each increment.

    A solver asks for the increment of a step before it evaluates the SDE, so that all evaluations of the step see one
    pool, and the order of draws does not depend on where the path is saved.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator, fused: _Fused, lead: torch.Size
    ) -> None:
        super().__init__(shape, dtype, generator)
        self._fused, self._lead = fused, lead

    def __call__(self, ta: float | Tensor, tb: float | Tensor) -> Tensor:
        problem = self._fused.sde.bound_problem
        assert problem.stream is not None
        pool = problem.stream.draw((*self._lead, problem.n_samples), self._generator)
        self._fused.sde = dataclasses.replace(self._fused.sde, problem=problem.at(pool))
        return super().__call__(ta, tb)
