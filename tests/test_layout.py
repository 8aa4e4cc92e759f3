"""Named tensors on one flat axis."""

from __future__ import annotations

import pytest
import torch

from sdebias.errors import InputError
from sdebias.layout import ParameterLayout

LAYOUT = ParameterLayout({"W": (2, 3), "b": (2,), "scale": ()}, {"b": [["left", "right"]]})


def test_flatten_is_the_inverse_of_unflatten() -> None:
    theta = torch.arange(45.0).reshape(5, 9)
    assert LAYOUT.size == 9
    named = LAYOUT.unflatten(theta)
    assert {name: tuple(t.shape) for name, t in named.items()} == {"W": (5, 2, 3), "b": (5, 2), "scale": (5,)}
    assert torch.equal(LAYOUT.flatten(named), theta)


def test_flatten_broadcasts_leading_dims() -> None:
    named = {"W": torch.zeros(4, 2, 3), "b": torch.ones(2), "scale": torch.tensor(2.0)}
    assert LAYOUT.flatten(named).shape == (4, 9)


def test_labels() -> None:
    assert LAYOUT.labels == [*(f"W[{i},{j}]" for i in range(2) for j in range(3)), "b[left]", "b[right]", "scale"]


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'scale'"):
        LAYOUT.shape("scales")


def test_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected shape \(\.\.\., 9\), got \(3, 8\)"):
        LAYOUT.unflatten(torch.zeros(3, 8))


def test_labels_must_fit() -> None:
    with pytest.raises(InputError, match="labels of 'b'"):
        ParameterLayout({"b": (2,)}, {"b": [["only one"]]})


def test_no_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="at least one named tensor"):
        ParameterLayout({})
