"""Figures as separate steps, records against published numbers, and the table made of them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from experiments import results
from experiments.common import Experiment, Record, record, spread

NAMES = sorted(file.stem for pattern in ("fig*.py", "beyond_*.py") for file in (ROOT / "experiments").glob(pattern))


def test_a_figure_is_rebuilt_from_its_datasets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("experiments.fig1_orbits")
    experiment: Experiment = module.EXPERIMENT
    where = ["--scale", "smoke", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    experiment.main(["simulate", "--seeds", "2", *where])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module.sb, "simulate", None)
    first: dict[str, bytes] = {}
    for _ in range(2):
        experiment.main(["plot", *where])
        files = {file.suffix: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        assert set(files) == {".png", ".pdf", ".md", ".json"}
        first = first or files
        assert files == first
    summary = json.loads(first[".json"])
    assert summary["settings"]["seeds"] == 2
    assert summary["command"] == "python -m experiments.fig1_orbits all --scale smoke --seeds 2"
    assert "seeds = 2" in first[".md"].decode()


def test_plotting_before_simulating_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = importlib.import_module("experiments.fig1_orbits").EXPERIMENT
    with pytest.raises(SystemExit) as stop:
        experiment.main(["plot", "--data", str(tmp_path), "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "run `simulate` first" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_both_scales_and_the_name_of_its_module(name: str) -> None:
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    assert experiment.name == name
    assert set(experiment.scales) == {"smoke", "paper"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_at_smoke_scale(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"experiments.{name}", "all", "--scale", "smoke"]
    subprocess.run([*command, "--data", str(tmp_path), "--out", str(tmp_path)], cwd=ROOT, check=True)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for fields in json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["records"]:
        assert np.isfinite([fields["lower"], fields["median"], fields["upper"]]).all()


def test_agreement_is_that_of_the_interval() -> None:
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(spread(values), [0.025, 0.5, 0.975])
    assert record("x", values, 0.5).agreement == "yes"
    assert record("x", values, 0.99).agreement == "no"
    assert record("x", values, 0.99, "because of y").agreement == "explained"
    assert record("x", values).agreement == "–"


def test_the_table_numbers_explanations_once() -> None:
    fields = vars(Record("error", 1.0, 0.5, 1.5, 8, 2.0, "seen in z"))
    summary = {"figure": "fig5_spectral", "records": [fields, fields]}
    text = results.table([summary])
    assert text.count("explained (1)") == 2
    assert text.count("seen in z") == 1
    assert "| fig5_spectral | error | 2 | 1 [0.5, 1.5] | 8 |" in text


def test_run_times_are_added_up_where_both_are_known() -> None:
    one = {"figure": "fig5_spectral", "seconds": 30.0, "cpu_seconds": 50.0, "command": "c", "settings": {"seeds": 8}}
    text = results.times([one, {**one, "figure": "fig1_orbits"}])
    assert "| fig5_spectral | 8 | 30 | 50 | 19 | `c` |" in text
    assert "| fig1_orbits | 8 | 30 | 50 | – | `c` |" in text
    assert "| together, where both are known | | 30 | 50 | 19 | |" in text


def test_the_results_are_those_of_the_committed_records() -> None:
    assert results.TARGET.read_text(encoding="utf-8") == results.report(results.load(results.FOLDER)) + "\n"
