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


def test_the_module_runs_and_has_no_colours_in_a_pipe() -> None:
    for words in (["--help"], ["run", "--trajectory", "3"]):
        done = subprocess.run([sys.executable, "-m", "sdebias.cli", *words], capture_output=True, text=True)
        assert done.returncode == (0 if words == ["--help"] else 2)
        assert done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr


RUN = """
import sys
from sdebias.cli import main
main(["init", "my.toml"])
code = main(["run", "my.toml", "--trajectories", "64", "--steps", "20"])
print(sys.modules.keys() & {"torch._dynamo", "torch._inductor", "sympy"})
sys.exit(code)
"""


def test_a_run_that_is_not_compiled_loads_no_compiler(tmp_path: Path) -> None:
    """Nor the symbolic algebra that it needs: together they take seconds."""
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "verdict" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_verbs_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--tyro-print-completion", shell])
    assert done.value.code in (0, None)
    script = capsys.readouterr().out
    assert all(word in script for word in ("extend", "--save-every", "--allow-import"))
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True, env={"LC_ALL": "C.UTF-8"})
