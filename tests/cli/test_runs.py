"""Verbs that make ensembles: the main job at small scale, resumed, extended, merged."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from test_config import TOML

import sdebias as sb
from sdebias.cli import main
from sdebias.ensemble.record import Record


def test_run_writes_what_it_prints(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "run.toml", "--out", "out", "--merge"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-5:] == ["out/sgd", "out/sgd.nc", "out/sde", "out/sde.nc", "out/orbit_drift.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["orbit_drift.png", "sde", "sde.nc", "sgd", "sgd.nc"]
    assert Path("out/orbit_drift.png").read_bytes().startswith(b"\x89PNG")
    for name in ("p:q[a]", "p:q[b]", "p:q[c]"):
        assert printed.count(name) == 2
    assert printed.count("verdict: consistent") == 2
    assert printed.count("a prediction 10 % larger is rejected") == 2
    assert "300 of 300 trajectories used" in printed
    with sb.open("out/sgd") as lazy, xr.open_dataset("out/sgd.nc") as file:
        xr.testing.assert_equal(lazy, file)


def test_overwrite_removes_only_what_a_run_made(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out", "--steps", "20"])
    Path("out/sgd/notes.txt").write_text("mine")
    assert main(["run", "run.toml", "--out", "out"]) == 2
    assert "continue it with sdebias run --resume out" in capsys.readouterr().err
    assert main(["run", "run.toml", "--out", "out", "--overwrite"]) == 0
    assert Path("out/sgd/notes.txt").read_text() == "mine"
    assert sb.open("out/sgd").sizes["step"] == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size", "batch_size"), "at most n = 12 without replacement"),
        (('parameters = ["p", "q"]', 'parameters = ["p", "p"]'), "two different parameters"),
    ],
)
def test_what_only_binding_finds_writes_nothing(
    job: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TOML.replace("learning_rate = 0.01\n\n", "learning_rate = 0.01\nbatch_size = 13\nreplacement = false\n\n", 1)
    job.write_text((text if "batch" in change[0] else TOML).replace(*change))
    assert main(["run", "run.toml", "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_run_that_diverges_fails_and_keeps_its_files(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text(job.read_text().replace("learning_rate = 0.01", "learning_rate = 1e3"))
    assert main(["run", "run.toml", "--out", "out"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "300 of 300 trajectories are not finite or diverged; the file keeps them; lower the learning rate" in error
    assert (sb.open("out/sgd")["status"] != 0).all()


def test_an_interrupted_run_goes_on_where_it_was(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "run.toml", "--out", "whole"])
    write = Record.write

    def interrupted(self: Record, *arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", interrupted)
        patch.setattr("sdebias.ensemble.run.SHARD_NUMBERS", 1)
        patch.setattr("sdebias.ensemble.sizes.SAVES_PER_SEGMENT", (8, 8))
        assert main(["run", "run.toml", "--out", "out"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "sdebias: stopped; continue with: sdebias run --resume out"
    assert main(["status", "out"]) == 0
    printed = capsys.readouterr().out
    assert "out/sgd: stopped; continue with sdebias run --resume out/sgd" in printed
    assert "out/sde: not begun" in printed
    assert main(["run", "--resume", "out"]) == 0
    for name in ("sgd", "sde"):
        xr.testing.assert_equal(sb.open(f"out/{name}"), sb.open(f"whole/{name}"))
    assert main(["status", "out"]) == 0
    assert capsys.readouterr().out.count("100.0 % done") == 2


def test_an_extended_run_is_the_longer_run(job: Path) -> None:
    main(["run", "run.toml", "--out", "long", "--trajectories", "400"])
    main(["run", "run.toml", "--out", "out"])
    assert main(["extend", "out", "--trajectories", "100"]) == 0
    xr.testing.assert_equal(sb.open("out/sgd"), sb.open("long/sgd"))
    assert main(["extend", "out", "--steps", "4"]) == 0
    assert sb.open("out/sde").sizes["trajectory"] == 400
    assert int(sb.open("out/sde")["step"][-1]) == 44


def test_a_configuration_that_was_edited_is_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out"])
    assert main(["run", "run.toml", "--resume", "out"]) == 0
    job.write_text(job.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    assert main(["run", "run.toml", "--resume", "out"]) == 2
    assert "dynamics.learning_rate: 0.01 there, 0.02 here" in capsys.readouterr().err


def test_statistics_instead_of_trajectories(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text(job.read_text() + 'save = ["charge", "loss"]\nstatistics = ["mean", "covariance"]\n')
    assert main(["run", "run.toml", "--out", "out"]) == 0
    assert "sgd: statistics at step 40 of 300 of 300 trajectories" in capsys.readouterr().out
    kept = sb.open("out/sgd")
    assert {"charge_value_mean", "charge_value_covariance", "loss_mean"} <= set(kept)
    assert "charge_value" not in kept


def test_functions_are_imported_only_where_that_is_allowed(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text("def largest(theta):\n    return theta.amax(-1)\n")
    monkeypatch.syspath_prepend(job.parent)
    job.write_text(job.read_text() + 'save = ["charge", "theta", "mine:largest"]\n')
    assert main(["run", "run.toml", "--out", "out"]) == 2
    assert "if you trust it, pass --allow-import mine:largest" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["run", "run.toml", "--out", "out", "--allow-import", "mine:largest"]) == 0
    kept = sb.open("out/sgd")
    xr.testing.assert_equal(kept["largest"], kept["theta"].max("parameter").rename("largest"))
    assert main(["run", "--resume", "out"]) == 2
    assert "pass --allow-import mine:largest" in capsys.readouterr().err
    assert main(["run", "--resume", "out", "--allow-import", "mine:largest"]) == 0
