"""Groups by name, and how a configuration builds them again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigError, SdebiasError, check_choice, check_mapping, message
from ..imports import check_allowed
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


def from_spec(spec: Mapping[str, Any], *, allow_import: Collection[str] | bool = False) -> Symmetry:
    """Build the symmetry that `Symmetry.spec` describes.

    Parameters
    ----------
    spec : mapping
        ``group``, a key of `GROUPS`, and the fields of its constructor: ``parameters``, ``factors`` (specs), or others.
    allow_import : collection of str or bool
        Functions, as ``module:function``, that may be imported to build groups made from functions; True for all. A
        specification from a stranger's file is data only unless its reader says otherwise.

    Raises
    ------
    ConfigError
        If the group or a field is unknown, or functions would have to be imported.
    """
    fields = dict(check_mapping("symmetry", spec))
    name = check_choice("group", str(fields.pop("group", None)), list(GROUPS), ConfigError)
    group: Any = GROUPS[name]
    if group in (FromAction, FromFields):
        named = fields.get("fields", fields.get("action", ()))
        check_allowed([str(one) for one in (named if isinstance(named, list | tuple) else [named])], allow_import)
    try:
        if "factors" in fields:
            factors = [from_spec(factor, allow_import=allow_import) for factor in fields.pop("factors")]
            return group(*factors, **fields)
        if group is DiscoveredSymmetry:
            return group.from_spec(spec)
        if group in (FromAction, FromFields):
            return group(**fields)
        return group(*fields.pop("parameters"), **fields)
    except SdebiasError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        remedy = "give what symmetry.spec() gives"
        raise ConfigError(message(f"symmetry {name}", "its fields", f"{sorted(spec)} ({error})", remedy)) from None
