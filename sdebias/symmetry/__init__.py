"""Symmetry groups of a problem and the geometry of their orbits."""

from .bundle import Symmetry as Symmetry
from .discovered import DiscoveredSymmetry as DiscoveredSymmetry
from .discovery import discover as discover
from .groups import Rescaling as Rescaling
from .invariance import check_invariance as check_invariance
