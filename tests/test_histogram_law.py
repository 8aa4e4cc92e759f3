"""A histogram of an ensemble against a predicted law, without its trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

import sdebias as sb
from sdebias.ensemble.accumulators import Counts
from sdebias.errors import DataError, InputError

EDGES = np.linspace(-4, 4, 161)


def histogram(rng: np.random.Generator, trajectories: int, steps: int, correlation: float) -> xr.DataArray:
    """Return the histogram of a stationary AR(1) process of standard normal values."""
    noise = rng.standard_normal((steps, trajectories))
    values = [noise[0]]
    for step in noise[1:]:
        values.append(correlation * values[-1] + np.sqrt(1 - correlation**2) * step)
    counts = Counts((steps, 1), EDGES, 0).part(torch.as_tensor(np.stack(values))[:, None], None, 0)["histogram"]
    coords = {
        "w_bin_lower": ("w_bin", np.r_[-np.inf, EDGES]),
        "w_bin_upper": ("w_bin", np.r_[EDGES, np.inf]),
        "w_trajectories": trajectories,
    }
    return xr.DataArray(counts[:, 0], dims=("group", "w_bin"), coords=coords)


def p_value(samples: xr.DataArray, scale: float = 1.0, bins: int = 20) -> float:
    density = scipy.stats.norm(scale=scale).pdf
    return float(sb.compare_law(samples, density, interval=(-2, 2), bins=bins, resamples=2)["p_value"])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_p_values_are_uniform_whatever_the_correlation(correlation: float) -> None:
    """Of 150 tests at level 0.05, between 1 and 18 reject: false-alarm rate 1e-3. A width 10 % off is found."""
    rng = np.random.default_rng(0)
    made = [histogram(rng, 640, 20, correlation) for _ in range(150)]
    rejected = sum(p_value(samples) < 0.05 for samples in made)
    low, high = scipy.stats.binom(150, 0.05).ppf([5e-4, 1 - 5e-4])
    assert low <= rejected <= high
    assert np.mean([p_value(samples, 1.1) < 0.05 for samples in made[:50]]) > (0.9 if correlation == 0 else 0.3)


def test_counts_taken_for_samples_would_reject() -> None:
    """The twin: without the spread of the groups, correlated saves reject a true law far too often."""
    rng = np.random.default_rng(1)
    found = [
        sb.compare_law(histogram(rng, 640, 20, 0.9), scipy.stats.norm.pdf, interval=(-2, 2), bins=20, resamples=2)
        for _ in range(50)
    ]
    naive = [2 * float(each["kl"] + each["kl_bias"]) * 640 * 20 * float(each["inside"]) for each in found]
    assert np.mean(scipy.stats.chi2.sf(naive, 19) < 0.05) > 0.5
    assert max(float(each["effective_samples"][0]) for each in found) < 0.75 * 640 * 20


def test_bins_are_joined_and_described() -> None:
    samples = histogram(np.random.default_rng(2), 640, 20, 0.5)
    law = sb.compare_law(samples, scipy.stats.norm.pdf, interval=(-2, 2), bins=20)
    assert 15 <= law.sizes["bin"] <= 20
    assert set(np.round(law["bin_lower"].values, 9)) <= set(np.round(EDGES, 9))
    counts = samples.values.sum(0)[1:-1]
    middle = slice(*np.searchsorted(EDGES, [law["bin_lower"].values[0] - 1e-9, law["bin_upper"].values[-1] - 1e-9]))
    first = counts[middle][: round((law["bin_upper"].values[0] - law["bin_lower"].values[0]) / 0.05)].sum()
    assert float(law["bin_probability"][0]) == pytest.approx(first / counts[middle].sum())
    assert int(law["trajectories_used"]) == 640
    assert "ks_statistic" not in law
    assert law.attrs["verdict"] == "consistent"


def test_a_simulated_law(problem: sb.problems.HadamardRegression) -> None:
    """The histogram of a run agrees with the same test on its stored trajectories: the same bins, the same counts."""
    grid = np.linspace(-3, 3, 601)
    options: dict[str, Any] = {
        "trajectories": 640,
        "steps": 60,
        "save_every": 2,
        "progress": False,
        "save": ["predictor"],
    }
    stored = sb.simulate(problem, sb.SGD(learning_rate=0.05), **options)["predictor_value"].isel(predictor=0)
    late = stored.sel(step=slice(40, None))
    density = xr.DataArray(scipy.stats.norm(late.mean(), late.std()).pdf(grid) + 1e-3, coords={"w": grid})
    ends = tuple(np.round(np.quantile(late.values, [0.1, 0.9]), 2))
    statistic = sb.statistics.Histogram("predictor", lower=ends[0], upper=ends[1], bins=10, since=40)
    stats = sb.simulate(problem, sb.SGD(learning_rate=0.05), statistics=[statistic], **options)
    found = sb.compare_law(stats["predictor_value_histogram"].isel(predictor=0), density, interval=ends, bins=1000)
    edges = np.append(found["bin_lower"], found["bin_upper"][-1])
    expected = sb.compare_law(late, density, interval=ends, bins=edges)
    np.testing.assert_allclose(found["bin_probability"], expected["bin_probability"], rtol=1e-12)
    np.testing.assert_allclose(found["bin_predicted"], expected["bin_predicted"], rtol=1e-9)
    assert float(found["inside"]) == pytest.approx(float(expected["inside"]))
    assert int(found["trajectories_used"]) == 640
    ratio = float(found["effective_samples"][0] / expected["effective_samples"][0])
    assert 0.5 < ratio < 2  # one spread is of 64 groups, the other of 640 trajectories


class TestRefusals:
    @pytest.fixture
    def samples(self) -> xr.DataArray:
        return histogram(np.random.default_rng(3), 64, 2, 0.0)

    def test_other_dims(self, samples: xr.DataArray) -> None:
        with pytest.raises(DataError, match="select one coordinate"):
            sb.compare_law(samples.expand_dims(predictor=2), scipy.stats.norm.pdf, interval=(-2, 2))
        with pytest.raises(DataError, match="select one coordinate"):
            sb.compare_law(samples.drop_vars("w_bin_lower"), scipy.stats.norm.pdf, interval=(-2, 2))

    def test_edges(self, samples: xr.DataArray) -> None:
        with pytest.raises(InputError, match="bins: expected a number, for a histogram"):
            sb.compare_law(samples, scipy.stats.norm.pdf, interval=(-2, 2), bins=[-1, 0, 1])

    @pytest.mark.parametrize("interval", [(0.01, 0.06), (5, 6)])
    def test_too_coarse(self, samples: xr.DataArray, interval: tuple[float, float]) -> None:
        with pytest.raises(DataError, match="use a finer histogram"):
            sb.compare_law(samples, lambda x: np.ones_like(x), interval=interval)

    def test_nothing_inside(self, samples: xr.DataArray) -> None:
        with pytest.raises(DataError, match="none of 128; widen"):
            sb.compare_law(samples, lambda x: np.ones_like(x), interval=(3.8, 4))
