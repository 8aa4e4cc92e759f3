"""The public names and their signatures as text.

``python tests/public_api.py`` writes them to ``tests/public_api.txt``, which a test holds against the package. What is
in there is a promise to users: a change of it belongs in ``CHANGELOG.md``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import sdebias
from sdebias import cli
from sdebias.accessor import Plots, SdebiasAccessor

FILE = Path(__file__).with_suffix(".txt")
NAMESPACES = ("problems", "symmetry", "noise", "schedule", "statistics", "prediction", "design")


def signature(function: Callable[..., Any]) -> str:
    """Return the signature of a function, annotations as they are written."""
    written = re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(function)))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", written)


def public(module: ModuleType) -> dict[str, Any]:
    """Return the classes, functions and registries of a namespace: what it defines, or a package collects."""
    own = "sdebias" if hasattr(module, "__path__") else module.__name__
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and ((callable(value) and getattr(value, "__module__", "").startswith(own)) or isinstance(value, dict))
    }


def members(cls: type, listed: set[type]) -> Iterator[str]:
    """Yield the public members of a class, also those of bases that are not listed themselves."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("sdebias") and (base is cls or base not in listed):
            found = {name: value for name, value in vars(base).items() if not name.startswith("_")} | found
    for name, value in sorted(found.items()):
        if isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            yield f"{name}{signature(value.__func__ if isinstance(value, classmethod | staticmethod) else value)}"
        elif not isinstance(value, ModuleType):
            yield name


def described(name: str, value: Any, listed: set[type]) -> Iterator[str]:
    """Yield the lines of a public name."""
    if isinstance(value, dict):
        yield f"{name}: {', '.join(map(str, sorted(value)))}"
        return
    yield name if isinstance(value, type) and issubclass(value, Warning) else f"{name}{signature(value)}"
    if isinstance(value, type):
        yield from (f"    .{member}" for member in members(value, listed))


def command_line() -> Iterator[str]:
    """Yield the verbs: fields are flags, ``--save-every`` of ``save_every``, unless their type is positional."""
    for verb in get_args(cli.Command):
        command, subcommand = get_args(verb)
        yield f"sdebias {subcommand.name} {signature(command)}"


def text() -> str:
    """Return the public names, one in a line, and under each class its members."""
    spaces = {"sdebias": sdebias, **{f"sdebias.{name}": getattr(sdebias, name) for name in NAMESPACES}}
    accessor = {"Dataset.sdebias": SdebiasAccessor, "Dataset.sdebias.plot": Plots}
    names = {f"{space}.{name}": value for space, module in spaces.items() for name, value in public(module).items()}
    names |= accessor
    listed: set[type] = {value for value in names.values() if isinstance(value, type)}
    lines = [line for name, value in names.items() for line in described(name, value, listed)]
    return "\n".join([*lines, *command_line(), "sdebias --version"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
