"""Modules of the user's: copies, and layers in plain operations that batch over trajectories and differentiate twice.

torch's fused kernels do neither: those of recurrent layers and of the weight norm have no rule for `torch.func.vmap`,
those of attention no second derivative, which the modified loss and Hessian products need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .errors import InputError, message


class PlainOperations(TorchFunctionMode):
    """While entered, fused functions of such layers are computed by plain operations.

    Attributes
    ----------
    used : bool
        Whether one of them was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain = PLAIN.get(getattr(func, "__name__", ""))
        if plain is None:
            return func(*args, **kwargs)
        self.used = True
        return plain(func, *args, **kwargs)


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module, with values in place of tensors that were computed from its parameters.

    torch copies no such tensors. `torch.nn.utils.weight_norm` keeps one, and computes it anew in each forward pass.
    """
    computed = [
        t for layer in module.modules() for t in vars(layer).values() if isinstance(t, Tensor) and not t.is_leaf
    ]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})


def _attention(
    func: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(q kᵀ/√d + mask) v."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        dropped = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if dropped else scores + attn_mask
    return functional.dropout(scores.softmax(-1), dropout_p, dropout_p > 0) @ value


def _multi_head(func: Callable[..., Any], *args: Any, need_weights: bool = True, **kwargs: Any) -> Any:
    """Call torch's own function on its path that returns the weights, which has no fused kernel."""
    output, weights = func(*args, need_weights=True, **kwargs)
    return output, weights if need_weights else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def _lstm_cell(
    func: Callable[..., Any], x: Tensor, state: Sequence[Tensor], w: Tensor, u: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    hidden, cell = state
    b, c = biases or (None, None)
    update, forget, new, out = (_linear(x, w, b) + _linear(hidden, u, c)).chunk(4, -1)
    cell = forget.sigmoid() * cell + update.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def _gru_cell(
    func: Callable[..., Any], x: Tensor, hidden: Tensor, w: Tensor, u: Tensor, *biases: Tensor | None
) -> Tensor:
    b, c = biases or (None, None)
    (reset, update, new), (r, z, n) = _linear(x, w, b).chunk(3, -1), _linear(hidden, u, c).chunk(3, -1)
    keep = (update + z).sigmoid()
    return (1 - keep) * (new + (reset + r).sigmoid() * n).tanh() + keep * hidden


def _simple_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        func: Callable[..., Any], x: Tensor, hidden: Tensor, w: Tensor, u: Tensor, *biases: Tensor | None
    ) -> Tensor:
        b, c = biases or (None, None)
        return activation(_linear(x, w, b) + _linear(hidden, u, c))

    return cell


def _layers(cell: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Return a recurrent function of torch's signature from its cell, whose state has so many parts."""

    def run(
        func: Callable[..., Any],
        x: Tensor,
        state: Any,
        weights: Any,
        biases: Any,
        layers: Any,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        directions = 2 if bidirectional else 1
        each = 4 if biases else 2
        if not isinstance(biases, bool) or len(weights) != each * layers * directions:
            remedy = "give padded sequences, and no proj_size"
            raise InputError(message("module", "a plain recurrent layer", "a packed or projected one", remedy))
        start = state if parts > 1 else (state,)
        # An input without batch axis has states without one.
        x = x.transpose(0, 1) if batch_first and start[0].ndim == 3 else x
        last: list[tuple[Tensor, ...]] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                own = weights[each * k : each * (k + 1)]
                now: Any = tuple(part[k] for part in start)
                steps = list(x.unbind(0))
                path = []
                for step in reversed(steps) if direction else steps:
                    new = cell(func, step, now if parts > 1 else now[0], *own)
                    now = new if parts > 1 else (new,)
                    path.append(now[0])
                outputs.append(torch.stack(path[::-1] if direction else path))
                last.append(now)
            x = torch.cat(outputs, dim=-1)
            if layer < layers - 1:
                x = functional.dropout(x, dropout, train)
        x = x.transpose(0, 1) if batch_first and start[0].ndim == 3 else x
        return x, *(torch.stack(part) for part in zip(*last, strict=True))

    return run


def _weight_norm(func: Callable[..., Any], v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return g v/‖v‖, the norm over all axes but one, or over all where `dim` is −1."""
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


_tanh_cell, _relu_cell = _simple_cell(torch.tanh), _simple_cell(torch.relu)
PLAIN: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "_weight_norm": _weight_norm,
    "lstm_cell": _lstm_cell,
    "gru_cell": _gru_cell,
    "rnn_tanh_cell": _tanh_cell,
    "rnn_relu_cell": _relu_cell,
    "lstm": _layers(_lstm_cell, 2),
    "gru": _layers(_gru_cell, 1),
    "rnn_tanh": _layers(_tanh_cell, 1),
    "rnn_relu": _layers(_relu_cell, 1),
}
"""What stands in for a fused function, by its name; each is given that function first."""
