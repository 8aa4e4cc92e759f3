"""Run directories: the numbers of `simulate`, whatever was stopped, and however often; the same run or none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import regression

import sdebias as sb
from experiments.faults import Job, differences, small_pieces
from sdebias.dynamics.base import Dynamics
from sdebias.dynamics.schedule import cosine
from sdebias.ensemble import run as run_module
from sdebias.errors import ConfigError, DataError, InputError, OutputError, RunError
from sdebias.storage import RunDirectory
from sdebias.storage.parts import read_state, write_state
from sdebias.storage.progress import Progress

SDE = sb.SGDSDE(learning_rate=0.05, substeps=2)
DYNAMICS: dict[str, Dynamics] = {
    "sgd": sb.SGD(learning_rate=0.05),
    "epochs": sb.SGD(learning_rate=0.05, batch_size=5, replacement=False, epochs=True),
    "gradient descent": sb.SGD(learning_rate=0.05, batch_size=12, replacement=False),
    "euler": SDE,
    "bits": sb.SGDSDE(learning_rate=0.05, substeps=2, increments="rademacher"),
    "torchsde": sb.SGDSDE(learning_rate=0.05, engine="torchsde", substeps=2),
    "heun": sb.SGDSDE(learning_rate=0.05, substeps=2, sde_type="stratonovich", method="heun"),
    "areas": sb.SGDSDE(learning_rate=0.05, substeps=2, sde_type="stratonovich", method="log_ode"),
    "scheduled": sb.SGD(learning_rate=cosine(initial=0.05, final=0.01, steps=30)),
    "scheduled sde": sb.SGDSDE(learning_rate=cosine(initial=0.05, final=0.01, steps=30), substeps=2),
}
SLOW = ("gradient descent", "bits", "torchsde", "areas", "scheduled")
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in DYNAMICS]
# 12 saves, which segments of 8 do not divide; the second block is not used up.
SIZES = {"trajectories": 13, "steps": 33, "save_every": 3, "block_size": 8, "save": ["theta", "loss"]}


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_pieces(2**10):
        yield


def job(problem: sb.Problem, dynamics: Dynamics = SDE, **arguments: Any) -> Job:
    return Job(problem, dynamics, {**SIZES, **arguments})


@contextmanager
def stopped_at_each_segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask a run to stop as soon as it tells of a segment."""

    @contextmanager
    def interruptible() -> Iterator[threading.Event]:
        stop = threading.Event()

        def told(self: Progress, shard: int, updates: int, flagged: int) -> None:
            stop.set()

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "__call__", told)
            yield stop

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "interruptible", interruptible)
        yield


