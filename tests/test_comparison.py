"""Comparison of datasets: the right errors, the stated false-alarm rate, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import sdebias as sb
from sdebias.comparison import FALSE_ALARM_RATE, comparison_table
from sdebias.dataset import make_dataset
from sdebias.errors import DataError, InputError
from sdebias.layout import ParameterLayout

N, STEPS, CHARGES, REPLICATES = 400, 3, 5, 400


def pair(
    seed: int = 0, noise: float = 1.0, bias: float = 0.0, shared: float = 0.7, replicates: int | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Return an ensemble and a prediction whose differences are correlated normals with mean `bias`."""
    rng = np.random.default_rng(seed)
    lead = () if replicates is None else (replicates,)
    predicted = np.zeros((*lead, N, STEPS, CHARGES))
    predicted[..., 1:, :] = rng.normal(10, 3, (*lead, N, STEPS - 1, CHARGES))
    common = rng.standard_normal((*lead, N, STEPS, 1))
    errors = shared * common + np.sqrt(1 - shared**2) * rng.standard_normal((*lead, N, STEPS, CHARGES))
    errors = noise * errors + bias
    errors[..., 0, :] = 0
    coords = {"trajectory": np.arange(N), "step": [0, 5, 10], "charge": list("abcde")}
    coords |= {"replicate": np.arange(replicates)} if replicates else {}
    ensemble = make_dataset(
        "ensemble",
        {"charge_value": 2.0 + predicted + errors, "status": np.zeros((*lead, N), np.int8), "learning_rate": 0.1},
        coords,
        {"dynamics": "SGD"},
    )
    prediction = make_dataset(
        "prediction",
        {"predicted_drift": predicted, "integration_error": np.zeros((*lead, STEPS, CHARGES))},
        coords,
        {"equation": "dC/dk = 1"},
    )
    return ensemble, prediction


def test_errors_are_those_of_paired_differences() -> None:
    ensemble, prediction = pair()
    comp = sb.compare(ensemble, prediction)
    change = ensemble["charge_value"] - ensemble["charge_value"][:, 0]
    difference = (change - prediction["predicted_drift"]).values
    error = difference[:, 2].std(0, ddof=1) / np.sqrt(N)
    np.testing.assert_allclose(comp["deviation_error"][2], error, rtol=1e-9)
    np.testing.assert_allclose(comp["z"][2], difference[:, 2].mean(0) / error, rtol=1e-9)
    assert (comp["deviation_error"][2] < 0.5 * comp["empirical_error"][2]).all()


def test_integration_error_is_added_in_quadrature() -> None:
    ensemble, prediction = pair()
    plain = sb.compare(ensemble, prediction)["deviation_error"]
    prediction["integration_error"][:] = 0.3
    np.testing.assert_allclose(sb.compare(ensemble, prediction)["deviation_error"], np.hypot(plain, 0.3))


class Classes(sb.Problem):
    """Softmax cross entropy of constant logits z, in float32: a shift of all logits changes nothing."""

    model = "Classes"

    def __init__(self) -> None:
        start = torch.linspace(-1, 1, 7) + 0.05
        data = {"target": (("sample", "class"), torch.eye(7)[[0, 1, 1, 2, 2, 2]])}
        super().__init__(ParameterLayout({"z": (7,)}), data, {"z": start}, dtype=torch.float32)

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        return -(theta.log_softmax(-1).unsqueeze(-2) * self.samples["target"]).sum(-1)

    def predictor(self, theta: Tensor) -> Tensor:
        return theta.softmax(-1)

    @property
    def predictor_labels(self) -> list[str]:
        return [f"p{k}" for k in range(7)]


def test_accumulated_rounding_is_no_drift() -> None:
    """2,000 updates of full-batch descent in float32: no noise, and a conserved charge whose rounding adds up.

    Deterministic, so that there is no false alarm to count. The twin: ten times the bound is rejected, and so is what
    rounding explains where a drift was predicted.
    """
    problem, symmetry = Classes(), sb.symmetry.Translation("z:0")
    descent = sb.SGD(learning_rate=2.0, batch_size=6, replacement=False)
    ensemble = sb.simulate(
        problem, descent, symmetry=symmetry, trajectories=16, steps=2000, compile=False, progress=False
    )
    prediction = sb.predict_orbit_drift(ensemble, problem, symmetry)
    comp = sb.compare(ensemble, prediction).isel(step=-1, charge=0)
    once = float(abs(ensemble["charge_value"]).max()) * np.finfo(np.float32).eps
    assert abs(float(comp["deviation"])) > 100 * once
    assert comp.attrs["verdict"] == "consistent"
    np.testing.assert_allclose(comp["deviation_error"], 2000 * once, rtol=1e-3)

    share = ensemble["step"] / 2000
    drifting = ensemble.assign(charge_value=ensemble["charge_value"] + (10 * 2000 * once * share).astype(np.float32))
    assert sb.compare(drifting, prediction).attrs["verdict"] == "rejected"
    predicted = prediction.assign(predicted_drift=prediction["predicted_drift"] + once * share)
    assert sb.compare(ensemble, predicted).attrs["verdict"] == "rejected"


