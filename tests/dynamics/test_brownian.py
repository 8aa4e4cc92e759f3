"""Sequential Brownian motion: the right increments, in order only."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from sdebias.dynamics.brownian import SequentialBrownian
from sdebias.errors import InputError


def brownian(seed: int = 0) -> SequentialBrownian:
    return SequentialBrownian((2000, 3), torch.float64, torch.Generator().manual_seed(seed))


def drawn(motion: SequentialBrownian, start: float, end: float) -> torch.Tensor:
    increment = motion(start, end)
    assert isinstance(increment, torch.Tensor)
    return increment


@pytest.mark.parametrize("interval", [(0.0, 0.25), (3, 7), (torch.tensor(1.0), torch.tensor(1.5))])
def test_increments_are_normal_with_the_length_as_variance(interval: tuple[float, float]) -> None:
    """Kolmogorov–Smirnov at a false-alarm rate of 1e-3; a standard deviation a tenth larger is rejected."""
    start, end = interval
    sample = drawn(brownian(), start, end).flatten().numpy()
    std = float(end - start) ** 0.5
    assert scipy.stats.kstest(sample, "norm", args=(0, std)).pvalue > 1e-3
    assert scipy.stats.kstest(sample, "norm", args=(0, 1.1 * std)).pvalue < 1e-3


def test_increments_are_independent_and_reproducible() -> None:
    """Correlation at a false-alarm rate of 1e-3; mixing a tenth of one into the other is rejected."""
    motion = brownian()
    one, two = (drawn(motion, a, a + 1).flatten().numpy() for a in (0, 1))
    assert scipy.stats.pearsonr(one, two).pvalue > 1e-3
    assert scipy.stats.pearsonr(one, two + 0.1 * one).pvalue < 1e-3
    assert torch.equal(drawn(brownian(), 0, 1), torch.from_numpy(one).reshape(2000, 3))


def test_going_back_is_refused() -> None:
    motion = brownian()
    motion(0, 1)
    with pytest.raises(InputError, match="use torchsde.BrownianInterval"):
        motion(0.5, 1.5)


def test_areas_have_their_joint_moments() -> None:
    """Var U = h³/3, Cov(W, U) = h²/2, Var A = h²/4, A antisymmetric and orthogonal to W: each within 4 standard errors.

    The false-alarm rate of the five is 3e-4; moments a tenth larger are rejected.
    """
    h, rows = 0.5, 200_000
    motion = SequentialBrownian((rows, 2), torch.float64, torch.Generator().manual_seed(3), "foster")
    w, u, a = motion(0.0, h, return_U=True, return_A=True)
    assert torch.equal(a, -a.mT)
    area = a[:, 0, 1]
    products = {
        "UU": (u[:, 0] ** 2, h**3 / 3),
        "WU": (w[:, 0] * u[:, 0], h**2 / 2),
        "AA": (area**2, h**2 / 4),
    }
    for name, (sample, expected) in products.items():
        error = float(sample.std()) / rows**0.5
        assert abs(float(sample.mean()) - expected) < 4 * error, name
        assert abs(float(sample.mean()) - 1.1 * expected) > 4 * error, name
    for sample in (area * w[:, 0], area):
        assert abs(float(sample.mean())) < 4 * float(sample.std()) / rows**0.5


def test_area_is_that_of_the_path() -> None:
    """Regression of the area of a fine path on H_0 W_1 − W_0 H_1 has slope 1, as Foster's mean states; not 1.1."""
    cuts, rows = 128, 20_000
    fine = SequentialBrownian((rows, 2), torch.float64, torch.Generator().manual_seed(4))
    steps = torch.stack([drawn(fine, j / cuts, (j + 1) / cuts) for j in range(cuts)])
    middle = steps.cumsum(0) - steps / 2
    w, excess = steps.sum(0), middle.mean(0) - steps.sum(0) / 2
    area = 0.5 * (middle[..., 0] * steps[..., 1] - middle[..., 1] * steps[..., 0]).sum(0)
    mean = excess[:, 0] * w[:, 1] - w[:, 0] * excess[:, 1]
    fit = scipy.stats.linregress(mean.numpy(), area.numpy())
    assert abs(fit.slope - 1) < 4 * fit.stderr
    assert abs(fit.slope - 1.1) > 4 * fit.stderr
