"""Exception tree and boundary checks.

Every error that a user can cause is raised where the value enters the package and is one line that says what was
expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class SdebiasError(Exception):
    """Root of every error that the package raises on purpose."""


class InputError(SdebiasError, ValueError):
    """A value given by the user is not usable."""


class ConfigError(InputError):
    """A configuration has an unknown, missing or wrong key."""


class DataError(InputError):
    """Data or a dataset is malformed: shapes, non-finite entries, missing variables."""


class DeviceError(InputError):
    """A device was asked for that is not there."""


class OutputError(InputError):
    """An output cannot be written: it exists, the folder is not writable, the disk is full."""


class SymmetryError(InputError):
    """A declared symmetry does not fit the problem or does not leave its losses invariant."""


class RunError(SdebiasError, RuntimeError):
    """A simulation started and failed."""


def message(what: str, expected: str, got: Any, remedy: str) -> str:
    """Return the one-line text that every boundary error uses.

    Parameters
    ----------
    what : str
        The key or argument that is wrong.
    expected : str
        What would have been accepted.
    got : object
        What came.
    remedy : str
        What the user can do.
    """
    return f"{what}: expected {expected}, got {got}; {remedy}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a remedy that names the valid name closest to `name`, or lists all of them."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names are {', '.join(map(repr, valid)) or 'none'}"


def check_choice(name: str, value: str, choices: Sequence[str], error: type[InputError] = InputError) -> str:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    InputError
        If it is not; the message names the nearest choice.
    """
    if value not in choices:
        raise error(message(name, f"one of {', '.join(choices)}", repr(value), nearest(str(value), choices)))
    return value


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`.

    Raises
    ------
    InputError
        If it is not a whole number, or is smaller.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < minimum:
        raise InputError(message(name, f"a whole number >= {minimum}", repr(value), f"set {name} to such a number"))
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(value, bool):
        raise InputError(message(name, "true or false", repr(value), f"set {name} to one of them"))
    return value


def check_positive(name: str, value: Any) -> Any:
    """Return `value` if it is a positive finite number, or a sequence or 1-D tensor of such numbers.

    Raises
    ------
    InputError
        If an entry is not a number, not finite, zero or negative.
    """
    if isinstance(value, Tensor):
        entries: list[Any] = value.detach().reshape(-1).tolist()
    else:
        entries = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for entry in entries:
        number = isinstance(entry, numbers.Real) and not isinstance(entry, bool)
        if not number or not math.isfinite(entry) or entry <= 0:
            raise InputError(message(name, "a positive finite number", repr(entry), f"set {name} > 0"))
    if not entries:
        raise InputError(message(name, "a positive finite number", "an empty list", f"set {name} > 0"))
    return value


def check_finite(name: str, tensor: Tensor, error: type[InputError] = DataError) -> Tensor:
    """Return `tensor` if all its entries are finite.

    Raises
    ------
    DataError
        If an entry is NaN or infinite; the message counts them and names the first.
    """
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        first = tuple(torch.nonzero(bad)[0].tolist())
        got = f"{int(bad.sum())} NaN or infinite, the first at {first}"
        raise error(message(name, "finite entries only", got, "remove or impute those entries"))
    return tensor
