"""SGD and the SDEs that model it, in iteration time."""

from . import noise as noise
from . import schedule as schedule
from .base import Dynamics as Dynamics
from .sde import SGDSDE as SGDSDE
from .sgd import SGD as SGD

DYNAMICS: dict[str, type[Dynamics]] = {cls.__name__: cls for cls in (SGD, SGDSDE)}
"""The dynamics that a configuration can name."""
