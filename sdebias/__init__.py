"""Simulate SGD as an SDE on parameter space and compare its orbit drift with what geometry predicts."""

from . import accessor as _accessor  # noqa: F401  (registers Dataset.sdebias)
from . import design as design
from . import prediction as prediction
from . import problems as problems
from . import symmetry as symmetry
from ._version import __version__ as __version__
from .autocorrelation import effective_sample_size as effective_sample_size
from .comparison import compare as compare
from .dynamics import SGD as SGD
from .dynamics import SGDSDE as SGDSDE
from .dynamics import extrapolate as extrapolate
from .dynamics import noise as noise
from .dynamics import schedule as schedule
from .ensemble import statistics as statistics
from .ensemble.run import run as run
from .ensemble.simulate import simulate as simulate
from .ensemble.training import join_runs as join_runs
from .ensemble.training import record as record
from .laws import compare_law as compare_law
from .laws import compare_samples as compare_samples
from .moments import compare_moments as compare_moments
from .prediction import effective_loss as effective_loss
from .prediction import gram_spectrum as gram_spectrum
from .prediction import landscape as landscape
from .prediction import noise_equilibrium as noise_equilibrium
from .prediction import predict_orbit_drift as predict_orbit_drift
from .prediction import predict_relaxation as predict_relaxation
from .prediction import split_dynamics as split_dynamics
from .prediction import stationary_fokker_planck as stationary_fokker_planck
from .prediction import stationary_law as stationary_law
from .problems import Problem as Problem
from .storage import merge as merge
from .storage import open_dataset as open  # noqa: F401
