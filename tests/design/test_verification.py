"""Certificates: settings from the wanted law, and ensembles that hold against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdebias as sb
from experiments.design_penalties import DESIGNS
from sdebias.design import Certificate, Design, penalty
from sdebias.design.verification import STEP_KL, Trial
from sdebias.errors import InputError

INF = math.inf
HALF = (0.0, INF)


def trial(design: Design, target: float = 0.5, temperature: float = 0.25) -> Trial:
    assert design.interval is not None
    return Trial.of(design, design.interval, target, temperature, design.walls)


def test_the_gap_is_that_of_a_reflected_oscillator() -> None:
    """Without penalty, dw = −w dt + √(2T) dW on w > 0 relaxes at rate 2: only even modes are left. Not at rate 2.2."""
    found = trial(penalty("none", domain=HALF), target=0.0).relaxation_time
    assert found == pytest.approx(1 / 2, rel=5e-3)
    assert found != pytest.approx(1 / 2.2, rel=5e-3)


def test_the_step_is_that_of_an_oscillator() -> None:
    """Euler's variance of dx = −x dt + √(2T) dW is T/(1 − τ/2): a KL of (τ/2)²/4 to leading order."""
    step = trial(penalty("none", domain=HALF), target=0.0).solver_step
    assert step**2 / 16 <= 1.1 * STEP_KL
    assert step**2 / 16 >= STEP_KL / 3


def test_laws_are_resolved_where_they_live() -> None:
    """Masses of cells against closed forms, on a domain that ends where the density is infinite."""
    found = trial(penalty("logarithm", domain=HALF, strength=0.5))
    assert found.designed.sum() == pytest.approx(1)
    assert found.unpenalised.sum() == pytest.approx(1)
    assert found.w[0] >= 0
    cumulated = np.cumsum(found.designed) / np.cumsum(found.designed)[-1]
    grid = np.linspace(found.w[0] ** 0.5, found.w[-1] ** 0.5, 200_001)  # dw/√w = 2 d√w
    density = np.exp(-0.5 * (grid**2 - 0.5) ** 2 / 0.25)
    expected = np.interp(found.w[1:] ** 0.5, grid, np.cumsum(density) / density.sum())
    np.testing.assert_allclose(cumulated, expected, atol=2e-5)
    start = found.start(20_000, torch.Generator().manual_seed(0))
    w = found.design.weight({"p": start[:, 0], "q": start[:, 1]})
    mean = float((found.unpenalised * (found.w[1:] + found.w[:-1]) / 2).sum())
    assert float(w.mean()) == pytest.approx(mean, abs=5 * float(w.std()) / math.sqrt(20_000))


def test_losses_that_do_not_confine_are_refused() -> None:
    reward = penalty(lambda w: -(w**2))
    with pytest.raises(InputError, match=r"designed law: expected a loss that confines w, got a share of"):
        reward.verify(temperature=0.5)
    for arguments, reason in (
        ({"temperature": -1.0}, "temperature: expected a positive"),
        ({"trajectories": 1}, "trajectories: expected a whole number >= 2"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
    ):
        with pytest.raises(InputError, match=reason):
            penalty("none", domain=HALF).verify(**arguments)


class Claim(Design):
    """A design that claims another strength than it has."""

    noise = "horizontal"
    factors = ("p", "q")

    def __init__(self, claimed: float) -> None:
        self.true, self.claimed = penalty("log", domain=HALF), claimed

    @property
    def symmetry(self) -> sb.symmetry.Symmetry:
        return self.true.symmetry

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return self.true.shapes(shape)

    def weight(self, named: Mapping[str, Tensor]) -> Tensor:
        return self.true.weight(named)

    def factorize(self, weight: Tensor) -> dict[str, Tensor]:
        return self.true.factorize(weight)

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return self.true.start(shapes)

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> dict[str, Tensor]:
        return self.true.pull_back(named, slope)

    def penalty(self, weight: Tensor) -> Tensor:
        return self.claimed * self.true.penalty(weight)

    def spec(self) -> dict[str, Any]:
        return self.true.spec()


def test_a_certificate_holds_for_the_true_penalty_only() -> None:
    """False-alarm rate 1e-3, seed fixed; a claim of 10 % more is rejected."""
    certificate = Claim(1.0).verify(interval=(0.0, 4.0), temperature=0.25)
    assert certificate.holds
    assert certificate.kl <= 2e-3 < certificate.kl_unpenalised
    assert certificate.designed.attrs["verdict"] == "consistent"
    text = repr(certificate)
    assert text.startswith("Certificate: holds")
    assert "rejected" in text
    assert "relaxation time" in text
    assert text.count("\n") == 3
    with pytest.raises(InputError, match=r"interval: expected where w may lie, got none"):
        Claim(1.0).verify()
    assert Claim(1.1).verify(interval=(0.0, 4.0), temperature=0.25).designed.attrs["verdict"] == "rejected"
    wrong = Certificate(certificate.unpenalised, certificate.unpenalised, certificate.settings)
    assert not wrong.holds
    assert "does not hold" in repr(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("title", DESIGNS)
def test_penalties_hold_with_the_same_automatic_settings(title: str) -> None:
    """KL(empirical ‖ designed) ≤ 2e-3 and the law without penalty rejected at 1e-3, seed fixed."""
    certificate = DESIGNS[title]().verify(trajectories=1024, seed=1)
    assert certificate.holds
    assert certificate.settings["trajectories"] == 1024
