"""The experiment on sparse regression: its data, its exact path, and that its designed bias finds a sparse truth."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.design_regression import (
    TRAIN,
    VALIDATION,
    Splits,
    chosen,
    interactions,
    linear_path,
    product_path,
    splits,
)


@pytest.fixture(scope="module")
def data() -> Splits:
    return splits(2)


def planted(seeds: int = 4) -> Splits:
    """Return 40 samples of 60 features, of which three matter."""
    rng = np.random.default_rng(0)
    truth = np.zeros(60)
    truth[:3] = (1.0, -1.0, 0.7)
    inputs = {
        part: rng.standard_normal((seeds, n, 60)) for part, n in (("train", 40), ("validation", 40), ("test", 200))
    }
    return Splits(inputs, {part: X @ truth + 0.3 * rng.standard_normal(X.shape[:2]) for part, X in inputs.items()})


def test_splits_are_disjoint_and_standardised_by_what_is_trained_on(data: Splits) -> None:
    sizes = {part: X.shape for part, X in data.inputs.items()}
    assert sizes == {"train": (2, TRAIN, 64), "validation": (2, VALIDATION, 64), "test": (2, 242, 64)}
    np.testing.assert_allclose(data.inputs["train"].mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(data.inputs["train"].std(1), 1)
    targets = np.concatenate([data.targets[part][0] for part in data.targets])
    other = np.concatenate([data.targets[part][1] for part in data.targets])
    # The same patients, in another order.
    np.testing.assert_allclose(np.sort(targets - targets.mean()), np.sort(other - other.mean()), atol=1e-12)


def test_interactions_leave_out_the_square_of_a_binary_feature() -> None:
    inputs = np.column_stack([np.tile([-1.0, 1.0], 10), np.arange(20.0), np.arange(20.0) ** 0.5])
    found = interactions(inputs)
    assert found.shape == (20, 3 + 3 + 2)
    np.testing.assert_array_equal(found[:, 3], inputs[:, 0] * inputs[:, 1])


def test_gradient_flow_is_solved_exactly(data: Splits) -> None:
    path = linear_path(data, np.array([1e-9, 1e14]))
    np.testing.assert_allclose(path[:, 0], 0, atol=1e-8)
    for weights, X, y in zip(path[:, 1], data.inputs["train"], data.targets["train"], strict=True):
        np.testing.assert_allclose(X @ weights, X @ np.linalg.lstsq(X, y)[0], atol=1e-8)
    # dw/dt = Xᵀ(y − Xw)/n, by a small step
    before, after = linear_path(data, np.array([1.0, 1.0 + 1e-6])).transpose(1, 0, 2)
    X, y = data.inputs["train"][0], data.targets["train"][0]
    np.testing.assert_allclose((after - before)[0] / 1e-6, X.T @ (y - X @ before[0]) / TRAIN, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 40])
def test_the_parameterisation_finds_a_sparse_truth_that_the_linear_model_does_not(batch_size: int) -> None:
    sparse = planted()
    _, path = product_path(sparse, batch_size, steps=12000, save_every=400)
    designed = chosen(sparse, path)
    vanilla = chosen(sparse, linear_path(sparse, np.geomspace(0.05, 50, 40)))
    # The noise has variance 0.09.
    assert (designed < 0.2).all()
    assert (vanilla > 0.5).all()
