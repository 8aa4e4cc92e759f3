"""What samples leave open, and arguments of an explanation that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explained import F64, Function, draw, module, rows
from torch import Tensor, nn

from sdebias.design.explain import SampleWarning, explain
from sdebias.errors import InputError
from sdebias.problems import (
    HadamardRegression,
    Problem,
)


def test_too_few_samples_are_noticed() -> None:
    # Two samples see two directions of each row of [W b], of four.
    net = module(lambda: nn.Linear(3, 2))
    with pytest.warns(SampleWarning, match="2 given samples leave 6 directions unchanged, fresh samples 0"):
        found = explain(net, (draw(2, 3), draw(2, 2, seed=1)))
    assert found.table["symmetry"].tolist() == ["none", "6 fields"]
    assert found.table["origin"].tolist() == ["architecture", "sample"]
    assert (found.samples, found.seen, found.identifiable) == (2, 2, 8)


def test_inputs_in_a_subspace_are_noticed_however_many_they_are() -> None:
    inputs = draw(200, 3)
    inputs[:, 2] = 0
    with pytest.warns(SampleWarning, match="200 given samples leave 4 directions unchanged, fresh samples 3"):
        found = explain(HadamardRegression(inputs, draw(200, seed=1)))
    assert rows(found)[0] == ("rescaling of 3 units", "p, q", 3)
    assert set(found.table["origin"]) == {"architecture", "sample"}


def test_samples_whose_neighbours_cannot_be_evaluated_are_noticed() -> None:
    net = Function(2, lambda w, x: w[0] * w[1] * x.log())
    with pytest.warns(SampleWarning, match="not finite"):
        found = explain(net, draw(30, 1).abs())
    assert found.table["symmetry"].tolist() == ["rescaling of 1 unit"]


def test_single_precision_and_classes_are_taken() -> None:
    net = nn.Linear(3, 3)
    labels = torch.arange(30) % 3
    found = explain(net, (draw(30, 3).float(), labels), loss_fn=nn.CrossEntropyLoss())
    assert rows(found) == [("translation in 3 directions", "weight", 3), ("translation in 1 direction", "bias", 1)]
    assert found.theta.dtype == F64


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((nn.Linear(2, 1),), "sample: expected inputs X"),
        ((HadamardRegression(draw(4, 2), draw(4)), draw(4, 2)), "a Problem has its own"),
        ((nn.Linear(2, 1), draw(4, 3).float()), "inputs that the module takes"),
        (("linear", draw(4, 3)), "an nn.Module or a Problem"),
        ((nn.Linear(40, 40).double(), draw(50, 40)), "at most 512 parameters"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        explain(*arguments)


@pytest.mark.parametrize(
    ("theta", "match"),
    [(draw(3), "flatten the parameters"), (draw(2, 8), "take one row"), (torch.full((8,), torch.nan), "NaN")],
)
def test_bad_points_are_refused(theta: Tensor, match: str) -> None:
    problem: Problem = HadamardRegression(draw(10, 4), draw(10, seed=1))
    with pytest.raises(InputError, match=match):
        explain(problem, theta=theta)
