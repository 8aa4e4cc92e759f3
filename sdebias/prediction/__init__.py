"""What geometry predicts, from stored states and a problem; the simulators are not used here."""

from .orbit_drift import predict_orbit_drift as predict_orbit_drift
from .split import split_dynamics as split_dynamics
from .split import split_states as split_states
