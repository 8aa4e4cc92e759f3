"""Certificate of a design: an ensemble of one weight, against the law it was designed for and the law without penalty.

All settings follow from the wanted law and the path of its representatives θ(w): nothing is tuned by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import torch
import xarray as xr
from torch import Tensor

from ..ensemble.simulate import simulate
from ..errors import InputError, check_count, check_positive, message
from ..laws import compare_law

if TYPE_CHECKING:
    from .base import Design

KL_LIMIT = 2e-3
# KL divergence that the step of the solver may cause, by its first-order error.
STEP_KL = 5e-5
# Share of a stiff direction that one solver step takes off.
STIFF_STEP = 0.2
# In relaxation times of the designed law: the run that forgets the start, and that between saves, with their number.
BURN, INTERVAL, SAVES = 6.0, 0.75, 8
SUBSTEPS = 8
# Probability left out at each end of the laws that are compared, and of those that are resolved.
TAIL, FAR_TAIL = 1e-4, 1e-7
POINTS = 4001


@dataclass(frozen=True)
class Trial:
    """One weight with loss L = ½ (w − target)², its designed law and the law without penalty, on cells of w.

    Attributes
    ----------
    design : Design
    target, temperature : float
    w : array, shape=(point,)
        Increasing ends of the cells.
    theta : Tensor, shape=(point, parameter)
        Representative of each.
    designed, unpenalised : array, shape=(point − 1,)
        Probabilities of the cells under e^{−L/T − ψ} dw and e^{−L/T} dw.
    """

    design: Design
    target: float
    temperature: float
    w: np.ndarray
    theta: Tensor
    designed: np.ndarray
    unpenalised: np.ndarray

    @classmethod
    def of(
        cls,
        design: Design,
        interval: tuple[float, float],
        target: float,
        temperature: float,
        walls: tuple[float, ...],
    ) -> Trial:
        """Return the trial of a design on the part of an interval of w where the laws live.

        Raises
        ------
        InputError
            If T is not positive, or the designed law does not vanish at an end of the interval that is no wall.
        """
        check_positive("temperature", temperature)
        trial = cls._on(design, interval, target, temperature)
        for end, cell in zip(interval, (0, -1), strict=True):
            if end not in walls and trial.designed[cell] > FAR_TAIL:
                got = f"a share of {trial.designed[cell]:.2g} at the end, w = {end:.4g}"
                remedy = "lower the temperature, weaken a penalty that rewards large w, or raise width"
                raise InputError(message("designed law", "a loss that confines w", got, remedy))
        laws = trial.designed, trial.unpenalised
        ends = [np.interp([FAR_TAIL, 1 - FAR_TAIL], _cumulated(masses), trial.w) for masses in laws]
        return cls._on(design, (min(e[0] for e in ends), max(e[1] for e in ends)), target, temperature)

    @classmethod
    def _on(cls, design: Design, interval: tuple[float, float], target: float, temperature: float) -> Trial:
        w = np.linspace(*interval, POINTS)
        for _ in range(3):  # resolved in w and in length along the path alike
            theta = design.section(torch.from_numpy(w).unsqueeze(-1))
            length = _lengths(theta)
            evenly = (w - w[0]) / np.ptp(w) + length / length[-1]
            w = np.interp(np.linspace(0, 2, POINTS), evenly, w)
            w[[0, -1]] = interval
        middle = (w[1:] + w[:-1]) / 2
        exponent = -0.5 * (middle - target) ** 2 / temperature
        weight = np.exp(exponent - exponent.max())
        laws = [weight * design.prior(w), weight * np.diff(w)]
        return cls(
            design,
            target,
            temperature,
            w,
            design.section(torch.from_numpy(w).unsqueeze(-1)),
            *(m / m.sum() for m in laws),
        )

    def density(self, masses: np.ndarray) -> xr.DataArray:
        """Return probabilities of the cells as a density at their middles."""
        return xr.DataArray(masses / np.diff(self.w), dims="w", coords={"w": (self.w[1:] + self.w[:-1]) / 2})

    def _log_density(self, cells: int) -> tuple[np.ndarray, float]:
        """Return the log of the designed density in length along the path, on even cells, and their length."""
        length = _lengths(self.theta)
        edges = np.linspace(0, length[-1], cells + 1)
        masses = np.diff(np.interp(edges, length, _cumulated(self.designed)))
        return np.log(np.maximum(masses, masses.max() * 1e-30)), edges[1]

    @property
    def relaxation_time(self) -> float:
        """1/λ, λ the spectral gap of the diffusion along the path that has the designed law and diffusivity T."""
        log_density, size = self._log_density(POINTS // 8)
        ratio = np.exp(np.clip(np.diff(log_density) / 2, -20, 20))
        out = np.pad(ratio, (0, 1)) + np.pad(1 / ratio, (1, 0))
        last = len(out) - 2
        eigenvalues = scipy.linalg.eigh_tridiagonal(
            -out, np.ones(last + 1), eigvals_only=True, select="i", select_range=(last, last)
        )
        return float(size**2 / (-eigenvalues[0] * self.temperature))

    @property
    def solver_step(self) -> float:
        """Largest step τ whose first-order error is a KL divergence below `STEP_KL`, in units of time.

        Euler's method has the density ρ (1 + τT [¼(∂ log ρ)² + ½ ∂² log ρ]), derivatives in length along the path and
        over the length √(2Tτ) of a step, within which it sees no structure.
        """
        temperature, step = self.temperature, self.relaxation_time
        while True:
            cells = int(np.clip(_lengths(self.theta)[-1] / math.sqrt(2 * temperature * step), 16, POINTS // 4))
            log_density, size = self._log_density(cells)
            padded = np.pad(log_density, 1, mode="edge")
            first, second = (padded[2:] - padded[:-2]) / (2 * size), np.diff(padded, 2) / size**2
            masses = np.exp(log_density - log_density.max())
            masses /= masses.sum()
            error = step * temperature * (first**2 / 4 + second / 2)
            error -= masses @ error
            if 0.5 * masses @ np.minimum(np.abs(error), 1) ** 2 <= STEP_KL:
                break
            step /= math.sqrt(2)
        return min(step, self._stiff_step())

    def _stiff_step(self) -> float:
        """Return the step that takes a share of the stiff direction off, wherever the law is."""
        stiffness = self.design.gauge_stiffness(self.temperature)
        if stiffness is None:
            return math.inf
        symmetry = self.design.symmetry.bind(self.problem)
        squares = symmetry.gram_eigenvalues(self.theta[1:]).amax(-1).numpy()
        order = np.argsort(squares)
        largest = squares[order][np.searchsorted(np.cumsum(self.designed[order]), 1 - 1e-3)]
        return STIFF_STEP / (stiffness * float(largest))

    @property
    def problem(self) -> Any:
        """Linear regression on one sample x = 1, y = target."""
        return self.design.problem(np.ones((1, 1)), np.full(1, self.target))

    def start(self, trajectories: int, generator: torch.Generator) -> Tensor:
        """Draw representatives from the law without penalty, shape (trajectory, parameter)."""
        uniform = torch.rand(trajectories, generator=generator, dtype=torch.float64)
        w = np.interp(uniform.numpy(), _cumulated(self.unpenalised), self.w)
        return self.design.section(torch.from_numpy(w).unsqueeze(-1))


@dataclass(frozen=True)
class Certificate:
    """What `Design.verify` found.

    Attributes
    ----------
    designed, unpenalised : xr.Dataset
        Kind "law_comparison": the ensemble against e^{−L/T − ψ} dw and against e^{−L/T} dw.
    settings : dict
        Temperature, target, and what followed from them.
    """

    designed: xr.Dataset
    unpenalised: xr.Dataset
    settings: dict[str, float]

    @property
    def kl(self) -> float:
        """KL(empirical ‖ designed)."""
        return float(self.designed["kl"])

    @property
    def kl_unpenalised(self) -> float:
        """KL(empirical ‖ law without penalty)."""
        return float(self.unpenalised["kl"])

    @property
    def holds(self) -> bool:
        """Whether KL(empirical ‖ designed) ≤ 2e-3 and the law without penalty is rejected."""
        return self.kl <= KL_LIMIT and self.unpenalised.attrs["verdict"] == "rejected"

    def __repr__(self) -> str:
        rows = [
            f"{name:<18} KL {float(law['kl']):>9.2g}   p {float(law['p_value']):>8.2g}   {law.attrs['verdict']}"
            for name, law in (("designed law", self.designed), ("without penalty", self.unpenalised))
        ]
        head = f"Certificate: {'holds' if self.holds else 'does not hold'} (KL <= {KL_LIMIT:g}, no penalty rejected)"
        effective = float(self.designed["effective_samples"][0])
        run = ", ".join(f"{key} {value:.3g}" for key, value in self.settings.items())
        return "\n".join([head, *rows, f"effective samples {effective:.0f}; {run}"])


def verify(trial: Trial, *, trajectories: int, seed: int) -> Certificate:
    """Simulate a trial from the law without penalty, and compare.

    Parameters
    ----------
    trial : Trial
    trajectories, seed : int

    Returns
    -------
    Certificate

    Raises
    ------
    InputError
        If a number is out of range.
    """
    check_count("trajectories", trajectories, 2)
    time, step = trial.relaxation_time, trial.solver_step
    save_every = max(1, round(INTERVAL * time / (SUBSTEPS * step)))
    burn = math.ceil(BURN / INTERVAL)
    dynamics = trial.design.dynamics(temperature=trial.temperature, learning_rate=SUBSTEPS * step, substeps=SUBSTEPS)
    ensemble = simulate(
        trial.problem,
        dynamics,
        symmetry=trial.design.symmetry,
        trajectories=trajectories,
        steps=(burn + SAVES) * save_every,
        save_every=save_every,
        seed=seed,
        initial=trial.start,
        save=["predictor_value"],
        block_size=min(trajectories, 4096),
    )
    samples = ensemble["predictor_value"].isel(predictor=0, step=slice(burn + 1, None))
    middles = (trial.w[1:] + trial.w[:-1])[[0, -1]] / 2
    ends = np.clip(np.interp([TAIL, 1 - TAIL], _cumulated(trial.designed), trial.w), *middles)
    interval = (float(ends[0]), float(ends[1]))
    designed, unpenalised = (
        compare_law(samples, trial.density(masses), interval=interval, name=name)
        for name, masses in (("designed", trial.designed), ("without penalty", trial.unpenalised))
    )
    settings = {
        "temperature": trial.temperature,
        "target": trial.target,
        "trajectories": trajectories,
        "steps": (burn + SAVES) * save_every,
        "solver step": step,
        "relaxation time": time,
    }
    return Certificate(designed, unpenalised, settings)


def _lengths(theta: Tensor) -> np.ndarray:
    """Return the length along a path up to each of its points, shape (point,)."""
    return np.concatenate([[0.0], np.cumsum(theta.diff(dim=0).norm(dim=-1).numpy())])


def _cumulated(masses: np.ndarray) -> np.ndarray:
    """Return the probability up to each end of the cells."""
    return np.concatenate([[0.0], np.cumsum(masses)])
