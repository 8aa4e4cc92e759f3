"""Noise of the SDE as objects: what multiplies the Brownian motion.

Each noise states the product g v with an increment v, fused where that saves work and differentiable in θ; the dense g
follows. All are built with ``sdebias.noise.minibatch()`` and the like, or from the plain data of `spec`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError, check_flag, check_positive, check_positive_number, message
from ..problems.base import Problem
from ..specs import from_named
from .walk import Rate

if TYPE_CHECKING:
    from .base import Dynamics
    from .sde import SGDSDE


@dataclass(frozen=True)
class Noise(ABC):
    """The diffusion g of dθ = f dk + g dW_k, at learning rate η and batch size B.

    Attributes
    ----------
    noise_type : str
        torchsde's name for the shape of g.
    needs_symmetry : bool
        Whether g depends on the orbits.
    constant : bool
        Whether g is the same at every θ: Itô and Stratonovich forms agree.
    differentiable : bool
        Whether the product can be differentiated in θ, as the Stratonovich form needs.
    """

    name: ClassVar[str]
    noise_type: ClassVar[str] = "general"
    needs_symmetry: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def channels(self, problem: Problem) -> int:
        """Return the dimension of the Brownian motion."""

    @abstractmethod
    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return g v, shape ([replicate,] trajectory, parameter).

        Parameters
        ----------
        dynamics : Dynamics
            Bound, with B and, where needed, the symmetry.
        rate : float or Tensor
            η, broadcasts against θ.
        theta : Tensor, shape=([replicate,] trajectory, parameter)
        v : Tensor, shape=([replicate,] trajectory, channel)
        """

    def euler_step(self, dynamics: SGDSDE, rate: Rate, theta: Tensor, v: Tensor, dt: float) -> Tensor:
        """Return f dt + g v for an increment v of variance dt: drift and noise in as few gradients as they need."""
        drift = dynamics.drift(rate, theta)
        return (drift if dt == 1 else drift * dt) + self.product(dynamics, rate, theta, v)

    def dense(self, dynamics: Dynamics, rate: Rate, theta: Tensor) -> Tensor:
        """Return g, shape ([replicate,] trajectory, parameter, channel), or without channel for diagonal noise."""
        if self.noise_type == "diagonal":
            return self.product(dynamics, rate, theta, torch.ones_like(theta))
        points, units = _every_channel(theta, self.channels(dynamics.bound_problem))
        columns = self.product(dynamics, rate, points, units)
        return columns.unflatten(-2, (theta.shape[-2], -1)).mT

    def ito_correction(self, dynamics: Dynamics, rate: Rate, theta: Tensor) -> Tensor:
        """Return ½ Σ_k (∂g_k) g_k, the drift of the Itô form less that of the Stratonovich form, like θ."""
        if self.constant:
            return torch.zeros_like(theta)
        points, units = _every_channel(theta, self.channels(dynamics.bound_problem))
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            columns = self.product(dynamics, rate, points, units)
            # Twice reverse: the derivative of the vjp by its cotangent is the derivative along a tangent.
            cotangents = torch.zeros_like(columns, requires_grad=True)
            (pulled,) = torch.autograd.grad(columns, points, cotangents, create_graph=True)
            (along,) = torch.autograd.grad(pulled, cotangents, columns.detach())
        return 0.5 * along.unflatten(-2, (theta.shape[-2], -1)).sum(-2)

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know, as flat strings and numbers."""
        return {"noise": self.name}

    @property
    def temperature(self) -> float | Sequence[float] | None:
        """T of isotropic noise."""
        return None

    def spec(self) -> dict[str, Any]:
        """Return the noise as plain data; see `from_spec`."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {"noise": self.name, **values}


