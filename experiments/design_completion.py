"""Images from half of their pixels: a product of two matrices against the nuclear norm, for `experiments.design_tasks`.

The record is scikit-learn's copy of the digits of E. Alpaydin and C. Kaynak (UCI, CC BY 4.0): 1,797 images, 8 × 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import sdebias as sb
from sdebias.design import LowRank

from .design_paths import PENALTY, Path, simulated_path
from .design_regression import Splits

IMAGES, PIXELS = 40, 64
SHARES = {"train": 0.5, "validation": 0.1, "test": 0.4}
# Of the solver; more change no error by 1 in 1,000.
SWEEPS = 40


@dataclass(frozen=True)
class Cells(Splits):
    """Entries of one matrix for each seed, flattened by rows: `inputs` are their places, `targets` their values."""

    def errors(self, part: str, weights: np.ndarray) -> np.ndarray:
        """Return the mean squared error, shape (seed, path), of matrices (seed, path, entry)."""
        predictions = np.take_along_axis(weights, self.inputs[part][:, None], axis=2)
        return ((predictions - self.targets[part][:, None]) ** 2).mean(-1)


def digits(seeds: int) -> Cells:
    """Return random images as rows, their entries split, standardised by those for training."""
    from sklearn.datasets import load_digits

    images = load_digits().data
    bounds = np.cumsum([round(share * IMAGES * PIXELS) for share in SHARES.values()])[:-1]
    places: dict[str, list[np.ndarray]] = {part: [] for part in SHARES}
    values: dict[str, list[np.ndarray]] = {part: [] for part in SHARES}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        matrix = images[rng.choice(len(images), IMAGES, replace=False)].ravel()
        parts = dict(zip(SHARES, np.split(rng.permutation(matrix.size), bounds), strict=True))
        seen = matrix[parts["train"]]
        for part, where in parts.items():
            places[part].append(where)
            values[part].append((matrix[where] - seen.mean()) / seen.std())
    return Cells(
        {part: np.stack(arrays) for part, arrays in places.items()},
        {part: np.stack(arrays) for part, arrays in values.items()},
    )


def observed(data: Splits) -> tuple[np.ndarray, np.ndarray]:
    """Return the training entries in their matrices, zero elsewhere, and where they are: (seed, image, pixel)."""
    places, values = data.inputs["train"], data.targets["train"]
    matrix, mask = np.zeros((len(places), IMAGES * PIXELS)), np.zeros((len(places), IMAGES * PIXELS), dtype=bool)
    np.put_along_axis(matrix, places, values, axis=1)
    np.put_along_axis(mask, places, True, axis=1)
    shape = (len(places), IMAGES, PIXELS)
    return matrix.reshape(shape), mask.reshape(shape)


def product_path(data: Splits, batch_size: int, *, learning_rate: float, steps: int, saves: int = 100) -> Path:
    """Return M = U Vᵀ of full rank from a small start under SGD, over time; a batch of all entries has no noise."""
    problem = LowRank(IMAGES, PIXELS, scale=1e-3).completion(*observed(data))
    descent = sb.SGD(learning_rate=learning_rate, batch_size=batch_size, replacement=False)
    return simulated_path(problem, descent, learning_rate, steps, saves)


def nuclear_path(data: Splits, penalties: np.ndarray, sweeps: int = SWEEPS) -> Path:
    """Return argmin ½ mean (M − M*)² + λ‖M‖_* over λ/λmax, each from the one before; from λmax on M = 0.

    Accelerated proximal gradient (Beck, Teboulle 2009) with a step of 1/L: fill in what is not observed, and shrink all
    singular values by λ times the number of observed entries (soft-impute; Mazumder, Hastie, Tibshirani 2010).
    """
    target, mask = observed(data)
    largest = np.linalg.norm(target, 2, axis=(1, 2))[:, None]
    current, path = np.zeros_like(target), []
    for penalty in penalties:
        ahead, momentum = current, 1.0
        for _ in range(sweeps):
            left, sigma, right = np.linalg.svd(np.where(mask, target, ahead), full_matrices=False)
            new = (left * np.maximum(sigma - penalty * largest, 0)[:, None]) @ right
            faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead, current, momentum = new + (momentum - 1) / faster * (new - current), new, faster
        path.append(current.reshape(len(current), -1))
    return Path(PENALTY, penalties, np.stack(path, axis=1))