def run_in_pieces(job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[xr.Dataset, int]:
    """Run, interrupted at the end of each segment, and return the dataset and the number of interruptions."""
    stops = 0
    with stopped_at_each_segment(monkeypatch):
        while True:
            try:
                return job.run(folder, resume=stops > 0), stops
            except KeyboardInterrupt:
                stops += 1


class TestTheNumbersAreThoseOfSimulate:
    @pytest.mark.parametrize("name", CASES)
    def test_whole_and_in_pieces(
        self, name: str, problem: sb.problems.HadamardRegression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Segments end within windows of draws, an epoch of two updates and words of 32 bits among them."""
        one = job(problem, DYNAMICS[name], symmetry=sb.symmetry.Rescaling("p", "q"), save=None)
        whole = one.simulate()
        assert differences(one.run(tmp_path / "whole"), whole) == []
        with small_pieces(2**28):  # one leg: states in the middle of it
            found, stops = run_in_pieces(one, tmp_path / "pieces", monkeypatch)
        assert stops == 4  # two segments of two blocks
        assert differences(found, whole) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("dynamics", [SDE, DYNAMICS["heun"]], ids=["euler", "heun"])
    @pytest.mark.parametrize("model", ["softmax", "normalized", "stream", "replicates", "single"])
    def test_other_problems(
        self, model: str, dynamics: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Models whose rounding depends on shape and order in memory, and other shapes and dtypes of data."""
        X, y = regression()
        stream = sb.problems.ShallowReLU.teacher_student(3, units=4, label_noise=0.1, pool=16, seed=2)
        problems: dict[str, sb.Problem] = {
            "softmax": sb.problems.SoftmaxRegression(X, [0, 1, 2] * 4, initial_std={"W": 1.0}),
            "normalized": sb.problems.NormalizedRegression(X, y),
            "stream": stream,
            "replicates": sb.problems.HadamardRegression(np.stack([X, -X]), np.stack([y, 2 * y])),
            "single": sb.problems.HadamardRegression(torch.tensor(X, dtype=torch.float32), torch.tensor(y).float()),
        }
        if model == "stream":
            dynamics = SDE
        one = job(problems[model], dynamics)
        found, stops = run_in_pieces(one, tmp_path / "run", monkeypatch)
        assert stops == 4
        assert differences(found, one.simulate()) == []

    @pytest.mark.parametrize("kind", ["tensor", "function"])
    def test_a_given_start(self, kind: str, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        start = torch.linspace(0.1, 1, 13 * 6, dtype=torch.float64).view(13, 6)

        def draw(count: int, generator: torch.Generator) -> torch.Tensor:
            return torch.rand(count, 6, generator=generator, dtype=torch.float64)

        one = job(problem, initial=start if kind == "tensor" else draw)
        assert differences(one.run(tmp_path / "run"), one.simulate()) == []
        with pytest.raises(ConfigError, match=r"run\.initial: 'given in the call"):
            one.run(tmp_path / "run", resume=True, initial=start + 0.1)

    def test_threads_do_not_matter(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        one = job(problem)
        try:
            torch.set_num_threads(3)
            found = one.run(tmp_path / "run")
        finally:
            torch.set_num_threads(1)
        assert differences(found, one.simulate()) == []

    def test_flags_are_those_of_simulate(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        one = job(problem, sb.SGD(learning_rate=3.0))
        whole = one.simulate()
        assert int((whole["status"] != 0).sum()) == 13
        assert differences(one.run(tmp_path / "run"), whole) == []

    def test_many_blocks_in_a_shard(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        one = job(problem)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "LEG_BYTES", 2**28)
            patch.setattr(run_module, "SHARD_NUMBERS", 2**30)
            found = one.run(tmp_path / "run")
            assert RunDirectory(tmp_path / "run").manifest.shards == [(0, 13)]
            assert differences(found, one.simulate()) == []
            # Longer legs than fit are made for the shard that is there.
            patch.setattr(run_module, "LEG_BYTES", 1)
            longer = job(problem, steps=66)
            assert differences(longer.run(tmp_path / "run", resume=True), longer.simulate()) == []
            assert len(RunDirectory(tmp_path / "run").manifest.legs) > 2


class TestExtension:
    @pytest.mark.parametrize("more", [14, 16, 33])
    def test_by_trajectories(self, more: int, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        """From a block that is not used up to within it, to its end, and to many blocks more."""
        first, longer = job(problem), job(problem, trajectories=more)
        first.run(tmp_path / "run")
        assert differences(longer.run(tmp_path / "run", resume=True), longer.simulate()) == []
        assert all(start % 8 == 0 for start, _ in RunDirectory(tmp_path / "run").manifest.shards[3:])

    @pytest.mark.parametrize("name", ["epochs", "heun", pytest.param("scheduled sde", marks=pytest.mark.slow)])
    def test_by_steps(self, name: str, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        first, longer = (job(problem, DYNAMICS[name], steps=steps) for steps in (33, 60))
        first.run(tmp_path / "run")
        found, whole = longer.run(tmp_path / "run", resume=True), longer.simulate()
        assert differences(found, whole) == []
        assert (found.attrs["config_hash"], found.attrs["complete"]) == (whole.attrs["config_hash"], 1)

    def test_a_small_first_run_does_not_make_many_small_shards(
        self, problem: sb.problems.HadamardRegression, tmp_path: Path
    ) -> None:
        job(problem, trajectories=1).run(tmp_path / "run")
        with small_pieces(2**28):
            job(problem, trajectories=30).run(tmp_path / "run", resume=True)
        assert RunDirectory(tmp_path / "run").manifest.shards[:4] == [(0, 1), (1, 8), (8, 16), (16, 24)]

    def test_not_to_less(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        job(problem).run(tmp_path / "run")
        with pytest.raises(InputError, match="at least the 13 that the run has"):
            job(problem, trajectories=12).run(tmp_path / "run", resume=True)


class TestRefused:
    def test_another_configuration_with_a_diff(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        job(problem).run(tmp_path / "run")
        other = job(problem, sb.SGDSDE(learning_rate=0.04, substeps=2), seed=3)
        with pytest.raises(ConfigError, match=r"learning_rate: 0\.05 there, 0\.04 here; run\.seed: 0 there, 3 here"):
            other.run(tmp_path / "run", resume=True)

    def test_other_data(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        job(problem).run(tmp_path / "run")
        X, y = regression()
        other = sb.problems.HadamardRegression(X, y + 1, features=["a", "b", "c"], initial={"p": 1.0, "q": 0.3})
        with pytest.raises(DataError, match="expected the data of the run"):
            job(other).run(tmp_path / "run", resume=True)

    def test_a_directory_that_exists_and_one_that_does_not(
        self, problem: sb.problems.HadamardRegression, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match="a run directory with manifest.json"):
            job(problem).run(tmp_path / "run", resume=True)
        job(problem).run(tmp_path / "run")
        with pytest.raises(OutputError, match="continue it with sdebias run --resume"):
            job(problem).run(tmp_path / "run")

    def test_a_state_of_a_version_that_did_not_say_how_many_bits_were_drawn_at_once(
        self, problem: sb.problems.HadamardRegression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = job(problem)
        with small_pieces(2**28), stopped_at_each_segment(monkeypatch), pytest.raises(KeyboardInterrupt):
            one.run(tmp_path / "run")
        files = next(iter(RunDirectory(tmp_path / "run").by_shard().values()))
        (state,) = (file for file in files if file.kind == "state")
        arrays = read_state(state)
        del arrays["ahead"]
        state.path.unlink()  # the digest of what is written will be in another name
        write_state(tmp_path / "run", (state.first, state.last, state.since, state.until), arrays, state.identity)
        with pytest.raises(DataError, match="take the file out of the directory"):
            one.run(tmp_path / "run", resume=True)

    def test_a_disk_without_room(
        self, problem: sb.problems.HadamardRegression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sdebias.storage.files.SPARE_BYTES", 2**62)
        with pytest.raises(OutputError, match="free space"):
            job(problem).run(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []


class TestMeanwhile:
    def test_a_note_that_cannot_be_written_stops_nothing(
        self,
        problem: sb.problems.HadamardRegression,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(text: str, path: Path) -> Path:
            raise RunError("the disk is full")

        monkeypatch.setattr("sdebias.storage.progress.save_text", fail)
        assert differences(job(problem).run(tmp_path / "run"), job(problem).simulate()) == []
        assert "the disk is full" in caplog.text

    def test_an_error_that_speaks_of_memory_is_told_as_it_is(
        self, problem: sb.problems.HadamardRegression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any) -> None:
            raise RunError("in-memory-tests: no space left")

        monkeypatch.setattr("sdebias.ensemble.shard.write_part", fail)
        with pytest.raises(RunError, match="no space left"):
            job(problem).run(tmp_path / "memory")

    def test_other_versions_are_told_of(
        self,
        problem: sb.problems.HadamardRegression,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with stopped_at_each_segment(monkeypatch), pytest.raises(KeyboardInterrupt) as stopped:
            job(problem).run(tmp_path / "run")
        assert str(stopped.value) == f"stopped; continue with: sdebias run --resume {tmp_path / 'run'}"
        known = run_module.provenance()
        monkeypatch.setattr(run_module, "provenance", lambda: {**known, "torch_version": "9.9"})
        job(problem).run(tmp_path / "run", resume=True)
        assert "9.9 now; what is still to come may differ in the last bits" in caplog.text

    def test_the_log_is_in_the_directory(self, problem: sb.problems.HadamardRegression, tmp_path: Path) -> None:
        level, handlers = logging.getLogger("sdebias").level, list(logging.getLogger("sdebias").handlers)
        job(problem).run(tmp_path / "run")
        assert "2 of 2 shards to do" in (tmp_path / "run" / "run.log").read_text()
        assert (logging.getLogger("sdebias").level, logging.getLogger("sdebias").handlers) == (level, handlers)
