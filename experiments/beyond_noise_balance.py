"""Beyond the paper: where gradient noise really takes the balance of weights, long after convergence.

``python -m experiments.beyond_noise_balance all`` runs the ReLU student of Figure 2 and an attention student like that
of Figure 3 for several relaxation times of their charges. At the paper's rate and label noise that would take of the
order of 1e11 updates: both are raised here until it is affordable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.plotting import COLOURS
from sdebias.prediction import label_gradients
from sdebias.prediction.gradient_noise import NoiseGradients
from sdebias.problems.regression import Regression

from .common import Datasets, Experiment, Record, Settings, band, record, spread, styled

RUNS = {"label": "label noise", "minibatch": "minibatches, no label noise", "descent": "gradient descent"}
# Rate (for a loss with ½), label noise and batch of Figures 2 and 3.
PAPER = {"relu": (1e-4, 0.1, 8), "attention": (2e-3, 0.02, 16)}


@dataclass(frozen=True, kw_only=True)
class Balance(Settings):
    """Rates are for losses with ½. The ReLU students' charges are predicted from update `relu_converged` on."""

    seeds: int = 16
    relu_rate: float = 1e-2
    relu_noise: float = 5.0
    relu_batch: int = 16
    relu_steps: int = 32_000
    relu_converged: int = 800
    attention_rate: float = 0.05
    attention_noise: float = 2.0
    attention_batch: int = 1
    attention_steps: int = 16_000
    attention_std: float = 0.35
    attention_predicted: int = 8
    attention_pool: int = 256
    pool: int = 48
    saves: int = 40


def _factors(count: int) -> Tensor:
    """Return the factors by which the paper unbalances its students."""
    return torch.linspace(-1.2, 1.2, count, dtype=torch.float64).exp()


