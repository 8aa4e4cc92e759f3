"""Comparison of laws: exact autocorrelation times, stated false-alarm rates for correlated saves, power, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.special
import scipy.stats
import xarray as xr

import sdebias as sb
from experiments import rotation_law
from sdebias.autocorrelation import autocorrelation_time
from sdebias.errors import DataError, InputError

PHI = 0.9
REPEATS = 200
GRID = np.linspace(-6, 6, 401)


def ar1(trajectories: int, steps: int, seed: int = 0, phi: float = PHI) -> xr.DataArray:
    """Return stationary AR(1) trajectories x_{k+1} = φ x_k + √(1−φ²) ε with law N(0, 1)."""
    noise = np.random.default_rng(seed).standard_normal((trajectories, steps))
    noise[:, 1:] *= np.sqrt(1 - phi**2)
    return xr.DataArray(scipy.signal.lfilter([1], [1, -phi], noise, axis=-1), dims=("trajectory", "step"))


def normal(scale: float = 1.0, shift: float = 0.0) -> xr.DataArray:
    return xr.DataArray(scipy.stats.norm.pdf(GRID, shift, scale), dims="x", coords={"x": GRID})


def excess(rate: float, repeats: int = REPEATS) -> float:
    """Return the highest share of alarms among `repeats`: the stated rate plus 3.3 standard errors."""
    return rate + 3.3 * np.sqrt(rate * (1 - rate) / repeats)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.4])
def test_autocorrelation_time_of_ar1_is_exact(phi: float) -> None:
    """(1+φ)/(1−φ) within 5 %, some 4 standard errors; the twin, a φ that is a tenth larger, is not."""
    found = autocorrelation_time(ar1(100, 4000, seed=1, phi=phi).values)
    assert found == pytest.approx((1 + phi) / (1 - phi), rel=0.05)
    if phi:
        assert found != pytest.approx((1 + 1.1 * phi) / (1 - 1.1 * phi), rel=0.05)


def test_short_trajectories_get_the_variance_of_their_means() -> None:
    """With S steps fewer than 5 τ: 1 + 2 Σ (1 − t/S) φ^t, within 5 %."""
    lags = np.arange(1, 10)
    exact = 1 + 2 * np.sum((1 - lags / 10) * PHI**lags)
    values = ar1(20_000, 10).values
    assert autocorrelation_time(values) == pytest.approx(exact, rel=0.05)
    centred = values - values.mean()
    of_means = 10 * np.mean(centred.mean(1) ** 2) / np.mean(centred**2)
    assert autocorrelation_time(values) == pytest.approx(of_means, rel=1e-9)
    assert autocorrelation_time(values[:, :1]) == 1.0
    assert autocorrelation_time(np.ones((3, 4))) == 1.0


def test_effective_sample_size() -> None:
    samples = ar1(100, 4000)
    assert sb.effective_sample_size(samples) == pytest.approx(400_000 * (1 - PHI) / (1 + PHI), rel=0.05)


def test_false_alarms_are_as_rare_as_stated_for_correlated_saves() -> None:
    """P-values below 5 % in at most 5 % + 3.3 standard errors of 200 ensembles (false-alarm rate 5e-4), for each test.

    The twins: the same tests that count every save as a sample raise alarms in more than half of the ensembles; and
    against a law that is 10 % too wide more than 95 % of the p-values are below 5 %.
    """
    tests: dict[str, list[float]] = {"g_p_value": [], "ks_p_value": [], "p_value": []}
    naive, wrong = [], []
    for seed in range(REPEATS):
        samples = ar1(50, 400, seed)
        result = sb.compare_law(samples, normal(), bins=12, resamples=2)
        for name, values in tests.items():
            values.append(float(result[name]))
        naive.append(scipy.special.kolmogorov(np.sqrt(samples.size) * float(result["ks_statistic"])))
        if seed < REPEATS // 4:
            wrong.append(float(sb.compare_law(samples, normal(1.1), bins=12, resamples=2)["p_value"]))
    for values in tests.values():
        assert np.mean(np.array(values) < 0.05) <= excess(0.05)
    # Neither are the tests blind: in the middle p-values are spread.
    assert 0.25 < np.mean(np.array(tests["g_p_value"]) < 0.5) < 0.75
    assert np.mean(np.array(naive) < 0.05) > 0.5
    assert np.mean(np.array(wrong) < 0.05) > 0.95


def test_two_samples() -> None:
    """False alarms of 80 pairs at 5 % as stated. Twins: 40 % if every save counts; 10 % wider is rejected."""
    found, naive = [], []
    for seed in range(80):
        one, other = ar1(50, 400, 2 * seed), ar1(100, 200, 2 * seed + 1)
        result = sb.compare_samples(one, other)
        found.append(float(result["p_value"]))
        naive.append(scipy.special.kolmogorov(np.sqrt(one.size / 2) * float(result["ks_statistic"])))
    assert np.mean(np.array(found) < 0.05) <= excess(0.05, 80)
    assert np.mean(np.array(found) < 0.5) > 0.1
    assert np.mean(np.array(naive) < 0.05) > 0.4
    assert float(result["ks_statistic"]) == scipy.stats.ks_2samp(one.values.ravel(), other.values.ravel()).statistic
    large = ar1(1000, 400)
    assert sb.compare_samples(large, ar1(1000, 400, 7)).attrs["verdict"] == "consistent"
    assert sb.compare_samples(large, 1.1 * ar1(1000, 400, 7)).attrs["verdict"] == "rejected"


def test_divergences_are_those_of_the_bins_and_intervals_cover_them() -> None:
    """Samples of N(0.3, 1) against N(0, 1), 200 ensembles: KL and total variation of the bins are known.

    The 90 % intervals cover them in 90 % ± 8 % (3.3 standard errors are 7 %, and the bootstrap has its own error of
    O(1/N)); the mean of the KL lies within 3.3 standard errors of the exact one. The twins: without the correction of
    its bias it does not, and intervals for values twice as large cover in less than half.
    """
    edges = np.linspace(-3, 3, 13)
    true = np.diff(scipy.stats.norm.cdf(edges, 0.3))
    true /= true.sum()
    kls, uncorrected, covered, wrong = [], [], [], []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        samples = xr.DataArray(rng.normal(0.3, 1, 400), dims="trajectory")
        result = sb.compare_law(samples, normal(), bins=edges, resamples=400, confidence=0.9)
        predicted = result["bin_predicted"].values
        exact = np.array([np.sum(true * np.log(true / predicted)), np.abs(true - predicted).sum() / 2])
        kls.append(float(result["kl"]))
        uncorrected.append(float(result["kl"] + result["kl_bias"]))
        bounds = np.array([result[f"{name}_interval"].values for name in ("kl", "total_variation")])
        covered.append((bounds[:, 0] < exact) & (exact < bounds[:, 1]))
        wrong.append((bounds[:, 0] < 2 * exact) & (2 * exact < bounds[:, 1]))
    error = np.std(kls) / np.sqrt(REPEATS)
    assert abs(np.mean(kls) - exact[0]) < 3.3 * error
    assert abs(np.mean(uncorrected) - exact[0]) > 3.3 * error
    assert (np.abs(np.mean(covered, axis=0) - 0.9) < 0.08).all()
    assert (np.mean(wrong, axis=0) < 0.5).all()


def test_bootstrap_is_over_trajectories() -> None:
    """Intervals of bins follow the effective number of samples, within 30 %, and not the number of saves."""
    result = sb.compare_law(ar1(200, 100), normal(), bins=4)
    width = np.diff(result["bin_interval"].values, axis=-1)[:, 0] / (2 * 1.96)
    independent = np.sqrt(0.25 * 0.75 / 20_000)
    effective = np.sqrt(0.25 * 0.75 / float(result["effective_samples"][0]))
    assert (width > 1.5 * independent).all()
    assert width.mean() == pytest.approx(effective, rel=0.3)


def test_densities_on_a_grid_and_as_functions_agree_and_need_no_normalisation() -> None:
    samples = ar1(500, 1)
    one = sb.compare_law(samples, 7 * normal(), interval=(-2, 2), name="normal")
    other = sb.compare_law(samples, lambda x: np.exp(-(x**2) / 2), interval=(-2, 2))
    np.testing.assert_allclose(one["kl"], other["kl"], rtol=1e-3)
    np.testing.assert_allclose(one["bin_predicted"], 1 / 40, rtol=1e-3)
    np.testing.assert_allclose(np.diff(scipy.stats.norm.cdf(other["bin_lower"])), 0.9545 / 40, rtol=1e-3)
    assert one.attrs["prediction"] == "normal"
    assert float(one["inside"]) == float((abs(samples) < 2).mean())


def test_lost_trajectories_are_left_out() -> None:
    samples = ar1(50, 20)
    samples[3, 5] = np.nan
    result = sb.compare_law(samples, normal(), resamples=2)
    assert int(result["trajectories_used"]) == 49


@pytest.mark.slow
def test_the_law_of_a_radius_has_the_volume_of_the_orbit() -> None:
    """False-alarm rate 0.1 %. Rejected: the law without the volume, and that at a temperature 10 % higher."""
    samples = rotation_law.radii(trajectories=500, saves=100, seed=1)
    right, wrong = rotation_law.compared(samples)
    assert right.attrs["verdict"] == "consistent"
    assert wrong.attrs["verdict"] == "rejected"
    assert float(right["kl_interval"][1]) < 1e-3
    hotter = sb.compare_law(samples, lambda r: rotation_law.boltzmann(r) ** (1 / 1.1) * r**2, interval=(0.6, 1.4))
    assert hotter.attrs["verdict"] == "rejected"


class TestRefusals:
    def test_samples(self) -> None:
        with pytest.raises(DataError, match="select one coordinate"):
            sb.compare_law(ar1(4, 4).expand_dims("replicate"), normal())
        with pytest.raises(DataError, match="two or more finite trajectories"):
            sb.compare_law(ar1(1, 4), normal())
        with pytest.raises(DataError, match="widen the interval"):
            sb.compare_law(ar1(4, 4) + 100, normal())

    @pytest.mark.parametrize("density", [normal() - 1, 0 * normal(), normal() * np.nan, normal()[::-1]])
    def test_densities(self, density: xr.DataArray) -> None:
        with pytest.raises(DataError, match="a density"):
            sb.compare_law(ar1(4, 4), density)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"interval": (2, 1)}, "two increasing ends"),
            ({"interval": (-9, 1)}, "that the density covers"),
            ({"bins": [0, -1, 2]}, "increasing edges"),
            ({"bins": 1}, "bins"),
            ({"confidence": 95}, "confidence"),
        ],
    )
    def test_options(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(InputError, match=match):
            sb.compare_law(ar1(4, 4), normal(), **options)

    def test_a_function_needs_an_interval(self) -> None:
        with pytest.raises(InputError, match="two ends"):
            sb.compare_law(ar1(4, 4), np.cos)
