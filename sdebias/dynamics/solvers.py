"""Which torchsde solver solves which form of an SDE, and what it needs of the SDE and of the Brownian motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import InputError, check_choice, message

LevyArea: TypeAlias = Literal["none", "space-time", "foster"]
SDE_TYPES = ("ito", "stratonovich")
NOISES = ("additive", "general")


@dataclass(frozen=True)
class Method:
    """What a solver of torchsde is for.

    Attributes
    ----------
    sde_types, noises : tuple of str
        Forms of the SDE that it solves; noise is additive where g is the same at every θ, else general.
    levy_area : str
        The area of the Brownian motion that it asks for.
    dense : bool
        Whether it evaluates the diffusion g itself and not only products.
    """

    sde_types: tuple[str, ...]
    noises: tuple[str, ...] = NOISES
    levy_area: LevyArea = "none"
    dense: bool = False


# torchsde's milstein and srk take the entry g_j of diagonal noise to depend on θ_j alone. Here it depends on the whole
# point unless the noise is additive, and they would then converge to another equation.
ITO, STRATONOVICH = ("ito",), ("stratonovich",)
METHODS = {
    "euler": Method(ITO),
    "milstein": Method(SDE_TYPES, ("additive",), dense=True),
    "srk": Method(ITO, ("additive",), "space-time", dense=True),
    "midpoint": Method(STRATONOVICH),
    "heun": Method(STRATONOVICH),
    "euler_heun": Method(STRATONOVICH),
    "reversible_heun": Method(STRATONOVICH, dense=True),
    "log_ode": Method(STRATONOVICH, levy_area="foster", dense=True),
}


def valid_methods(sde_type: str, noise: str) -> list[str]:
    """Return the methods that solve an SDE of this form."""
    return [name for name, m in METHODS.items() if sde_type in m.sde_types and noise in m.noises]


def check_method(method: str, sde_type: str, noise: str) -> Method:
    """Return what is known of a method, if it solves an SDE of this form.

    Raises
    ------
    InputError
        If it does not; the message lists those that do.
    """
    check_choice("sde_type", sde_type, SDE_TYPES)
    check_choice("method", method, list(METHODS))
    valid = valid_methods(sde_type, noise)
    if method not in valid:
        want = f"one of {', '.join(valid)} for {noise} noise in the {sde_type} form"
        others = [other for other in SDE_TYPES if method in valid_methods(other, noise)]
        remedy = f"or set sde_type = {others[0]!r}" if others else "choose one of them"
        raise InputError(message("method", want, repr(method), remedy))
    return METHODS[method]
