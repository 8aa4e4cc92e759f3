"""What geometry predicts, from stored states and a problem; the simulators are not used here."""

from .effective_loss import effective_loss as effective_loss
from .equilibrium import noise_equilibrium as noise_equilibrium
from .equilibrium import predict_relaxation as predict_relaxation
from .fokker_planck import fokker_planck_coefficients as fokker_planck_coefficients
from .fokker_planck import stationary_fokker_planck as stationary_fokker_planck
from .gradient_noise import label_gradients as label_gradients
from .gradient_noise import minibatch_gradients as minibatch_gradients
from .gradient_noise import projected_coefficients as projected_coefficients
from .landscape import landscape as landscape
from .nodes import ImportanceSampling as ImportanceSampling
from .nodes import PanelQuadrature as PanelQuadrature
from .orbit_drift import predict_orbit_drift as predict_orbit_drift
from .spectrum import gram_spectrum as gram_spectrum
from .split import split_dynamics as split_dynamics
from .split import split_states as split_states
from .stationary import log_stationary_density as log_stationary_density
from .stationary import stationary_law as stationary_law
