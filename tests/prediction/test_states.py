"""Lazy ensembles: predicted and compared chunk by chunk, with the numbers that the same data give in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import regression

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.errors import DataError
from sdebias.prediction import states
from sdebias.storage import save_dataset

RATE = 0.02
N, CHUNK = 60, 25
DYNAMICS = {
    "SGD": sb.SGD(learning_rate=RATE, batch_size=2),
    "scheduled SGD": sb.SGD(learning_rate=sb.schedule.cosine(0.1, 0.01, steps=12)),
    "SDE": sb.SGDSDE(learning_rate=RATE, batch_size=4, substeps=4),
    "SDE of order 2": sb.SGDSDE(learning_rate=RATE, order=2, substeps=2),
    "horizontal noise": sb.SGDSDE(learning_rate=RATE, noise=sb.noise.horizontal(sb.noise.isotropic(0.1))),
}


def on_disk(ensemble: xr.Dataset, path: Path, chunks: dict[str, int] | None = None) -> xr.Dataset:
    """Write an ensemble and open it lazily."""
    return xr.open_dataset(save_dataset(ensemble, path / "ensemble.nc"), chunks=chunks or {"trajectory": CHUNK})


def simulated(problem: sb.Problem, dynamics: Dynamics, flagged: int = CHUNK + 5) -> xr.Dataset:
    """Return an ensemble, its first trajectories lost: all of a chunk, and some of the next."""
    ens = sb.simulate(
        problem, dynamics, symmetry=problem.symmetry(), trajectories=N, steps=12, save_every=1, seed=1, progress=False
    )
    ens["status"][..., :flagged] = 2
    for name in ("theta", "charge_value", "predictor_value"):
        ens[name][..., :flagged, 3:, :] = np.nan
    return ens


def streamed() -> sb.Problem:
    return sb.problems.HadamardRegression.teacher_student(
        3, label_noise=0.5, pool=16, initial={"p": 1.0, "q": 0.3}, seed=4
    )


def assert_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """Assert that datasets agree to 1e-12 of the largest number of each variable, or are zero but for rounding."""
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        scale = float(abs(values).max())
        assert found[name].dims == values.dims
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12 * scale + 1e-30, err_msg=str(name))
    verdicts = [name for name in wanted.attrs if str(name).startswith("verdict")]
    assert {name: found.attrs[name] for name in verdicts} == {name: wanted.attrs[name] for name in verdicts}


@pytest.fixture
def one_by_one() -> Iterator[None]:
    """Compute chunks one after the other: filters of warnings, which are errors here, are those of the process."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.usefixtures("one_by_one")
