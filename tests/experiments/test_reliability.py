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
from experiments.reliability import FAULTS, MUTATED, Row, write


def test_a_row_is_as_expected_only_if_nothing_was_lost_or_accepted() -> None:
    row = Row("fault", "how", "Error", "an Error")
    assert row.as_expected
    assert not Row("fault", "how", "Error", "done").as_expected
    assert not Row("fault", "how", "Error", "an Error", lost=1).as_expected
    assert not Row("fault", "how", "Error", "an Error", states=1).as_expected
    assert not Row("fault", "how", "Error", "an Error", accepted=["theta"]).as_expected


def test_one_bit_is_a_difference() -> None:
    one = xr.Dataset({"x": ("t", np.array([0.0, np.nan])), "y": ("t", [1, 2])})
    assert differences(one, one.copy(deep=True)) == []
    assert differences(one, one.assign(x=("t", [-0.0, np.nan]))) == ["x"]
    assert differences(one, one.assign(y=("t", np.array([1, 2], np.int32)))) == ["y"]
    assert differences(one, one.drop_vars("y")) == ["y"]


@pytest.mark.slow
@pytest.mark.parametrize("only", [FAULTS[:1], FAULTS[1:5], FAULTS[5:]], ids=lambda only: only[0])
def test_faults(only: tuple[str, ...], tmp_path: Path) -> None:
    """In a process of its own, which forks: kills among them, 3 here and 50 in the report."""
    command = [sys.executable, "-m", "experiments.reliability", "--kills", "3", "--only", *only]
    out = tmp_path / "report.md"
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "TRACEBACK" not in done.stdout
    assert re.search(r"\d+ faults, \d+ injections, 0 not as expected", done.stdout)


def test_each_half_of_the_report_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write(path, faults="faults\n")
    write(path, mutated="mutated\n")
    write(path, faults="others\n")
    assert path.read_text() == f"others\n{MUTATED}mutated\n"


# What was asked for, each at least once.
INJECTED = """
    full disk; read-only folder; part damaged | `truncate`; part damaged | `flip`; foreign files | a netCDF file;
    two processes; clock going backwards; a worker that dies three times; configuration edited
"""


def test_the_report_of_faults_is_complete_and_clean() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition(MUTATED)[0]
    rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[1:]
    cells = [row.split(" | ") for row in rows]
    killed = [row for row in cells if row[0].startswith("`kill -9`")]
    assert sum(int(row[2]) for row in killed) >= 50
    assert all(
        any(who in row[0] for row in killed)
        for who in ("1 thread", "2 threads", "statistics", "a worker", "main process")
    )
    assert all(f"\n| {fault.strip()}" in text for fault in INJECTED.split(";"))
    assert {tuple(row[-3:]) for row in cells} == {("0", "0", "0")}


def test_the_report_of_mutations_is_complete_and_clean() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition(MUTATED)[2]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[1:]]
    counts = {row[0]: list(map(int, row[1:])) for row in rows}
    assert counts["configurations"][0] >= 2000
    assert counts["files"][0] >= 500
    for what in ("configurations", "files"):
        total, right, refused, *bad = counts[what]
        assert total == right + refused
        assert min(right, refused) > 0
        assert not any(bad)
