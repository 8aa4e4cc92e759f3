"""Plain operations give what torch's fused functions give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdebias.plain import PlainOperations


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relu_layer(*sizes: int, **options: Any) -> nn.RNN:
    return nn.RNN(*sizes, **{**options, "nonlinearity": "relu"})


def relu_cell(*sizes: int, **options: Any) -> nn.RNNCell:
    return nn.RNNCell(sizes[0], sizes[1], **{**options, "nonlinearity": "relu"})


TOKENS = normal(2, 5, 4)
HEADS = [normal(2, 4, 5, 3, seed=k) for k in range(3)]
FEW = [HEADS[0], *(t[:, :2] for t in HEADS[1:])]
MASK = torch.ones(5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True, "num_layers": 2, "batch_first": True},
        {"bias": False},
    ],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, relu_layer])
def test_recurrent_layers(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 3, **options).double()
    for tokens in (TOKENS, TOKENS[0]):
        wanted = layer(tokens)
        with PlainOperations() as plain:
            got = layer(tokens)
        assert plain.used
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, relu_cell])
def test_cells(kind: Any, bias: bool) -> None:
    torch.manual_seed(0)
    cell = kind(4, 3, bias=bias).double()
    wanted = cell(TOKENS[0])
    with PlainOperations():
        torch.testing.assert_close(cell(TOKENS[0]), wanted)


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        (HEADS, {}),
        (HEADS, {"is_causal": True}),
        (HEADS, {"attn_mask": MASK}),
        (HEADS, {"attn_mask": normal(5, 5, seed=7), "scale": 0.3}),
        (FEW, {"enable_gqa": True}),
    ],
)
def test_attention(tensors: Any, options: dict[str, Any]) -> None:
    wanted = functional.scaled_dot_product_attention(*tensors, **options)
    with PlainOperations():
        torch.testing.assert_close(functional.scaled_dot_product_attention(*tensors, **options), wanted)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention(need_weights: bool) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, batch_first=True).double()
    wanted, weights = layer(TOKENS, TOKENS, TOKENS, need_weights=need_weights, attn_mask=~MASK)
    with PlainOperations():
        got, plain = layer(TOKENS, TOKENS, TOKENS, need_weights=need_weights, attn_mask=~MASK)
    torch.testing.assert_close(got, wanted)
    assert (plain is None) == (weights is None)


def test_other_functions_are_left_alone() -> None:
    with PlainOperations() as plain:
        functional.relu(TOKENS)
    assert not plain.used


@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["old", "new"])
def test_weight_norm(norm: Any, dim: int | None) -> None:
    torch.manual_seed(0)
    layer, inputs = norm(nn.Conv1d(3, 4, 2).double(), dim=dim), normal(5, 3, 6)
    parameters = list(layer.parameters())

    def value_and_gradient() -> tuple[Tensor, ...]:
        value = layer(inputs).square().sum()
        return value, *torch.autograd.grad(value, parameters)

    wanted = value_and_gradient()
    with PlainOperations() as plain:
        got = value_and_gradient()
    assert plain.used
    torch.testing.assert_close(got, wanted)