class TestLazyIsEager:
    @pytest.mark.parametrize("dynamics", DYNAMICS.values(), ids=DYNAMICS.keys())
    def test_drift_and_moments(
        self, problem: sb.Problem, symmetry: sb.symmetry.Rescaling, dynamics: Dynamics, tmp_path: Path
    ) -> None:
        ens = simulated(problem, dynamics)
        lazy = on_disk(ens, tmp_path)
        predicted, prediction = (sb.predict_orbit_drift(e, problem, symmetry) for e in (lazy, ens))
        assert_same(sb.compare(lazy, predicted), sb.compare(ens, prediction))
        assert_same(predicted, prediction)
        parts, split = (sb.split_dynamics(e, problem, symmetry) for e in (lazy, ens))
        assert_same(sb.compare_moments(lazy, parts), sb.compare_moments(ens, split))
        assert_same(parts, split)
        for lazily, at_once in ((predicted, prediction), (parts, split)):
            assert all(array.chunks is not None for array in lazily.values())
            assert all(isinstance(array.data, np.ndarray) for array in at_once.values())

    def test_replicates(
        self, replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, tmp_path: Path
    ) -> None:
        ens = simulated(replicated, sb.SGD(learning_rate=[0.02, 0.01, 0.03]))
        lazy = on_disk(ens, tmp_path, {"replicate": 2, "trajectory": CHUNK, "step": 7})
        predicted, prediction = (sb.predict_orbit_drift(e, replicated, symmetry) for e in (lazy, ens))
        assert_same(predicted, prediction)
        assert_same(sb.compare(lazy, predicted), sb.compare(ens, prediction))
        parts, split = (sb.split_dynamics(e, replicated, symmetry) for e in (lazy, ens))
        assert_same(sb.compare_moments(lazy, parts), sb.compare_moments(ens, split))

    @pytest.mark.parametrize("name", ["SGD", "SDE"])
    @pytest.mark.parametrize("chunk", [7, CHUNK, N])
    def test_fresh_samples_do_not_depend_on_chunks(
        self, name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With pieces that straddle chunks and end before the last trajectory; and they differ between pieces."""
        problem = streamed()
        symmetry = problem.symmetry()
        assert symmetry is not None
        ens = simulated(problem, DYNAMICS[name], flagged=0)
        ens["theta"][:] = ens["theta"].isel(trajectory=0)
        samples = 2 if name == "SGD" else 16
        monkeypatch.setattr("sdebias.prediction.orbit_drift.CHUNK_ELEMENTS", 16 * samples * 13 * 6)
        lazy = on_disk(ens, tmp_path, {"trajectory": chunk})
        prediction = sb.predict_orbit_drift(ens, problem, symmetry)
        for _ in range(2):
            assert_same(sb.predict_orbit_drift(lazy, problem, symmetry), prediction)
        drifts = prediction["predicted_drift"].isel(step=-1, charge=0)
        assert len(np.unique(drifts)) == N

    def test_laws(self, problem: sb.Problem, tmp_path: Path) -> None:
        ens = simulated(problem, DYNAMICS["SGD"])
        lazy = on_disk(ens, tmp_path)
        one, other = (e["predictor_value"].isel(predictor=0, step=slice(4, None)) for e in (lazy, ens))
        grid = np.linspace(float(other.min()), float(other.max()), 50)
        density = xr.DataArray(np.ones(50), dims="w", coords={"w": grid})
        assert_same(sb.compare_law(one, density, resamples=10), sb.compare_law(other, density, resamples=10))
        shifted = [e.isel(step=0) for e in (one, other)]
        assert_same(sb.compare_samples(one, shifted[0]), sb.compare_samples(other, shifted[1]))


def test_one_pass_over_the_data(
    problem: sb.Problem, symmetry: sb.symmetry.Rescaling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read or predicted before it is compared, and then each chunk once; on two threads."""
    ens = simulated(problem, DYNAMICS["SDE"], flagged=0)
    lazy = on_disk(ens, tmp_path)
    read: list[int] = []
    predicted: list[int] = []

    def counted_read(block: np.ndarray) -> np.ndarray:
        read.append(len(block))
        return block

    def counted(*arguments: object) -> tuple[np.ndarray, ...]:
        predicted.append(len(arguments[-1]))  # type: ignore[arg-type]
        return call(*arguments)  # type: ignore[arg-type]

    call = states._call
    monkeypatch.setattr(states, "_call", counted)
    meta = np.empty((0, 0, 0))
    lazy["theta"] = lazy["theta"].copy(data=lazy["theta"].data.map_blocks(counted_read, meta=meta))
    blocks = [10, CHUNK, CHUNK]
    for predict, compare in (
        (sb.predict_orbit_drift, sb.compare),
        (sb.split_dynamics, sb.compare_moments),
    ):
        prediction = predict(lazy, problem, symmetry)
        assert not read
        assert not predicted
        with dask.config.set(scheduler="threads", num_workers=2):
            result = compare(lazy, prediction)
        assert sorted(read) == blocks
        assert sorted(predicted) == blocks
        assert_same(result, compare(ens, predict(ens, problem, symmetry)))
        read.clear()
        predicted.clear()


def test_errors_come_before_the_computation(
    problem: sb.Problem, symmetry: sb.symmetry.Rescaling, tmp_path: Path
) -> None:
    lazy = on_disk(simulated(problem, DYNAMICS["SDE"]), tmp_path)
    gaussian = lazy.assign_attrs(noise="gaussian")
    for predict in (sb.predict_orbit_drift, sb.split_dynamics):
        with pytest.raises(DataError, match="covariance: expected that of the Gaussian noise"):
            predict(gaussian, problem, symmetry)
        with pytest.raises(DataError, match="pass the problem that was simulated"):
            predict(lazy, sb.problems.HadamardRegression(*regression(4)), symmetry)
        with pytest.raises(DataError, match="got no parameters"):
            predict(lazy.isel(parameter=slice(0)), problem, symmetry)


@pytest.mark.usefixtures("one_by_one")
def test_function_sees_whole_trajectories_and_their_places(problem: sb.Problem, tmp_path: Path) -> None:
    """In memory it is called once, with torch's threads as they are; lazily once a chunk, with one thread."""
    ens = simulated(problem, DYNAMICS["SGD"])
    calls: list[tuple[int, tuple[int, ...], int]] = []

    def norms(theta: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
        calls.append((first, theta.shape, torch.get_num_threads()))
        return np.square(theta).sum(-1), theta

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        outputs = {"norm": ("step",), "theta": ("step", "parameter")}
        found = states.map_states(norms, ens, outputs, {}, np.float64)
        lazy = on_disk(ens, tmp_path, {"trajectory": CHUNK, "step": 4})
        lazily = states.map_states(norms, lazy, outputs, {}, np.float64)
        np.testing.assert_array_equal(lazily["norm"], found["norm"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found["norm"], (ens["theta"] ** 2).sum("parameter", skipna=False))
    np.testing.assert_array_equal(found["theta"], ens["theta"])
    chunks = [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, N - 2 * CHUNK)]
    assert calls[0] == (0, (N, 13, 6), 3)
    assert sorted(calls[1:]) == [(first, (count, 13, 6), 1) for first, count in chunks]


# In a process of its own, whose peak is not that of other tests; getrusage would remember the process that started it.
LARGE = """
    import json, sys
    import dask
    import numpy as np
    import sdebias as sb

    dask.config.set(scheduler="threads", num_workers=2)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 32)).astype(np.float32)
    y = (X @ rng.standard_normal(32)).astype(np.float32)
    problem = sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": 0.1})
    symmetry, sgd = problem.symmetry(), sb.SGD(learning_rate=1e-3, batch_size=4)
    size = {"trajectories": 100_000, "steps": 49, "save_every": 1, "save": ["theta", "charge_value"]}
    ensemble = sb.run(problem, sgd, sys.argv[1], symmetry=symmetry, compile=False, progress=False, **size)
    prediction = sb.predict_orbit_drift(ensemble, problem, symmetry)
    comparison = sb.compare(ensemble, prediction)
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    sizes = {"bytes": ensemble.nbytes + prediction.nbytes, "peak": 1024 * int(peak), **ensemble.sizes}
    verdicts = {name: comparison.attrs[name] for name in ("verdict", "verdict_scaled")}
    print(json.dumps({**sizes, **verdicts, "used": int(comparison["trajectories_used"])}))
"""


@pytest.mark.slow
def test_a_large_ensemble_is_compared_within_two_gibibytes(tmp_path: Path) -> None:
    """100,000 trajectories with 50 saves of 64 parameters: 1.8 GiB of float32 on disk, 1.2 GiB more of predictions.

    False-alarm rate 1e-3; a prediction 10 % larger is rejected. A minute on one core.
    """
    command = [sys.executable, "-c", textwrap.dedent(LARGE), str(tmp_path / "run")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert (found["trajectory"], found["step"], found["parameter"]) == (100_000, 50, 64)
    assert found["bytes"] > 2.9 * 2**30
    assert found["peak"] <= 2 * 2**30
    assert found["used"] == 100_000
    assert (found["verdict"], found["verdict_scaled"]) == ("consistent", "rejected")
