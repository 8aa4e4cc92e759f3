"""Orbit drift of SGD for every kind of orbit, batch size and way of sampling, by simulation.

Each verdict has a false-alarm rate of 0.1 % and a fixed seed; its twin, a prediction a tenth larger, must be rejected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import regression

import sdebias as sb

X, Y = regression(features=3, samples=12)
MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "depth 2": (sb.problems.DeepDiagonalRegression, {"depth": 2, "initial": {"u1": 1.2, "u2": 0.3}}),
    "depth 3": (sb.problems.DeepDiagonalRegression, {"depth": 3, "initial": {"u1": 1.2, "u2": 0.9, "u3": 0.4}}),
    "depth 4": (
        sb.problems.DeepDiagonalRegression,
        {"depth": 4, "initial": {"u1": 1.2, "u2": 1.0, "u3": 0.8, "u4": 0.4}},
    ),
    "normalised": (sb.problems.NormalizedRegression, {"initial": {"w": [1.0, -0.5, 0.3]}}),
}
BATCHES = [(1, True), (4, True), (4, False), (6, True), (6, False)]


@pytest.mark.parametrize(("size", "replacement"), BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_drift_agrees_and_a_tenth_more_does_not(name: str, size: int, replacement: bool) -> None:
    model, options = MODELS[name]
    problem = model(X, Y, **options)
    symmetry = problem.symmetry()
    sgd = sb.SGD(learning_rate=0.02, batch_size=size, replacement=replacement)
    ens = sb.simulate(
        problem, sgd, symmetry=symmetry, trajectories=4096, steps=40, save_every=2, seed=3, progress=False
    )
    comp = sb.compare(ens, sb.predict_orbit_drift(ens, problem, symmetry))
    assert comp.attrs["verdict"] == "consistent", comp.sdebias.table()
    assert comp.attrs["verdict_scaled"] == "rejected"
    if name == "normalised":
        assert float(comp["empirical"].isel(step=-1, charge=0)) > 0  # the norm grows


def test_softmax_shifts_have_no_drift() -> None:
    """Predicted and found: every charge stays where it was, to rounding."""
    problem = sb.problems.SoftmaxRegression(X, np.arange(12) % 3, initial_std={"W": 1.0})
    ens = sb.simulate(
        problem, sb.SGD(learning_rate=0.1), symmetry=problem.symmetry(), trajectories=64, steps=40, progress=False
    )
    change = ens["charge_value"] - ens["charge_value"].isel(step=0)
    np.testing.assert_allclose(change, 0, atol=1e-12)
    symmetry = problem.symmetry()
    assert symmetry is not None
    prediction = sb.predict_orbit_drift(ens, problem, symmetry)
    np.testing.assert_allclose(prediction["predicted_drift"], 0, atol=1e-15)
