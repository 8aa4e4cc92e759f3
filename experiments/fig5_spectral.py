"""Figure 5: a signal of three cosines from 32 samples, by the plain model, an L1 penalty and the design w = p∘q.

``python -m experiments.fig5_spectral all``. The run of the paper is gradient descent on the whole data; the same run
with one sample an update, as SGD and as its SDE, shows what noise adds.

The loss of the paper is the mean of (x·w − y)², here it is half of that (see `Regression`): its rate η is 2η here, and
its penalty 0.1 ‖w‖₁ is 0.05 ‖w‖₁ here, which makes the same updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.layout import ParameterLayout
from sdebias.plotting import COLOURS, LINES, MARKERS
from sdebias.problems.linear import dot_rows

from .common import Datasets, Experiment, Record, Settings, band, published, record, spread, styled

NAME = "fig5_spectral"
MODELS = {"vanilla": "vanilla w", "l1": "w with L1 penalty", "designed": "designed w = p∘q"}
DYNAMICS = {"gd": "gradient descent (paper)", "sgd": "SGD, 1 sample", "sde": "its SDE"}


@dataclass(frozen=True, kw_only=True)
class Spectral(Settings):
    """The setting of the paper; `learning_rate` and `penalty` are those of its loss without the factor ½."""

    seeds: int = 32
    samples: int = 32
    frequencies: int = 64
    waves: int = 3
    label_noise: float = 0.1
    plain_start: float = 1e-4
    designed_start: float = 1e-2
    penalty: float = 0.1
    learning_rate: float = 1e-3
    batch_size: int = 1
    steps: int = 50_000
    saves: int = 100


class PenalisedRegression(sb.Problem):
    """ℓ_i = ½ (x_i·w − y_i)² + λ‖w‖₁: a problem of a user's own is its losses; the gradient is stated to be faster.

    Parameters
    ----------
    X : array, shape=(replicate, sample, feature)
    y : array, shape=(replicate, sample)
    penalty : float
        λ.
    start : float
        Standard deviation of w at the start.
    """

    model: ClassVar[str] = "PenalisedRegression"

    def __init__(self, X: np.ndarray, y: np.ndarray, penalty: float, start: float) -> None:
        self.penalty = penalty
        data = {
            "X": (("replicate", "sample", "feature"), torch.as_tensor(X)),
            "y": (("replicate", "sample"), torch.as_tensor(y)),
        }
        super().__init__(ParameterLayout({"w": X.shape[-1:]}), data, initial_std={"w": start})

    def spec(self) -> dict[str, Any]:
        """Return the declaration."""
        return {**super().spec(), "penalty": self.penalty}

    def predictor(self, theta: Tensor) -> Tensor:
        """Return w."""
        return theta

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``w[k]``."""
        return self.layout.labels

    def _residual(self, theta: Tensor) -> Tensor:
        return dot_rows(self.samples["X"], theta) - self.samples["y"]

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_i, shape (..., sample)."""
        return 0.5 * self._residual(theta).square() + self.penalty * theta.abs().sum(-1, keepdim=True)

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_i c_i x_i (x_i·w − y_i) + λ (Σ_i c_i) sign(w), shape (..., feature): a subgradient, 0 at 0."""
        slope = dot_rows(self.samples["X"].mT, weights * self._residual(theta))
        return slope + self.penalty * weights.sum(-1, keepdim=True) * theta.sign()


