"""Symmetry groups of a problem and the geometry of their orbits."""

from .bundle import Symmetry as Symmetry
from .groups import Rescaling as Rescaling
from .invariance import check_invariance as check_invariance

GROUPS: dict[str, type[Symmetry]] = {cls.__name__: cls for cls in (Rescaling,)}
"""The groups that a configuration can name."""
