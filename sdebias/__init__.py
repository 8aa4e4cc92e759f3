"""Simulate SGD as an SDE on parameter space and compare its orbit drift with what geometry predicts."""

from . import problems as problems
from . import symmetry as symmetry
from ._version import __version__ as __version__
from .dynamics import SGD as SGD
from .dynamics import SGDSDE as SGDSDE
from .problems import Problem as Problem
