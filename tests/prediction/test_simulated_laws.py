"""Three noises of the simulator, three laws of the predictor w = uv: each fits its own and no other.

The right law has KL(measured ‖ predicted) ≤ 1e-3 and is consistent at a false-alarm rate of 0.1 %; each wrong pairing
is rejected with p < 1e-6; seeds are fixed. The stiff potential of the soft gauge needs the smaller step: at 4 substeps
the step's error is seen at 100,000 trajectories (KL 2e-4).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from law_cases import toy, toy_section

import sdebias as sb
from sdebias.laws import Density
from sdebias.prediction.stationary import Noise, log_stationary_density

T, RATE = 0.1, 0.02
WINDOW = (0.5, 2.0)
NOISES: dict[str, dict[str, Any]] = {
    "soft_gauge": {"noise": sb.noise.isotropic(T), "gauge_stiffness": 20.0, "substeps": 8},
    "horizontal": {"noise": sb.noise.horizontal(sb.noise.isotropic(T))},
    # g gᵀ = η² s² ∇f∇fᵀ is 2ηT ∇f∇fᵀ for this s.
    "label": {"noise": sb.noise.label(math.sqrt(2 * T / RATE))},
}


def closed(noise: Noise) -> Density:
    """Return the density of w that geometry predicts, not normalised."""
    problem, symmetry = toy()

    def density(w: np.ndarray) -> np.ndarray:
        theta = toy_section(torch.as_tensor(w)[:, None])
        values = log_stationary_density(problem, symmetry, theta, noise=noise, temperature=T, measure="predictor")
        return values.exp().numpy()

    return density


def label_density(w: np.ndarray) -> np.ndarray:
    """Return the law under label noise, from the Fokker–Planck equation of w: drift 2w(1 − w), diffusion 8T w² / 2."""
    return w**-1.5 * np.exp(-(w - np.log(w)) / (2 * T))


LAWS: dict[str, Density] = {
    "soft_gauge": closed("soft_gauge"),
    "horizontal": closed("horizontal"),
    "label": label_density,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISES)
def test_each_noise_has_its_own_law(name: str) -> None:
    problem, symmetry = toy()
    problem = sb.problems.HadamardRegression(np.ones((1, 1)), np.ones(1), initial={"p": 1.0, "q": 1.0})
    sde = sb.SGDSDE(learning_rate=RATE, **{"substeps": 4, **NOISES[name]})
    ens = sb.simulate(
        problem,
        sde,
        symmetry=symmetry,
        trajectories=100_000,
        steps=600,
        save_every=600,
        save=["predictor_value"],
        block_size=20_000,
        progress=False,
    )
    samples = ens["predictor_value"].isel(step=-1, predictor=0)
    found = {law: sb.compare_law(samples, density, interval=WINDOW, bins=30) for law, density in LAWS.items()}
    assert float(found[name]["kl"]) < 1e-3
    assert found[name].attrs["verdict"] == "consistent", found[name]
    for law, comparison in found.items():
        if law != name:
            assert float(comparison["p_value"]) < 1e-6
            assert float(comparison["kl"]) > 5e-3