def _every_channel(theta: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return each point once for each channel, on the axis of the trajectories, and the unit vectors beside them."""
    points = theta.repeat_interleave(channels, dim=-2)
    units = torch.eye(channels, dtype=theta.dtype, device=theta.device)
    return points, units.repeat(theta.shape[-2], 1).expand(*points.shape[:-1], channels)


@dataclass(frozen=True)
class Minibatch(Noise):
    """Noise of the minibatch gradient: g gᵀ = η² s Σ(θ), Σ = Cov_i ∇ℓ_i.

    g dW = η √(s/n) Σ_i ∇ℓ_i (dW_i − dW̄), one weighted gradient; s = 1/B, or (n−B)/(B(n−1)) without replacement.

    Parameters
    ----------
    replacement : bool
        Whether the B indices of a batch are drawn with replacement.
    """

    name: ClassVar[str] = "minibatch"
    replacement: bool = True

    def __post_init__(self) -> None:
        """Check the value."""
        check_flag("replacement", self.replacement)

    def channels(self, problem: Problem) -> int:
        """Return n."""
        return problem.n_samples

    def _weights(self, dynamics: Dynamics, v: Tensor) -> Tensor:
        n, size = dynamics.bound_problem.n_samples, dynamics.batch_size
        share = 1 / size if self.replacement else max(n - size, 0) / (size * max(n - 1, 1))
        return (v - v.mean(-1, keepdim=True)) * math.sqrt(share / n)

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return g v as the gradient of a weighted loss; see `Noise.product`."""
        return dynamics.bound_problem.weighted_gradient(theta, rate * self._weights(dynamics, v))

    def euler_step(self, dynamics: SGDSDE, rate: Rate, theta: Tensor, v: Tensor, dt: float) -> Tensor:
        """Return f dt + g v as one gradient of a weighted loss; see `Noise.euler_step`."""
        problem = dynamics.bound_problem
        if dynamics.order != 1:
            return super().euler_step(dynamics, rate, theta, v, dt)
        step = problem.weighted_gradient(theta, (self._weights(dynamics, v) - dt / problem.n_samples) * rate)
        return dynamics.less_potential(step, rate * dt, theta)

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know."""
        return {"noise": self.name, "replacement": int(self.replacement)}


@dataclass(frozen=True)
class Label(Noise):
    """Gaussian noise on the targets: each of a batch's targets is y_i + s ξ_i with fresh ξ_i ~ N(0, I).

    For a loss that is quadratic in y, ∇ℓ_i(y_i + ε) − ∇ℓ_i(y_i) = (∂_y ∇ℓ_i) ε is exact, and for the squared loss
    ½(f_i − y_i)² it is −ε ∇f_i: g gᵀ = (η²s²/B) mean_i ∇f_i∇f_iᵀ. With v on the targets,
    g v = −η [∇L(θ; y + s√(n/B) v) − ∇L(θ; y)].

    Parameters
    ----------
    std : float
        s > 0, standard deviation of the noise on each entry of a target.
    target : str
        Name of the problem's data array that holds the targets.
    """

    name: ClassVar[str] = "label"
    std: float
    target: str = "y"

    def __post_init__(self) -> None:
        """Check the value."""
        object.__setattr__(self, "std", check_positive_number("std", self.std))

    def channels(self, problem: Problem) -> int:
        """Return the number of entries of the targets.

        Raises
        ------
        InputError
            If the problem has no such targets, or they are not real numbers.
        """
        return math.prod(self._target_shape(problem))

    def _target_shape(self, problem: Problem) -> tuple[int, ...]:
        dims, tensor = problem.data.get(self.target, ((), None))
        if tensor is None or not tensor.is_floating_point():
            got = f"data {', '.join(problem.data)}"
            remedy = "name the targets of a squared loss: label(std, target=...)"
            raise InputError(message("noise", f"a problem with real targets {self.target!r}", got, remedy))
        return tuple(tensor.shape[dims.index("sample") :])

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return g v as a difference of two gradients; see `Noise.product`."""
        return rate * (dynamics.bound_problem.gradient(theta) - self._noisy_gradient(dynamics, theta, v))

    def _noisy_gradient(self, dynamics: Dynamics, theta: Tensor, v: Tensor) -> Tensor:
        """Return ∇L(θ; y + s√(n/B) v)."""
        problem = dynamics.bound_problem
        change = v.unflatten(-1, self._target_shape(problem))
        change = change * (self.std * math.sqrt(problem.n_samples / dynamics.batch_size))
        return problem.at({self.target: problem.samples[self.target] + change}).gradient(theta)

    def euler_step(self, dynamics: SGDSDE, rate: Rate, theta: Tensor, v: Tensor, dt: float) -> Tensor:
        """Return f dt + g v with two gradients, or with one where dt = 1; see `Noise.euler_step`."""
        if dynamics.order != 1:
            return super().euler_step(dynamics, rate, theta, v, dt)
        step = -rate * self._noisy_gradient(dynamics, theta, v)
        if dt != 1:
            step = step + (rate * (1 - dt)) * dynamics.bound_problem.gradient(theta)
        return dynamics.less_potential(step, rate * dt, theta)

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know."""
        return {"noise": self.name, "label_std": self.std, "label_target": self.target}


@dataclass(frozen=True)
class Isotropic(Noise):
    """Thermal noise g = √(2ηT) I.

    Parameters
    ----------
    temperature : float or sequence of float
        T > 0; a sequence gives each replicate its own.
    """

    name: ClassVar[str] = "isotropic"
    noise_type: ClassVar[str] = "diagonal"
    constant: ClassVar[bool] = True
    temperature: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        """Check the value."""
        value = check_positive("temperature", self.temperature)
        plain = value.tolist() if isinstance(value, Tensor) else value
        plain = tuple(map(float, plain)) if isinstance(plain, Sequence) else float(plain)
        object.__setattr__(self, "temperature", plain)

    def channels(self, problem: Problem) -> int:
        """Return d."""
        return problem.layout.size

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return √(2ηT) v."""
        return v * (2 * rate * dynamics.scale(self.temperature)) ** 0.5


@dataclass(frozen=True)
class Diagonal(Noise):
    """Independent noise on each parameter, of the variance of its per-sample gradients: g gᵀ = (η²/B) diag Σ(θ)."""

    name: ClassVar[str] = "diagonal"
    noise_type: ClassVar[str] = "diagonal"

    def channels(self, problem: Problem) -> int:
        """Return d."""
        return problem.layout.size

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return (η/√B) √Σ_jj v_j."""
        problem = dynamics.bound_problem
        if theta.requires_grad:
            n = problem.n_samples
            units = torch.eye(n, dtype=theta.dtype, device=theta.device).reshape(n, *[1] * (theta.ndim - 1), n)
            # A variance of 0 has a root without derivative; clamped, it has the derivative 0 of ½ ∂(g²).
            variance = problem.weighted_gradient(theta, units).var(0, correction=0)
            variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        else:
            variance = problem.gradient_variance(theta)
        return rate / math.sqrt(dynamics.batch_size) * variance.sqrt() * v


@dataclass(frozen=True)
class Gaussian(Noise):
    """Noise of a covariance that the user gives: g gᵀ = (η²/B) Σ(θ), g from the symmetric root of Σ.

    It cannot be written to a configuration, and a prediction asks for the covariance again.

    Parameters
    ----------
    covariance : callable
        θ of shape (..., parameter) to Σ(θ) of shape (..., parameter, parameter), positive semidefinite.
    """

    name: ClassVar[str] = "gaussian"
    differentiable: ClassVar[bool] = False
    covariance: Callable[[Tensor], Tensor]

    def channels(self, problem: Problem) -> int:
        """Return d."""
        return problem.layout.size

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return (η/√B) Σ^½ v."""
        values, vectors = torch.linalg.eigh(self.covariance(theta))
        root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        product = root @ (vectors.mT @ v.unsqueeze(-1))
        return rate / math.sqrt(dynamics.batch_size) * product.squeeze(-1)

    def spec(self) -> dict[str, Any]:
        """Return the name only."""
        return {"noise": self.name, "covariance": "given in the call"}


@dataclass(frozen=True)
class Horizontal(Noise):
    """Another noise projected orthogonally to the orbits: g_H = P_H g.

    Parameters
    ----------
    base : Noise, str or mapping
        What is projected.
    """

    name: ClassVar[str] = "horizontal"
    needs_symmetry: ClassVar[bool] = True
    base: Noise

    def __post_init__(self) -> None:
        """Check the value."""
        base = as_noise(self.base)
        if isinstance(base, Horizontal):
            raise InputError(message("base", "a noise that is not projected yet", repr(base), "project it once"))
        object.__setattr__(self, "base", base)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the base is."""
        return self.base.differentiable

    def channels(self, problem: Problem) -> int:
        """Return those of the base."""
        return self.base.channels(problem)

    def product(self, dynamics: Dynamics, rate: Rate, theta: Tensor, v: Tensor) -> Tensor:
        """Return P_H g v."""
        product = self.base.product(dynamics, rate, theta, v)
        return dynamics.bound_symmetry.horizontal_projection(product, theta)

    def attributes(self) -> dict[str, str | int | float]:
        """Return what a prediction must know."""
        return {**self.base.attributes(), "horizontal": 1}

    @property
    def temperature(self) -> float | Sequence[float] | None:
        """That of the base."""
        return self.base.temperature

    def spec(self) -> dict[str, Any]:
        """Return the noise as plain data."""
        return {"noise": self.name, "base": self.base.spec()}


minibatch, label, isotropic, diagonal = Minibatch, Label, Isotropic, Diagonal
gaussian, horizontal = Gaussian, Horizontal
NOISES: dict[str, type[Noise]] = {
    cls.name: cls for cls in (Minibatch, Label, Isotropic, Diagonal, Gaussian, Horizontal)
}


def as_noise(value: Noise | str | Mapping[str, Any], **options: Any) -> Noise:
    """Return a noise from itself, its name, or the plain data of its `spec`.

    Raises
    ------
    InputError
        If the name or a parameter is wrong.
    """
    if isinstance(value, Noise):
        return value
    spec = value if isinstance(value, Mapping) else {"noise": value}
    if isinstance(value, Mapping) and value.get("noise") == Gaussian.name:
        remedy = "run from Python with the covariance"
        raise InputError(message("noise", "plain data", "a covariance that was given in a call", remedy))
    return from_named("noise", NOISES, spec, **options)
