"""Functions by name: how a file names them, and that nothing is imported which its reader has not allowed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

from .errors import ConfigError, InputError, message


def import_path(function: Callable[..., Any]) -> str:
    """Return ``module:function`` of a function."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None)}:{name}"


def import_function(path: str, error: type[InputError] = InputError) -> Callable[..., Any]:
    """Return the function at ``module:function``.

    Raises
    ------
    InputError
        If there is none.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as reason:
        remedy = "define the function at the top level of a module that can be imported"
        raise error(message("function", "an import path 'module:function'", f"{path!r} ({reason})", remedy)) from None
    if not callable(found):
        raise error(message(path, "a function", type(found).__name__, "name a function"))
    function: Callable[..., Any] = found
    return function


def check_allowed(paths: Collection[str], allowed: Collection[str] | bool) -> None:
    """Raise unless every function is one that the reader of a file has allowed to be imported.

    Parameters
    ----------
    paths : collection of str
        ``module:function`` each, as a file names them.
    allowed : collection of str or bool
        The same, or True for all.

    Raises
    ------
    ConfigError
        If one is not allowed: a file from a stranger is data, and importing runs code.
    """
    refused = [] if allowed is True else sorted(set(paths) - set(allowed or ()))
    if refused:
        remedy = f"if you trust it, pass --allow-import {refused[0]} (allow_import in Python)"
        raise ConfigError(message("import", "functions that were allowed", ", ".join(map(repr, refused)), remedy))
