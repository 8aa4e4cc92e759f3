"""Predicted drift of charges: exact by enumeration, and within errors of simulated ensembles.

Each verdict below has a false-alarm rate of 0.1 %; seeds are fixed. Its twin is ``verdict_scaled``: the same test on a
prediction that is 10 % larger must reject.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import every_model, regression

import sdebias as sb
from sdebias.dataset import make_dataset
from sdebias.dynamics.base import Dynamics
from sdebias.errors import DataError, SymmetryError

RATE = 0.02


def one_point(
    problem: sb.Problem, dynamics: Dynamics, symmetry: sb.symmetry.Symmetry, theta: torch.Tensor
) -> xr.Dataset:
    """Return an ensemble of two trajectories that stay at a point for three saves, so that the rate is constant."""
    ens = sb.simulate(problem, dynamics, symmetry=symmetry, trajectories=2, steps=2, save_every=1, progress=False)
    ens["theta"][:] = theta.numpy()
    return ens


def with_replacement(n: int, size: int) -> Iterable[tuple[int, ...]]:
    return itertools.product(range(n), repeat=size)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("replacement", "batches"), [(True, with_replacement), (False, lambda n, b: itertools.permutations(range(n), b))]
)
def test_sgd_row_is_the_mean_over_all_batches(
    symmetry: sb.symmetry.Rescaling,
    size: int,
    replacement: bool,
    batches: Callable[[int, int], Iterable[tuple[int, ...]]],
) -> None:
    X, y = regression(features=2, samples=6)
    problem = sb.problems.HadamardRegression(X, y)
    bound = symmetry.bind(problem)
    theta = torch.tensor([0.9, -0.4, 0.3, 1.2], dtype=torch.float64)
    indices = torch.tensor(list(batches(6, size)))
    after = theta - RATE * problem.batch_gradient(theta.expand(len(indices), -1), indices)
    exact = bound.charge(after).mean(0) - bound.charge(theta)
    sgd = sb.SGD(learning_rate=RATE, batch_size=size, replacement=replacement)
    predicted = sb.predict_orbit_drift(one_point(problem, sgd, symmetry, theta), problem, symmetry)
    np.testing.assert_allclose(predicted["predicted_drift"][0, 1], exact, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("problem", every_model(), ids=lambda problem: type(problem).__name__)
def test_sgd_row_is_exact_for_every_model(problem: sb.Problem) -> None:
    """With B = 1 the mean change of every charge over the samples is the predicted one, at random points."""
    symmetry = problem.symmetry()
    assert symmetry is not None
    bound = symmetry.bind(problem)
    problem.stream = None
    lead = () if problem.replicates is None else (problem.replicates,)
    theta = torch.randn(*lead, 2, problem.layout.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    after = theta.unsqueeze(-2) - RATE * problem.per_sample_gradient(theta)
    exact = (bound.charge(after) - bound.charge(theta.unsqueeze(-2))).mean(-2)
    ens = sb.simulate(
        problem, sb.SGD(learning_rate=RATE), symmetry=symmetry, trajectories=2, steps=2, save_every=1, progress=False
    )
    ens["theta"][:] = theta.unsqueeze(-2).numpy()
    predicted = sb.predict_orbit_drift(ens, problem, symmetry)["predicted_drift"].isel(step=1)
    np.testing.assert_allclose(predicted, exact, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("noise", ["minibatch", "isotropic"])
def test_sde_row_is_itos_formula(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, noise: str, order: int
) -> None:
    """Predicted = X·f + ½ tr(g gᵀA), and the finite step adds ½ dt fᵀA f, with f and g those of the SDE itself."""
    temperature = 0.1 if noise == "isotropic" else None
    sde = sb.SGDSDE(learning_rate=RATE, batch_size=2, noise=noise, temperature=temperature, order=order, substeps=4)  # type: ignore[arg-type]
    bound, matrices = sde.bind(problem), symmetry.bind(problem).charge_matrices(torch.zeros(6, dtype=torch.float64))
    theta = torch.tensor([0.9, -0.4, 0.7, 0.3, 1.2, -1.0], dtype=torch.float64)
    f, g = bound.f(0.0, theta[None])[0], bound.g(0.0, theta[None])[0]
    g = torch.diag(g) if g.ndim == 1 else g
    fields = matrices * theta
    ito = fields @ f + 0.5 * ((g @ g.mT).diagonal() * matrices).sum(-1)
    predicted = sb.predict_orbit_drift(one_point(problem, sde, symmetry, theta), problem, symmetry)
    np.testing.assert_allclose(predicted["predicted_drift"][0, 1], ito, rtol=1e-9, atol=1e-18)
    finite = 0.5 * 0.25 * (matrices * f.square()).sum(-1)
    np.testing.assert_allclose(predicted["finite_step_drift"][0, 1], finite, rtol=1e-9, atol=1e-18)


SGD_CASES = {
    "one": sb.SGD(learning_rate=RATE),
    "four": sb.SGD(learning_rate=RATE, batch_size=4),
    "four different": sb.SGD(learning_rate=RATE, batch_size=4, replacement=False),
    "half": sb.SGD(learning_rate=RATE, batch_size=6),
}
SDE_CASES = {
    "one substep": sb.SGDSDE(learning_rate=RATE, substeps=1),
    "four substeps": sb.SGDSDE(learning_rate=RATE, batch_size=4, substeps=4),
    "second order": sb.SGDSDE(learning_rate=RATE, order=2, substeps=2),
}


@pytest.mark.parametrize("dynamics", (SGD_CASES | SDE_CASES).values(), ids=(SGD_CASES | SDE_CASES).keys())
def test_simulated_drift_agrees_and_a_tenth_more_does_not(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, dynamics: Dynamics
) -> None:
    ens = sb.simulate(
        problem, dynamics, symmetry=symmetry, trajectories=4096, steps=60, save_every=2, seed=1, progress=False
    )
    comp = sb.compare(ens, sb.predict_orbit_drift(ens, problem, symmetry))
    assert comp.attrs["verdict"] == "consistent", comp.sdebias.table()
    assert comp.attrs["verdict_scaled"] == "rejected"


def test_isotropic_noise_does_not_move_rescaling_charges_in_the_mean(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    """tr A_a = 0 for a pair, so the prediction is 0; a twin with a drift of a tenth of the spread is rejected."""
    sde = sb.SGDSDE(learning_rate=RATE, noise="isotropic", temperature=0.05, substeps=4)
    ens = sb.simulate(problem, sde, symmetry=symmetry, trajectories=4096, steps=40, save_every=2, progress=False)
    pred = sb.predict_orbit_drift(ens, problem, symmetry)
    np.testing.assert_array_equal(pred["predicted_drift"], 0)
    assert sb.compare(ens, pred).attrs["verdict"] == "consistent"
    spread = ens["charge_value"].isel(step=-1).std("trajectory")
    assert (
        sb.compare(ens, pred.assign(predicted_drift=pred["predicted_drift"] + 0.1 * spread)).attrs["verdict"]
        == "rejected"
    )


def test_replicates_have_their_own_prediction(
    replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    sgd = sb.SGD(learning_rate=[0.02, 0.01, 0.03])
    ens = sb.simulate(replicated, sgd, symmetry=symmetry, trajectories=2048, steps=60, save_every=2, progress=False)
    pred = sb.predict_orbit_drift(ens, replicated, symmetry)
    assert pred["predicted_drift"].dims == ("replicate", "trajectory", "step", "charge")
    comp = sb.compare(ens, pred)
    assert comp.attrs["verdict"] == "consistent"
    assert (comp["p_value_scaled"] < 1e-3).all()
    shuffled = pred.assign(predicted_drift=pred["predicted_drift"].roll(replicate=1, roll_coords=False))
    assert sb.compare(ens, shuffled).attrs["verdict"] == "rejected"


def test_pieces_give_the_whole(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    ens = sb.simulate(problem, SDE_CASES["second order"], symmetry=symmetry, trajectories=9, steps=8, progress=False)
    whole = sb.predict_orbit_drift(ens, problem, symmetry)
    monkeypatch.setattr("sdebias.prediction.orbit_drift.CHUNK_ELEMENTS", 100)
    for name, values in sb.predict_orbit_drift(ens, problem, symmetry).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12, atol=1e-20)


class TestRefusals:
    def test_a_compact_group(self, problem: sb.problems.HadamardRegression) -> None:
        ens = sb.simulate(problem, SGD_CASES["one"], trajectories=2, steps=4, progress=False)
        with pytest.raises(SymmetryError, match="no charges"):
            sb.predict_orbit_drift(ens, problem, sb.symmetry.Orthogonal("p"))

    def test_no_theta(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = sb.simulate(
            problem, SGD_CASES["one"], symmetry=symmetry, trajectories=2, steps=4, save=["loss"], progress=False
        )
        with pytest.raises(DataError, match="theta at three or more steps"):
            sb.predict_orbit_drift(ens, problem, symmetry)

    def test_two_saves(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = sb.simulate(
            problem, SGD_CASES["one"], symmetry=symmetry, trajectories=2, steps=4, save_every=4, progress=False
        )
        with pytest.raises(DataError, match="three or more steps"):
            sb.predict_orbit_drift(ens, problem, symmetry)

    def test_another_problem(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = sb.simulate(problem, SGD_CASES["one"], symmetry=symmetry, trajectories=2, steps=4, progress=False)
        with pytest.raises(DataError, match="pass the problem that was simulated"):
            sb.predict_orbit_drift(ens, sb.problems.HadamardRegression(*regression(4)), symmetry)
        with pytest.raises(DataError, match="replicates"):
            sb.predict_orbit_drift(ens, problem.replicate(2), symmetry)

    def test_unknown_dynamics(self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
        ens = sb.simulate(problem, SGD_CASES["one"], symmetry=symmetry, trajectories=2, steps=4, progress=False)
        ens.attrs["dynamics"] = "Adam"
        with pytest.raises(DataError, match="attribute dynamics"):
            sb.predict_orbit_drift(ens, problem, symmetry)
        del ens.attrs["batch_size"]
        ens.attrs["dynamics"] = "SGD"
        with pytest.raises(DataError, match="attribute 'batch_size'"):
            sb.predict_orbit_drift(ens, problem, symmetry)

    def test_another_kind_of_dataset(
        self, problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
    ) -> None:
        prediction = make_dataset(
            "prediction",
            {"predicted_drift": np.zeros((1, 3, 1)), "integration_error": np.zeros((3, 1))},
            {"step": [0, 1, 2]},
            {},
        )
        with pytest.raises(DataError, match="kind ensemble"):
            sb.predict_orbit_drift(prediction, problem, symmetry)
