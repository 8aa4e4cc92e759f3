"""Examples: each runs as it is, and says what it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdebias as sb
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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdebias {sb.__version__}\n"


MISTAKEN = """
import atexit, sys
from sdebias.cli import main
atexit.register(lambda: print("torch._inductor" in sys.modules))
sys.exit(main(["run", "--trajectory", "3"]))
"""


@pytest.mark.parametrize(("words", "code"), [(["-m", "sdebias.cli", "--help"], 0), (["-c", MISTAKEN], 2)])
def test_the_module_runs_and_has_no_colours_in_a_pipe(words: list[str], code: int) -> None:
    """Nor does it load the compiler, which takes seconds, where nothing is simulated."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == code
    assert "--trajectories" in done.stderr if code else "usage" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    if code:
        assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_verbs_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--tyro-print-completion", shell])
    assert done.value.code in (0, None)
    script = capsys.readouterr().out
    assert all(word in script for word in ("extend", "--save-every", "--allow-import"))
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True, env={"LC_ALL": "C.UTF-8"})
