"""Any `torch.nn.Module` as a problem."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..errors import DataError, InputError, check_flag, message
from ..layout import ParameterLayout
from ..plain import PlainOperations, copy_module
from .base import Problem
from .cost import OperationCounter
from .stream import cast


class ModuleProblem(Problem):
    """Losses ℓ_i(θ) = loss_fn(module(x_i), y_i) of a module that treats each sample of a batch on its own.

    Parameters keep their names, such as ``0.weight``; tied weights are one parameter, that of the first name.
    Parameters with ``requires_grad=False`` and buffers are constants. The module is copied, never changed, and
    evaluated for all trajectories at once by `torch.func.functional_call` under `torch.func.vmap`, in pieces where
    that would take more than 128 MiB (in float64). Recurrent layers and attention are computed by plain operations.

    Parameters
    ----------
    module : nn.Module
        Maps a batch (sample, ...) to outputs (sample, ...).
    loss_fn : callable
        ``loss_fn(output, target)`` of one sample, without batch axis, returns a scalar: ``nn.CrossEntropyLoss()``,
        ``torch.nn.functional.mse_loss`` and the like.
    X, y : array, shape=(sample, ...) or, with `replicated`, (replicate, sample, ...)
        Floating, in the dtype of the module, or whole numbers such as classes and tokens.
    replicated : bool
        Whether X and y have a leading replicate axis.
    initial : mapping, optional
        Means of the initial law that differ from the module's own parameters.
    initial_std : mapping, optional
        Standard deviations of the initial law, by default 0: every trajectory starts at the module.
    predictor : callable, optional
        ``predictor(named)`` of the named parameters of one point returns a 1-D tensor of predictor coordinates. By
        default the outputs on X.
    predictor_labels : sequence of str, optional
        Labels of the coordinates, by default ``output[sample,...]``, or ``predictor[i]`` for a function.

    Raises
    ------
    InputError
        If the module has nothing to train, returns anything but one tensor, is random, changes its buffers or mixes
        samples (dropout, batch normalisation in training mode), fails on X, or the loss is not a scalar.
    DataError
        If X and y do not match each other or the dtype of the module, or are not finite.
    """

    model: ClassVar[str] = "ModuleProblem"

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        X: Any,
        y: Any,
        *,
        replicated: bool = False,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
        predictor: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        predictor_labels: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(message("module", "a torch.nn.Module", type(module).__name__, "wrap it in one"))
        refuse_random_layers(module)
        self.module, self.loss_fn = _copied(module), loss_fn
        named = dict(self.module.named_parameters())
        trained = {name: p.detach() for name, p in named.items() if p.requires_grad}
        kinds = {p.dtype for p in trained.values()}
        if len(kinds) != 1:
            got = ", ".join(map(str, kinds)) or "no parameter that requires a gradient"
            raise InputError(message("module", "parameters to train, of one dtype", got, "convert the module"))
        kind = kinds.pop()
        self.constants = {name: p.detach() for name, p in named.items() if not p.requires_grad}
        self.constants |= {name: b.detach() for name, b in self.module.named_buffers()}
        lead = ("replicate",) if check_flag("replicated", replicated) else ()
        data = {name: _as_samples(name, value, lead, kind) for name, value in (("X", X), ("y", y))}
        layout = ParameterLayout({name: tuple(p.shape) for name, p in trained.items()})
        super().__init__(layout, data, {**trained, **(initial or {})}, initial_std, kind)
        self._predictor, self._labels = predictor, predictor_labels
        self._plain, self._sample_cost = False, 0
        self._labels = self._check_evaluation()

    def spec(self) -> dict[str, Any]:
        """Return the module and loss as text beside the initial law; a configuration cannot build them again."""
        loss = getattr(self.loss_fn, "__name__", repr(self.loss_fn))
        return {**super().spec(), "module": repr(self.module), "loss_fn": loss}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the problem, with the constants of its module, on another device or in another floating dtype."""
        moved = super().to(device, dtype)
        moved.constants = {name: cast(t, device, dtype) for name, t in self.constants.items()}
        return moved

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _outputs_of_one(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Return the module's outputs for one point (parameter,), shape (sample, ...)."""
        with PlainOperations() if self._plain else contextlib.nullcontext():
            named = {**self.constants, **self.layout.unflatten(theta)}
            return functional_call(self.module, named, (inputs,))

    @property
    def numbers_per_point(self) -> int:
        """Numbers that gradients, and activations with their derivatives, of one point take for all samples."""
        return self.n_samples * (self.layout.size + 2 * self._sample_cost)

    def _split(self, function: Callable[..., Tensor], theta: Tensor, *others: Tensor, trailing: int = 1) -> Tensor:
        """Return a function of (problem, θ, others), the others with the leading dims of θ, in pieces if it is large.

        The forward pass keeps nothing that is not there piece by piece, where no derivative of the result is wanted.
        """
        if theta.ndim < 2 or theta.shape[-2] <= self._piece_size(theta):
            return function(self, theta, *others)
        widths = [tensor.shape[-1] for tensor in (theta, *others)]
        joined = torch.cat([theta, *others], dim=-1)
        return self._by_pieces(lambda problem, piece: function(problem, *piece.split(widths, -1)), joined, trailing)

    def _over_points(self, function: Callable[..., Tensor], theta: Tensor, names: Sequence[str]) -> Tensor:
        """Evaluate a function of one point and samples at all points, each with its own samples or shared ones.

        One vmap for each run of leading axes along which the same data are shared, the innermost first: torch's rules
        for some operations fail in deeper nests.
        """
        lead: tuple[int, ...] = self.check_theta(theta).shape[:-1]
        widths = []
        for name in names:
            before = self.samples[name].shape[: self._axes_before_samples(name)]
            widths.append((1,) * (len(lead) - len(before)) + tuple(before))
            lead = np.broadcast_shapes(lead, widths[-1])
        shared = [tuple(width[axis] == 1 for width in widths) for axis in range(len(lead))]
        runs = [list(axes) for _, axes in itertools.groupby(range(len(lead)), key=shared.__getitem__)]
        sizes = [math.prod(lead[axis] for axis in axes) for axes in runs]
        arrays = []
        for k, name in enumerate(names):
            tail = self.samples[name].shape[self._axes_before_samples(name) :]
            own = [size for axes, size in zip(runs, sizes, strict=True) if not shared[axes[0]][k]]
            arrays.append(self.samples[name].reshape(*own, *tail))
        for axes in reversed(runs):
            function = vmap(function, in_dims=(0, *(None if flag else 0 for flag in shared[axes[0]])))
        values = function(theta.expand(*lead, theta.shape[-1]).reshape(*sizes, theta.shape[-1]), *arrays)
        return values.reshape(*lead, *values.shape[len(runs) :])

    def _axes_before_samples(self, name: str) -> int:
        return self.samples[name].ndim + self._sample_axis(name)

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return loss_fn(module(x_i), y_i), shape (..., sample)."""
        return self._split(lambda problem, points: problem._losses(points), self._expanded(theta))

    def _losses(self, theta: Tensor) -> Tensor:
        outputs = self._over_points(self._outputs_of_one, theta, ("X",))
        axes = max(theta.ndim - 1, self._axes_before_samples("X"))
        tail = self.samples["y"].shape[self._axes_before_samples("y") :]
        targets = self.samples["y"].expand(*outputs.shape[:axes], *tail)
        losses = vmap(self.loss_fn)(outputs.flatten(0, axes), targets.flatten(0, axes))
        if losses.ndim != 1:
            remedy = "give a loss that reduces one sample to a number, such as one with reduction='mean'"
            raise InputError(message("loss_fn", "a scalar for one sample", f"shape {tuple(losses.shape[1:])}", remedy))
        return losses.unflatten(0, outputs.shape[: axes + 1])

    def _expanded(self, theta: Tensor) -> Tensor:
        """Return θ with an axis of trajectories of the length that the samples have, if each point has its own."""
        if not self._samples_per_point:
            return self.check_theta(theta)
        lead = self.samples["X"].shape[: self._axes_before_samples("X")]
        return theta.expand(*np.broadcast_shapes(theta.shape[:-1], lead), theta.shape[-1])

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇_θ Σ_i c_i ℓ_i as one backward pass; see `Problem.weighted_gradient`."""
        if theta.requires_grad:
            return super().weighted_gradient(theta, weights)
        lead = np.broadcast_shapes(theta.shape[:-1], weights.shape[:-1])
        points, weights = (tensor.expand(*lead, tensor.shape[-1]) for tensor in (theta, weights))
        return self._split(Problem.weighted_gradient, points, weights)

    def hessian_vector_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) v, shape (..., parameter)."""
        lead = np.broadcast_shapes(theta.shape[:-1], vector.shape[:-1])
        points, vector = (tensor.expand(*lead, tensor.shape[-1]) for tensor in (theta, vector))
        return self._split(Problem.hessian_vector_product, points, vector)

    def predictor(self, theta: Tensor) -> Tensor:
        """Return the outputs on the data, or the function that was given, shape (..., predictor)."""
        return self._split(lambda problem, points: problem._coordinates(points), self._expanded(theta))

    def _coordinates(self, theta: Tensor) -> Tensor:
        function = self._predictor
        if function is not None:
            return self._over_points(lambda point: function(self.layout.unflatten(point)), theta, ())
        return self._over_points(lambda point, x: self._outputs_of_one(point, x).flatten(), theta, ("X",))

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``output[sample,...]``, or those that were given."""
        return list(self._labels or ())

    def _check_evaluation(self) -> list[str]:
        """Evaluate one point, count what that costs, and return the predictor's labels.

        Raises
        ------
        InputError
            If it fails, uses random numbers, mixes samples, changes buffers, or the predictor has another shape than
            its labels.
        """
        lead = (1,) if self.replicates is None else (1, 1)
        theta = self._initial_law[0].reshape(-1, self.layout.size)[0]
        inputs = self.data["X"][1] if self.replicates is None else self.data["X"][1][0]
        before = {name: tensor.clone() for name, tensor in self.constants.items()}
        with _user_errors("module", "the module must map (sample, ...) to (sample, ...)"), torch.no_grad():
            with PlainOperations() as plain, OperationCounter() as counter:
                output = self._outputs_of_one(theta, inputs)
            self._plain, self._sample_cost = plain.used, -(-counter.written // self.n_samples)
            answer: Any = output  # of a module that keeps to no type
            if not isinstance(answer, Tensor):
                parts = f" of {len(answer)}" if isinstance(answer, tuple | list) else ""
                remedy = "wrap it in a module that returns the tensor which the loss takes"
                raise InputError(message("module", "one tensor as output", type(answer).__name__ + parts, remedy))
            alone = self._outputs_of_one(theta, inputs[:1])
        if output.shape[:1] != (self.n_samples,):
            want = f"{self.n_samples} outputs"
            raise InputError(message("module", want, f"shape {tuple(output.shape)}", "keep the sample axis first"))
        tolerance = 100 * torch.finfo(self.dtype).eps ** 0.5
        if alone.shape[1:] != output.shape[1:] or not torch.allclose(
            alone, output[:1], rtol=tolerance, atol=tolerance, equal_nan=True
        ):
            remedy = "call module.eval() if it normalises over the batch, and draw no random numbers"
            got = "an output that changes with the other samples of the batch, or from call to call"
            raise InputError(message("module", "samples treated one by one", got, remedy))
        remedy = "use operations that torch.func.vmap can batch, without random numbers or in-place changes"
        with _user_errors("module", remedy), torch.no_grad():
            self._over_points(self._outputs_of_one, theta.expand(*lead, -1), ("X",))
        if any(not torch.equal(tensor, before[name]) for name, tensor in self.constants.items()):
            got, remedy = "one whose buffers change in a forward pass", "call module.eval() first"
            raise InputError(message("module", "a function of parameters and one sample", got, remedy))
        with _user_errors("loss_fn", "give a function of one output and one target, without batch axis"):
            losses = self.per_sample_loss(theta.expand(*lead, -1))
        assert losses.shape[-1] == self.n_samples
        with _user_errors("predictor", "give a function of the named parameters of one point"), torch.no_grad():
            coordinates = self.predictor(theta.expand(*lead, -1))
        if coordinates.ndim != len(lead) + 1:
            got = f"shape {tuple(coordinates.shape[len(lead) :])}"
            raise InputError(message("predictor", "a 1-D tensor of coordinates", got, "flatten it"))
        count = coordinates.shape[-1]
        if self._labels is not None:
            labels = list(map(str, self._labels))
        elif self._predictor is not None:
            labels = [f"predictor[{i}]" for i in range(count)]
        else:
            labels = ParameterLayout({"output": tuple(output.shape)}).labels
        if len(labels) != count:
            raise InputError(message("predictor_labels", f"{count} labels", len(labels), "give one per coordinate"))
        return labels


@contextlib.contextmanager
def _user_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a user's function raises into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(message(what, "one that evaluates on X and y", reason, remedy)) from None


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module.

    Raises
    ------
    InputError
        If it cannot be copied, or a parameter has no shape yet.
    """
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        remedy = "call it once on data, which gives its lazy layers their shapes"
        raise InputError(message("module", "parameters with shapes", "lazy layers that were never called", remedy))
    with _user_errors("module", "it must be possible to copy it: keep only parameters and buffers as tensors"):
        return copy_module(module)


def refuse_random_layers(module: nn.Module) -> None:
    """Raise InputError if a layer is random or couples samples in its present mode."""
    norms = nn.modules.batchnorm
    for name, layer in module.named_modules():
        # Without running statistics a batch normalisation takes those of the batch in any mode.
        always = isinstance(layer, norms._BatchNorm) and not layer.track_running_stats
        batch = always or (isinstance(layer, norms._NormBase) and layer.track_running_stats)
        dropout = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else getattr(layer, "dropout", 0)
        random = isinstance(layer, nn.RReLU) or (isinstance(dropout, float | int) and dropout > 0)
        if always or (layer.training and (batch or random)):
            reason = "couples the samples of a batch" if batch else "draws random numbers of its own"
            want = "losses that are functions of the parameters and one sample"
            mode = "without running statistics" if always else "in training mode"
            got = f"layer {name or 'module'!r} ({type(layer).__name__}), which {mode} {reason}"
            remedy = "normalise over one sample (layer or group norm)" if always else "call module.eval() first"
            raise InputError(message("module", want, got, remedy))


def _as_samples(name: str, value: Any, lead: tuple[str, ...], kind: torch.dtype) -> tuple[tuple[str, ...], Tensor]:
    """Return a data array with the names of its dims.

    Raises
    ------
    DataError
        If it has no sample axis, or is floating and not of the module's dtype.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(message(name, "a numeric array", type(value).__name__, f"convert it ({error})")) from None
    if not tensor.is_floating_point():
        tensor = tensor.long()
    elif tensor.dtype != kind:
        remedy = "convert the data, or the module with module.to(dtype)"
        raise DataError(message(name, f"the module's dtype {kind}", tensor.dtype, remedy))
    dims = (*lead, "sample")
    if tensor.ndim < len(dims):
        raise DataError(message(name, f"axes {dims} first", f"shape {tuple(tensor.shape)}", "add the missing axis"))
    return (*dims, *(f"{name}_axis{i}" for i in range(1, tensor.ndim - len(dims) + 1))), tensor
