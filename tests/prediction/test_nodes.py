"""Rules of integration that laws are normalised with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdebias.errors import InputError
from sdebias.prediction import ImportanceSampling, PanelQuadrature


def test_panels_integrate_polynomials_of_two_coordinates_exactly() -> None:
    rule = PanelQuadrature({"x": [0, 1, 3], "y": [-1, 0.5]}, order=4)
    points, log_weights = rule.nodes()
    assert points.shape == (2 * 4 * 4, 2)
    x, y = points.T
    assert float((log_weights.exp() * x**7 * y**6).sum()) == pytest.approx(3**8 / 8 * (0.5**7 + 1) / 7, rel=1e-13)


def test_the_reported_error_bounds_the_true_one() -> None:
    for order in (4, 6, 8):
        rule = PanelQuadrature({"x": [0, 2, 4]}, order=order)
        points, log_weights = rule.nodes()
        log_masses = log_weights - 4 * (points[:, 0] - 1).square()
        true = 0.5 * np.sqrt(np.pi / 4) * (torch.erf(torch.tensor(6.0)) + torch.erf(torch.tensor(2.0)))
        miss = abs(float(log_masses.exp().sum() / true) - 1)
        assert miss < rule.error(log_masses) < 1


def test_importance_sampling_weighs_draws_by_one_over_their_density() -> None:
    """A Gaussian integral of three coordinates within 4 standard errors: false-alarm rate 6e-5."""
    proposal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), 2 * torch.eye(3).double())
    rule = ImportanceSampling(proposal, ("x", "y", "z"), samples=4000)
    points, log_weights = rule.nodes()
    log_masses = log_weights - 0.5 * points.square().sum(-1)
    ratio = float(log_masses.exp().sum()) / (2 * np.pi) ** 1.5
    assert abs(ratio - 1) < 4 * rule.error(log_masses) < abs(1.1 * ratio - 1)
    assert torch.equal(points, rule.nodes()[0])


def test_unfit_rules_are_refused() -> None:
    with pytest.raises(InputError, match="edges of 'x': expected two or more increasing finite numbers"):
        PanelQuadrature({"x": [1.0, 0.5]})
    with pytest.raises(InputError, match="order: expected a whole number >= 4"):
        PanelQuadrature({"x": [0.0, 1.0]}, order=3)
    with pytest.raises(InputError, match="proposal: expected a distribution over 2 coordinates"):
        ImportanceSampling(torch.distributions.Normal(0.0, 1.0), ("x", "y"))
