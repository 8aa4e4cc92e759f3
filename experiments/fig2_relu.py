"""Figure 2: the norms of incoming and outgoing weights of a shallow ReLU network become equal.

``python -m experiments.fig2_relu all`` runs SGD on fresh samples of a teacher as in the paper, the SDE that models it,
and gradient descent on the expected loss, in which there is no noise at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.problems import ShallowReLU

from .balance import (
    BalanceSettings,
    Run,
    balance_caption,
    balance_records,
    draw_balance,
    simulate_runs,
)
from .common import Datasets, Experiment, Record, styled

NAME = "fig2_relu"


@dataclass(frozen=True, kw_only=True)
class Network(BalanceSettings):
    """The paper's network; its loss has no ½, so that its rate η is 2η of `ShallowReLU`.

    The SDE depends on η/B and the time ηk alone. It takes `stride` times the rate for as many steps fewer, and so does
    gradient descent. Of its pool of P fresh samples a step and B' = `sde_batch`, (1 − 1/P)/B' + 1/P = 1/(stride B): its
    noise is that of B.
    """

    seeds: int = 32
    inputs: int = 3
    units: int = 16
    teacher: float = 1.5
    student: float = 0.05
    spread: float = 1.2
    label_noise: float = 0.1
    learning_rate: float = 5e-5
    batch_size: int = 8
    steps: int = 40_000
    save_every: int = 100
    stride: int = 4
    sde_batch: int = 63
    pool: int = 64


class ExpectedReLU(sb.Problem):
    """Expected loss ½ E (f(x) − f*(x))² of a ReLU network f and a teacher f*, over x ~ N(0, I): a single sample.

    E relu(u·x) relu(w·x) = K(u, w) = ‖u‖‖w‖ (sin φ + (π − φ) cos φ)/2π at the angle φ (Cho, Saul 2009), so that with
    the units of student and teacher in one list of vectors u_a and coefficients c_a = (v, −v*) the loss is
    ½ Σ_ab c_a c_b K(u_a, u_b).

    Parameters
    ----------
    student : ShallowReLU
        With the stream of a teacher.
    """

    model: ClassVar[str] = "ExpectedReLU"

    def __init__(self, student: ShallowReLU) -> None:
        assert student.stream is not None
        super().__init__(
            student.layout, {"teacher": (("replicate", "sample", "parameter"), student.stream.tensors["teacher"])}
        )

    def _units(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return v and W of the student, then c and u of student and teacher."""
        mine, theirs = (self.layout.unflatten(each) for each in (theta, self.samples["teacher"][..., 0, :]))
        weights = torch.cat([mine["W"], theirs["W"].expand_as(mine["W"])], dim=-2)
        return mine["v"], mine["W"], torch.cat([mine["v"], -theirs["v"].expand_as(mine["v"])], dim=-1), weights

    def _kernel(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return K, (sin φ) ‖u‖/‖w‖ and π − φ of each pair (w, u), shape (..., first, second)."""
        lengths = first.norm(dim=-1).unsqueeze(-1), second.norm(dim=-1).unsqueeze(-2)
        scale = lengths[0] * lengths[1]
        cosine = (first @ second.mT / scale).clamp(-1, 1)
        sine, rest = (1 - cosine.square()).sqrt(), math.pi - cosine.acos()
        return scale * (sine + rest * cosine) / (2 * math.pi), sine * lengths[1] / lengths[0], rest

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return the expected loss, shape (..., 1)."""
        _, _, c, u = self._units(theta)
        kernel, _, _ = self._kernel(u, u)
        return 0.5 * torch.einsum("...a,...ab,...b->...", c, kernel, c).unsqueeze(-1)

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient: Σ_b c_b K_jb by v_j, and v_j Σ_b c_b [‖u_b‖ sin φ W_j/‖W_j‖ + (π − φ) u_b]/2π by W_j."""
        v, w, c, u = self._units(theta)
        kernel, along, rest = self._kernel(w, u)
        outgoing = (kernel @ c.unsqueeze(-1)).squeeze(-1)
        pull = (along @ c.unsqueeze(-1)) * w + rest @ (c.unsqueeze(-1) * u)
        incoming = v.unsqueeze(-1) * pull / (2 * math.pi)
        return weights * torch.cat([incoming.flatten(-2), outgoing], dim=-1)

    def predictor(self, theta: Tensor) -> Tensor:
        """Return v_j W_j, shape (..., unit · feature)."""
        named = self.layout.unflatten(theta)
        return (named["v"].unsqueeze(-1) * named["W"]).flatten(-2)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``vW[unit,feature]``."""
        return [f"vW[{entry}]" for entry in self.layout.entry_labels("W")]


def student(settings: Network) -> tuple[ShallowReLU, Tensor]:
    """Return the student with its stream, and its start: small weights, units rescaled by e^±`spread`."""
    problem = ShallowReLU.teacher_student(
        settings.inputs,
        units=settings.units,
        teacher=settings.teacher,
        label_noise=settings.label_noise,
        pool=settings.pool,
        replicates=settings.seeds,
        seed=settings.seed,
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(settings.seed + 1)
    start = settings.student * torch.randn(settings.seeds, 1, problem.layout.size, generator=generator)
    rescaling = problem.symmetry().bind(problem)
    return problem, rescaling.act(torch.linspace(-settings.spread, settings.spread, settings.units).exp(), start)


def simulate(settings: Network) -> Datasets:
    """Run the three dynamics from the same starts, and compare their orbit drift with its prediction."""
    problem, start = student(settings)
    rate, stride = 2 * settings.learning_rate, settings.stride
    fast = rate * stride
    sde = sb.SGDSDE(learning_rate=fast, batch_size=settings.sde_batch, substeps=1)
    runs = {
        "sgd": Run(problem, sb.SGD(learning_rate=rate, batch_size=settings.batch_size)),
        "sde": Run(problem, sde, stride),
        "descent": Run(ExpectedReLU(problem), sb.SGD(learning_rate=fast, replacement=False), stride, drift_saves=0),
    }
    return simulate_runs(runs, problem.symmetry(), start, settings)


def draw(settings: Network, datasets: Datasets) -> Figure:
    """Draw ratios, charges and products, and orbit drift."""
    figure = styled(6.0)
    draw_balance(figure, figure.subplots(2, 2), datasets, NAME, "|v|/‖W‖")
    return figure


def caption(settings: Network, datasets: Datasets) -> str:
    """Return what the figure shows."""
    shared = balance_caption("|v|/‖W‖", "½(‖W‖² − v²)", "|v|‖W‖", settings.stride, datasets)
    return (
        f"Shallow ReLU network with {settings.units} units; without noise, the loss is its exact expectation. {shared}"
    )


def records(settings: Network, datasets: Datasets) -> list[Record]:
    """Return the headline numbers."""
    return balance_records(NAME, datasets, [1000, 5000, 10_000, 20_000, 40_000])


EXPERIMENT = Experiment(
    NAME,
    {"smoke": Network(seeds=8, steps=8000), "paper": Network()},
    simulate,
    draw,
    caption,
    records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
