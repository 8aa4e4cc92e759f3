"""What geometry predicts, from stored states and a problem; the simulators are not used here."""

from .nodes import ImportanceSampling as ImportanceSampling
from .nodes import PanelQuadrature as PanelQuadrature
from .orbit_drift import predict_orbit_drift as predict_orbit_drift
from .stationary import log_stationary_density as log_stationary_density
from .stationary import stationary_law as stationary_law
