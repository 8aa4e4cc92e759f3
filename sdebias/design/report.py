"""The report of `explain`: tables of symmetries, charges and layers."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from ..symmetry import DiscoveredSymmetry

COLUMNS = (
    "symmetry",
    "parameters",
    "origin",
    "dimension",
    "charge",
    "isotropic_penalty",
    "horizontal_penalty",
    "log_orbit_volume",
    "isotropic_value",
    "charge_norm",
    "noise_drift",
)
CHARGE_COLUMNS = ("row", "value", "minibatch", "isotropic", "horizontal")
SHORT = ["symmetry", "parameters", "origin", "dimension", "log_orbit_volume", "isotropic_value", "noise_drift"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """The symmetries of a module and the bias that they imply.

    Attributes
    ----------
    table : DataFrame
        One row for each part of the symmetry, or one row "none".

        - ``dimension``: number of independent directions.
        - ``origin``: "architecture" for what holds on all data; "sample" for what holds on the given samples only;
          "unresolved" for directions that no gradient sees and no affine field explains.
        - ``charge``, ``isotropic_penalty``, ``horizontal_penalty``: in words, the conserved quantity of gradient flow;
          L_eff − L under isotropic noise of temperature T with the charges held at 0, against length along the balanced
          slice; the same under horizontal noise.
        - ``log_orbit_volume``: ½ log pdet G of the part's fields at the point. ``isotropic_value``: the isotropic
          penalty over T at the predictor of the point.
        - ``charge_norm``, ``noise_drift``: the norms of the charges and of tr(Σ A_a) over them; η²/2B times the latter
          is the drift of the charges per update.
    charges : DataFrame
        One row for each charge: the ``row`` of `table`, its ``value``, and its rate: ``minibatch`` = tr(Σ A) per η²/2B,
        ``isotropic`` = tr A and ``horizontal`` = tr(P_H A), both per ηT.
    layers : DataFrame
        One row for each parameter tensor: its shape, and the rows of `table` that move it, or "none".
    symmetry : DiscoveredSymmetry
        All fields that hold on all data, bound to the problem.
    theta : Tensor, shape=(parameter,)
        The point.
    log_orbit_volume : float
        ½ log pdet G of all fields together; those of the parts do not add up where fields are not orthogonal.
    predictor_volume : float
        ½ log pdet J_F J_Fᵀ of the predictor at the point: the penalty over T of horizontal noise against dq.
    samples, seen, identifiable : int
        Number of samples; of directions that their gradients see at a generic point; of those that fresh samples see.
    """

    table: pd.DataFrame
    charges: pd.DataFrame
    layers: pd.DataFrame
    symmetry: DiscoveredSymmetry
    theta: Tensor
    log_orbit_volume: float
    predictor_volume: float
    samples: int
    seen: int
    identifiable: int

    @property
    def dimension(self) -> int:
        """Number of directions that fields explain and that hold on all data."""
        return self.symmetry.orbit_dimension

    def __repr__(self) -> str:
        lines = [self.table[SHORT].to_string(float_format=lambda value: f"{value:.4g}")]
        for row, entry in self.table.iterrows():
            lines.append(f"{row}: isotropic noise: {entry['isotropic_penalty']}")
            if entry["horizontal_penalty"]:
                lines.append(f"{' ' * len(str(row))}  horizontal noise: {entry['horizontal_penalty']}")
        seen = f"{self.samples} samples see {self.seen} of {self.identifiable} identifiable directions at a point"
        return "\n".join([*lines, f"{seen}; ½ log det G of all fields together: {self.log_orbit_volume:.4g}"])

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=lambda value: f"{value:.4g}")


def none_row() -> dict[str, object]:
    """Return the row of a module without symmetry."""
    words = {"symmetry": "none", "parameters": "", "origin": "architecture", "charge": "none"}
    numbers = dict.fromkeys(("log_orbit_volume", "isotropic_value", "charge_norm", "noise_drift"), 0.0)
    return {**words, "dimension": 0, "isotropic_penalty": "none", "horizontal_penalty": "none", **numbers}
