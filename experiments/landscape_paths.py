"""Figure of the documentation: paths of gradient descent and of SGD on the orbits uv = w, over both losses.

``python -m experiments.landscape_paths`` writes ``docs/figures/landscape.png``.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.plotting import plot_landscape

from .common import ROOT

STARTS = ((3.5, 0.2), (0.3, 3.2))
SAMPLES, SOLUTION, LABEL_NOISE = 64, 2.0, 3.0
STEPS, SAVE_EVERY = 12_000, 30


def figure() -> Figure:
    """Return loss and effective loss of f(x) = uvx with paths from two starts."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((SAMPLES, 1))
    problem = sb.problems.HadamardRegression(X, SOLUTION * X[:, 0] + LABEL_NOISE * rng.standard_normal(SAMPLES))
    grids = {label: np.linspace(0, 4, 201) for label in ("p[0]", "q[0]")}
    law = {"noise": "soft_gauge", "temperature": 1.0, "measure": "slice"}
    plane = sb.landscape(problem, problem.symmetry(), grids, **law)  # type: ignore[arg-type]
    starts = torch.tensor(STARTS, dtype=problem.dtype)
    dynamics = {
        "SGD": sb.SGD(learning_rate=8e-3, batch_size=1),
        "gradient descent": sb.SGD(learning_rate=8e-3, batch_size=SAMPLES, replacement=False),
    }
    runs = [
        sb.simulate(problem, one, trajectories=len(starts), steps=STEPS, save_every=SAVE_EVERY, initial=starts)
        for one in dynamics.values()
    ]
    return plot_landscape(plane, runs, labels=list(dynamics))


if __name__ == "__main__":
    figure().savefig(ROOT / "docs" / "figures" / "landscape.png", dpi=100)
