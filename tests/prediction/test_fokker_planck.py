"""Laws of one coordinate under noise that depends on the state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from law_cases import toy, toy_section

import sdebias as sb
from sdebias.errors import DataError, InputError, SymmetryError
from sdebias.prediction import (
    PanelQuadrature,
    fokker_planck_coefficients,
    label_gradients,
    minibatch_gradients,
    projected_coefficients,
    stationary_fokker_planck,
)

WINDOW = PanelQuadrature({"w": np.linspace(0.5, 2, 16).tolist()})
LEARNING_RATE = 1e-2


def label_law(temperature: float, window: PanelQuadrature = WINDOW) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and density for label noise √(2T) (v, u) dW."""
    problem, _ = toy()
    noise = label_gradients(problem, math.sqrt(2 * temperature / LEARNING_RATE))
    coefficients = fokker_planck_coefficients(problem, toy_section, noise, learning_rate=LEARNING_RATE)
    law = stationary_fokker_planck(*coefficients, window, support=(0, math.inf))
    return law["coordinate_value"].values[:, 0], law["probability_density"].values


def test_label_noise_on_the_toy_has_the_known_law() -> None:
    w, density = label_law(0.1)
    ratio = density / (w**-1.5 * np.exp(-(w - np.log(w)) / 0.2))
    assert ratio == pytest.approx(np.full_like(w, ratio[0]), rel=1e-9)
    wrong = density / (np.exp(-((w - 1) ** 2) / 0.2) / w)
    assert wrong.std() / wrong.mean() > 0.1


def test_label_noise_that_collapses_the_predictor_is_refused() -> None:
    """Towards 0 the density is w^{1/2T − 3/2}: no integral from T = 1 on."""
    label_law(0.9)
    with pytest.raises(InputError, match=r"got p ~ distance\^-1.05 towards 0; there is no stationary law"):
        label_law(1.1)


def test_minibatch_noise_has_the_law_of_its_quadratic_diffusion() -> None:
    """Two targets 1 ± a: Σ = a² (v, u)(v, u)ᵀ whatever the residual, as for label noise with s = a."""
    a, eta = 3.0, 2e-2
    problem = sb.problems.HadamardRegression(np.ones((2, 1)), np.array([1 + a, 1 - a]))
    coefficients = fokker_planck_coefficients(
        problem, toy_section, minibatch_gradients(problem), learning_rate=eta, batch_size=1
    )
    law = stationary_fokker_planck(*coefficients, WINDOW, support=(0, math.inf))
    w, temperature = law["coordinate_value"].values[:, 0], eta * a**2 / 2
    ratio = law["probability_density"].values / (w**-1.5 * np.exp(-(w - np.log(w)) / (2 * temperature)))
    assert ratio == pytest.approx(np.full_like(w, ratio[0]), rel=1e-9)


def test_projected_coefficients_are_itos_formula() -> None:
    problem, _ = toy()
    theta = torch.tensor([[1.3, 0.4]], dtype=torch.float64)
    drift, diffusion = projected_coefficients(
        problem, theta, label_gradients(problem, 0.5), learning_rate=0.1, batch_size=2
    )
    u, v = theta[0]
    scale = 0.1**2 / 4 * 0.5**2
    assert float(diffusion) == pytest.approx(float(scale * (u**2 + v**2) ** 2))
    assert float(drift) == pytest.approx(float(-0.1 * (u * v - 1) * (u**2 + v**2) + scale * 2 * u * v))


def test_an_ornstein_uhlenbeck_process_is_gaussian_and_brownian_motion_has_no_law() -> None:
    line = (-math.inf, math.inf)
    nodes = PanelQuadrature({"x": np.linspace(-4, 4, 33).tolist()})
    law = stationary_fokker_planck(lambda q: -q, np.ones_like, nodes, support=line)
    x = law["coordinate_value"].values[:, 0]
    assert law["probability_density"].values == pytest.approx(
        np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) / math.erf(4 / math.sqrt(2)), rel=1e-8
    )
    with pytest.raises(InputError, match="density with a finite integral"):
        stationary_fokker_planck(np.zeros_like, np.ones_like, nodes, support=line)
    flat = stationary_fokker_planck(np.zeros_like, np.ones_like, nodes, support=(-4, 4))  # reflecting walls
    assert flat["probability_density"].values == pytest.approx(1 / 8, rel=1e-12)


def test_unfit_questions_are_refused() -> None:
    with pytest.raises(InputError, match="diffusion: expected positive values on the window"):
        stationary_fokker_planck(np.zeros_like, lambda q: q - 1, WINDOW, support=(0, 3))
    with pytest.raises(InputError, match="support: expected one that holds the window"):
        stationary_fokker_planck(np.zeros_like, np.ones_like, WINDOW, support=(0, 1))
    matrix = sb.problems.MatrixFactorization(np.eye(2))
    with pytest.raises(SymmetryError, match="problem: expected one predictor coordinate, got 4"):
        fokker_planck_coefficients(matrix, toy_section, minibatch_gradients(matrix), learning_rate=0.1)
    with pytest.raises(DataError, match="problem: expected a regression with one output"):
        label_gradients(matrix, 1.0)