def relu_problem(settings: Balance, label_noise: float) -> Regression:
    """Return teacher and student of Figure 2."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    W, v = (0.05 * torch.randn(settings.seeds, *s, generator=generator, dtype=torch.float64) for s in ((16, 3), (16,)))
    scale = _factors(16)
    return sb.problems.ShallowReLU.teacher_student(
        3,
        units=16,
        teacher=1.5,
        label_noise=label_noise,
        pool=settings.pool,
        replicates=settings.seeds,
        seed=settings.seed,
        initial={"W": W * scale[:, None], "v": v / scale},
        dtype=torch.float32,
    )


def attention_problem(settings: Balance, label_noise: float) -> Regression:
    """Return a teacher like that of Figure 3 with softer attention, and a student near it, off balance as there."""
    generator = torch.Generator().manual_seed(settings.seed + 1)

    def normal(std: float) -> Tensor:
        return std * torch.randn(settings.seeds, 16, 8, generator=generator, dtype=torch.float64)

    soft = settings.attention_std
    teacher = {name: normal(std) for name, std in {"W_Q": soft, "W_K": soft, "W_V": 0.75}.items()}
    start = {name: value + normal(0.02) for name, value in teacher.items()}
    scale = _factors(8)
    return sb.problems.SingleHeadAttention.teacher_student(
        (8, 16),
        head=8,
        teacher=teacher,
        label_noise=label_noise,
        pool=settings.pool // 4,
        replicates=settings.seeds,
        seed=settings.seed,
        initial={**start, "W_Q": start["W_Q"] * scale, "W_K": start["W_K"] / scale},
        dtype=torch.float32,
    )


def label_rows(problem: Regression, label_noise: float, seed: int) -> NoiseGradients:
    """Return the gradient noise of fresh labels for any number of outputs, one draw of the labels for each sample."""
    draws = label_noise * torch.randn(
        problem.samples["y"].shape, generator=torch.Generator().manual_seed(seed), dtype=problem.dtype
    )

    def rows(theta: Tensor) -> Tensor:
        outputs = problem.output(problem.layout.unflatten(theta), problem.samples["X"]).detach()
        return problem.at({"y": outputs - draws}).per_sample_gradient(theta)

    return rows


def _runs(settings: Balance, build: Callable[[Balance, float], Regression], name: str) -> dict[str, xr.Dataset]:
    """Return the runs with label noise, without it, and under gradient descent on the pool; the last two shorter."""
    rate, noise, batch, steps = (getattr(settings, f"{name}_{key}") for key in ("rate", "noise", "batch", "steps"))
    clean = build(settings, 0.0)
    pool = {key: tensor for key, (_, tensor) in clean.arrays().items()}
    still = type(clean)(pool["X"], pool["y"], initial=clean.initial, **clean.sizes)
    noisy, quiet = sb.SGD(learning_rate=rate, batch_size=batch), steps // 4
    descent = sb.SGD(learning_rate=rate, batch_size=still.n_samples, replacement=False)
    runs = {"label": (build(settings, noise), noisy, steps), "minibatch": (clean, noisy, quiet)}
    runs["descent"] = (still, descent, quiet)
    return {
        f"{name}_{kind}": sb.simulate(
            problem,
            dynamics,
            trajectories=1,
            steps=length,
            save_every=steps // settings.saves,
            seed=settings.seed,
            save=["theta", "loss"],
            block_size=1,
        )
        for kind, (problem, dynamics, length) in runs.items()
    }


def relu_relaxation(settings: Balance, run: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the predicted path of each seed's student from `relu_converged` on, and its noise equilibrium.

    Rest points and rates at label noise depend on the inputs only through their second moment on half spaces: the six
    points ±√3 e_i have that of N(0, I).
    """
    axes = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    problem = sb.problems.ShallowReLU(axes, np.zeros(6), units=16)
    noise = label_gradients(problem, settings.relu_noise)
    steps = run["step"].values
    after = steps[steps >= settings.relu_converged] - settings.relu_converged
    common: dict[str, Any] = {
        "learning_rate": settings.relu_rate,
        "batch_size": settings.relu_batch,
        "noise_gradients": noise,
    }
    paths, ends = [], []
    for start in run["theta"].sel(step=settings.relu_converged).isel(trajectory=0).values:
        theta = torch.as_tensor(start, dtype=torch.float64)
        paths.append(
            sb.predict_relaxation(problem, problem.symmetry(), theta, after.tolist(), tolerance=1e-4, **common)
        )
        ends.append(sb.noise_equilibrium(problem, problem.symmetry(), theta, **common))
    return xr.concat(paths, "replicate", combine_attrs="override"), xr.concat(
        ends, "replicate", combine_attrs="override"
    )


def attention_equilibrium(settings: Balance, run: xr.Dataset) -> xr.Dataset:
    """Return the noise equilibrium of the students of some seeds at the end of the run, on fresh data."""
    ends = []
    for seed, end in enumerate(run["theta"].isel(step=-1, trajectory=0).values[: settings.attention_predicted]):
        theta = torch.as_tensor(end, dtype=torch.float64)
        layout = sb.problems.SingleHeadAttention.layout_for((8, 16), head=8)
        problem = sb.problems.SingleHeadAttention.teacher_student(
            (8, 16), head=8, teacher=layout.unflatten(theta), pool=settings.attention_pool, seed=settings.seed + seed
        )
        noise = label_rows(problem, settings.attention_noise, settings.seed + seed)
        found = sb.noise_equilibrium(
            problem,
            problem.symmetry(),
            theta,
            learning_rate=settings.attention_rate,
            batch_size=settings.attention_batch,
            noise_gradients=noise,
        )
        ends.append(found)
    return xr.concat(ends, "replicate", combine_attrs="override")


def simulate(settings: Balance) -> Datasets:
    """Run both students under each dynamics, and predict where label noise takes them."""
    runs = _runs(settings, relu_problem, "relu") | _runs(settings, attention_problem, "attention")
    path, end = relu_relaxation(settings, runs["relu_label"])
    equilibrium = attention_equilibrium(settings, runs["attention_label"])
    return {**runs, "relu_path": path, "relu_equilibrium": end, "attention_equilibrium": equilibrium}


