"""Penalties ψ(w) by name."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_choice, check_positive, message


@dataclass(frozen=True)
class Penalty:
    """A penalty with its parameters.

    Attributes
    ----------
    name : str
        A key of `PENALTIES`.
    parameters : mapping of str to float
        ``strength`` and what else it has.
    """

    name: str
    parameters: Mapping[str, float]

    def __call__(self, w: Tensor) -> Tensor:
        """Return ψ(w), shape as `w`, differentiable."""
        return PENALTIES[self.name](w, **self.parameters)

    @property
    def closed(self) -> Callable[[Tensor], Tensor] | None:
        """The inverse w(s) of s = ∫_0^w e^{−ψ} where it is elementary, else None."""
        function = CLOSED.get(self.name)
        parameters = self.parameters
        if function is None or (self.name == "cauchy" and parameters["strength"] != 1):
            return None
        return lambda s: function(s, **parameters)

    def spec(self) -> dict[str, Any]:
        """Return the penalty as plain data."""
        return {"name": self.name, **self.parameters}


def none(w: Tensor, strength: float) -> Tensor:
    """Return 0: no bias at all."""
    return torch.zeros_like(w)


def l1(w: Tensor, strength: float) -> Tensor:
    """Return λ|w|: sparsity."""
    return strength * w.abs()


def l2(w: Tensor, strength: float) -> Tensor:
    """Return ½ λ w²: weight decay."""
    return 0.5 * strength * w.square()


def power(w: Tensor, strength: float, exponent: float = 0.5) -> Tensor:
    """Return λ |w|^exponent; below 1 it is sparser than l1 and not convex."""
    return strength * w.abs() ** exponent


def log(w: Tensor, strength: float, scale: float = 0.1) -> Tensor:
    """Return λ log(1 + |w|/scale): sparsity that leaves large weights alone."""
    return strength * torch.log1p(w.abs() / scale)


def elastic(w: Tensor, strength: float, ratio: float = 0.5) -> Tensor:
    """Return λ (ratio |w| + ½ (1 − ratio) w²): elastic net."""
    return strength * (ratio * w.abs() + 0.5 * (1 - ratio) * w.square())


def huber(w: Tensor, strength: float, scale: float = 0.5) -> Tensor:
    """Return λ (w²/(2 scale) within scale, |w| − scale/2 beyond)."""
    size = w.abs()
    return strength * torch.where(size < scale, w.square() / (2 * scale), size - scale / 2)


def cauchy(w: Tensor, strength: float, scale: float = 0.5) -> Tensor:
    """Return λ log(1 + (w/scale)²): heavy tails."""
    return strength * torch.log1p((w / scale).square())


def bounded(w: Tensor, strength: float, scale: float = 0.3) -> Tensor:
    """Return λ (1 − exp(−w²/(2 scale²))): a well at 0, no force far away."""
    return strength * (1 - torch.exp(-0.5 * (w / scale).square()))


def mcp(w: Tensor, strength: float, scale: float = 0.8) -> Tensor:
    """Return λ (|w| − w²/(2 scale)) within scale, constant beyond: minimax concave penalty."""
    size = w.abs().clamp_max(scale)
    return strength * (size - size.square() / (2 * scale))


def logcosh(w: Tensor, strength: float, scale: float = 0.3) -> Tensor:
    """Return λ log cosh(w/scale): smooth l1."""
    size = (w / scale).abs()
    return strength * (size + torch.log1p(torch.exp(-2 * size)) - math.log(2))


def wells(w: Tensor, strength: float, location: float = 0.7) -> Tensor:
    """Return λ ((w/location)² − 1)²: two wells at ±location, such as those of binary weights."""
    return strength * ((w / location).square() - 1).square()


def periodic(w: Tensor, strength: float, period: float = 0.5) -> Tensor:
    """Return λ sin²(πw/period): wells at the multiples of a period, such as those of quantised weights."""
    return strength * torch.sin(math.pi * w / period).square()


def pinned(w: Tensor, strength: float, location: float = 0.6) -> Tensor:
    """Return λ |w − location|: a kink away from 0."""
    return strength * (w - location).abs()


def pinball(w: Tensor, strength: float, ratio: float = 0.2) -> Tensor:
    """Return λ (ratio max(w, 0) + (1 − ratio) max(−w, 0)): one sign costs more."""
    return strength * torch.where(w > 0, ratio * w, (ratio - 1) * w)


def logarithm(w: Tensor, strength: float) -> Tensor:
    """Return λ log|w|, for λ < 1 on a domain that ends at 0: what w = pq has by itself."""
    return strength * w.abs().log()


PENALTIES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        none,
        l1,
        l2,
        power,
        log,
        elastic,
        huber,
        cauchy,
        bounded,
        mcp,
        logcosh,
        wells,
        periodic,
        pinned,
        pinball,
        logarithm,
    )
}
"""ψ(w, strength, …) by name; `l0.5` and the like are `power` with that exponent."""


def _inverse_l1(s: Tensor, strength: float) -> Tensor:
    return -s.sign() * torch.log1p(-strength * s.abs()) / strength


def _inverse_l2(s: Tensor, strength: float) -> Tensor:
    return math.sqrt(2 / strength) * torch.erfinv(s * math.sqrt(2 * strength / math.pi))


def _inverse_log(s: Tensor, strength: float, scale: float = 0.1) -> Tensor:
    if strength == 1:
        return s.sign() * scale * torch.expm1(s.abs() / scale)
    power = torch.log1p((1 - strength) * s.abs() / scale) / (1 - strength)
    return s.sign() * scale * torch.expm1(power)


def _inverse_cauchy(s: Tensor, strength: float, scale: float = 0.5) -> Tensor:
    return scale * torch.tan(s / scale)


CLOSED: dict[str, Callable[..., Tensor]] = {
    "none": lambda s, strength: s,
    "l1": _inverse_l1,
    "l2": _inverse_l2,
    "log": _inverse_log,
    "cauchy": _inverse_cauchy,
}
"""w(s, strength, …), the inverse of s = ∫_0^w e^{−ψ}, where it is elementary; for `cauchy` at strength 1."""


def named_penalty(name: str, strength: float = 1.0, **parameters: float) -> Penalty:
    """Return a penalty by name.

    Parameters
    ----------
    name : str
        A key of `PENALTIES`, or ``l`` and an exponent: ``"l0.5"``.
    strength : float
        λ > 0.
    **parameters
        Others, see `PENALTIES`; positive, but for `location`.

    Raises
    ------
    InputError
        If the name or a parameter is unknown or out of range.
    """
    if name not in PENALTIES and name.startswith("l"):
        with contextlib.suppress(ValueError):
            parameters["exponent"], name = float(name[1:]), "power"
    function = PENALTIES[check_choice("psi", name, list(PENALTIES))]
    known = inspect.signature(function).parameters
    values = {"strength": strength, **parameters}
    for key, value in values.items():
        if key not in known:
            want = f"parameters {', '.join(list(known)[1:])}"
            raise InputError(message(f"penalty {name!r}", want, repr(key), "leave it out"))
        if key != "location":
            check_positive(key, value)
    if not values.get("ratio", 0.5) < 1:
        raise InputError(message("ratio", "a number in (0, 1)", values["ratio"], "set it so"))
    defaults = {key: p.default for key, p in known.items() if p.default is not inspect.Parameter.empty}
    return Penalty(name, {**defaults, **{key: float(value) for key, value in values.items()}})
