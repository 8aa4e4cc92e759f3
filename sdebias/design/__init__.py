"""Inverse design: from a wanted bias to a parameterisation, and from a module to the bias it has."""

from .explain import SampleWarning as SampleWarning
from .explain import explain as explain
from .objectives import OrbitDrift as OrbitDrift
from .objectives import PenaltyExponent as PenaltyExponent
from .objectives import StationaryMean as StationaryMean
from .optimize import Certificate as Certificate
from .optimize import optimize as optimize
from .report import Explanation as Explanation
