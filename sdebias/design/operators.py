"""Analysis operators: invertible linear maps in whose coefficients a signal shall be sparse, w = A⁻¹c."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, check_choice, check_count, message

# Analysis after synthesis must be the identity up to this share of a signal, in float64.
TOLERANCE = 1e-8


class Operator(nn.Module, ABC):
    """An invertible linear map A: signals w to coefficients c = A w (analysis), and back, w = A⁻¹c (synthesis).

    Both act on the last axis, shape (..., size), keep dtype and device, and are differentiable. An operator is a module
    without parameters, so that its constants follow those of the module that uses it.

    Parameters
    ----------
    size : int
        Length of a signal, which is the number of its coefficients.

    Raises
    ------
    InputError
        If the size is not a positive whole number.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = check_count("size", size)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"size={self.size}"

    @abstractmethod
    def analysis(self, signal: Tensor) -> Tensor:
        """Return c = A w, shape (..., size)."""

    @abstractmethod
    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return w = A⁻¹c, shape (..., size)."""

    def forward(self, coefficients: Tensor) -> Tensor:
        """Return the signal of given coefficients."""
        return self.synthesis(coefficients)


class Identity(Operator):
    """A = I: sparsity of the entries themselves."""

    def analysis(self, signal: Tensor) -> Tensor:
        """Return w."""
        return signal

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return c."""
        return coefficients


class Differences(Operator):
    """Increments c_0 = w_0, c_j = w_j − w_{j−1}, taken `order` times; synthesis is the cumulative sum.

    ‖A w‖₁ is the total variation plus |w_0| (order 1: piecewise constant), or the variation of the slope plus that of
    the ends (order 2: piecewise linear, trend filtering).
    """

    def __init__(self, size: int, order: int = 1) -> None:
        super().__init__(size)
        self.order = check_count("order", order)

    def analysis(self, signal: Tensor) -> Tensor:
        """Return the increments."""
        return torch.diff(signal, n=self.order, prepend=signal.new_zeros(*signal.shape[:-1], self.order))

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the cumulative sums."""
        for _ in range(self.order):
            coefficients = coefficients.cumsum(-1)
        return coefficients


class Fourier(Operator):
    """Coefficients in the orthonormal real Fourier basis: 1, cosines of frequencies 1 … ⌊n/2⌋, then sines.

    A wave of any phase has two coefficients, cosine and sine. Sparsity of these favours waves of phase 0 or π/2;
    `waves` groups both of a frequency, for a bias that does not see the phase.
    """

    @property
    def waves(self) -> list[list[int]]:
        """Coefficients of each frequency 0 … ⌊n/2⌋: one where there is no sine, else two."""
        first = self.size // 2 + 1  # place of the first sine, that of frequency 1
        return [[k, first + k - 1] if 0 < 2 * k < self.size else [k] for k in range(first)]

    def _scale(self, like: Tensor) -> Tensor:
        """Return √2 for frequencies that occur twice in the complex spectrum, else 1."""
        scale = like.new_full((self.size // 2 + 1,), math.sqrt(2))
        scale[0] = 1.0
        scale[self.size / 2 == torch.arange(len(scale), device=scale.device)] = 1.0
        return scale

    def analysis(self, signal: Tensor) -> Tensor:
        """Return √(2/n) Σ w cos, √(2/n) Σ w sin, by a real FFT."""
        spectrum, sines = torch.fft.rfft(signal, norm="ortho"), (self.size + 1) // 2
        return torch.cat([spectrum.real * self._scale(signal), -math.sqrt(2) * spectrum.imag[..., 1:sines]], dim=-1)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the signal, by an inverse real FFT."""
        frequencies = self.size // 2 + 1
        cosines, sines = coefficients.split([frequencies, self.size - frequencies], dim=-1)
        real = cosines / self._scale(coefficients)
        imaginary = nn.functional.pad(-sines / math.sqrt(2), (1, frequencies - 1 - sines.shape[-1]))
        return torch.fft.irfft(torch.complex(real, imaginary), n=self.size, norm="ortho")


