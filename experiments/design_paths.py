"""Paths of models with one knob: training time for a designed bias, λ for the explicit penalty that it stands for.

A path is a family of weights for each split of the data. Training time is that of gradient flow, dθ/dt = −∇L, or of
SGD, t = ηk; explicit penalties are scikit-learn's (extra ``peers``), exact between all their breakpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.stats import quantile_test

import sdebias as sb
from sdebias.design import Structure
from sdebias.problems import Problem

from .design_regression import Splits, chosen, linear_path

TIME = "training time t"
PENALTY = "penalty λ/λmax"
# Of the solver of gradient flow; ten times smaller ones change no error by more than 1 %.
TOLERANCES = {"rtol": 1e-4, "atol": 1e-7}


@dataclass(frozen=True)
class Path:
    """Weights along one knob.

    Attributes
    ----------
    knob : str
    values : array, shape=(path,)
    weights : array, shape=(seed, path, feature)
    """

    knob: str
    values: np.ndarray
    weights: np.ndarray


def gradient_flow(problem: Problem, times: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the predictor along dθ/dt = −∇L(θ), shape (time, feature): full-batch training in the limit of small η.

    Rates of a product parameterisation spread over many decades, so that an implicit solver is used.

    Raises
    ------
    RuntimeError
        If the solver gives up.
    """

    def drift(_: float, theta: np.ndarray) -> np.ndarray:
        return -problem.gradient(torch.from_numpy(theta.T.copy())).numpy().T

    found = solve_ivp(drift, (0.0, times[-1]), start, method="BDF", t_eval=times, vectorized=True, **TOLERANCES)
    if not found.success:
        raise RuntimeError(found.message)
    return problem.predictor(torch.from_numpy(found.y.T.copy())).numpy()


def flow_path(data: Splits, design: Structure, times: np.ndarray, spread: float | None = None) -> Path:
    """Return the designed model under gradient flow, over time.

    Starts from the design's own factors of w = 0, or with `spread` from normal ones of that standard deviation, those
    of seed s drawn by seed s.
    """
    paths = []
    for seed, (X, y) in enumerate(zip(data.inputs["train"], data.targets["train"], strict=True)):
        problem = design.problem(X, y)
        if spread is None:
            start = problem.layout.flatten(dict(design.start(problem.layout.shapes))).numpy()
        else:
            start = spread * np.random.default_rng(seed).standard_normal(problem.layout.size)
        paths.append(gradient_flow(problem, times, start))
    return Path(TIME, times, np.stack(paths))


def sgd_path(data: Splits, design: Structure, *, learning_rate: float, steps: int, saves: int = 100) -> Path:
    """Return the designed model under SGD with one sample an update, over time ηk; all seeds are run at once."""
    problem = design.problem(data.inputs["train"], data.targets["train"])
    return simulated_path(problem, sb.SGD(learning_rate=learning_rate, batch_size=1), learning_rate, steps, saves)


def simulated_path(problem: sb.Problem, dynamics: sb.SGD, learning_rate: float, steps: int, saves: int) -> Path:
    """Return the predictors of one trajectory of each replicate, over time ηk."""
    run = sb.simulate(
        problem,
        dynamics,
        trajectories=1,
        steps=steps,
        save_every=steps // saves,
        block_size=1,
        save=["predictor_value"],
    )
    weights = run["predictor_value"].isel(trajectory=0).transpose("replicate", "step", "predictor").values
    return Path(TIME, learning_rate * run["step"].values[1:], weights[:, 1:])


def plain_path(data: Splits, times: np.ndarray) -> Path:
    """Return the linear model under gradient flow from 0, over time."""
    return Path(TIME, times, linear_path(data, times))


def l1_path(data: Splits, penalties: np.ndarray) -> Path:
    """Return the Lasso, argmin ½ mean_i (x_i·w − y_i)² + λ‖w‖₁, over λ/λmax; from λmax on w = 0."""
    pairs = zip(data.inputs["train"], data.targets["train"], strict=True)
    return Path(PENALTY, penalties, np.stack([_lasso(X, y, penalties) for X, y in pairs]))


