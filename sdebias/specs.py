"""Objects from plain data, as configurations and files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import InputError, check_choice, message

T = TypeVar("T")


def from_named(key: str, kinds: Mapping[str, type[T]], spec: Mapping[str, Any], **options: Any) -> T:
    """Return an object of the class that the entry `key` of plain data names, made from the other entries.

    Parameters
    ----------
    key : str
        Also the word for such an object, as in ``{"noise": "label", "std": 0.1}``.
    kinds : mapping of str to type
        The classes, by name.
    spec : mapping of str to plain data
    **options
        Further parameters.

    Raises
    ------
    InputError
        If the name is none of `kinds`, or a parameter is missing or unknown.
    """
    values = dict(spec)
    name = check_choice(key, values.pop(key, "none"), list(kinds))
    try:
        return kinds[name](**values, **options)
    except TypeError as error:
        remedy = "give its parameters by name"
        raise InputError(message(key, f"the parameters of {name} {key}", str(error), remedy)) from None
