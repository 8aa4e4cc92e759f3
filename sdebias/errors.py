"""Exception tree and boundary checks.

Every error that a user can cause is raised where the value enters the package and is one line that says what was
expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
import numbers
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# What counts and seeds are stored as, in files and in generators of random numbers.
LARGEST_COUNT = 2**63 - 1


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


def shown(value: Any) -> str:
    """Return a value as an error shows it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python writes
        text = f"a whole number of {value.bit_length()} bits"
    return text if len(text) <= 200 else f"{text[:200]}..."


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
    """Return `value` as an int if it is a whole number of at least `minimum` that 64 bits hold.

    Raises
    ------
    InputError
        If it is not a whole number, is smaller, or larger than 64 bits hold.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < minimum:
        raise InputError(message(name, f"a whole number >= {minimum}", shown(value), f"set {name} to such a number"))
    if int(value) > LARGEST_COUNT:
        raise InputError(message(name, "a whole number < 2**63", shown(value), f"set {name} to such a number"))
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
        if not number or not 0 < entry <= sys.float_info.max:
            raise InputError(message(name, "a positive finite number", shown(entry), f"set {name} > 0"))
    if not entries:
        raise InputError(message(name, "a positive finite number", "an empty list", f"set {name} > 0"))
    return value


def check_positive_number(name: str, value: Any) -> float:
    """Return one positive finite number; see `check_positive`.

    Raises
    ------
    InputError
        If it is not one.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise InputError(message(name, "one positive finite number", shown(value), f"set {name} > 0"))
    return float(check_positive(name, value))


def check_number(
    name: str, value: Any, minimum: float = -sys.float_info.max, error: type[InputError] = InputError
) -> float:
    """Return `value` as a float if it is a finite number of at least `minimum`.

    Raises
    ------
    InputError
        If it is not a number, not finite, or smaller.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not minimum <= value <= sys.float_info.max:
        want = "a finite number" if minimum < 0 else f"a finite number >= {minimum:g}"
        raise error(message(name, want, shown(value), f"set {name} to such a number"))
    return float(value)


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


def check_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a table.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(value, Mapping):
        raise InputError(message(name, "a table with names", shown(value), f"write {name} = {{ name = value, ... }}"))
    return value


def check_memory(name: str, size: int, remedy: str) -> None:
    """Raise unless the machine has as much memory as something takes at least.

    Parameters
    ----------
    name : str
        What decides the size.
    size : int
        Bytes.
    remedy : str

    Raises
    ------
    InputError
        If it has not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(message(name, f"what fits into {memory / 2**30:.0f} GiB", f"{size / 2**30:.0f} GiB", remedy))


@contextmanager
def out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn the ways in which memory runs out into one error with a remedy.

    Raises
    ------
    RunError
        If it runs out in the block.
    """
    try:
        yield
    except SdebiasError:
        raise
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) and "memory" not in str(error):
            raise
        raise RunError(f"{what}: not enough memory; {remedy}") from None