class Cosine(Operator):
    """Coefficients of the orthonormal discrete cosine transform (type II), by an FFT of the mirrored signal."""

    def _turn(self, like: Tensor) -> Tensor:
        """Return e^{iπk/2n} with its normalisation, shape (size,)."""
        angle = torch.arange(self.size, dtype=like.dtype, device=like.device) * (math.pi / (2 * self.size))
        scale = torch.full_like(angle, math.sqrt(2 * self.size))
        scale[0] = 2 * math.sqrt(self.size)
        return torch.polar(scale, angle)

    def analysis(self, signal: Tensor) -> Tensor:
        """Return √(2/n) Σ_m w_m cos(πk(2m + 1)/2n), k = 0 with √(1/n)."""
        spectrum = torch.fft.rfft(torch.cat([signal, signal.flip(-1)], dim=-1))[..., : self.size]
        return (spectrum / self._turn(signal)).real

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the first half of the mirrored signal; its highest frequency is absent."""
        spectrum = nn.functional.pad(coefficients * self._turn(coefficients), (0, 1))
        return torch.fft.irfft(spectrum, n=2 * self.size)[..., : self.size]


class Haar(Operator):
    """Orthonormal Haar wavelets: the smooth part, then details from the coarsest to the finest level.

    Parameters
    ----------
    size : int
    levels : int, optional
        Number of times that the smooth part is halved; by default as often as the size is even.

    Raises
    ------
    InputError
        If the size cannot be halved so often.
    """

    def __init__(self, size: int, levels: int | None = None) -> None:
        super().__init__(size)
        most = (size & -size).bit_length() - 1
        self.levels = most if levels is None else check_count("levels", levels)
        if not 0 < self.levels <= most:
            want = f"at most the {most} levels by which a size of {size} can be halved, and at least one"
            raise InputError(message("levels", want, self.levels, "pad the signal, or ask for fewer levels"))

    def analysis(self, signal: Tensor) -> Tensor:
        """Return sums and differences of neighbours over √2, level by level."""
        details: list[Tensor] = []
        for _ in range(self.levels):
            left, right = signal.unflatten(-1, (-1, 2)).unbind(-1)
            details.insert(0, (left - right) / math.sqrt(2))
            signal = (left + right) / math.sqrt(2)
        return torch.cat([signal, *details], dim=-1)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the signal, from the coarsest level down."""
        width = self.size >> self.levels
        signal = coefficients[..., :width]
        for level in range(self.levels):
            detail = coefficients[..., width << level : width << (level + 1)]
            signal = torch.stack([signal + detail, signal - detail], dim=-1).flatten(-2) / math.sqrt(2)
        return signal


class MatrixOperator(Operator):
    """A given as a square matrix, whose inverse is computed once.

    Parameters
    ----------
    matrix : array, shape=(size, size)

    Raises
    ------
    InputError
        If it is not a finite square matrix, or is singular up to rounding.
    """

    matrix: Tensor
    inverse: Tensor

    def __init__(self, matrix: Any) -> None:
        try:
            tensor = torch.as_tensor(matrix).to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(message("operator", "a matrix", type(matrix).__name__, f"convert it ({error})")) from None
        if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
            want = "a square matrix: as many coefficients as entries of the signal"
            remedy = "complete it to a basis; a tall one has coefficients that no signal has"
            raise InputError(message("operator", want, f"shape {tuple(tensor.shape)}", remedy))
        super().__init__(len(tensor))
        condition = float(torch.linalg.cond(tensor)) if bool(torch.isfinite(tensor).all()) else math.nan
        if not condition < 1 / TOLERANCE:
            want, got = "a finite matrix that can be inverted", f"condition number {condition:.2g}"
            raise InputError(message("operator", want, got, "remove dependent rows, or scale them alike"))
        self.register_buffer("matrix", tensor)
        self.register_buffer("inverse", torch.linalg.inv(tensor))

    def analysis(self, signal: Tensor) -> Tensor:
        """Return A w."""
        return signal @ self.matrix.to(signal).mT

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return A⁻¹ c."""
        return coefficients @ self.inverse.to(coefficients).mT


class FunctionOperator(Operator):
    """A given by two functions of tensors (..., size), each the inverse of the other.

    Raises
    ------
    InputError
        If, on random signals, they are not linear or not inverse to each other.
    """

    def __init__(self, analysis: Callable[[Tensor], Tensor], synthesis: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__(size)
        self._functions = analysis, synthesis
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(2, 3, size, dtype=torch.float64, generator=generator)
        for name, function in (("analysis", analysis), ("synthesis", synthesis)):
            image = _evaluate(name, function, first - 2 * second)
            split = _evaluate(name, function, first) - 2 * _evaluate(name, function, second)
            _check_close(f"operator's {name}", "a linear function", image, split)
        for names, (inner, outer) in {
            "synthesis after analysis": (analysis, synthesis),
            "analysis after synthesis": (synthesis, analysis),
        }.items():
            _check_close(f"operator's {names}", "the identity", outer(inner(first)), first)

    def analysis(self, signal: Tensor) -> Tensor:
        """Return A w."""
        return self._functions[0](signal)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return A⁻¹ c."""
        return self._functions[1](coefficients)


