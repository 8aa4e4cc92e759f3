"""Figure 3: the norms of query and key columns of an attention head become equal.

``python -m experiments.fig3_attention all`` runs SGD on fresh sequences of a teacher as in the paper, and on a fixed
pool of sequences the SDE that models it and gradient descent, in which there is no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.problems import SingleHeadAttention

from .balance import (
    BalanceSettings,
    Run,
    balance_caption,
    balance_records,
    draw_balance,
    simulate_runs,
)
from .common import Datasets, Experiment, Record, published, record, styled

NAME = "fig3_attention"
MAPS = ("W_Q", "W_K", "W_V")


@dataclass(frozen=True, kw_only=True)
class Head(BalanceSettings):
    """The paper's head; its loss has no ½, so that its rate η is 2η of `SingleHeadAttention`.

    SDE and gradient descent run on `pool` fixed sequences at `stride` times the rate for as many steps fewer; the SDE,
    which depends on η/B and the time ηk alone, with B `stride` times as large.
    """

    seeds: int = 16
    tokens: int = 8
    features: int = 16
    head: int = 8
    teacher: float = 0.75
    student: float = 0.1
    spread: float = 1.2
    label_noise: float = 0.02
    learning_rate: float = 1e-3
    batch_size: int = 16
    steps: int = 40_000
    save_every: int = 200
    stride: int = 20
    pool: int = 128


def student(settings: Head) -> tuple[SingleHeadAttention, Tensor]:
    """Return the student with its stream, and its start: small weights, columns rescaled by e^±`spread`.

    The columns of W_Q are scaled besides, by 4 + 4|z| in the teacher and (1 + |z|)/4 in the student, z ~ N(0, 1).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    seeds, head = settings.seeds, settings.head

    def draw(std: float) -> dict[str, Tensor]:
        return {name: std * torch.randn(seeds, settings.features, head, generator=generator) for name in MAPS}

    def scales() -> Tensor:
        return torch.randn(seeds, 1, head, generator=generator).abs()

    teacher, start = draw(settings.teacher), draw(settings.student)
    teacher["W_Q"] = teacher["W_Q"] * (4 + 4 * scales())
    factors = torch.linspace(-settings.spread, settings.spread, head).exp()
    start["W_Q"] = start["W_Q"] * factors * (1 + scales()) / 4
    start["W_K"] = start["W_K"] / factors
    problem = SingleHeadAttention.teacher_student(
        (settings.tokens, settings.features),
        head=head,
        teacher=teacher,
        label_noise=settings.label_noise,
        pool=settings.pool,
        replicates=seeds,
        seed=settings.seed + 1,
        dtype=torch.float32,
    )
    return problem, problem.layout.flatten(start).unsqueeze(1)


def simulate(settings: Head) -> Datasets:
    """Run the three dynamics from the same starts, and compare their orbit drift with its prediction."""
    problem, start = student(settings)
    fixed = SingleHeadAttention(*(problem.data[name][1] for name in ("X", "y")), head=settings.head)
    rate, stride = 2 * settings.learning_rate, settings.stride
    fast = rate * stride
    sde = sb.SGDSDE(learning_rate=fast, batch_size=settings.batch_size * stride, substeps=1)
    descent = sb.SGD(learning_rate=fast, batch_size=settings.pool, replacement=False)
    runs = {
        "sgd": Run(problem, sb.SGD(learning_rate=rate, batch_size=settings.batch_size)),
        "sde": Run(fixed, sde, stride),
        "descent": Run(fixed, descent, stride, drift_saves=0),
    }
    return simulate_runs(runs, sb.symmetry.Rescaling.columns("W_Q", "W_K"), start, settings)


def draw(settings: Head, datasets: Datasets) -> Figure:
    """Draw ratios, charges and products, and orbit drift."""
    figure = styled(6.0)
    draw_balance(figure, figure.subplots(2, 2), datasets, NAME, "‖Q‖/‖K‖")
    return figure


def caption(settings: Head, datasets: Datasets) -> str:
    """Return what the figure shows."""
    shared = balance_caption("‖Q‖/‖K‖", "½(‖Q‖² − ‖K‖²)", "‖Q‖‖K‖", settings.stride, datasets)
    return (
        f"Attention head with {settings.head} columns as units. SGD sees fresh sequences; SDE and gradient descent "
        f"share a pool of {settings.pool}: these two differ by noise, and both from SGD by the pool. {shared}"
    )


def records(settings: Head, datasets: Datasets) -> list[Record]:
    """Return the headline numbers."""
    run = datasets["sgd"].isel(step=-1, trajectory=0)
    query, key = ((run["product"] * np.exp(sign * run["log_ratio"])).sum("charge") for sign in (-1, 1))
    last = settings.steps
    known = published(NAME, f"step_{last}", "frob_ratio") if last == 40_000 else None
    return [
        *balance_records(NAME, datasets, [1000, 5000, 10_000, 20_000, 40_000]),
        record(f"‖W_Q‖/‖W_K‖ at step {last}", np.sqrt(query / key), known),
    ]


EXPERIMENT = Experiment(
    NAME,
    {"smoke": Head(seeds=4, steps=4000), "paper": Head()},
    simulate,
    draw,
    caption,
    records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
