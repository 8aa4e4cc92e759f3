"""Small problems that the tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from benchmarks import timing
from experiments.faults import Job, parts_of, small_job, small_pieces
from sdebias.dynamics.brownian import SequentialBrownian
from sdebias.ensemble import compiling
from sdebias.storage import RunDirectory

ROOT = Path(__file__).parents[1]
# The tensors of the tests are small: a second thread costs more than it gives, most of all on a busy machine.
torch.set_num_threads(1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def regression(features: int = 3, samples: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and noisy targets of a linear model, in float64."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((samples, features))
    return X, X @ rng.standard_normal(features) + 0.5 * rng.standard_normal(samples)


class GivenIncrements(SequentialBrownian):
    """Brownian motion whose increments were drawn before, shape (step, row, channel)."""

    def __init__(self, increments: torch.Tensor) -> None:
        super().__init__((increments.shape[1], increments.shape[2]), increments.dtype, torch.Generator())
        self.increments = iter(increments)

    def __call__(self, *arguments: object, **options: object) -> torch.Tensor:
        return next(self.increments)


def every_model() -> list[sb.Problem]:
    """Return a small instance of every model, some with replicates, weight decay or a stream."""
    rng = np.random.default_rng(0)
    X, y = regression()
    tokens, heads = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    models = sb.problems
    return [
        models.HadamardRegression(X, y, initial_std={"p": 1.0, "q": 1.0}),
        models.DeepDiagonalRegression(np.stack([X, -X]), np.stack([y, 2 * y]), depth=3, initial_std={"u1": 0.5}),
        models.CumulativeSumRegression(X, y, initial_std={"p": 0.5, "q": 0.5}),
        models.NormalizedRegression(X, y),
        models.ShallowReLU(X, y, units=4),
        models.ShallowReLU.teacher_student(3, units=4, label_noise=0.1, pool=16, seed=2),
        models.MatrixFactorization(rng.standard_normal((4, 3)), rng.random((4, 3)) < 0.7, rank=2),
        models.SingleHeadAttention(tokens, heads),
        models.SoftmaxRegression(X, rng.integers(0, 3, len(y)), initial_std={"W": 1.0}),
    ]


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


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the steps of a chunk as they are, where the seconds of the compiler are not the subject."""
    monkeypatch.setattr(compiling, "compiled", lambda chunk, inputs, contracted: chunk)


@pytest.fixture
def single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each turn of a benchmark be one call, where times are not the subject."""
    monkeypatch.setattr(timing, "ENOUGH", 0)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small configuration in a folder of its own, which is the current one."""
    from test_config import TOML, write  # which imports this module

    monkeypatch.chdir(tmp_path)
    return write(tmp_path, TOML.replace("trajectories = 6", "trajectories = 300").replace("steps = 4", "steps = 40"))


@pytest.fixture(scope="session")
def small() -> Job:
    return small_job()


@pytest.fixture(scope="session")
def whole(small: Job) -> xr.Dataset:
    return small.simulate()


@pytest.fixture(scope="session")
def finished(small: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of four shards of two legs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with small_pieces(2**16):
        small.run(folder)
    assert len(parts_of(folder)) == 8
    return folder


@pytest.fixture
def half_run(finished: Path, tmp_path: Path) -> RunDirectory:
    """Return a copy of that run without its last shard."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    last = RunDirectory(folder).manifest.shards[-1][0]
    for part in RunDirectory(folder).files():
        if part.first == last:
            part.path.unlink()
    return RunDirectory(folder)