def test_false_alarms_are_as_rare_as_stated() -> None:
    """P-values of 400 true predictions: at most 5 % + 3.3 standard errors lie below 5 % (false-alarm rate 5e-4).

    The twin: with a bias of a tenth of the prediction, all 400 are below the stated rate.
    """
    p_values = sb.compare(*pair(replicates=REPLICATES))["p_value"]
    assert float((p_values < 0.05).mean()) <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / REPLICATES)
    assert float((p_values < 0.5).mean()) > 0.2
    assert float(sb.compare(*pair(replicates=REPLICATES, bias=1.0))["p_value"].max()) < FALSE_ALARM_RATE


def test_intervals_cover_the_mean() -> None:
    """The 90 % t interval covers the true mean in 90 % ± 3.3 standard errors of 400 runs; a tenth off, in fewer."""
    interval = sb.compare(*pair(replicates=REPLICATES), confidence=0.9)["interval"].isel(step=1, charge=0)
    lower, upper = interval.values.T
    assert abs(np.mean((lower < 10.0) & (upper > 10.0)) - 0.9) < 3.3 * np.sqrt(0.09 / REPLICATES)
    assert np.mean((lower < 11.0) & (upper > 11.0)) < 0.01


def test_replicates_are_a_family() -> None:
    """One wrong replicate of 400 makes the verdict; the Bonferroni factor counts all of them."""
    ensemble, prediction = pair(replicates=REPLICATES)
    assert sb.compare(ensemble, prediction).attrs["verdict"] == "consistent"
    wrong = prediction.assign(predicted_drift=prediction["predicted_drift"].where(prediction["replicate"] != 7, 0.0))
    assert sb.compare(ensemble, wrong).attrs["verdict"] == "rejected"


def test_noiseless_runs_get_finite_z() -> None:
    ensemble, prediction = pair(noise=0.0)
    comp = sb.compare(ensemble, prediction)
    assert comp.attrs["verdict"] == "consistent"
    assert np.isfinite(comp["z"]).all()
    assert comp.attrs["verdict_scaled"] == "rejected"


def test_finite_step_is_shown_and_accounted_for() -> None:
    ensemble, prediction = pair(bias=2.0)
    assert sb.compare(ensemble, prediction).attrs["verdict"] == "rejected"
    finite = xr.full_like(prediction["predicted_drift"], 2.0).where(prediction["step"] > 0, 0.0)
    comp = sb.compare(ensemble, prediction.assign(finite_step_drift=finite))
    assert comp.attrs["verdict"] == "consistent"
    assert (abs(comp["z"][1:]) > 20).all()
    assert (abs(comp["z_scheme"][1:]) < 5).all()


def test_flagged_trajectories_are_left_out_and_counted() -> None:
    ensemble, prediction = pair()
    clean = sb.compare(ensemble.isel(trajectory=slice(1, None)), prediction.isel(trajectory=slice(1, None)))
    ensemble["charge_value"][0] = np.nan
    ensemble["status"][0] = 2
    comp = sb.compare(ensemble, prediction)
    assert int(comp["trajectories_used"]) == N - 1
    assert comp.attrs["trajectories"] == N
    np.testing.assert_allclose(comp["z"][1:], clean["z"][1:])


def test_table() -> None:
    table = comparison_table(sb.compare(*pair()))
    assert list(table.index) == list("abcde")
    assert list(table.columns) == ["predicted", "measured", "lower", "upper", "deviation_percent", "z"]
    assert ((table["lower"] < table["measured"]) & (table["measured"] < table["upper"])).all()


class TestRefusals:
    def test_other_trajectories(self) -> None:
        ensemble, prediction = pair()
        with pytest.raises(DataError, match="the same trajectory labels"):
            sb.compare(ensemble, prediction.isel(trajectory=slice(10)))

    def test_no_charges(self) -> None:
        ensemble, prediction = pair()
        with pytest.raises(DataError, match="simulate with a symmetry"):
            sb.compare(ensemble.drop_vars("charge_value"), prediction)

    def test_too_few_left(self) -> None:
        ensemble, prediction = pair()
        ensemble["status"][1:] = 1
        with pytest.raises(DataError, match="two or more trajectories with status ok, got 1 of 400"):
            sb.compare(ensemble, prediction)

    def test_confidence(self) -> None:
        with pytest.raises(InputError, match="confidence"):
            sb.compare(*pair(), confidence=95)

    def test_kinds(self) -> None:
        ensemble, prediction = pair()
        with pytest.raises(DataError, match="kind ensemble"):
            sb.compare(prediction, ensemble)
