"""Groups by name, and how a configuration builds them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, check_choice, message
from .bundle import Symmetry
from .discovered import DiscoveredSymmetry
from .groups import FromAction, FromFields, GeneralLinear, Orthogonal, Product, Rescaling, Scaling, Translation

GROUPS: dict[str, type[Symmetry]] = {
    cls.__name__: cls
    for cls in (
        Rescaling,
        GeneralLinear,
        Orthogonal,
        Scaling,
        Translation,
        Product,
        FromAction,
        FromFields,
        DiscoveredSymmetry,
    )
}
"""The groups that a configuration can name."""


def from_spec(spec: Mapping[str, Any], *, allow_import: bool = False) -> Symmetry:
    """Build the symmetry that `Symmetry.spec` describes.

    Parameters
    ----------
    spec : mapping
        ``group``, a key of `GROUPS`, and the fields of its constructor: ``parameters``, ``factors`` (specs), or others.
    allow_import : bool
        Whether groups made from functions may be built by importing those functions by name. A specification from a
        stranger's file is data only unless its reader says otherwise.

    Raises
    ------
    ConfigError
        If the group or a field is unknown, or functions would have to be imported.
    """
    fields = dict(spec)
    name = check_choice("group", str(fields.pop("group", None)), list(GROUPS), ConfigError)
    group: Any = GROUPS[name]
    if group in (FromAction, FromFields) and not allow_import:
        remedy = "build it from its functions in Python, or pass allow_import=True if you trust the source"
        raise ConfigError(message(f"symmetry {name}", "a group declared by names", "one made from functions", remedy))
    try:
        if "factors" in fields:
            factors = [from_spec(factor, allow_import=allow_import) for factor in fields.pop("factors")]
            return group(*factors, **fields)
        if group is DiscoveredSymmetry:
            return group.from_spec(spec)
        if group in (FromAction, FromFields):
            return group(**fields)
        return group(*fields.pop("parameters"), **fields)
    except (TypeError, KeyError) as error:
        remedy = "give what symmetry.spec() gives"
        raise ConfigError(message(f"symmetry {name}", "its fields", f"{sorted(spec)} ({error})", remedy)) from None