def relu_ratio(theta: xr.DataArray) -> np.ndarray:
    """Return |v_j|/‖W_j‖, shape (..., unit), of parameters along the last axis."""
    incoming, outgoing = np.split(theta.values, [48], axis=-1)
    return np.abs(outgoing) / np.linalg.norm(incoming.reshape(*incoming.shape[:-1], 16, 3), axis=-1)


def attention_ratio(theta: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Return ‖Q_j‖/‖K_j‖ of columns, shape (..., column), and the ratio of the whole matrices, shape (...)."""
    query, key = (part.reshape(*part.shape[:-1], 16, 8) for part in np.split(theta.values, [128, 256], axis=-1)[:2])
    columns = np.linalg.norm(query, axis=-2) / np.linalg.norm(key, axis=-2)
    return columns, np.linalg.norm(query, axis=(-2, -1)) / np.linalg.norm(key, axis=(-2, -1))


def _theta(run: xr.Dataset) -> xr.DataArray:
    return run["theta"].isel(trajectory=0).transpose("replicate", "step", "parameter")


def _relaxation_time(equilibrium: xr.Dataset) -> float:
    """Return the median over modes and seeds of the relaxation time [updates]."""
    return float(1 / np.median(equilibrium["relaxation_rate"]))


def paper_time(settings: Balance, name: str, equilibrium: xr.Dataset) -> float:
    """Return the relaxation time [updates] at the rate, label noise and batch of the paper: as B/(η s)²."""
    rate, noise, batch = PAPER[name]
    here = [getattr(settings, f"{name}_{key}") for key in ("rate", "noise", "batch")]
    return _relaxation_time(equilibrium) * (here[0] * here[1]) ** 2 / here[2] * batch / (rate * noise) ** 2


def draw(settings: Balance, datasets: Datasets) -> Figure:
    """Draw the ratios of the ReLU students, and how far the attention students are from balance."""
    figure = styled(3.6)
    left, right = figure.subplots(1, 2)
    for colour, (kind, label) in zip(COLOURS, RUNS.items(), strict=False):
        run = datasets[f"relu_{kind}"]
        band(left, run["step"] / 1000, np.median(relu_ratio(_theta(run)), -1), color=colour, label=label)
        run = datasets[f"attention_{kind}"]
        spreads = np.median(np.abs(np.log(attention_ratio(_theta(run))[0])), -1)
        band(right, run["step"] / 1000, spreads, color=colour)
    path = datasets["relu_path"]
    predicted = np.median(relu_ratio(path["predicted_theta"].transpose("replicate", "step", "parameter")), -1)
    steps = (path["step"] + settings.relu_converged) / 1000
    left.plot(steps, np.median(predicted, 0), color="black", linestyle="--", label="predicted relaxation")
    left.axhline(3**-0.5, color="0.5", linestyle=":", label="noise equilibrium")
    left.set(xlabel="updates [1000]", ylabel="|v| / ‖w‖, median unit", ylim=(0.4, 1.1), title="a  ReLU student")
    run, end = datasets["attention_label"], datasets["attention_equilibrium"]
    rest = float(np.median(np.abs(np.log(attention_ratio(end["equilibrium_theta"])[0]))))
    # From the end of the controls on, when the first fit, with large errors and noise of their own, is over.
    after = _theta(run).sel(step=slice(settings.attention_steps // 4, None))
    start = float(np.median(np.abs(np.log(attention_ratio(after.isel(step=0))[0]))))
    decay = rest + (start - rest) * np.exp(-(after["step"] - after["step"][0]).values / _relaxation_time(end))
    right.plot(after["step"] / 1000, decay, color="black", linestyle="--")
    right.axhline(rest, color="0.5", linestyle=":")
    right.set(xlabel="updates [1000]", ylabel="|ln ‖Q‖/‖K‖|, median column", title="b  attention student")
    right.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def caption(settings: Balance, datasets: Datasets) -> str:
    """Return what the figure shows."""
    times = {name: _relaxation_time(datasets[f"{name}_equilibrium"]) for name in ("relu", "attention")}
    paper = {name: paper_time(settings, name, datasets[f"{name}_equilibrium"]) for name in times}
    relu = spread(np.median(relu_ratio(_theta(datasets["relu_label"]).isel(step=-1)), -1))[1]
    return (
        "**Where noise takes the balance.** (a) The ReLU student of Figure 2 from its unbalanced small start. Growth "
        "under conserved charges balances it at once, with noise or without: that is gradient descent. Label noise "
        f"then takes |v|/‖w‖ *away* from 1, along the predicted relaxation towards 1/√3 = 0.577, where tr(Σ A) = 0; at "
        f"the end of the run it is at {relu:.3f}. Without label noise the noise dies out with the loss and the "
        "ratio stays, as under gradient descent. (b) An attention student near its teacher, its columns unbalanced as "
        "in Figure 3. Its noise equilibrium (dotted) is near balance, so that a balanced run could not tell noise from "
        "conservation; from off balance, label noise takes it there. Batches without label noise move it too, until "
        "their loss, and with it their noise, has died out; gradient descent does not. Dashed in (b): decay with the "
        "median relaxation time at the equilibrium, a guide and not a fit: before, columns of large norm make the "
        f"student fluctuate, which adds noise. Equilibria of {settings.attention_predicted} seeds. The teacher's "
        "attention is softer than in Figure 3, where with sharpened queries the student's scores kept growing as "
        "long as we looked. Controls "
        f"run for a quarter of the updates. Median relaxation time: {times['relu']:.3g} updates (ReLU) and "
        f"{times['attention']:.3g} (attention) here, {paper['relu']:.2g} and {paper['attention']:.2g} at the paper's "
        "rate, label noise and batch, whose runs of 4e4 and 5e4 updates are far too short to test this noise."
    )


def records(settings: Balance, datasets: Datasets) -> Sequence[Record]:
    """Return the ratios at the end, measured and predicted, and the relaxation times."""
    found = []
    for kind, label in RUNS.items():
        end = _theta(datasets[f"relu_{kind}"]).isel(step=-1)
        found.append(record(f"ReLU, {label}: |v|/‖w‖ at the end, median unit", np.median(relu_ratio(end), -1)))
    path = datasets["relu_path"]["predicted_theta"].isel(step=-1).transpose("replicate", "parameter")
    found.append(record("ReLU: the same, predicted", np.median(relu_ratio(path), -1)))
    rest = datasets["relu_equilibrium"]["equilibrium_theta"].transpose("replicate", "parameter")
    found.append(record("ReLU: noise equilibrium", np.median(relu_ratio(rest), -1)))
    ends = {label: _theta(datasets[f"attention_{kind}"]).isel(step=-1) for kind, label in RUNS.items()}
    ends["noise equilibrium"] = datasets["attention_equilibrium"]["equilibrium_theta"].transpose(
        "replicate", "parameter"
    )
    for label, end in ends.items():
        columns, whole = attention_ratio(end)
        found.append(record(f"attention, {label}: median |ln ‖Q_j‖/‖K_j‖|", np.median(np.abs(np.log(columns)), -1)))
        found.append(record(f"attention, {label}: ‖Q‖/‖K‖", whole))
    for name in PAPER:
        rates = datasets[f"{name}_equilibrium"]["relaxation_rate"].median("mode")
        found.append(record(f"{name}: predicted relaxation time [updates]", 1 / rates))
    return found


EXPERIMENT = Experiment(
    name="beyond_noise_balance",
    scales={
        "smoke": Balance(
            seeds=4, relu_steps=4_000, attention_steps=1_000, attention_predicted=2, attention_pool=48, pool=16
        ),
        "paper": Balance(),
    },
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