class Kronecker(Operator):
    """A ⊗ B on matrices w of shape (A.size, B.size), flattened by rows: c = A w Bᵀ.

    Two Fourier or wavelet operators make the transform of an image. Two `Differences` are sparse in mixed second
    differences, which is not the total variation of an image: that has more coefficients than pixels.
    """

    def __init__(self, rows: Operator, columns: Operator) -> None:
        super().__init__(rows.size * columns.size)
        self.rows, self.columns = rows, columns

    def _both(self, values: Tensor, rows: Callable[[Tensor], Tensor], columns: Callable[[Tensor], Tensor]) -> Tensor:
        matrix = columns(values.unflatten(-1, (self.rows.size, self.columns.size)))
        return rows(matrix.mT).mT.flatten(-2)

    def analysis(self, signal: Tensor) -> Tensor:
        """Return A w Bᵀ."""
        return self._both(signal, self.rows.analysis, self.columns.analysis)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return A⁻¹ c B⁻ᵀ."""
        return self._both(coefficients, self.rows.synthesis, self.columns.synthesis)


OPERATORS: dict[str, type[Operator]] = {
    "identity": Identity,
    "differences": Differences,
    "fourier": Fourier,
    "cosine": Cosine,
    "haar": Haar,
}
"""Operators that a size alone defines, by the names that designs take."""


def as_operator(operator: Any, size: int) -> Operator:
    """Return the operator that a user means.

    Parameters
    ----------
    operator : None, str, Operator, array or pair of callables
        None is the identity; a name of `OPERATORS`; a square matrix A; or the functions (analysis, synthesis).
    size : int
        Length of a signal.

    Raises
    ------
    InputError
        If it is none of these, has another size, or cannot be inverted.
    """
    if operator is None:
        return Identity(size)
    if isinstance(operator, str):
        return OPERATORS[check_choice("operator", operator, list(OPERATORS))](size)
    if isinstance(operator, tuple | list) and len(operator) == 2 and all(map(callable, operator)):
        analysis, synthesis = operator
        return FunctionOperator(analysis, synthesis, size)
    built = operator if isinstance(operator, Operator) else MatrixOperator(operator)
    if built.size != size:
        raise InputError(message("operator", f"one of size {size}", built.size, "match it to the signal"))
    return built


def _evaluate(name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    try:
        result = function(values)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "write it for tensors (..., size)"
        raise InputError(message(f"operator's {name}", "a function of tensors", reason, remedy)) from None
    if not isinstance(result, Tensor) or result.shape != values.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        want = f"a tensor of its argument's shape {tuple(values.shape)}"
        raise InputError(message(f"operator's {name}", want, got, "act on the last axis; keep its length"))
    return result


def _check_close(what: str, expected: str, values: Tensor, reference: Tensor) -> None:
    """Raise InputError if values differ from a reference, relative to its norm."""
    difference = float((values - reference).norm() / reference.norm())
    if not difference <= TOLERANCE:
        got = f"a relative difference of {difference:.2g}"
        raise InputError(message(what, expected, got, "check both functions on a random signal"))
