"""Boundary checks: what passes, and what the message of a refusal says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sdebias import errors


@pytest.mark.parametrize(
    "value", [0, -1.0, math.nan, math.inf, "fast", True, None, [0.1, -0.1], [], torch.tensor([0.0])]
)
def test_check_positive_refuses(value: Any) -> None:
    with pytest.raises(errors.InputError, match="learning_rate: expected a positive finite number"):
        errors.check_positive("learning_rate", value)


@pytest.mark.parametrize("value", [0.1, 3, [0.1, 0.2], torch.tensor([0.5])])
def test_check_positive_passes(value: Any) -> None:
    assert errors.check_positive("learning_rate", value) is value


@pytest.mark.parametrize("value", [0, -3, 1.5, "7", True, None])
def test_check_count_refuses(value: Any) -> None:
    with pytest.raises(errors.InputError, match="steps: expected a whole number >= 1"):
        errors.check_count("steps", value)


def test_check_choice_names_the_nearest() -> None:
    with pytest.raises(errors.InputError, match="did you mean 'minibatch'"):
        errors.check_choice("noise", "mini_batch", ("minibatch", "isotropic"))


def test_check_flag_refuses_numbers() -> None:
    with pytest.raises(errors.InputError, match="true or false"):
        errors.check_flag("replacement", 1)


def test_check_finite_counts_and_locates() -> None:
    tensor = torch.tensor([[0.0, math.nan], [math.inf, 1.0]])
    with pytest.raises(errors.DataError, match=r"2 NaN or infinite, the first at \(0, 1\)"):
        errors.check_finite("X", tensor)


def test_every_input_error_is_a_value_error() -> None:
    for name in ("ConfigError", "DataError", "DeviceError", "OutputError", "SymmetryError"):
        assert issubclass(getattr(errors, name), errors.InputError)
    assert issubclass(errors.InputError, ValueError)
    assert not issubclass(errors.RunError, errors.InputError)