def tv_path(data: Splits, penalties: np.ndarray) -> Path:
    """Return argmin ½ mean_i (x_i·w − y_i)² + λ Σ_j |w_{j+1} − w_j|, over λ/λmax; from λmax on w is constant.

    The Lasso in the increments: the level, which has no penalty, is the least-squares one for each of them.
    """
    paths = []
    for X, y in zip(data.inputs["train"], data.targets["train"], strict=True):
        # Column j of X times the cumulative sum: what increment j does to the predictions. The first is the level.
        columns = X[:, ::-1].cumsum(1)[:, ::-1]
        level = columns[:, 0] / np.square(columns[:, 0]).sum()
        rest = columns[:, 1:] - np.outer(columns[:, 0], level @ columns[:, 1:])
        increments = _lasso(rest, y - columns[:, 0] * (level @ y), penalties)
        first = level @ y - increments @ (level @ columns[:, 1:])
        paths.append(np.column_stack([first, increments]).cumsum(1))
    return Path(PENALTY, penalties, np.stack(paths))


def _lasso(X: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the Lasso at λ/λmax, shape (penalty, feature): linear between the breakpoints that the path has."""
    from sklearn.linear_model import lars_path

    breakpoints, _, weights = lars_path(X, y, method="lasso")
    wanted = penalties * breakpoints[0]
    return np.stack([np.interp(wanted, breakpoints[::-1], one[::-1]) for one in weights], axis=1)


@dataclass(frozen=True)
class Median:
    """A median over seeds with its exact 95 % interval, from order statistics."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: np.ndarray) -> Median:
        """Return the median of values, shape (seed,)."""
        interval = quantile_test(values, p=0.5).confidence_interval(0.95)
        return cls(float(np.median(values)), float(interval.low), float(interval.high))

    def text(self, sign: str = "") -> str:
        """Return "median [lower, upper]" to three digits; a sign is shown with ``sign="+"``."""
        return f"{self.value:{sign}.3g} [{self.lower:{sign}.3g}, {self.upper:{sign}.3g}]"


def judged(data: Splits, path: Path) -> dict[str, np.ndarray]:
    """Return test errors, shape (seed,), where the validation error is least, where the test error is, and at the end.

    The second, the best point of the path, no user can know; the third is without early stopping or penalty.
    """
    errors = data.errors("test", path.weights)
    return {"validation": chosen(data, path.weights), "best": errors.min(1), "end": errors[:, -1]}


def contrast(data: Splits, paths: Mapping[str, Path], first: str, second: str) -> str:
    """Return in words by how much the errors of one path, chosen by validation, exceed those of another."""
    difference = judged(data, paths[first])["validation"] - judged(data, paths[second])["validation"]
    wins = f"lower in {int((difference < 0).sum())}/{len(difference)}"
    return f"{first}, less {second}: {Median.of(difference).text('+')}, {wins}."


def table(data: Splits, paths: Mapping[str, Path], explicit: str) -> str:
    """Return test errors of all paths, and what they are less those of the explicit penalty, seed by seed."""
    reference = judged(data, paths[explicit])
    titles = [
        "path",
        "chosen by validation",
        f"less {explicit}",
        "lower in",
        "best point",
        f"less {explicit}",
        "end of the path",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, path in paths.items():
        found = judged(data, path)
        cells = {knob: Median.of(errors).text() for knob, errors in found.items()}
        less = {knob: Median.of(errors - reference[knob]).text("+") for knob, errors in found.items()}
        wins = f"{int((found['validation'] < reference['validation']).sum())}/{len(found['validation'])}"
        if name == explicit:
            less, wins = dict.fromkeys(less, ""), ""
        row = [name, cells["validation"], less["validation"], wins, cells["best"], less["best"], cells["end"]]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
