"""Figures from datasets, one file for each kind of figure. All return a `matplotlib.figure.Figure`."""

from .charges import plot_charges as plot_charges
from .drift import plot_orbit_drift as plot_orbit_drift
from .landscape import plot_landscape as plot_landscape
from .laws import plot_law as plot_law
from .motion import plot_motion as plot_motion
from .paths import plot_paths as plot_paths
from .spectrum import plot_gram_spectrum as plot_gram_spectrum
from .style import COLOURS as COLOURS
from .style import LINES as LINES
from .style import MARKERS as MARKERS
from .style import STYLE as STYLE
