"""Simulate SGD as an SDE on parameter space and compare its orbit drift with what geometry predicts."""

from . import accessor as _accessor  # noqa: F401  (registers Dataset.sdebias)
from . import problems as problems
from . import symmetry as symmetry
from ._version import __version__ as __version__
from .autocorrelation import effective_sample_size as effective_sample_size
from .comparison import compare as compare
from .dynamics import SGD as SGD
from .dynamics import SGDSDE as SGDSDE
from .ensemble.simulate import simulate as simulate
from .laws import compare_law as compare_law
from .laws import compare_samples as compare_samples
from .moments import compare_moments as compare_moments
from .prediction import predict_orbit_drift as predict_orbit_drift
from .prediction import split_dynamics as split_dynamics
from .problems import Problem as Problem
from .storage import open_dataset as open  # noqa: F401
