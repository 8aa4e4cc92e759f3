"""Small problems that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sdebias as sb

ROOT = Path(__file__).parents[1]


def regression(features: int = 3, samples: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and noisy targets of a linear model, in float64."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((samples, features))
    return X, X @ rng.standard_normal(features) + 0.5 * rng.standard_normal(samples)


@pytest.fixture
def symmetry() -> sb.symmetry.Rescaling:
    return sb.symmetry.Rescaling("p", "q")


@pytest.fixture
def problem() -> sb.problems.HadamardRegression:
    X, y = regression()
    return sb.problems.HadamardRegression(X, y, features=["a", "b", "c"], initial={"p": 1.0, "q": 0.3})


@pytest.fixture
def replicated() -> sb.problems.HadamardRegression:
    data = [regression(seed=seed) for seed in range(3)]
    X, y = (np.stack(arrays) for arrays in zip(*data, strict=True))
    return sb.problems.HadamardRegression(
        X, y, initial={"p": 1.0, "q": torch.tensor([[0.3], [0.2], [0.1]]).expand(3, 3)}
    )
