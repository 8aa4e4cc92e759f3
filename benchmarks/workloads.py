"""The SDE workloads W1, W2, W4 and W5 in torch: drift, diffusion, and a step written by hand.

Every contender solves dθ = −η∇L dk + g dW_k by Euler steps of one update. With minibatch noise
g dW = (η/√(nB)) Σ_i ∇ℓ_i (dW_i − dW̄), which a fused step takes as one gradient of a weighted loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

import sdebias as sb

Step = Callable[[Tensor, Tensor], None]


class Workload(ABC):
    """One SDE, and the numbers that every contender shares.

    Parameters
    ----------
    device : str
    dtype : torch.dtype
        float32 where contenders are timed, float64 for the reference of their moments.
    trajectories, steps : int, optional
        Other sizes than the class has.

    Attributes
    ----------
    start : Tensor, shape=(parameter,)
        θ(0) of every trajectory.
    channels : int
        Dimension of the Brownian motion.
    dense_trajectories : int
        Of the contenders that form g, which are slow and large.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    trajectories: int
    steps: int
    dense_trajectories: int
    rate: ClassVar[float]
    noise_type: ClassVar[str] = "general"
    has_closed_form: ClassVar[bool] = False
    start: Tensor
    channels: int

    def __init__(
        self,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        trajectories: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        if trajectories is not None:
            self.trajectories = self.dense_trajectories = trajectories
        self.steps = steps or self.steps
        self.setup(np.random.default_rng(0))

    def tensor(self, values: Any) -> Tensor:
        """Return values in the dtype and on the device of the workload."""
        return torch.as_tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    @abstractmethod
    def setup(self, rng: np.random.Generator) -> None:
        """Draw the data."""

    @abstractmethod
    def loss(self, theta: Tensor) -> Tensor:
        """Return L, shape (trajectory,)."""

    @abstractmethod
    def drift(self, theta: Tensor) -> Tensor:
        """Return −η∇L, shape (trajectory, parameter), as a user of torchsde writes it."""

    @abstractmethod
    def diffusion(self, theta: Tensor) -> Tensor:
        """Return g as a user of torchsde writes it, shape (trajectory, parameter, channel) unless diagonal."""

    @abstractmethod
    def stepper(self, theta: Tensor) -> Step:
        """Return a step by hand that changes `theta` in place, given standard normals (trajectory, channel)."""

    @abstractmethod
    def products(self, theta: Tensor) -> Callable[[], None] | None:
        """Return a call that does the matrix products of one step and nothing else, None where there are none."""

    @abstractmethod
    def problem(self) -> sb.Problem:
        """Return the same problem in sdebias."""

    def dynamics(self, **options: Any) -> sb.SGDSDE:
        """Return the same dynamics in sdebias."""
        return sb.SGDSDE(learning_rate=self.rate, substeps=1, **options)


class Toy(Workload):
    """w = uv, L = ½(w − 1)², isotropic noise √(2ηT) dW."""

    key = "W1"
    title = "toy w = uv, isotropic noise"
    trajectories, steps, rate = 10_000, 500, 1e-2
    dense_trajectories = 10_000
    noise_type = "diagonal"
    temperature = 0.1

    def setup(self, rng: np.random.Generator) -> None:
        """Start all trajectories at (1, 1/2)."""
        self.start, self.channels = self.tensor([1.0, 0.5]), 2
        self.scale = math.sqrt(2 * self.rate * self.temperature)

    def loss(self, theta: Tensor) -> Tensor:
        """Return ½(uv − 1)²."""
        return 0.5 * (theta.prod(-1) - 1).square()

    def drift(self, theta: Tensor) -> Tensor:
        """Return −η(uv − 1)(v, u)."""
        u, v = theta.unbind(-1)
        residual = u * v - 1
        return -self.rate * torch.stack([residual * v, residual * u], -1)

    def diffusion(self, theta: Tensor) -> Tensor:
        """Return the diagonal √(2ηT)."""
        return torch.full_like(theta, self.scale)

    def stepper(self, theta: Tensor) -> Step:
        """Return a step in place."""
        u, v = theta.unbind(-1)
        flipped = torch.empty_like(theta)

        def step(theta: Tensor, normals: Tensor) -> None:
            slope = torch.mul(u, v).sub_(1)
            torch.mul(theta.flip(-1), slope.unsqueeze(-1), out=flipped)
            theta.sub_(flipped, alpha=self.rate).add_(normals, alpha=self.scale)

        return step

    def products(self, theta: Tensor) -> None:
        """Return None: there are no matrix products."""

    def problem(self) -> sb.Problem:
        """Return Hadamard regression with one sample and one feature."""
        u, v = self.start.tolist()
        return sb.problems.HadamardRegression(self.tensor([[1.0]]), self.tensor([1.0]), initial={"p": u, "q": v})

    def dynamics(self, **options: Any) -> sb.SGDSDE:
        """Return isotropic noise."""
        return super().dynamics(noise="isotropic", temperature=self.temperature, **options)


class LongToy(Toy):
    """The toy with ten times as many steps, for which what a call of `simulate` costs beside its steps is small."""

    key = "W1 long"
    steps = 5_000


class Minibatch(Workload):
    """Minibatch noise of B = 1 over n samples; drift and dense g by automatic differentiation."""

    samples: tuple[Tensor, ...]

    @property
    def channels(self) -> int:  # type: ignore[override]
        """One channel for each sample."""
        return len(self.samples[0])

    @abstractmethod
    def sample_loss(self, theta: Tensor, *sample: Tensor) -> Tensor:
        """Return ℓ_i of one point (parameter,) on one sample, a scalar."""

    def sample_gradients(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i by vmap(grad), shape (trajectory, sample, parameter)."""
        one = vmap(grad(self.sample_loss), (None, *(0 for _ in self.samples)))
        return vmap(one, (0, *(None for _ in self.samples)))(theta, *self.samples)

    def loss(self, theta: Tensor) -> Tensor:
        """Return the mean over samples."""
        one = vmap(self.sample_loss, (None, *(0 for _ in self.samples)))
        return vmap(lambda point: one(point, *self.samples).mean())(theta)

    def drift(self, theta: Tensor) -> Tensor:
        """Return −η∇L."""
        one = vmap(self.sample_loss, (None, *(0 for _ in self.samples)))
        return -self.rate * vmap(grad(lambda point: one(point, *self.samples).mean()))(theta)

    def diffusion(self, theta: Tensor) -> Tensor:
        """Return g = (η/√n)(∇ℓ_i − ∇L), dense."""
        gradients = self.sample_gradients(theta)
        centred = gradients - gradients.mean(1, keepdim=True)
        return (self.rate / math.sqrt(self.channels)) * centred.transpose(1, 2)

    def weights(self, normals: Tensor) -> Tensor:
        """Turn normals, in place, into the weights of the losses: η/n − (η/√n)(ξ_i − ξ̄)."""
        n = self.channels
        return normals.sub_(normals.mean(-1, keepdim=True)).mul_(-self.rate / math.sqrt(n)).add_(self.rate / n)


class Hadamard(Minibatch):
    """w = p∘q, ℓ_i = ½(x_i·w − y_i)², d = 32, n = 64."""

    key = "W2"
    title = "Hadamard regression d = 32, n = 64, minibatch noise"
    trajectories, steps, rate = 1_000, 100, 5e-3
    dense_trajectories = 1_000
    has_closed_form = True
    features, size = 32, 64

    def setup(self, rng: np.random.Generator) -> None:
        """Draw inputs and the targets of a sparse teacher."""
        inputs = rng.standard_normal((self.size, self.features))
        teacher = np.where(np.arange(self.features) < 4, 1.0, 0.0)
        self.X, self.y = self.tensor(inputs), self.tensor(inputs @ teacher + 0.3 * rng.standard_normal(self.size))
        self.samples = (self.X, self.y)
        self.start = self.tensor(np.r_[np.full(self.features, 0.7), np.full(self.features, 0.4)])

    def sample_loss(self, theta: Tensor, *sample: Tensor) -> Tensor:
        """Return ½(x·(p∘q) − y)²."""
        x, y = sample
        p, q = theta.chunk(2)
        return 0.5 * (x @ (p * q) - y).square()

    def diffusion(self, theta: Tensor) -> Tensor:
        """Return g in closed form, from ∇ℓ_i = r_i x_i∘(q, p)."""
        p, q = theta.chunk(2, -1)
        slopes = ((p * q) @ self.X.mT - self.y).unsqueeze(1) * self.X.mT
        slopes = (slopes - slopes.mean(-1, keepdim=True)) * (self.rate / math.sqrt(self.size))
        return torch.cat([slopes * q.unsqueeze(-1), slopes * p.unsqueeze(-1)], 1)

    def drift(self, theta: Tensor) -> Tensor:
        """Return −η∇L in closed form."""
        p, q = theta.chunk(2, -1)
        slope = ((p * q) @ self.X.mT - self.y) @ self.X / self.size
        return -self.rate * torch.cat([slope * q, slope * p], -1)

    def stepper(self, theta: Tensor) -> Step:
        """Return the fused weighted gradient in place."""
        p, q = theta.chunk(2, -1)

        def step(theta: Tensor, normals: Tensor) -> None:
            residual = (p * q) @ self.X.mT
            slope = residual.sub_(self.y).mul_(self.weights(normals)) @ self.X
            change = slope * q
            q.sub_(slope.mul_(p))
            p.sub_(change)

        return step

    def products(self, theta: Tensor) -> Callable[[], None]:
        """Return w Xᵀ and its transpose."""
        w, residual = theta[:, : self.features].contiguous(), theta.new_empty(len(theta), self.size)
        slope = torch.empty_like(w)

        def call() -> None:
            torch.mm(w, self.X.mT, out=residual)
            torch.mm(residual, self.X, out=slope)

        return call

    def problem(self) -> sb.Problem:
        """Return the model of the package."""
        p, q = self.start.chunk(2)
        return sb.problems.HadamardRegression(self.X, self.y, initial={"p": p, "q": q})


class HadamardByAutograd(Hadamard):
    """The same, its drift and dense g as torch.func gives them."""

    diffusion = Minibatch.diffusion
    drift = Minibatch.drift


class Factorisation(Minibatch):
    """M = U Vᵀ, 32 × 32, r = 8, ℓ_s = ½((U Vᵀ)_{ij} − M_ij)² over 300 observed entries."""

    key = "W4"
    title = "matrix factorisation 32 × 32, r = 8, minibatch noise over 300 entries"
    trajectories, steps, rate = 512, 20, 0.2
    dense_trajectories = 64
    side, rank, size = 32, 8, 300

    def setup(self, rng: np.random.Generator) -> None:
        """Observe 300 entries of a matrix of rank 2."""
        factors = rng.standard_normal((2, self.side, 2))
        cells = np.sort(rng.permutation(self.side**2)[: self.size])
        self.matrix = factors[0] @ factors[1].T
        self.cells = torch.as_tensor(cells, device=self.device)
        self.values = self.tensor(self.matrix.ravel()[cells])
        self.samples = (self.cells // self.side, self.cells % self.side, self.values)
        self.start = self.tensor(self.rank**-0.5 * rng.standard_normal(2 * self.side * self.rank))

    def sample_loss(self, theta: Tensor, *sample: Tensor) -> Tensor:
        """Return ½(U_i·V_j − M_ij)²."""
        row, column, value = sample
        left, right = theta.reshape(2, self.side, self.rank)
        return 0.5 * (left.index_select(0, row) @ right.index_select(0, column).mT - value).square().sum()

    def sample_gradients(self, theta: Tensor) -> Tensor:
        """Return vmap(grad); a sample is an entry, of which index_select wants an axis."""
        row, column, value = self.samples
        one = vmap(grad(self.sample_loss), (None, 0, 0, 0))
        return vmap(lambda point: one(point, row[:, None], column[:, None], value))(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """Return the mean over observed entries."""
        left, right = theta.reshape(-1, 2, self.side, self.rank).unbind(1)
        return 0.5 * ((left @ right.mT).flatten(1)[:, self.cells] - self.values).square().mean(-1)

    def drift(self, theta: Tensor) -> Tensor:
        """Return −η∇L."""
        return -self.rate * vmap(grad(lambda point: self.loss(point[None]).sum()))(theta)

    def stepper(self, theta: Tensor) -> Step:
        """Return the fused weighted gradient: errors E on the observed entries, then (E V, Eᵀ U)."""
        left, right = theta.view(-1, 2, self.side, self.rank).unbind(1)
        errors = theta.new_zeros(len(theta), self.side**2)
        matrix = errors.view(-1, self.side, self.side)

        def step(theta: Tensor, normals: Tensor) -> None:
            residual = (left @ right.mT).flatten(1).index_select(1, self.cells).sub_(self.values)
            errors[:, self.cells] = residual.mul_(self.weights(normals))
            change = matrix @ right
            right.sub_(matrix.mT @ left)
            left.sub_(change)

        return step

    def products(self, theta: Tensor) -> Callable[[], None]:
        """Return U Vᵀ, E V and Eᵀ U."""
        left, right = (part.contiguous() for part in theta.view(-1, 2, self.side, self.rank).unbind(1))
        matrix, change = left @ right.mT, torch.empty_like(left)

        def call() -> None:
            torch.bmm(left, right.mT, out=matrix)
            torch.bmm(matrix, right, out=change)
            torch.bmm(matrix.mT, left, out=change)

        return call

    def problem(self) -> sb.Problem:
        """Return the model of the package."""
        mask = np.zeros(self.side**2, bool)
        mask[self.cells.cpu().numpy()] = True
        left, right = self.start.reshape(2, self.side, self.rank)
        return sb.problems.MatrixFactorization(
            self.tensor(self.matrix),
            torch.as_tensor(mask.reshape(self.side, self.side), device=self.device),
            rank=self.rank,
            initial={"U": left, "V": right},
        )


class ReLU(Minibatch):
    """f(x) = v·relu(Wx + b) + c as an `nn.Module`, ℓ_i = (f(x_i) − y_i)², in 8, hidden 32, n = 256."""

    key = "W5"
    title = "shallow ReLU (8, 32, 1), n = 256, `Problem.from_module`, minibatch noise"
    trajectories, steps, rate = 512, 20, 5e-3
    dense_trajectories = 128
    width, hidden, size = 8, 32, 256

    def setup(self, rng: np.random.Generator) -> None:
        """Draw inputs, the targets of a teacher of three units, and the module that all trajectories start from."""
        inputs = rng.standard_normal((self.size, self.width))
        teacher = np.maximum(inputs @ rng.standard_normal((self.width, 3)), 0).sum(-1, keepdims=True)
        self.X, self.y = self.tensor(inputs), self.tensor(teacher + 0.3 * rng.standard_normal((self.size, 1)))
        self.samples = (self.X, self.y)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = torch.nn.Sequential(
                torch.nn.Linear(self.width, self.hidden), torch.nn.ReLU(), torch.nn.Linear(self.hidden, 1)
            )
        self.module = module.to(self.device, self.dtype)
        named = list(self.module.named_parameters())
        self.names, self.shapes = [name for name, _ in named], [p.shape for _, p in named]
        self.start = torch.cat([p.detach().flatten() for _, p in named])

    def parts(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return W, b, v, c of each trajectory as views."""
        parts = theta.split([shape.numel() for shape in self.shapes], -1)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True))

    def sample_loss(self, theta: Tensor, *sample: Tensor) -> Tensor:
        """Return (f(x) − y)²."""
        x, y = sample
        output = torch.func.functional_call(self.module, dict(zip(self.names, self.parts(theta), strict=True)), (x,))
        return torch.nn.functional.mse_loss(output, y)

    def stepper(self, theta: Tensor) -> Step:
        """Return the fused weighted gradient, forward and backward by hand."""
        W, b, v, c = self.parts(theta)

        def step(theta: Tensor, normals: Tensor) -> None:
            hidden = torch.matmul(self.X, W.mT).add_(b.unsqueeze(-2)).relu_()
            output = (hidden @ v.mT).add_(c.unsqueeze(-2)).sub_(self.y)
            errors = output.mul_(2 * self.weights(normals).unsqueeze(-1))
            slopes = (errors * v).mul_(hidden > 0)
            v.sub_(errors.mT @ hidden)
            c.sub_(errors.sum(-2))
            W.sub_(slopes.mT @ self.X)
            b.sub_(slopes.sum(-2))

        return step

    def products(self, theta: Tensor) -> Callable[[], None]:
        """Return X Wᵀ, h v, eᵀ h and slopesᵀ X."""
        W, _, v, _ = (part.contiguous() for part in self.parts(theta))
        rows = W.flatten(0, 1)
        hidden = theta.new_zeros(len(rows), self.size)
        units = hidden.view(len(theta), self.hidden, self.size)
        output = v @ units
        change = torch.empty_like(rows)
        outgoing = torch.empty_like(v)

        def call() -> None:
            torch.mm(rows, self.X.mT, out=hidden)
            torch.bmm(v, units, out=output)
            torch.bmm(output, units.mT, out=outgoing)
            torch.mm(hidden, self.X, out=change)

        return call

    def problem(self) -> sb.Problem:
        """Return the module through `Problem.from_module`, with the outputs as predictor coordinates."""
        return sb.Problem.from_module(self.module, torch.nn.functional.mse_loss, self.X, self.y)


WORKLOADS: dict[str, type[Workload]] = {cls.key: cls for cls in (Toy, LongToy, Hadamard, Factorisation, ReLU)}
"""Those that a contender can be timed on, by the number of the benchmark."""
