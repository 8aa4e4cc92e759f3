"""The SDE that models SGD, as an object that `torchsde.sdeint` solves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torchsde
from torch import Tensor

from ..errors import InputError, check_choice, check_count, message
from .base import Dynamics
from .brownian import SequentialBrownian

NOISES = ("minibatch", "isotropic")
METHODS = ("euler",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDSDE(Dynamics):
    """dθ = −η ∇L dk + g dW_k in iteration time k, an Itô SDE.

    With minibatch noise g gᵀ = (η²/B) Σ(θ), Σ = Cov_i ∇ℓ_i, exactly: g dW = (η/√(nB)) Σ_i ∇ℓ_i (dW_i − dW̄). With
    isotropic noise g = √(2ηT) I. At order 2, L is replaced by L + (η/4)‖∇L‖² (Li, Tai, E 2017).

    Bound to a problem it is a torchsde SDE over rows (trajectory, parameter), replicates flattened into the rows:
    ``torchsde.sdeint(sde.bind(problem), theta, ts, dt=1 / substeps)``, with `ts` in updates, has the same law as
    `simulate`.

    Of a problem with a stream, `integrate` takes drift and noise of each solver step and trajectory from a fresh pool
    of as many samples as the problem's own data have, see `Stream`; the plain torchsde object has those data for ever.

    Parameters
    ----------
    learning_rate : float or sequence of float
        η > 0; a sequence gives each replicate of the problem its own.
    batch_size : int
        B >= 1, of minibatch noise.
    noise : {"minibatch", "isotropic"}
    temperature : float or sequence of float, optional
        T > 0, of isotropic noise only.
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

    noise: Literal["minibatch", "isotropic"] = "minibatch"
    temperature: float | Sequence[float] | None = None
    order: Literal[1, 2] = 1
    substeps: int = 8
    method: Literal["euler"] = "euler"

    sde_type: ClassVar[str] = "ito"

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("noise", self.noise, NOISES)
        check_choice("method", self.method, METHODS)
        if self.order not in (1, 2):
            raise InputError(message("order", "1 or 2", repr(self.order), "set order to one of them"))
        check_count("substeps", self.substeps)
        if self.substeps & (self.substeps - 1):
            remedy = "then dt = 1/substeps is exact in binary"
            raise InputError(message("substeps", "a power of two", self.substeps, remedy))
        if (self.temperature is None) == (self.noise == "isotropic"):
            want = "a temperature > 0 with isotropic noise and none with minibatch noise"
            raise InputError(message("temperature", want, repr(self.temperature), f"noise is {self.noise!r}"))
        super().__post_init__()

    @property
    def per_replicate(self) -> tuple[str, ...]:  # type: ignore[override]
        """Parameters that may differ by replicate."""
        return ("learning_rate",) if self.temperature is None else ("learning_rate", "temperature")

    # -- the torchsde contract -------------------------------------------------------------------------------------

    @property
    def noise_type(self) -> str:
        """The name that torchsde has for the shape of g."""
        return "general" if self.noise == "minibatch" else "diagonal"

    @property
    def noise_channels(self) -> int:
        """Dimension of the Brownian motion: n for minibatch noise, d for isotropic noise."""
        problem = self.bound_problem
        return problem.n_samples if self.noise == "minibatch" else problem.layout.size

    def _points(self, rows: Tensor) -> Tensor:
        """View torchsde's rows (row, x) as ([replicate,] trajectory, x)."""
        replicates = self.bound_problem.replicates
        return rows if replicates is None else rows.reshape(replicates, -1, rows.shape[-1])

    def _noise_weights(self, v: Tensor) -> Tensor:
        """Return the sample weights c with g v = ∇ Σ_i c_i ℓ_i."""
        problem = self.bound_problem
        scale = 1 / math.sqrt(problem.n_samples * self.batch_size)
        return (v - v.mean(-1, keepdim=True)) * (self.scale(self.learning_rate) * scale)

    def _isotropic(self, v: Tensor) -> Tensor:
        rate, temperature = self.scale(self.learning_rate), self.scale(self.temperature or 0.0)
        return v * (2 * rate * temperature) ** 0.5

    def _drift(self, theta: Tensor, gradient: Tensor) -> Tensor:
        rate = self.scale(self.learning_rate)
        drift = -rate * gradient
        if self.order == 2:
            drift = drift - 0.5 * rate**2 * self.bound_problem.hessian_vector_product(theta, gradient)
        return drift

    def f(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Return the drift, shape (row, parameter)."""
        theta = self._points(y)
        return self._drift(theta, self.bound_problem.gradient(theta)).reshape(y.shape)

    def g(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Return the diffusion, dense.

        Shape (row, parameter, sample) for minibatch noise, which is large; (row, parameter) for isotropic noise.
        """
        theta = self._points(y)
        if self.noise == "isotropic":
            return self._isotropic(torch.ones_like(theta)).reshape(y.shape)
        problem = self.bound_problem
        columns = problem.per_sample_gradient(theta)
        columns = columns - columns.mean(-2, keepdim=True)
        rate = self.scale(self.learning_rate)
        columns = columns * (rate.unsqueeze(-1) / math.sqrt(problem.n_samples * self.batch_size))
        return columns.mT.reshape(*y.shape, problem.n_samples)

    def g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> Tensor:
        """Return g v, shape (row, parameter), as one weighted gradient; the matrix g is never formed."""
        theta, v = self._points(y), self._points(v)
        if self.noise == "isotropic":
            return self._isotropic(v).reshape(y.shape)
        return self.bound_problem.weighted_gradient(theta, self._noise_weights(v)).reshape(y.shape)

    def f_and_g_prod(self, t: Tensor | float, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift and g v from one weighted gradient with two sets of weights."""
        if self.noise == "isotropic":
            return self.f(t, y), self.g_prod(t, y, v)
        problem = self.bound_problem
        theta = self._points(y)
        noise = self._noise_weights(self._points(v))
        gradient, product = problem.gradient(theta), problem.weighted_gradient(theta, noise)
        return self._drift(theta, gradient).reshape(y.shape), product.reshape(y.shape)

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
        self._fused.sde = self._fused.sde.bind(problem.at(pool))
        return super().__call__(ta, tb)
