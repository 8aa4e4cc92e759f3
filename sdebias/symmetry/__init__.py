"""Symmetry groups of a problem and the geometry of their orbits."""

from .bundle import Symmetry as Symmetry
from .discovered import DiscoveredSymmetry as DiscoveredSymmetry
from .discovery import discover as discover
from .gauge import GaugeCoordinates as GaugeCoordinates
from .gauge import QuadraticForms as QuadraticForms
from .groups import FromAction as FromAction
from .groups import FromFields as FromFields
from .groups import GeneralLinear as GeneralLinear
from .groups import Orthogonal as Orthogonal
from .groups import Product as Product
from .groups import Rescaling as Rescaling
from .groups import Scaling as Scaling
from .groups import Translation as Translation
from .groups import from_action as from_action
from .groups import from_fields as from_fields
from .invariance import check_invariance as check_invariance
from .linalg import IllConditionedGramWarning as IllConditionedGramWarning
from .of_module import ModuleSymmetry as ModuleSymmetry
from .of_module import of_module as of_module
from .registry import GROUPS as GROUPS
from .registry import from_spec as from_spec
