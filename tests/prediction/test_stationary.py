"""Laws against closed forms; `test_law_simulations` checks them against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from law_cases import FLOAT, Radial, SpectralWell, balanced_factors, toy, toy_section

import sdebias as sb
from sdebias.errors import InputError, SymmetryError
from sdebias.prediction import ImportanceSampling, PanelQuadrature, log_stationary_density, stationary_law

WINDOW = PanelQuadrature({"w": np.linspace(0.5, 2, 31).tolist()})


@pytest.mark.parametrize("measure", ["predictor", "slice", "quotient"])
@pytest.mark.parametrize(("noise", "power"), [("soft_gauge", -1.0), ("horizontal", -0.5)])
def test_the_toy_has_the_known_laws_in_every_measure(noise: str, power: float, measure: str) -> None:
    problem, symmetry = toy()
    law = stationary_law(
        problem,
        symmetry,
        toy_section,
        WINDOW,
        noise=noise,  # type: ignore[arg-type]
        temperature=0.1,
        measure=measure,  # type: ignore[arg-type]
    )
    w = law["coordinate_value"].values[:, 0]
    ratio = law["probability_density"].values / (np.exp(-((w - 1) ** 2) / 0.2) * w**power)
    assert ratio == pytest.approx(np.full_like(w, ratio[0]), rel=1e-12)
    assert float(law["probability"].sum()) == pytest.approx(1, abs=1e-12)
    # The density itself depends on the measure: dq = √(2w) ds on the slice.
    shift = 0 if measure == "predictor" else 0.5 * np.log(2 * w)
    offset = law["log_density"].values - shift + (w - 1) ** 2 / 0.2 - power * np.log(w)
    assert offset == pytest.approx(np.full_like(w, offset[0]), abs=1e-12)


def test_slice_length_is_the_length_of_the_slice() -> None:
    problem, symmetry = toy()
    law = stationary_law(problem, symmetry, toy_section, WINDOW, noise="horizontal", temperature=0.1, measure="slice")
    w = torch.tensor(law["coordinate_value"].values)
    length = (toy_section(w + 1e-6) - toy_section(w - 1e-6)).norm(dim=-1).numpy() / 2e-6
    density = np.exp(law["log_density"].values) * length
    ratio = law["probability_density"].values / density
    assert ratio == pytest.approx(np.full_like(ratio, ratio[0]), rel=1e-8)


def test_singular_values_under_soft_gauge_carry_the_residual_orthogonal_group() -> None:
    problem = SpectralWell()
    symmetry = sb.symmetry.GeneralLinear("U", "V").bind(problem)
    edges = np.linspace(0.3, 2.2, 16).tolist()

    def section(sigma: torch.Tensor) -> torch.Tensor:
        root = torch.diag_embed(sigma.sqrt()).flatten(-2)
        return torch.cat([root, root], -1)

    def ordered(sigma: torch.Tensor) -> torch.Tensor:
        return (sigma[:, 0] ** 2 - sigma[:, 1] ** 2).abs().log()  # dM = |σ1² − σ2²| dσ and the angles

    nodes = PanelQuadrature({"s1": np.linspace(1.2, 2.2, 9).tolist(), "s2": edges[:8]}, order=10)  # s2 ≤ 1.19 < s1
    law = stationary_law(
        problem,
        symmetry,
        section,
        nodes,
        noise="soft_gauge",
        temperature=0.2,
        measure="predictor",
        log_jacobian=ordered,
    )
    one, two = law["coordinate_value"].values.T
    loss = ((one**2 - 1.5) ** 2 + (two**2 - 1.5) ** 2) / 4
    known = np.exp(-loss / 0.2) * (one**2 - two**2) / (one * two * (one + two))
    ratio = law["probability_density"].values / known
    assert ratio == pytest.approx(np.full_like(ratio, ratio[0]), rel=1e-10)
    without = known / np.sqrt(one + two)
    wrong = law["probability_density"].values / without
    assert wrong.std() / wrong.mean() > 0.02
    with pytest.raises(SymmetryError, match="section: expected 4 coordinates, the dimension of the quotient, got 2"):
        stationary_law(problem, symmetry, section, nodes, noise="soft_gauge", temperature=0.2, measure="predictor")


def test_four_coordinates_by_importance_sampling_agree_with_the_closed_form() -> None:
    problem = sb.problems.MatrixFactorization(np.diag([2.0, 1.2]))
    symmetry = sb.symmetry.GeneralLinear("U", "V")
    centre = torch.diag(torch.tensor([2.0, 1.2], dtype=FLOAT)).flatten()
    proposal = torch.distributions.MultivariateNormal(centre, 0.12 * torch.eye(4, dtype=FLOAT))
    law = stationary_law(
        problem,
        symmetry,
        balanced_factors,
        ImportanceSampling(proposal, ("M00", "M01", "M10", "M11"), samples=4000),
        noise="soft_gauge",
        temperature=0.02,
        measure="predictor",
    )
    entries = torch.tensor(law["coordinate_value"].values)
    sigma = torch.linalg.svdvals(entries.unflatten(-1, (2, 2)))
    log_known = -(entries - centre).square().sum(-1) / 8 / 0.02 - (sigma.prod(-1) * sigma.sum(-1)).log()
    known = (log_known - proposal.log_prob(entries)).softmax(0).numpy()
    assert law["probability"].values == pytest.approx(known, rel=1e-9, abs=1e-15)
    assert 0 < float(law["normalisation_error"]) < 0.05


@pytest.mark.parametrize("m", [2, 3])
def test_rotations_multiply_the_isotropic_law_by_the_sphere_and_leave_the_horizontal_one(m: int) -> None:
    problem = Radial(m)
    symmetry = sb.symmetry.Orthogonal("x").bind(problem)
    radii = torch.linspace(0.5, 2, 7, dtype=FLOAT)
    points = torch.nn.functional.pad(radii[:, None], (0, m - 1))
    isotropic, gauged, horizontal = (
        log_stationary_density(problem, symmetry, points, noise=noise, temperature=0.1, measure="predictor")
        for noise in ("isotropic", "soft_gauge", "horizontal")
    )
    assert torch.allclose(isotropic - horizontal, (m - 1) * radii.log(), atol=1e-12)
    assert torch.allclose(gauged - gauged[0], isotropic - isotropic[0], atol=1e-12)  # no charges, no gauge to fix


def test_what_has_no_law_is_refused() -> None:
    problem, symmetry = toy()
    points = toy_section(torch.ones(2, 1, dtype=FLOAT))

    def ask(theta: torch.Tensor = points, **changes: object) -> torch.Tensor:
        choices = {"noise": "horizontal", "temperature": 0.1, "measure": "predictor", **changes}
        return log_stationary_density(problem, symmetry, theta, **choices)  # type: ignore[arg-type]

    with pytest.raises(SymmetryError, match="noise: expected a compact group of isometries for isotropic noise"):
        ask(noise="isotropic")
    with pytest.raises(InputError, match="section: expected balanced points, got a charge off its level by 0.6"):
        ask(torch.tensor([[2.0, 1.0]], dtype=FLOAT), noise="soft_gauge")
    with pytest.raises(InputError, match="measure: expected one of predictor, slice, quotient, got 'lebesgue'"):
        ask(measure="lebesgue")
    with pytest.raises(InputError, match="temperature: expected a positive finite number"):
        ask(temperature=0.0)
    near_zero = PanelQuadrature({"w": [0.0, 0.5, 1.0]})
    with pytest.raises(InputError, match="law: expected a normalisation within 1e-06"):
        stationary_law(
            problem, symmetry, toy_section, near_zero, noise="soft_gauge", temperature=0.1, measure="predictor"
        )
