"""Problem: per-sample losses over named parameters, batched over trajectories and replicates.

One batch convention everywhere: θ has shape (..., parameter). A problem with replicates (own data, own initial law)
takes (..., replicate, trajectory, parameter), so that all replicates run in one tensor; results keep the leading dims.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, InputError, check_count, check_finite, check_mapping, message
from ..layout import ParameterLayout
from ..symmetry.bundle import Symmetry
from ..symmetry.gauge import Matrices, quadratic_form
from .arrays import as_numbers
from .stream import Stream, cast

if TYPE_CHECKING:
    from .module import ModuleProblem

# Per-sample gradients are formed only where asked for, and then in pieces of at most this many numbers (128 MiB in
# float64), whatever the number of trajectories.
CHUNK_ELEMENTS = 2**24

# Below this share of the samples, gathering the rows of a batch is cheaper than weighting all of them.
GATHER_SHARE = 0.125


class Problem(ABC):
    """Losses ℓ_i(θ), i = 1..n, of a model with named parameters; L = mean_i ℓ_i.

    A subclass implements `per_sample_loss` and `predictor`; gradients follow by automatic differentiation, and a
    subclass that knows a closed form overrides them. It reads its data from `samples`, whose entries broadcast against
    the leading dims of θ: shape (sample, ...), with replicates (replicate, 1, sample, ...), and after `at` one set of
    samples for each point.

    Parameters
    ----------
    layout : ParameterLayout
        Names and shapes of the parameters.
    data : mapping of str to (dims, Tensor)
        The tensors that the losses use, each with the names of its dims; `sample` is the sample axis. A leading dim
        `replicate` holds one data set for each replicate. Floating, or int64 for labels and indices.
    initial, initial_std : mapping of str to float, nested list or Tensor
        Mean and standard deviation of the initial law θ(0) ~ N(mean, std²), independent entries; each value broadcasts
        to (replicate, *shape) of its parameter. Parameters that are not named start at 0 with deviation 0.
    dtype : torch.dtype, optional
        Of the parameters, where no data are floating.

    Attributes
    ----------
    samples : dict of str to Tensor
        The data in the form that broadcasts against θ.
    n_samples : int
        n.
    stream : Stream or None
        The law of the samples, where dynamics draw fresh ones; the data are then a fixed pool from it.

    Raises
    ------
    DataError
        If data are not finite, not of one floating dtype and device, or disagree in the number of samples.
    InputError
        If the initial law is no table of numbers, names an unknown parameter or does not broadcast to its shape.
    """

    model: ClassVar[str]
    stream: Stream | None = None

    def __init__(
        self,
        layout: ParameterLayout,
        data: Mapping[str, tuple[tuple[str, ...], Tensor]],
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layout = layout
        self.data = dict(data)
        tensors = {name: tensor for name, (_, tensor) in self.data.items()}
        devices = {tensor.device for tensor in tensors.values()}
        kinds: set[torch.dtype | None] = {tensor.dtype for tensor in tensors.values() if tensor.dtype != torch.int64}
        kinds = kinds or {dtype}
        kind = kinds.pop()
        if kinds or len(devices) != 1 or kind is None or not kind.is_floating_point:
            got = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
            raise DataError(message("data", "one floating dtype and one device", got, "convert with tensor.to(...)"))
        self.dtype, self.device = kind, devices.pop()
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        self.n_samples = self._dim_size("sample")
        self.replicates = self._dim_size("replicate") if any("replicate" in dims for dims, _ in data.values()) else None
        self.samples = {name: t.unsqueeze(1) if "replicate" in dims else t for name, (dims, t) in self.data.items()}
        self._samples_per_point = False
        self._first_row: Tensor | None = None
        if self.replicates is not None:
            self._first_row = torch.arange(self.replicates, device=self.device)[:, None, None] * self.n_samples
        self.initial = dict(check_mapping("initial", {} if initial is None else initial))
        self.initial_std = dict(check_mapping("initial_std", {} if initial_std is None else initial_std))
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
            value = as_numbers(f"initial law of {name!r}", law.get(name, 0.0), self.dtype, self.device)
            if self.replicates is not None and value.ndim == len(shape) + 1:
                value = value.unsqueeze(1)
            try:
                parts[name] = value.expand((*lead, *shape))
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

    def symmetry(self) -> Symmetry | None:
        """Return the symmetry that the model declares, not yet bound, or None."""
        return None

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data from which a configuration can build it again."""
        plain = {
            key: {k: v.tolist() if isinstance(v, Tensor | np.ndarray | np.generic) else v for k, v in law.items()}
            for key, law in (("initial", self.initial), ("initial_std", self.initial_std))
        }
        if self.stream is not None:
            plain["stream"] = dict(self.stream.declaration)
        found = {key: law for key, law in plain.items() if law}
        # Without either, a model takes a law of its own.
        return {"model": self.model, **(found if self.initial or self.initial_std else {"initial": {}, **found})}

    def arrays(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Return the arrays that the model's constructor takes, each with the names of its dims."""
        return self.data

    @staticmethod
    def from_module(
        module: torch.nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], X: Any, y: Any, **options: Any
    ) -> ModuleProblem:
        """Return any `nn.Module` with a loss for one sample as a problem; see `ModuleProblem`."""
        from .module import ModuleProblem  # a subclass: its module imports this one

        return ModuleProblem(module, loss_fn, X, y, **options)

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
        data = {k: (dims, cast(t, device, dtype)) for k, (dims, t) in self.data.items()}
        moved = self._with_data(data, dtype or self.dtype)
        if self.stream is not None:
            moved.stream = self.stream.to(device, dtype)
        return moved

    def _with_data(self, data: Mapping[str, tuple[tuple[str, ...], Tensor]], dtype: torch.dtype | None = None) -> Self:
        clone = copy.copy(self)
        Problem.__init__(clone, self.layout, data, self.initial, self.initial_std, dtype or self.dtype)
        return clone

    def with_stream(self, stream: Stream) -> Self:
        """Return the problem with fresh samples from `stream` for the dynamics.

        Its own data stay: the fixed pool on which losses, covariances and predictions are evaluated, and whose size is
        that of the fresh pools of the SDE.

        Raises
        ------
        DataError
            If the stream draws other arrays than those of the data, or other shapes or dtypes.
        """
        lead = () if self.replicates is None else (self.replicates, 1)
        trial = stream.draw((*lead, 2), torch.Generator(self.device).manual_seed(0))
        got = {name: (tuple(t.shape), t.dtype) for name, t in trial.items()}
        want = {
            name: ((*lead, 2, *t.shape[dims.index("sample") + 1 :]), t.dtype)
            for name, (dims, t) in self.data.items()
            if "sample" in dims
        }
        if got != want:
            raise DataError(message("stream", f"samples {want}", got, "draw the same arrays as those of the data"))
        streamed = copy.copy(self)
        streamed.stream = stream
        return streamed

    def at(self, samples: Mapping[str, Tensor]) -> Self:
        """Return the same losses on other samples, one set of them for each point θ.

        Parameters
        ----------
        samples : mapping of str to Tensor, shape=(..., sample, ...)
            The leading dims are those of the points: ([replicate,] trajectory).
        """
        view = copy.copy(self)
        view.samples = {**self.samples, **samples}
        name = next(iter(samples))
        view.n_samples = samples[name].shape[self._sample_axis(name)]
        view._samples_per_point = True
        return view

    def _sample_axis(self, name: str) -> int:
        """Return the place of the sample axis of one data array, counted from the end."""
        dims, _ = self.data[name]
        return dims.index("sample") - len(dims)

    def _take(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the samples at `indices`, shape ([replicate,] trajectory, B), as `at` wants them."""
        flat = (indices if self._first_row is None else indices + self._first_row).flatten()
        taken = {}
        for name, (dims, tensor) in self.data.items():
            if "replicate" in dims:
                tensor = tensor.flatten(0, 1)
            if "sample" in dims:
                taken[name] = tensor.index_select(0, flat).unflatten(0, indices.shape)
        return taken

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
        lead = np.broadcast_shapes(theta.shape[:-1], weights.shape[:-1])
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
        theta = theta.detach()
        if indices.shape[-1] <= GATHER_SHARE * self.n_samples and not self._samples_per_point:
            return self.at(self._take(indices)).gradient(theta)
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
        """Return ∇ℓ_i(θ), shape (..., sample, parameter). Large: n·d numbers for each point.

        Every sample gets a point of its own, so that one backward pass over n times as many points gives all rows.
        """
        lead: tuple[int, ...] = theta.shape[:-1]
        if self.replicates is not None:
            lead = np.broadcast_shapes(lead, (self.replicates, 1))
        points = self._sample_per_point(theta.detach().unsqueeze(-2).expand(*lead, self.n_samples, -1), len(lead))
        singles = {}
        for name, tensor in self.samples.items():
            if "sample" in self.data[name][0]:
                rest = tensor.shape[tensor.ndim + self._sample_axis(name) + 1 :]
                full = tensor.expand(*lead, self.n_samples, *rest)
                singles[name] = self._sample_per_point(full, len(lead)).unsqueeze(-len(rest) - 1)
        with torch.enable_grad():
            points.requires_grad_(True)
            rows = torch.autograd.grad(self.at(singles).per_sample_loss(points).sum(), points)[0]
        if self.replicates is None:
            return rows.reshape(*lead, self.n_samples, -1)
        outer = lead[:-2]
        return rows.reshape(self.replicates, *outer, lead[-1], self.n_samples, theta.shape[-1]).movedim(0, len(outer))

    def _sample_per_point(self, tensor: Tensor, lead: int) -> Tensor:
        """Return (..., [replicate,] trajectory, sample, rest) as ([replicate,] point, rest), a copy."""
        if self.replicates is None:
            return tensor.flatten(0, lead).clone()
        return tensor.movedim(lead - 2, 0).flatten(1, lead).clone()

    @property
    def numbers_per_point(self) -> int:
        """Numbers that the per-sample gradients of one point take."""
        return self.n_samples * self.layout.size

    def _piece_size(self, theta: Tensor) -> int:
        """Return how many points along the axis before `parameter` are evaluated at once."""
        return max(1, CHUNK_ELEMENTS // max(self.numbers_per_point * math.prod(theta.shape[:-2]), 1))

    def _pieces(self, theta: Tensor) -> Iterator[tuple[Self, Tensor]]:
        """Split θ along the axis before `parameter` so that per-sample gradients of a piece stay small."""
        if theta.ndim == 1:
            yield self, theta
            return
        size = self._piece_size(theta)
        for first in range(0, theta.shape[-2], size):
            piece, problem = theta[..., first : first + size, :], self
            if self._samples_per_point:
                names = [name for name, (dims, _) in self.data.items() if "sample" in dims]
                problem = self.at(
                    {n: self.samples[n].narrow(self._sample_axis(n) - 1, first, piece.shape[-2]) for n in names}
                )
            yield problem, piece

    def _by_pieces(self, function: Callable[[Self, Tensor], Tensor], theta: Tensor, trailing: int = 1) -> Tensor:
        """Return a function of θ, shape (..., *trailing axes), evaluated piece by piece."""
        pieces = [function(problem, piece) for problem, piece in self._pieces(theta)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-trailing - 1)

    def _centred_gradients(self, theta: Tensor) -> Tensor:
        gradients = self.per_sample_gradient(theta)
        return gradients - gradients.mean(-2, keepdim=True)

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return the diagonal of Σ(θ) = Cov_i ∇ℓ_i, shape (..., parameter)."""
        return self._by_pieces(lambda problem, piece: problem.per_sample_gradient(piece).var(-2, correction=0), theta)

    def gradient_noise_trace(self, theta: Tensor, matrices: Matrices) -> Tensor:
        """Return tr(Σ A_a) for symmetric A_a, without forming Σ.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        matrices : Tensor or QuadraticForms, shape=(charge, parameter) or (charge, parameter, parameter)
            Diagonals, full matrices, or operators.

        Returns
        -------
        Tensor, shape=(..., charge)
        """
        if isinstance(matrices, Tensor) and matrices.ndim == 2:
            return self.gradient_variance(theta) @ matrices.mT
        return self._by_pieces(
            lambda problem, piece: quadratic_form(matrices, problem._centred_gradients(piece)).mean(-2), theta
        )

    def gradient_noise_covariance(self, theta: Tensor) -> Tensor:
        """Return Σ(θ) = Cov_i ∇ℓ_i (divided by n), shape (..., parameter, parameter). Large: d² numbers a point."""

        def covariance(problem: Self, piece: Tensor) -> Tensor:
            centred = problem._centred_gradients(piece)
            return centred.mT @ centred / problem.n_samples

        return self._by_pieces(covariance, theta, trailing=2)
