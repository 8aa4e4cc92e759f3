"""Inverse design: from a wanted bias to the parameterisation that has it."""

from .base import Design as Design
from .base import Parametrization as Parametrization
from .regression import DesignedRegression as DesignedRegression
