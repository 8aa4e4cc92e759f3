"""The command line: the main job at small scale, exit codes, and that nothing is written on bad input."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import xarray as xr
from test_config import TOML, write

from sdebias.cli import main


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a configuration in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, TOML.replace("trajectories = 6", "trajectories = 300").replace("steps = 4", "steps = 40"))


def test_run_writes_what_it_prints(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "run.toml", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-3:] == ["out/sgd.nc", "out/sde.nc", "out/orbit_drift.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["orbit_drift.png", "sde.nc", "sgd.nc"]
    assert Path("out/orbit_drift.png").read_bytes().startswith(b"\x89PNG")
    for name in ("p:q[a]", "p:q[b]", "p:q[c]"):
        assert printed.count(name) == 2
    assert printed.count("verdict: consistent") == 2
    assert printed.count("a prediction 10 % larger is rejected") == 2
    assert "300 of 300 trajectories used" in printed


def test_compare_and_plot_repeat_the_run(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out"])
    table = capsys.readouterr().out.splitlines()[:-3]
    assert main(["compare", "out/sgd.nc", "out/sde.nc"]) == 0
    assert capsys.readouterr().out.splitlines() == table
    assert main(["plot", "out/sgd.nc", "--out", "figures/drift.pdf"]) == 0
    assert capsys.readouterr().out.strip() == "figures/drift.pdf"
    assert Path("figures/drift.pdf").read_bytes().startswith(b"%PDF")


def test_info_prints_a_command_that_makes_the_file_again(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "run.toml", "--out", "out", "--seed", "3"])
    for name in ("sgd", "sde"):
        capsys.readouterr()
        assert main(["info", f"out/{name}.nc"]) == 0
        printed = capsys.readouterr().out
        assert "300 ok, 0 diverged, 0 non_finite" in printed
        assert "seed: 3" in printed
        command = shlex.split(re.search(r"^  sdebias (run .*)$", printed, re.MULTILINE)[1])  # type: ignore[index]
        Path("data.nc").unlink(missing_ok=True)
        Path("run.toml").unlink(missing_ok=True)
        assert main(command) == 0
        again = Path(command[command.index("--out") + 1]) / f"{name}.nc"
        with xr.open_dataset(f"out/{name}.nc") as one, xr.open_dataset(again) as two:
            xr.testing.assert_equal(one, two)
            assert one.attrs["config_hash"] == two.attrs["config_hash"]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["info", "--help"]])
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
    Path("there").mkdir()
    Path("there/sgd.nc").touch()
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before


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


def test_a_run_that_diverges_fails_and_keeps_its_file(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text(job.read_text().replace("learning_rate = 0.01", "learning_rate = 1e3"))
    assert main(["run", "run.toml", "--out", "out"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "300 of 300 trajectories are not finite or diverged; the file keeps them; lower the learning rate" in error
    with xr.open_dataset("out/sgd.nc") as kept:
        assert (kept["status"] != 0).all()


def test_an_interruption_is_a_failed_run_without_a_traceback(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdebias.cli.simulate", interrupt)
    assert main(["run", "run.toml", "--out", "out"]) == 1
    assert capsys.readouterr().err.startswith("sdebias: interrupted")
    assert not Path("out").exists()
