"""Groups by name, and how a configuration builds them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, check_choice, message
from .bundle import Symmetry
from .groups import FromAction, FromFields, GeneralLinear, Orthogonal, Product, Rescaling, Scaling, Translation

GROUPS: dict[str, type[Symmetry]] = {
    cls.__name__: cls
    for cls in (Rescaling, GeneralLinear, Orthogonal, Scaling, Translation, Product, FromAction, FromFields)
}
"""The groups that a configuration can name."""


def from_spec(spec: Mapping[str, Any]) -> Symmetry:
    """Build the symmetry that `Symmetry.spec` describes.

    Parameters
    ----------
    spec : mapping
        ``group``, a key of `GROUPS`, and the fields of its constructor: ``parameters``, ``factors`` (specs), or others.

    Raises
    ------
    ConfigError
        If the group or a field is unknown.
    """
    fields = dict(spec)
    name = check_choice("group", str(fields.pop("group", None)), list(GROUPS), ConfigError)
    group: Any = GROUPS[name]
    try:
        if "factors" in fields:
            return group(*map(from_spec, fields.pop("factors")), **fields)
        if group in (FromAction, FromFields):
            return group(**fields)
        return group(*fields.pop("parameters"), **fields)
    except (TypeError, KeyError) as error:
        remedy = "give what symmetry.spec() gives"
        raise ConfigError(message(f"symmetry {name}", "its fields", f"{sorted(spec)} ({error})", remedy)) from None
