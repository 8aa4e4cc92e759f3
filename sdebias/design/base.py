"""Design: a parameterisation made to have a wanted bias, with what geometry says of it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from ..dynamics import SGDSDE, noise
from ..errors import InputError, check_positive, message
from ..layout import ParameterLayout
from ..prediction import effective_loss, stationary_law
from ..prediction.nodes import Nodes
from ..prediction.stationary import Measure
from ..prediction.stationary import Noise as Law
from ..problems import Problem
from ..problems.linear import LinearRegression
from ..symmetry import Symmetry
from .regression import DesignedRegression
from .verification import Certificate, Trial, verify

DesignNoise: TypeAlias = Literal["horizontal", "isotropic-gauged"]

LAWS: dict[DesignNoise, Law] = {"horizontal": "horizontal", "isotropic-gauged": "soft_gauge"}
"""The stationary law that each noise has, by its name in `sdebias.stationary_law`."""


class Design(ABC):
    """A weight w = F(θ) whose factors θ are chosen so that noise along θ prefers some w to others.

    A subclass states the factors, the map, a representative θ of each w, the symmetry that leaves w unchanged, and the
    penalty that this causes; problem, module, laws and dynamics follow. Named factors have shape (..., *shape) with any
    leading dims.

    Attributes
    ----------
    noise : {"horizontal", "isotropic-gauged"}
        The noise under which the penalty holds.
    factors : tuple of str
        Names of the factors, in the order of `shapes`.
    """

    noise: DesignNoise
    factors: tuple[str, ...]

    # -- what a subclass states ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def symmetry(self) -> Symmetry:
        """The symmetry that causes the bias, not yet bound; its level is where the charges are held."""

    @abstractmethod
    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each factor of a weight of the given shape."""

    @abstractmethod
    def weight(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return w = F(θ), shape (..., *shape), differentiable."""

    @abstractmethod
    def factorize(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the representative θ of w where the noise keeps the charges, differentiable: F(θ) = w."""

    @abstractmethod
    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the value of each factor, by name, from which a problem starts by default; not a stationary point."""

    @abstractmethod
    def penalty(self, weight: Tensor) -> Tensor:
        """Return ψ(w), shape (...) without the axes of w: the stationary law is e^{−L/T − ψ(w)} dw."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""

    # -- what follows ----------------------------------------------------------------------------------------------

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> dict[str, Tensor]:
        """Return J_Fᵀ s by factor for a gradient s in a vector w, shape (..., feature).

        The leading dims of s include those of the factors. A subclass that knows a closed form overrides this.
        """
        shapes = self.shapes(tuple(slope.shape[-1:]))
        full = {name: named[name].expand(*slope.shape[:-1], *shape) for name, shape in shapes.items()}
        return torch.func.vjp(self.weight, full)[1](slope)[0]

    @functools.cached_property
    def _regression(self) -> type[DesignedRegression]:
        return type("DesignedRegression", (DesignedRegression,), {"design": self})

    def problem(self, X: Any, y: Any, **options: Any) -> LinearRegression:
        """Return linear regression with these weights.

        Parameters
        ----------
        X : array, shape=(sample, feature) or (replicate, sample, feature)
        y : array, shape=(sample,) or (replicate, sample)
        **options
            ``features``, ``initial``, ``initial_std``, see `LinearRegression`.

        Raises
        ------
        DataError
            If shapes do not match, or entries are not finite.
        InputError
            If the design does not fit the number of features.
        """
        return self._regression(X, y, **options)

    def parametrization(self) -> Parametrization:
        """Return the map as a module for `torch.nn.utils.parametrize.register_parametrization`."""
        return Parametrization(self)

    def section(self, weight: Tensor) -> Tensor:
        """Return the representatives θ of vectors w: (point, feature) to (point, parameter), differentiable."""
        layout = ParameterLayout(self.shapes(tuple(weight.shape[-1:])))
        return layout.flatten(self.factorize(weight))

    def gauge_stiffness(self, temperature: float) -> float | None:
        """Return κ of the potential that holds the charges at temperature T, or None where noise keeps them itself."""
        return None

    def dynamics(self, *, temperature: float, learning_rate: float, substeps: int = 8) -> SGDSDE:
        """Return the SDE under which the penalty holds: its noise and its gauge; simulate it with `self.symmetry`.

        Parameters
        ----------
        temperature : float
            T, in units of the loss.
        learning_rate : float
            η; T and η alone give the time scale, the law depends on T.
        substeps : int
            Solver steps per update.

        Raises
        ------
        InputError
            If a value is out of range.
        """
        check_positive("temperature", temperature)
        thermal = noise.isotropic(temperature)
        return SGDSDE(
            learning_rate=learning_rate,
            noise=noise.horizontal(thermal) if self.noise == "horizontal" else thermal,
            gauge_stiffness=self.gauge_stiffness(temperature),
            substeps=substeps,
        )

    def effective_loss(
        self, problem: Problem, points: Tensor, *, temperature: float, measure: Measure = "predictor"
    ) -> xr.Dataset:
        """Return L_eff = −T log density at vectors w of shape (point, feature), from the geometry of the problem.

        With measure "predictor" it is L + T ψ up to a constant. See `sdebias.effective_loss`.
        """
        return effective_loss(
            problem,
            self.symmetry,
            self.section,
            points,
            noise=LAWS[self.noise],
            temperature=temperature,
            measure=measure,
        )

    def stationary_law(
        self, problem: Problem, nodes: Nodes, *, temperature: float, measure: Measure = "predictor"
    ) -> xr.Dataset:
        """Return the stationary law of w on given nodes, from the geometry of the problem.

        With measure "predictor" it is e^{−L/T − ψ(w)} dw, normalised. See `sdebias.stationary_law`.
        """
        return stationary_law(
            problem,
            self.symmetry,
            self.section,
            nodes,
            noise=LAWS[self.noise],
            temperature=temperature,
            measure=measure,
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where one weight may lie, for `verify`, where the design says so."""
        return None

    @property
    def walls(self) -> tuple[float, ...]:
        """Ends of the interval at which w is reflected; at others the law has to vanish."""
        return ()

    def prior(self, w: np.ndarray) -> np.ndarray:
        """Return ∫ e^{−ψ} dw of one weight between neighbours of increasing w, shape (point − 1,), up to a constant."""
        middle = torch.from_numpy((w[1:] + w[:-1]) / 2)
        return np.exp(-self.penalty(middle.unsqueeze(-1)).numpy()) * np.diff(w)

    def verify(
        self,
        *,
        trajectories: int = 4096,
        seed: int = 0,
        target: float = 0.5,
        temperature: float = 0.1,
        interval: tuple[float, float] | None = None,
    ) -> Certificate:
        """Simulate one weight with loss ½ (w − target)² and hold its law against e^{−L/T − ψ} dw and e^{−L/T} dw.

        The ensemble starts from the law without penalty and runs until it has forgotten that; solver step, length and
        saves follow from the designed law, see `Trial`.

        Parameters
        ----------
        trajectories, seed : int
        target : float
        temperature : float
            T, in units of the loss.
        interval : tuple of float, optional
            Where w may lie, ends taken for walls; by default that of the design.

        Returns
        -------
        Certificate

        Raises
        ------
        InputError
            If a value is out of range, the design has no interval and none is given, or the law has no normalisation
            with this loss.
        """
        where, walls = (self.interval, self.walls) if interval is None else (interval, interval)
        if where is None:
            raise InputError(message("interval", "where w may lie", "none", "give interval=(a, b)"))
        trial = Trial.of(self, where, target, temperature, walls)
        return verify(trial, trajectories=trajectories, seed=seed)


class Parametrization(nn.Module):
    """A design as a module that `torch.nn.utils.parametrize` puts in the place of a weight.

    ``forward`` takes the factors to the weight, ``right_inverse`` a weight to its representative factors, which are
    then what an optimiser trains.

    Parameters
    ----------
    design : Design
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design

    def forward(self, *factors: Tensor) -> Tensor:
        """Return w = F(θ)."""
        names = self.design.factors
        if len(factors) != len(names):
            raise InputError(message("factors", f"{len(names)}: {', '.join(names)}", len(factors), "give one each"))
        return self.design.weight(dict(zip(names, factors, strict=True)))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return factors with ``forward(*factors) = weight``."""
        return tuple(self.design.factorize(weight).values())
