"""Faults done to run directories: nothing lost, nothing wrong accepted, and each told of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT

from experiments.faults import differences
from experiments.reliability import Row


def test_a_row_is_as_expected_only_if_nothing_was_lost_or_accepted() -> None:
    row = Row("fault", "how", "Error", "an Error")
    assert row.as_expected
    assert not Row("fault", "how", "Error", "done").as_expected
    assert not Row("fault", "how", "Error", "an Error", lost=1).as_expected
    assert not Row("fault", "how", "Error", "an Error", accepted=["theta"]).as_expected


def test_one_bit_is_a_difference() -> None:
    one = xr.Dataset({"x": ("t", np.array([0.0, np.nan])), "y": ("t", [1, 2])})
    assert differences(one, one.copy(deep=True)) == []
    assert differences(one, one.assign(x=("t", [-0.0, np.nan]))) == ["x"]
    assert differences(one, one.assign(y=("t", np.array([1, 2], np.int32)))) == ["y"]
    assert differences(one, one.drop_vars("y")) == ["y"]


@pytest.mark.slow
def test_all_faults(tmp_path: Path) -> None:
    """In a process of its own, which forks: kills among them, 8 here and 50 in the report."""
    command = [sys.executable, "-m", "experiments.reliability", "--kills", "8", "--out", str(tmp_path / "report.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "TRACEBACK" not in done.stdout
    assert re.search(r"\d+ faults, \d+ injections, 0 not as expected", done.stdout)


def test_the_report_is_complete_and_clean() -> None:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)[1:]
    cells = [row.split(" | ") for row in rows]
    assert sum(int(row[2]) for row in cells if row[0].startswith("`kill -9`")) >= 50
    assert {tuple(row[-2:]) for row in cells} == {("0", "0")}