def instances(settings: Spectral) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X (seed, sample, frequency), y (seed, sample) and the true w (seed, frequency)."""
    rng = np.random.default_rng(settings.seed)
    times = rng.random((settings.seeds, settings.samples, 1))
    X = np.cos(2 * np.pi * times * np.arange(settings.frequencies))
    signal = np.zeros((settings.seeds, settings.frequencies))
    for row in signal:
        places = 1 + rng.choice(settings.frequencies - 1, settings.waves, replace=False)
        row[places] = rng.choice([-1, 1], settings.waves) * rng.uniform(1, 2, settings.waves)
    y = np.einsum("sik,sk->si", X, signal) + settings.label_noise * rng.standard_normal(X.shape[:2])
    return X, y, signal


def simulate(settings: Spectral) -> Datasets:
    """Run each model as gradient descent, SGD and SDE from the same starts on the same data."""
    X, y, signal = instances(settings)
    problems: dict[str, sb.Problem] = {
        "vanilla": PenalisedRegression(X, y, 0.0, settings.plain_start),
        "l1": PenalisedRegression(X, y, settings.penalty / 2, settings.plain_start),
        "designed": sb.problems.HadamardRegression(
            X, y, initial=dict.fromkeys("pq", 0.0), initial_std=dict.fromkeys("pq", settings.designed_start)
        ),
    }
    rate = 2 * settings.learning_rate
    dynamics: dict[str, sb.SGD | sb.SGDSDE] = {
        "gd": sb.SGD(learning_rate=rate, batch_size=settings.samples, replacement=False),
        "sgd": sb.SGD(learning_rate=rate, batch_size=settings.batch_size),
        # A substep of a whole update: η times the largest curvature is below 0.01, so that it is fine enough.
        "sde": sb.SGDSDE(learning_rate=rate, batch_size=settings.batch_size, substeps=1, increments="rademacher"),
    }
    datasets = {}
    for model, problem in problems.items():
        for name, one in dynamics.items():
            datasets[f"{model}_{name}"] = sb.simulate(
                problem.to(dtype=torch.float32),
                one,
                trajectories=1,
                block_size=1,
                steps=settings.steps,
                save_every=settings.steps // settings.saves,
                seed=settings.seed,
                save=["predictor_value", "loss"],
            ).assign(signal=(("replicate", "predictor"), signal))
    return datasets


def weights(dataset: xr.Dataset) -> np.ndarray:
    """Return w, shape (seed, step, frequency)."""
    return dataset["predictor_value"].isel(trajectory=0).transpose("replicate", "step", "predictor").values


def relative_error(dataset: xr.Dataset, found: np.ndarray) -> np.ndarray:
    """Return ‖w − w*‖₂/‖w*‖₂ of weights (seed, ..., frequency)."""
    signal = dataset["signal"].values.reshape(len(found), *[1] * (found.ndim - 2), -1)
    error: np.ndarray = np.linalg.norm(found - signal, axis=-1) / np.linalg.norm(signal, axis=-1)
    return error


def test_error(dataset: xr.Dataset, found: np.ndarray) -> np.ndarray:
    """Return E_t (Σ_k (w_k − w*_k) cos 2πkt)² for t ~ U(0, 1) of weights (seed, frequency), exactly: no test set."""
    squares = (found - dataset["signal"].values) ** 2
    return squares[:, 0] + 0.5 * squares[:, 1:].sum(-1)


def _spectrum(axes: Axes, datasets: Datasets) -> None:
    """Draw the weights of the seed whose designed error is the median."""
    error = relative_error(datasets["designed_gd"], weights(datasets["designed_gd"])[:, -1])
    seed = int(np.argsort(error)[len(error) // 2])
    signal = datasets["designed_gd"]["signal"].values[seed]
    axes.vlines(np.arange(len(signal)), 0, signal, color="0.75", linewidth=5, label="truth")
    for number, (model, label) in enumerate(MODELS.items()):
        found = weights(datasets[f"{model}_gd"])[seed, -1]
        axes.plot(found, MARKERS[number], color=COLOURS[number], markersize=4, markerfacecolor="none", label=label)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="frequency k", ylabel="weight $w_k$")
    axes.set_title(f"a  spectrum found, seed {seed} (of median error)", loc="left", fontsize="medium")


def draw(settings: Spectral, datasets: Datasets) -> Figure:
    """Draw the spectrum of one seed, errors over updates, and errors at the end by dynamics."""
    figure = styled(6.0)
    grid = figure.add_gridspec(2, 2)
    above, path, end = (figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    _spectrum(above, datasets)
    for number, model in enumerate(MODELS):
        for place, name in enumerate(DYNAMICS):
            run = datasets[f"{model}_{name}"]
            steps, error = run["step"].values[1:], relative_error(run, weights(run)[:, 1:])
            if name == "gd":
                band(path, steps, error, color=COLOURS[number])
            else:
                path.plot(steps, spread(error)[1], color=COLOURS[number], linestyle=LINES[place])
            low, middle, high = spread(error[:, -1])
            bars = [[middle - low], [high - middle]]
            x = number + 0.2 * (place - 1)
            end.errorbar([x], [middle], bars, fmt=MARKERS[place], color=COLOURS[number], capsize=3, markersize=5)
        end.plot(number - 0.4, published(NAME, model, "rel_l2_err"), "x", color="black", markersize=7)
    for place, label in enumerate(DYNAMICS.values()):
        end.plot([], [], color="0.4", linestyle=LINES[place], marker=MARKERS[place], markersize=5, label=label)
    end.plot([], [], "x", color="black", markersize=7, label="published, 1 seed")
    for axes in (path, end):
        axes.set(yscale="log", ylim=(0.015, 2))
    path.set(xlabel="updates", ylabel="relative error of w", xscale="log")
    path.set_title("b  error over updates", loc="left", fontsize="medium")
    end.set_xticks(range(len(MODELS)), ["vanilla", "L1", "designed"])
    end.set_title(f"c  error after {settings.steps:,} updates", loc="left", fontsize="medium")
    above.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.12), borderaxespad=0)
    figure.legend(*end.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def noise_ratio(datasets: Datasets, model: str, dynamics: str) -> np.ndarray:
    """Return the error at the end with noise over that without, by seed."""
    noisy, quiet = (datasets[f"{model}_{name}"] for name in (dynamics, "gd"))
    return relative_error(noisy, weights(noisy)[:, -1]) / relative_error(quiet, weights(quiet)[:, -1])


def noise_temperature(settings: Spectral) -> float:
    """Return T = η s²/(2B), the temperature of gradient noise whose residuals are the label noise s.

    Here η is twice the paper's: the factors 2 cancel.
    """
    return settings.learning_rate * settings.label_noise**2 / settings.batch_size


def caption(settings: Spectral, datasets: Datasets) -> str:
    """Return what the figure shows."""
    changes = [spread(noise_ratio(datasets, model, name))[1] - 1 for model in MODELS for name in ("sgd", "sde")]
    return (
        f"**Figure 5: sparse spectrum.** {settings.waves} cosines of {settings.frequencies} frequencies from "
        f"{settings.samples} noisy samples. (a) Weights found by gradient descent, the run of the paper. (b) Relative "
        "ℓ₂ error of the weights over updates: solid gradient descent with its band, dashed SGD with "
        f"{settings.batch_size} sample an update, dotted its SDE (medians). (c) The error at the end, beside the "
        "published numbers of one seed. Gradient descent has no noise; with noise errors change, in the median over "
        f"seeds, by {max(map(abs, changes)):.1%} at most: the bias is that of parameterisation, start and gradient "
        "flow. Theory predicts as much: noise of temperature "
        f"T = ηs²/2B = {noise_temperature(settings):.0e}, s the label noise, adds (T/2) Σ log 2|w| to the loss, "
        f"against a penalty of {settings.penalty / 2:g} ‖w‖₁ for the L1 model. The learning rate listed is the "
        "paper's, for a loss without our factor ½: here it is doubled, and the penalty halved."
    )


def records(settings: Spectral, datasets: Datasets) -> list[Record]:
    """Return errors by model, and what noise changes, seed by seed."""
    found = []
    for model in MODELS:
        run = datasets[f"{model}_gd"]
        last = weights(run)[:, -1]
        error = relative_error(run, last)
        found.append(record(f"{model}: relative ℓ₂ error", error, published(NAME, model, "rel_l2_err")))
        found.append(record(f"{model}: test error", test_error(run, last), published(NAME, model, "final_test_mse")))
        top = np.argsort(-np.abs(last))[:, : settings.waves]
        share = np.mean(np.take_along_axis(run["signal"].values, top, axis=1) != 0, axis=1)
        found.append(record(f"{model}: share of the support among the largest weights", share))
        for name in ("sgd", "sde"):
            ratio = noise_ratio(datasets, model, name)
            found.append(record(f"{model}: error of {name.upper()} over that without noise", ratio))
    return found


EXPERIMENT = Experiment(
    name=NAME,
    scales={"smoke": Spectral(seeds=8, steps=4_000, saves=40), "paper": Spectral()},
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
