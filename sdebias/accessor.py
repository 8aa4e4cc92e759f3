"""The ``.sdebias`` accessor of xarray datasets: what can be done with a dataset, where the dataset is."""

from __future__ import annotations

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from . import plotting
from .comparison import comparison_table


@xr.register_dataset_accessor("sdebias")
class SdebiasAccessor:
    """Methods of a comparison, as ``comparison.sdebias.plot()``."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def table(self) -> pd.DataFrame:
        """Return the comparison at the last step; see `sdebias.comparison.comparison_table`."""
        return comparison_table(self._dataset)

    def plot(self) -> Figure:
        """Draw a comparison: of orbit drift, `sdebias.plotting.plot_orbit_drift`; of laws, `plot_law`."""
        draw = plotting.plot_law if self._dataset.attrs.get("kind") == "law_comparison" else plotting.plot_orbit_drift
        return draw(self._dataset)
