"""Nodes with weights at which a law on a few coordinates is normalised: quadrature, or importance sampling."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..errors import InputError, check_count, check_positive, message


class Nodes(Protocol):
    """A rule ∫ f ds ≈ Σ w f(s)."""

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        ...

    @property
    def tolerance(self) -> float:
        """Largest relative error of a normalisation that passes."""
        ...

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return the nodes, shape (point, coordinate), and the logarithms of their weights, shape (point,)."""
        ...

    def error(self, log_masses: Tensor) -> float:
        """Return the relative error of Σ exp(log_masses), the masses being weights times density."""
        ...


@dataclass(frozen=True)
class PanelQuadrature:
    """Gauss-Legendre quadrature on panels, in a tensor product where there are several coordinates.

    The error is the difference from the rule of half the order that interpolates the density at the same nodes, so
    that nothing is evaluated twice. The law is that on the box of the edges; the probability of a panel, as for a
    histogram with those edges, is the sum over its `order` consecutive nodes.

    Parameters
    ----------
    edges : mapping of str to sequence of float
        Ends of the panels of each coordinate, increasing and finite.
    order : int
        Nodes a panel and coordinate, at least 4.
    tolerance : float

    Raises
    ------
    InputError
        If edges do not increase or are not finite, or the order is less than 4.
    """

    edges: Mapping[str, Sequence[float]]
    order: int = 8
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        """Check edges and order."""
        check_count("order", self.order, minimum=4)
        check_positive("tolerance", self.tolerance)
        if not self.edges:
            raise InputError(message("edges", "one coordinate or more", "none", "name it with its edges"))
        for name, edges in self.edges.items():
            values = np.asarray(edges, float)
            if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
                got = f"{values.size} from {values.min() if values.size else None}"
                raise InputError(
                    message(f"edges of {name!r}", "two or more increasing finite numbers", got, "sort them")
                )

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return tuple(self.edges)

    def _axes(self, weights: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate([w / 2 * weights for w in np.diff(np.asarray(e, float))]) for e in self.edges.values()]

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return the nodes of all panels, the last coordinate fastest, and the logarithms of their weights."""
        unit, weights = np.polynomial.legendre.leggauss(self.order)
        places = []
        for edges in self.edges.values():
            left, right = np.asarray(edges[:-1], float)[:, None], np.asarray(edges[1:], float)[:, None]
            places.append(((left + right) / 2 + (right - left) / 2 * unit).ravel())
        points = np.stack([axis.ravel() for axis in np.meshgrid(*places, indexing="ij")], axis=-1)
        return torch.from_numpy(points), torch.from_numpy(np.log(self._outer(self._axes(weights))))

    @staticmethod
    def _outer(axes: Sequence[np.ndarray]) -> np.ndarray:
        product = axes[0]
        for axis in axes[1:]:
            product = np.multiply.outer(product, axis)
        return product.ravel()

    def error(self, log_masses: Tensor) -> float:
        """Return the change of the integral when every panel keeps only the lower half of its polynomial degrees."""
        unit, weights = np.polynomial.legendre.leggauss(self.order)
        # Every second node with weights exact for the polynomials through them: an embedded rule.
        kept = np.arange(0, self.order, 2)
        powers = np.polynomial.legendre.legvander(unit[kept], len(kept) - 1).T
        embedded = np.zeros(self.order)
        embedded[kept] = np.linalg.solve(powers, np.eye(len(kept))[0] * 2)
        shares = log_masses.softmax(0).numpy()
        panels = [len(edges) - 1 for edges in self.edges.values()]
        shares = shares.reshape(*itertools.chain.from_iterable((count, self.order) for count in panels))
        worst = 0.0
        for axis in range(len(panels)):
            along = np.moveaxis(shares, 2 * axis + 1, -1) @ (embedded / weights)
            worst = max(worst, abs(float(along.sum()) - 1))
        return worst


@dataclass(frozen=True)
class ImportanceSampling:
    """Independent draws of a proposal, weighted by 1/density: for more than two coordinates.

    The number of draws that the law is worth is 1 / Σ probability².

    Parameters
    ----------
    proposal : torch.distributions.Distribution
        Of event shape (coordinate,), with heavier tails than the law.
    coordinates : tuple of str
    samples : int
    seed : int
    tolerance : float
        Largest relative standard error of the normalisation that passes.

    Raises
    ------
    InputError
        If the proposal is not over the named coordinates.
    """

    proposal: Distribution
    coordinates: tuple[str, ...]
    samples: int = 20_000
    seed: int = 0
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        """Check that the proposal fits the coordinates."""
        check_count("samples", self.samples, minimum=2)
        check_count("seed", self.seed, minimum=0)
        check_positive("tolerance", self.tolerance)
        if tuple(self.proposal.event_shape) != (len(self.coordinates),):
            got = f"event shape {tuple(self.proposal.event_shape)}"
            want = f"a distribution over {len(self.coordinates)} coordinates"
            raise InputError(message("proposal", want, got, "use torch.distributions.Independent for products"))

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return draws of the proposal and −log of its density there, over the number of draws."""
        with torch.random.fork_rng():  # torch's distributions draw from the global stream only
            torch.manual_seed(self.seed)
            points = self.proposal.sample((self.samples,))
        return points, -self.proposal.log_prob(points) - np.log(self.samples)

    def error(self, log_masses: Tensor) -> float:
        """Return the relative standard error of the mean weight."""
        ratios = self.samples * log_masses.softmax(0)
        return float(ratios.std() / self.samples**0.5)
