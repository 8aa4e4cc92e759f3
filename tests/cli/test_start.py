"""Examples: each runs as it is, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdebias.cli import main
from sdebias.cli.start import names


def test_examples_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(len(line.split()) > 5 for line in lines)
    assert main(["examples", names()[0]]) == 0
    assert capsys.readouterr().out.startswith("# ")


@pytest.mark.parametrize("name", names())
def test_what_init_writes_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my.toml", "--example", name]) == 0
    assert "sdebias run my.toml" in Path("my.toml").read_text()
    assert main(["run", "my.toml", "--trajectories", "64", "--steps", "20"]) == 0
    assert "verdict: consistent" in capsys.readouterr().out
