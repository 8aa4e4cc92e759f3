"""Verbs to begin with: ``examples`` and ``init``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..errors import check_choice
from ..storage import check_outputs, save_text
from .options import Flag

EXAMPLES = resources.files(__package__) / "examples"


@dataclass
class ExamplesCommand:
    """List the example configurations, or print one."""

    name: Annotated[Positional[str | None], arg(metavar="NAME", help_behavior_hint="")] = None
    """Which one to print."""

    def __call__(self) -> int:
        """Print, and return the exit code."""
        if self.name is not None:
            print(example(self.name), end="")
            return 0
        width = max(map(len, names()))
        for name in names():
            print(f"{name:<{width}}  {example(name).splitlines()[0].removeprefix('# ')}")
        return 0


@dataclass
class InitCommand:
    """Write a commented configuration, ready to run."""

    file: Positional[Path] = Path("run.toml")
    """Where to write it."""
    example: str = "hadamard"
    """Which example to begin with; see sdebias examples."""
    overwrite: Flag = False
    """Replace a file that exists."""

    def __call__(self) -> int:
        """Write, and return the exit code."""
        text = example(self.example)
        check_outputs([self.file], size=len(text), overwrite=self.overwrite)
        save_text(text.replace("THIS_FILE", str(self.file)), self.file)
        print(f"{self.file}\nRun it with: sdebias run {self.file}")
        return 0


def names() -> list[str]:
    """Return the names of the examples."""
    return sorted(file.name.removesuffix(".toml") for file in EXAMPLES.iterdir() if file.name.endswith(".toml"))


def example(name: str) -> str:
    """Return the text of an example.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    return (EXAMPLES / f"{check_choice('example', name, names())}.toml").read_text(encoding="utf-8")
