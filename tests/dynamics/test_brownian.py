"""Sequential Brownian motion: the right increments, in order only."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from sdebias.dynamics.brownian import SequentialBrownian
from sdebias.errors import InputError


def brownian(seed: int = 0) -> SequentialBrownian:
    return SequentialBrownian((2000, 3), torch.float64, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("interval", [(0.0, 0.25), (3, 7), (torch.tensor(1.0), torch.tensor(1.5))])
def test_increments_are_normal_with_the_length_as_variance(interval: tuple[float, float]) -> None:
    """Kolmogorov–Smirnov at a false-alarm rate of 1e-3; a standard deviation a tenth larger is rejected."""
    start, end = interval
    sample = brownian()(start, end).flatten().numpy()
    std = float(end - start) ** 0.5
    assert scipy.stats.kstest(sample, "norm", args=(0, std)).pvalue > 1e-3
    assert scipy.stats.kstest(sample, "norm", args=(0, 1.1 * std)).pvalue < 1e-3


def test_increments_are_independent_and_reproducible() -> None:
    """Correlation at a false-alarm rate of 1e-3; mixing a tenth of one into the other is rejected."""
    motion = brownian()
    one, two = (motion(a, a + 1).flatten().numpy() for a in (0, 1))
    assert scipy.stats.pearsonr(one, two).pvalue > 1e-3
    assert scipy.stats.pearsonr(one, two + 0.1 * one).pvalue < 1e-3
    assert torch.equal(brownian()(0, 1), torch.from_numpy(one).reshape(2000, 3))


def test_going_back_is_refused() -> None:
    motion = brownian()
    motion(0, 1)
    with pytest.raises(InputError, match="use torchsde.BrownianInterval"):
        motion(0.5, 1.5)
