"""Stationary laws against Euler-Maruyama ensembles of their SDEs, written out here: nothing of the package simulates.

The laws are those of continuous time; the steps are small enough for KL ≤ 1e-3 and for means within 3 standard errors.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from law_cases import FLOAT, Radial, Step, euler_maruyama, toy, toy_section
from torch import Tensor

import sdebias as sb
from sdebias.prediction import (
    PanelQuadrature,
    fokker_planck_coefficients,
    label_gradients,
    stationary_fokker_planck,
    stationary_law,
)

pytestmark = pytest.mark.slow

TEMPERATURE, STIFFNESS = 0.1, 40.0
EDGES = np.linspace(0.5, 2, 31)
NODES = PanelQuadrature({"w": EDGES.tolist()})


def toy_gradient(theta: Tensor) -> Tensor:
    return (theta[0] * theta[1] - 1) * theta.flip(0)


def soft_gauge(theta: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    charge = 0.5 * (theta[0].square() - theta[1].square())
    drift = -toy_gradient(theta) - STIFFNESS * torch.stack([charge * theta[0], -charge * theta[1]])
    return drift, math.sqrt(2 * TEMPERATURE) * normal


def horizontal(theta: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    lifted = theta.flip(0)  # the horizontal direction (v, u)
    along = (lifted * normal).sum(0) / lifted.square().sum(0)
    return -toy_gradient(theta), math.sqrt(2 * TEMPERATURE) * along * lifted


def label(theta: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    return -toy_gradient(theta), math.sqrt(2 * TEMPERATURE) * theta.flip(0) * normal[0]


SIMULATIONS: dict[str, Step] = {"soft_gauge": soft_gauge, "horizontal": horizontal, "label": label}


def toy_laws() -> dict[str, xr.Dataset]:
    problem, symmetry = toy()
    laws = {}
    for noise in ("soft_gauge", "horizontal"):
        laws[noise] = stationary_law(
            problem, symmetry, toy_section, NODES, noise=noise, temperature=TEMPERATURE, measure="predictor"
        )
    rows = label_gradients(problem, math.sqrt(2 * TEMPERATURE / 1e-3))
    coefficients = fokker_planck_coefficients(problem, toy_section, rows, learning_rate=1e-3)
    laws["label"] = stationary_fokker_planck(*coefficients, NODES, support=(0, math.inf))
    return laws


@pytest.mark.parametrize("name", SIMULATIONS)
def test_each_noise_has_its_own_law_on_the_toy(name: str) -> None:
    """KL(empirical ‖ predicted) ≤ 1e-3 on 30 bins, and the laws of the other noises rejected with p < 1e-6."""
    start = torch.ones(2, 130_000, dtype=FLOAT)
    end = euler_maruyama(SIMULATIONS[name], start, dt=2.5e-3, time=5.0)
    counts, _ = np.histogram((end[0] * end[1]).numpy(), EDGES)
    assert counts.sum() >= 100_000
    shares = counts / counts.sum()
    for other, law in toy_laws().items():
        expected = law["probability"].values.reshape(len(counts), -1).sum(1)
        divergence = scipy.stats.entropy(shares, expected)
        p_value = scipy.stats.chisquare(counts, expected * counts.sum()).pvalue
        if other == name:
            assert divergence <= 1e-3
        else:
            assert divergence > 3e-3
            assert p_value < 1e-6


@pytest.mark.parametrize("m", [2, 3])
def test_rotations_push_isotropic_noise_outward_and_leave_horizontal_noise(m: int) -> None:
    """E r within 3 standard errors of its own law (false-alarm rate 3e-3) and beyond 10 of the other."""
    temperature = 0.04
    problem = Radial(m)
    symmetry = sb.symmetry.Orthogonal("x").bind(problem)
    nodes = PanelQuadrature({"r": np.linspace(1e-9, 3, 40).tolist()})

    def section(r: Tensor) -> Tensor:
        return torch.nn.functional.pad(r, (0, m - 1))

    def step(theta: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        radius = theta.norm(dim=0)
        outward = theta / radius
        noise = normal if isotropic else (outward * normal).sum(0) * outward
        return (1 - radius) * outward, math.sqrt(2 * temperature) * noise

    means = {}
    for noise in ("isotropic", "horizontal"):
        law = stationary_law(
            problem, symmetry, section, nodes, noise=noise, temperature=temperature, measure="quotient"
        )
        means[noise] = float((law["probability"] * law["coordinate_value"].isel(coordinate=0)).sum())
    for isotropic in (True, False):
        start = torch.zeros(m, 100_000, dtype=FLOAT)
        start[0] = 1.0
        radius = euler_maruyama(step, start, dt=1e-2, time=5.0).norm(dim=0)
        error = float(radius.std()) / len(radius) ** 0.5
        own, other = ("isotropic", "horizontal") if isotropic else ("horizontal", "isotropic")
        assert abs(float(radius.mean()) - means[own]) < 3 * error
        assert abs(float(radius.mean()) - means[other]) > 10 * error
