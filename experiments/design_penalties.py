"""Fourteen penalties, each designed and held against its law with the same automatic settings.

``python -m experiments.design_penalties`` prints the table of docs/design/penalties.md and draws its figure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sdebias.design import Certificate, PenaltyDesign, penalty
from sdebias.design.base import DesignNoise
from sdebias.plotting import COLOURS, STYLE

ROOT = Path(__file__).parents[1]
LINE, HALF, BOX = (-math.inf, math.inf), (0.0, math.inf), (-1.0, 2.0)
DOMAINS = {LINE: "line", HALF: "w > 0", BOX: "[−1, 2]"}

CASES: tuple[tuple[str, str, DesignNoise, tuple[float, float], dict[str, Any]], ...] = (
    ("2 |w|", "l1", "isotropic-gauged", LINE, {"strength": 2.0}),
    ("2 √|w|", "l0.5", "horizontal", LINE, {"strength": 2.0}),
    ("log(1 + 10 w)", "log", "horizontal", HALF, {}),
    ("elastic net", "elastic", "horizontal", HALF, {"strength": 2.0}),
    ("Huber", "huber", "isotropic-gauged", LINE, {"strength": 2.0}),
    ("log(1 + 4 w²)", "cauchy", "horizontal", HALF, {}),
    ("bounded well", "bounded", "horizontal", BOX, {"strength": 2.0}),
    ("minimax concave", "mcp", "horizontal", HALF, {"strength": 4.0}),
    ("0.6 log cosh(w/0.3)", "logcosh", "isotropic-gauged", LINE, {"strength": 0.6}),
    ("((w/0.7)² − 1)²", "wells", "horizontal", LINE, {}),
    ("2 sin²(2πw)", "periodic", "horizontal", BOX, {"strength": 2.0}),
    ("3 |w − 0.6|", "pinned", "horizontal", HALF, {"strength": 3.0}),
    ("pinball", "pinball", "isotropic-gauged", LINE, {"strength": 3.0}),
    ("½ log w", "logarithm", "horizontal", HALF, {"strength": 0.5}),
)
DESIGNS: dict[str, Callable[[], PenaltyDesign]] = {
    title: functools.partial(penalty, name, noise, domain, **parameters)
    for title, name, noise, domain, parameters in CASES
}
"""The designs by the title of their panel: kinks at 0 and elsewhere, several wells, no bound and bounds."""


def row(title: str, design: PenaltyDesign, certificate: Certificate) -> str:
    """Return a line of the table."""
    domain = DOMAINS[tuple(design.declaration["domain"])]
    laws = certificate.designed, certificate.unpenalised
    p_values = [float(law["p_value"]) for law in laws]
    cells = [title.replace("|", "\\|"), domain, design.noise, f"{certificate.kl:.1e}", f"{p_values[0]:.2g}"]
    cells += [f"{certificate.kl_unpenalised:.2g}", "< 1e-6" if p_values[1] < 1e-6 else f"{p_values[1]:.1e}"]
    return f"| {' | '.join(cells)} |"


def densities(law: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of the bins, and the measured and predicted density in them."""
    edges = np.append(law["bin_lower"].values, law["bin_upper"].values[-1])
    widths = np.diff(edges)
    return edges, law["bin_probability"].values / widths, law["bin_predicted"].values / widths


def draw(certificates: dict[str, Certificate]) -> Figure:
    """Draw histograms of the ensembles against the designed laws and those without penalty."""
    columns = 4
    rows = math.ceil(len(certificates) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(certificates) :]:
            axes.axis("off")
        for axes, (title, certificate) in zip(grid.flat, certificates.items(), strict=False):
            edges, measured, designed = densities(certificate.designed)
            without, _, other = densities(certificate.unpenalised)
            axes.stairs(measured, edges, fill=True, color=COLOURS[0], alpha=0.35, label="ensemble")
            axes.stairs(designed, edges, baseline=None, color=COLOURS[0], label="designed")
            axes.stairs(other, without, baseline=None, color=COLOURS[1], linestyle="--", label="without penalty")
            axes.set_title(f"ψ = {title}", fontsize="medium")
            axes.set_xlim(edges[0], (edges[-1] + edges[-2]) / 2)
            axes.set_ylim(0, min(1.1 * measured.max(), 4 * other.max()))
        figure.supxlabel("weight w")
        figure.supylabel("density of w")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def main() -> None:
    """Verify all designs, print the table, and write the figure."""
    print("| ψ | domain | noise | KL(empirical ‖ designed) | p | KL(empirical ‖ no penalty) | p |")
    print("|---|---|---|---|---|---|---|")
    certificates = {}
    for title, build in DESIGNS.items():
        design = build()
        certificates[title] = design.verify()
        print(row(title, design, certificates[title]), flush=True)
    path = ROOT / "docs" / "figures" / "design_penalties.png"
    draw(certificates).savefig(path)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
