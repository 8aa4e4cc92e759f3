"""Verbs on stored ensembles, and what every verb does with bad input: one line, exit code 2, nothing written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import xarray as xr

import sdebias as sb
from sdebias.cli import main


def test_compare_and_plot_repeat_the_run(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out", "--merge"])
    table = capsys.readouterr().out.splitlines()[:-5]
    for files in (["out/sgd", "out/sde"], ["out/sgd.nc", "out/sde.nc"]):
        assert main(["compare", *files]) == 0
        assert capsys.readouterr().out.splitlines() == table
    assert main(["plot", "out/sgd", "--out", "figures/drift.pdf"]) == 0
    assert capsys.readouterr().out.strip() == "figures/drift.pdf"
    assert Path("figures/drift.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("suffix", ["", ".nc"], ids=["directory", "file"])
def test_info_prints_a_command_that_makes_it_again(job: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out", "--seed", "3", "--merge"])
    for name in ("sgd", "sde"):
        capsys.readouterr()
        assert main(["info", f"out/{name}{suffix}"]) == 0
        printed = capsys.readouterr().out
        assert "300 ok, 0 diverged, 0 non_finite" in printed
        assert "seed: 3" in printed
        command = shlex.split(re.search(r"^  sdebias (run .*)$", printed, re.MULTILINE)[1])  # type: ignore[index]
        Path("data.nc").unlink(missing_ok=True)
        Path("run.toml").unlink(missing_ok=True)
        assert main(command) == 0
        with sb.open(f"out/{name}") as one, sb.open(Path(command[command.index("--out") + 1]) / name) as two:
            xr.testing.assert_equal(one, two)
            assert one.attrs["config_hash"] == two.attrs["config_hash"]


def test_info_of_attributes_that_are_no_text(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another program may have written the file."""
    assert main(["run", str(job), "--out", "out"]) == 0
    with sb.open("out/sgd") as ensemble:
        ensemble.load()["loss"].attrs.update(long_name=7.0, units=3)
        ensemble.to_netcdf("numbers.nc")
    assert main(["info", "numbers.nc"]) == 0
    assert "7.0 [3]" in capsys.readouterr().out


VERBS = ("examples", "init", "run", "extend", "status", "merge", "compare", "plot", "info")


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    assert "usage: sdebias" in capsys.readouterr().out


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["run", "none.toml"], "none.toml: expected a TOML file"),
    "save_every": (
        ["run", "run.toml", "--save-every", "3"],
        "save_every: expected a divisor of steps = 40, got 3; use 2",
    ),
    "device": (["run", "run.toml", "--device", "cuda:99"], "device: expected one of cpu"),
    "trajectories": (["run", "run.toml", "--trajectories", "-5"], "trajectories: expected a whole number >= 1, got -5"),
    "threads": (["run", "run.toml", "--threads", "0"], "threads: expected a whole number >= 1"),
    "output exists": (["run", "run.toml", "--out", "there"], "pass --overwrite"),
    "unwritable": (["run", "run.toml", "--out", "/proc/none"], "expected a writable folder"),
    "resume of no run": (["run", "--resume", "none"], "none: expected a run directory"),
    "resume with changes": (["run", "--resume", "none", "--seed", "1"], "leave them out, or use sdebias extend"),
    "neither": (["run"], "name it, or continue a run with --resume"),
    "extend by nothing": (["extend", "none"], "say what to add"),
    "status of no run": (["status", "none"], "none: expected a run directory"),
    "merge of no run": (["merge", "none", "a.nc"], "no such file"),
    "checkpoint": (["run", "run.toml", "--checkpoint", "0"], "checkpoint: expected"),
    "no example": (["init", "new.toml", "--example", "hadamar"], "did you mean 'hadamard'?"),
    "init of a file that exists": (["init", "run.toml"], "pass --overwrite"),
    "compare text": (["compare", "run.toml"], "expected a netCDF file"),
    "compare nothing": (["compare"], "one or more ensemble files"),
    "info of no file": (["info", "none.nc"], "no such file"),
    "plot nothing": (["plot"], "one or more ensemble files"),
    "plot of data": (["plot", "data.nc"], "expected a dataset of kind"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_writes_nothing(
    job: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there/sgd").mkdir(parents=True)
    Path("there/sgd/manifest.json").touch()
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before
