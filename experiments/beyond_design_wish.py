"""Beyond the paper: from a wish to a histogram.

``python -m experiments.beyond_design_wish all`` takes a penalty that has no name, makes the parameterisation that has
it as its implicit bias, and holds ensembles against the law that was wished for. Fourteen more are in
`experiments.design_penalties`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.design import PenaltyDesign
from sdebias.plotting import COLOURS

from .common import Datasets, Experiment, Record, Settings, band, record, spread, styled


@dataclass(frozen=True, kw_only=True)
class Wish(Settings):
    """Each seed is an ensemble of one weight w > 0 with L = ½(w − `target`)²; the wish is one of two values."""

    seeds: int = 16
    trajectories: int = 512
    strength: float = 4.0
    values: tuple[float, ...] = (0.4, 1.2)
    target: float = 0.7
    temperature: float = 0.1
    descent_rate: float = 0.02
    descent_steps: int = 2_000


def wish(settings: Wish, w: float) -> float:
    """Return ψ(w) = strength · distance to the nearest of the wanted values: kinks, two wells, no name."""
    return settings.strength * min(abs(w - value) for value in settings.values)


def design(settings: Wish) -> PenaltyDesign:
    """Return w = h(p∘q) with the penalty ψ; one line, whatever ψ is."""
    return sb.design.penalty(lambda w: wish(settings, w), domain=(0.0, math.inf))


def simulate(settings: Wish) -> Datasets:
    """Verify the design on every seed, and run gradient descent from a spread of starts as control."""
    wanted = design(settings)
    certificates = [
        wanted.verify(
            trajectories=settings.trajectories,
            seed=settings.seed + k,
            target=settings.target,
            temperature=settings.temperature,
        )
        for k in range(settings.seeds)
    ]
    laws = {
        name: xr.concat([getattr(one, name) for one in certificates], "replicate", combine_attrs="override")
        for name in ("designed", "unpenalised")
    }
    problem = wanted.problem(np.ones((1, 1)), np.full(1, settings.target))
    weights = torch.linspace(0.1, 1.5, settings.seeds, dtype=torch.float64)[:, None]
    factors = wanted.factorize(weights)
    descent = sb.simulate(
        problem,
        sb.SGD(learning_rate=settings.descent_rate, batch_size=1, replacement=False),
        trajectories=settings.seeds,
        steps=settings.descent_steps,
        seed=settings.seed,
        initial=torch.cat(list(factors.values()), dim=-1),
        save=["predictor_value", "loss"],
    )
    return {**laws, "descent": descent}


def _density(law: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of the bins and a density in them, shape (seed, bin)."""
    first = law.isel(replicate=0)
    edges = np.append(first["bin_lower"].values, first["bin_upper"].values[-1])
    return edges, law[name].transpose("replicate", "bin").values / np.diff(edges)


def draw(settings: Wish, datasets: Datasets) -> Figure:
    """Draw the wish, the map that grants it, and the histogram."""
    figure = styled(3.3)
    first, second, third = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    wanted = design(settings)
    w = torch.linspace(0.0, 2.0, 401, dtype=torch.float64)
    first.plot(w, [wish(settings, float(x)) for x in w], color=COLOURS[0])
    first.set(xlabel="weight w", ylabel="penalty ψ(w)", title="a  the wish")
    p, q = wanted.factorize(w).values()
    second.plot(p * q, w, color=COLOURS[0])
    second.set(xlabel="z = pq", ylabel="weight w = h(z)", title="b  the map")
    edges, measured = _density(datasets["designed"], "bin_probability")
    _, predicted = _density(datasets["designed"], "bin_predicted")
    without, other = _density(datasets["unpenalised"], "bin_predicted")
    band(third, (edges[1:] + edges[:-1]) / 2, measured, color=COLOURS[0], label="ensembles")
    third.stairs(predicted[0], edges, baseline=None, color="black", linewidth=1, label="wish")
    third.stairs(other[0], without, baseline=None, color=COLOURS[1], linestyle="--", label="no penalty")
    third.axvline(settings.target, color="0.5", linestyle=":", label="gradient descent")
    third.set(xlabel="weight w", ylabel="density of w", title="c  the histogram", xlim=(0, edges[-1]))
    third.set_ylim(0, 1.05 * spread(measured)[2].max())
    figure.legend(*third.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def ends(datasets: Datasets) -> np.ndarray:
    """Return the weights at which gradient descent ends, one for each start."""
    return datasets["descent"]["predictor_value"].isel(step=-1, predictor=0).values


def caption(settings: Wish, datasets: Datasets) -> str:
    """Return what the figure shows."""
    kl = spread(datasets["designed"]["kl"])[1], spread(datasets["unpenalised"]["kl"])[1]
    values = " or ".join(f"{value:g}" for value in settings.values)
    return (
        f"**From wish to histogram.** (a) The wish: w shall be near {values}, ψ = {settings.strength:g} · distance to "
        "the nearest, given as a plain function. (b) The map w = h(pq) that `sb.design.penalty` makes of it by one "
        "quadrature and one monotone inverse. (c) Law of w under horizontal noise with "
        f"L = ½(w − {settings.target:g})², T = {settings.temperature:g}: the ensembles follow e^(−L/T − ψ) "
        f"(KL {kl[0]:.1e}, median over ensembles of {settings.trajectories} trajectories, less the sampling bias), not "
        f"the law e^(−L/T) without penalty (KL {kl[1]:.2g}). The penalty acts through noise only: gradient descent "
        f"with the same map ends at w = {ends(datasets).min():.4f} to {ends(datasets).max():.4f} from all starts, "
        "the minimum of L, whatever the wish."
    )


def records(settings: Wish, datasets: Datasets) -> Sequence[Record]:
    """Return the divergences of each ensemble from the laws, and where gradient descent ends."""
    return [
        record("KL from the designed law", datasets["designed"]["kl"]),
        record("p of the designed law", datasets["designed"]["p_value"]),
        record("KL from the law without penalty", datasets["unpenalised"]["kl"]),
        record("gradient descent: w at the end", ends(datasets)),
    ]


EXPERIMENT = Experiment(
    name="beyond_design_wish",
    scales={"smoke": Wish(seeds=3, trajectories=256), "paper": Wish()},
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
