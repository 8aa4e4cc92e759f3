"""Problem: per-sample losses over named parameters, batched over trajectories and replicates.

One batch convention everywhere: θ has shape (..., parameter). A problem with replicates (own data, own initial law)
takes (..., replicate, trajectory, parameter), so that all replicates run in one tensor; results keep the leading dims.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import DataError, InputError, check_count, check_finite, message
from ..layout import ParameterLayout
from ..symmetry.bundle import quadratic_form

# Per-sample gradients are formed only where asked for, and then in pieces of at most this many numbers (128 MiB in
# float64), whatever the number of trajectories.
CHUNK_ELEMENTS = 2**24


class Problem(ABC):
    """Losses ℓ_i(θ), i = 1..n, of a model with named parameters; L = mean_i ℓ_i.

    A subclass implements `per_sample_loss` and `predictor`; gradients follow by automatic differentiation, and a
    subclass that knows a closed form overrides them.

    Parameters
    ----------
    layout : ParameterLayout
        Names and shapes of the parameters.
    data : mapping of str to (dims, Tensor)
        The tensors that the losses use, each with the names of its dims; `sample` is the sample axis. A leading dim
        `replicate` holds one data set for each replicate.
    initial, initial_std : mapping of str to float, nested list or Tensor
        Mean and standard deviation of the initial law θ(0) ~ N(mean, std²), independent entries; each value broadcasts
        to (replicate, *shape) of its parameter. Parameters that are not named start at 0 with deviation 0.

    Raises
    ------
    DataError
        If data are not finite, not of one floating dtype and device, or disagree in the number of samples.
    InputError
        If the initial law names an unknown parameter or does not broadcast to its shape.
    """

    model: ClassVar[str]

    def __init__(
        self,
        layout: ParameterLayout,
        data: Mapping[str, tuple[tuple[str, ...], Tensor]],
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        self.layout = layout
        self.data = dict(data)
        tensors = {name: tensor for name, (_, tensor) in self.data.items()}
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
        if len(kinds) != 1 or not next(iter(kinds))[0].is_floating_point:
            got = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
            raise DataError(message("data", "one floating dtype and one device", got, "convert with tensor.to(...)"))
        self.dtype, self.device = next(iter(kinds))
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        self.n_samples = self._dim_size("sample")
        self.replicates = self._dim_size("replicate") if any("replicate" in dims for dims, _ in data.values()) else None
        self.initial = dict(initial or {})
        self.initial_std = dict(initial_std or {})
        for name in (*self.initial, *self.initial_std):
            self.layout.shape(name)
        self._initial_law = tuple(self._broadcast_law(law) for law in (self.initial, self.initial_std))
        self._precompute()

    def _precompute(self) -> None:  # noqa: B027  (most models have nothing to prepare)
        """Prepare what depends on the data alone; called again when the data move."""

    def _dim_size(self, dim: str) -> int:
        sizes = {name: t.shape[dims.index(dim)] for name, (dims, t) in self.data.items() if dim in dims}
        if len(set(sizes.values())) != 1:
            raise DataError(message("data", f"one length of dim {dim!r}", sizes, "give matching arrays"))
        size = next(iter(sizes.values()))
        if size == 0:
            raise DataError(message("data", f"at least one {dim}", "0", "give data that are not empty"))
        return size

    def _broadcast_law(self, law: Mapping[str, Any]) -> Tensor:
        """Return the values of an initial law on the parameter axis, shape ([replicate, 1,] parameter)."""
        lead = () if self.replicates is None else (self.replicates, 1)
        parts = {}
        for name, shape in self.layout.shapes.items():
            try:
                value = torch.as_tensor(law.get(name, 0.0), dtype=self.dtype, device=self.device)
            except (TypeError, ValueError) as error:
                remedy = f"give a number or one value per entry ({error})"
                raise InputError(message(f"initial law of {name!r}", "numbers", repr(law[name]), remedy)) from None
            check_finite(f"initial law of {name!r}", value, InputError)
            if self.replicates is not None and value.ndim == len(shape) + 1:
                value = value.unsqueeze(1)
            try:
                parts[name] = value.expand(*lead, *shape)
            except RuntimeError:
                want = f"a value that broadcasts to {shape}" + ("" if not lead else f" or {(lead[0], *shape)}")
                remedy = "give a number or one value per entry"
                raise InputError(message(f"initial law of {name!r}", want, tuple(value.shape), remedy)) from None
        return self.layout.flatten(parts)

    # -- what a subclass states ------------------------------------------------------------------------------------

    @abstractmethod
    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_i(θ), shape (..., sample)."""

    @abstractmethod
    def predictor(self, theta: Tensor) -> Tensor:
        """Return predictor coordinates q = F(θ), shape (..., predictor): what the symmetry cannot change."""

    @property
    @abstractmethod
    def predictor_labels(self) -> list[str]:
        """Label of each predictor coordinate."""

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data from which a configuration can build it again."""
        plain = {
            key: {k: v.tolist() if isinstance(v, Tensor) else v for k, v in law.items()}
            for key, law in (("initial", self.initial), ("initial_std", self.initial_std))
        }
        return {"model": self.model, **{key: law for key, law in plain.items() if law}}

    # -- what follows ----------------------------------------------------------------------------------------------

    def replicate(self, replicates: int) -> Self:
        """Return the same problem with its data shared by `replicates` replicates (a sweep over η or T)."""
        check_count("replicates", replicates)
        if self.replicates is not None:
            got = f"{self.replicates} replicates already"
            raise InputError(message("problem.replicate", "a problem without replicates", got, "replicate once"))
        shared = {
            k: (("replicate", *dims), t.expand(replicates, *t.shape).contiguous()) for k, (dims, t) in self.data.items()
        }
        return self._with_data(shared)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the problem with its data on another device or in another floating dtype."""
        return self._with_data({k: (dims, t.to(device=device, dtype=dtype)) for k, (dims, t) in self.data.items()})

    def _with_data(self, data: Mapping[str, tuple[tuple[str, ...], Tensor]]) -> Self:
        clone = copy.copy(self)
        Problem.__init__(clone, self.layout, data, self.initial, self.initial_std)
        return clone

    def check_theta(self, theta: Tensor) -> Tensor:
        """Return `theta` if its shape fits the problem.

        Raises
        ------
        InputError
            If the parameter axis or, with replicates, the replicate axis does not fit.
        """
        self.layout.check(theta)
        if self.replicates is not None and (theta.ndim < 3 or theta.shape[-3] not in (1, self.replicates)):
            want = f"shape (..., {self.replicates}, trajectory, {self.layout.size})"
            raise InputError(message("theta", want, tuple(theta.shape), "put the replicate axis third from the end"))
        return theta

    def draw_initial(self, trajectories: int, generator: torch.Generator) -> Tensor:
        """Draw θ(0), shape ([replicate,] trajectory, parameter), from the initial law."""
        lead = (trajectories,) if self.replicates is None else (self.replicates, trajectories)
        noise = torch.randn(*lead, self.layout.size, generator=generator, dtype=self.dtype, device=generator.device)
        mean, std = self._initial_law
        return mean + std * noise

    def loss(self, theta: Tensor) -> Tensor:
        """Return L(θ) = mean_i ℓ_i(θ), shape (...)."""
        return self.per_sample_loss(theta).mean(-1)

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇_θ Σ_i c_i ℓ_i with the weights held fixed, as one backward pass.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        weights : Tensor, shape=(..., sample)
            May carry more leading dims than `theta`, one gradient for each.

        Returns
        -------
        Tensor, shape=(..., parameter)
        """
        lead = torch.broadcast_shapes(theta.shape[:-1], weights.shape[:-1])
        with torch.enable_grad():
            point = theta.expand(*lead, theta.shape[-1])
            point = point if point.requires_grad else point.detach().requires_grad_(True)
            total = (weights * self.per_sample_loss(point)).sum()
            return torch.autograd.grad(total, point, create_graph=theta.requires_grad)[0]

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L(θ), shape (..., parameter)."""
        return self.weighted_gradient(theta, self._uniform_weights)

    @property
    def _uniform_weights(self) -> Tensor:
        return torch.full((self.n_samples,), 1 / self.n_samples, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return the minibatch gradient (1/B) Σ_b ∇ℓ_{i_b}(θ), as a number: no graph is recorded through it.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        indices : LongTensor, shape=(..., B)
            Samples of each trajectory's batch; an index that occurs twice counts twice.

        Returns
        -------
        Tensor, shape=(..., parameter)
        """
        weights = torch.zeros(*indices.shape[:-1], self.n_samples, dtype=self.dtype, device=self.device)
        share = torch.full((1,), 1 / indices.shape[-1], dtype=self.dtype, device=self.device)
        weights.scatter_add_(-1, indices, share.expand(indices.shape))
        return self.weighted_gradient(theta, weights)

    def hessian_vector_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) v, shape (..., parameter)."""
        with torch.enable_grad():
            point = theta.detach().requires_grad_(True)
            return torch.autograd.grad((self.gradient(point) * vector.detach()).sum(), point)[0]

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i(θ), shape (..., sample, parameter). Large: n·d numbers for each point."""
        with torch.enable_grad():
            point = theta.detach().requires_grad_(True)
            losses = self.per_sample_loss(point)
            basis = torch.eye(self.n_samples, dtype=losses.dtype, device=losses.device)
            basis = basis.reshape(self.n_samples, *[1] * (losses.ndim - 1), self.n_samples)
            rows = torch.autograd.grad(
                losses, point, basis.expand(self.n_samples, *losses.shape), is_grads_batched=True
            )[0]
        return rows.movedim(0, -2)

    def _chunks(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Split θ along the axis before `parameter` so that per-sample gradients of a piece stay small."""
        if theta.ndim == 1:
            return (theta,)
        per_point = self.n_samples * self.layout.size * math.prod(theta.shape[:-2])
        return theta.split(max(1, CHUNK_ELEMENTS // max(per_point, 1)), dim=-2)

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return the diagonal of Σ(θ) = Cov_i ∇ℓ_i, shape (..., parameter)."""
        pieces = [self.per_sample_gradient(piece).var(-2, correction=0) for piece in self._chunks(theta)]
        return torch.cat(pieces, dim=-2) if theta.ndim > 1 else pieces[0]

    def gradient_noise_trace(self, theta: Tensor, matrices: Tensor) -> Tensor:
        """Return tr(Σ A_a) for symmetric A_a, without forming Σ.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        matrices : Tensor, shape=(charge, parameter) or (charge, parameter, parameter)
            Diagonals, or full matrices.

        Returns
        -------
        Tensor, shape=(..., charge)
        """
        if matrices.ndim == 2:
            return self.gradient_variance(theta) @ matrices.mT
        pieces = []
        for piece in self._chunks(theta):
            gradients = self.per_sample_gradient(piece)
            centred = gradients - gradients.mean(-2, keepdim=True)
            pieces.append(quadratic_form(matrices, centred).mean(-2))
        return torch.cat(pieces, dim=-2) if theta.ndim > 1 else pieces[0]

    def gradient_noise_covariance(self, theta: Tensor) -> Tensor:
        """Return Σ(θ) = Cov_i ∇ℓ_i (divided by n), shape (..., parameter, parameter). Large: d² numbers a point."""
        pieces = []
        for piece in self._chunks(theta):
            gradients = self.per_sample_gradient(piece)
            centred = gradients - gradients.mean(-2, keepdim=True)
            pieces.append(centred.mT @ centred / self.n_samples)
        return torch.cat(pieces, dim=-3) if theta.ndim > 1 else pieces[0]


def as_data(name: str, value: Any, dims: int, like: Tensor | None = None) -> Tensor:
    """Return a data array as a floating tensor of `dims` or, with replicates, ``dims + 1`` axes.

    Raises
    ------
    DataError
        If it is not numeric or has another number of axes.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(message(name, "a numeric array", type(value).__name__, f"convert it ({error})")) from None
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64 if like is None else like.dtype)
    if tensor.ndim not in (dims, dims + 1):
        want = f"{dims} axes, or {dims + 1} with a leading replicate axis"
        raise DataError(message(name, want, f"shape {tuple(tensor.shape)}", "reshape it"))
    return tensor
