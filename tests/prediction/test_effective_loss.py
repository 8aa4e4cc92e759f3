"""Effective losses against closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import regression
from law_cases import FLOAT, balanced_factors, toy, toy_section

import sdebias as sb
from sdebias.errors import InputError
from sdebias.prediction import effective_loss

POINTS = torch.linspace(0.5, 2, 6, dtype=FLOAT)[:, None]


@pytest.mark.parametrize(
    ("noise", "measure", "power"),
    [
        ("soft_gauge", "predictor", 1.0),
        ("soft_gauge", "slice", 0.5),
        ("horizontal", "predictor", 0.5),
        ("horizontal", "quotient", 0.0),
    ],
)
def test_the_toys_bias_is_a_logarithm(noise: str, measure: str, power: float) -> None:
    problem, symmetry = toy()
    choices = {"noise": noise, "temperature": 0.1, "measure": measure}
    found = effective_loss(problem, symmetry, toy_section, POINTS, **choices)  # type: ignore[arg-type]
    w = POINTS[:, 0].numpy()
    assert found["bias_force"].values[:, 0] == pytest.approx(-0.1 * power / w, abs=1e-12)
    assert found["effective_gradient"].values[:, 0] == pytest.approx(w - 1 + 0.1 * power / w, abs=1e-12)


def test_length_on_the_slice_gives_the_log_volume_of_the_paper_for_declared_and_discovered_symmetries() -> None:
    X, y = regression(features=2)
    problem = sb.problems.HadamardRegression(X, y, initial_std={"p": 1.0, "q": 1.0})
    declared = sb.symmetry.Rescaling("p", "q").bind(problem)

    def section(w: torch.Tensor) -> torch.Tensor:
        return torch.cat([w.sqrt(), w.sqrt()], -1)

    points = torch.tensor([[0.3, 1.5], [1.0, 0.2]], dtype=FLOAT)
    volume = declared.log_orbit_volume(section(points))
    for symmetry in (declared, sb.symmetry.discover(problem, seed=0)):
        found = effective_loss(problem, symmetry, section, points, noise="soft_gauge", temperature=0.2, measure="slice")
        bias = found["effective_loss"].values - found["predictor_loss"].values
        assert np.diff(bias) == pytest.approx(0.2 * np.diff(volume.numpy()), rel=1e-6)
        assert found["bias_force"].values == pytest.approx(-0.1 / points.numpy(), rel=1e-6)


def test_the_force_on_a_matrix_is_the_derivative_of_the_effective_loss() -> None:
    problem = sb.problems.MatrixFactorization(np.diag([2.0, 1.2]))
    symmetry = sb.symmetry.GeneralLinear("U", "V")
    points = torch.tensor([[1.9, 0.3, -0.2, 1.1]], dtype=FLOAT)

    def total(places: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        found = effective_loss(
            problem, symmetry, balanced_factors, places, noise="soft_gauge", temperature=0.1, measure="predictor"
        )
        return found["effective_loss"].values, found["effective_gradient"].values

    shifts = 1e-5 * torch.eye(4, dtype=FLOAT)
    numeric = (total(points + shifts)[0] - total(points - shifts)[0]) / 2e-5
    assert total(points)[1][0] == pytest.approx(numeric, rel=1e-6)


def test_points_are_rows() -> None:
    problem, symmetry = toy()
    with pytest.raises(InputError, match="points: expected shape"):
        effective_loss(
            problem, symmetry, toy_section, POINTS[:, 0], noise="horizontal", temperature=0.1, measure="slice"
        )
