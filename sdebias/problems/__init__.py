"""Models: their losses, their data, their predictor coordinates."""

from .base import Problem as Problem
from .hadamard import HadamardRegression as HadamardRegression

MODELS: dict[str, type[Problem]] = {cls.model: cls for cls in (HadamardRegression,)}
"""The models that a configuration can name."""
