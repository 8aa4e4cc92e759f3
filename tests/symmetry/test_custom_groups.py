"""Groups from functions of the user: flows, charges, declarations."""

from __future__ import annotations

import pytest
import torch
from symmetry_laws import LossProblem, randn
from torch import Tensor

from sdebias.errors import ConfigError, SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import FromFields, Product, Rescaling, from_action, from_fields, from_spec

LAYOUT = ParameterLayout({"x": (2,), "y": (2,)})
PROBLEM = LossProblem(LAYOUT, lambda named: named["x"])


def parabola(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field whose flow is x → x + s, y → y + x s + s²/2: affine, not a gradient."""
    return torch.ones_like(x), x


def twist(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field that turns (x_0, x_1) by an angle that grows with its length: not affine."""
    return x.square().sum() * torch.stack([-x[1], x[0]]), torch.zeros_like(y)


def shift(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field of a shift of y."""
    return torch.zeros_like(x), torch.ones_like(y)


def spin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field of the rotation of x."""
    return torch.stack([-x[1], x[0]]), torch.zeros_like(y)


def test_affine_flow_is_exact() -> None:
    group = from_fields([parabola], ["x", "y"]).bind(PROBLEM)
    theta, s = randn(0, 5, 4), randn(1, 5, 1)
    x, y = theta[..., :2], theta[..., 2:]
    torch.testing.assert_close(group.act(group.exp(s), theta), torch.cat([x + s, y + x * s + s**2 / 2], dim=-1))
    assert group.charge_labels == []
    assert group.compact_dim == 0


def test_flow_of_a_field_that_is_not_affine() -> None:
    group = from_fields([twist], ["x", "y"]).bind(PROBLEM)
    theta = randn(2, 5, 4)
    angle = theta[..., 0] ** 2 + theta[..., 1] ** 2
    turned = torch.complex(theta[..., 0], theta[..., 1]) * torch.exp(1j * 0.5 * angle)
    moved = group.act(torch.tensor([0.5], dtype=torch.float64), theta)
    torch.testing.assert_close(moved[..., :2], torch.view_as_real(turned), rtol=0, atol=1e-12)
    assert group.charge_labels == []
    assert group.compact_dim == 0


def test_charges_are_combinations_of_directions() -> None:
    # The second and third fields are shift ± spin: one gradient and one rotation between them.
    def plus(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(a + b for a, b in zip(shift(x, y), spin(x, y), strict=True))  # type: ignore[return-value]

    def minus(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(a - b for a, b in zip(shift(x, y), spin(x, y), strict=True))  # type: ignore[return-value]

    group = from_fields([twist, plus, minus], ["x", "y"]).bind(PROBLEM)
    assert group.charge_labels == ["charge 0"]
    assert group.compact_dim == 1
    theta = randn(3, 4)
    gradient = torch.func.jacrev(group.charge)(theta)
    torch.testing.assert_close(gradient.abs(), torch.tensor([[0, 0, 2**0.5, 2**0.5]], dtype=torch.float64))
    torch.testing.assert_close(
        group.infinitesimal_action(group.compact_basis(theta), theta)[..., 2:], torch.zeros(1, 2, dtype=torch.float64)
    )


def test_specs() -> None:
    group = FromFields([parabola, twist], ["x", "y"])
    with pytest.raises(ConfigError, match="functions that were allowed"):
        from_spec(group.spec())
    with pytest.raises(ConfigError, match="functions that were allowed"):
        from_spec(Product(group).spec())
    again = from_spec(group.spec(), allow_import=True)
    assert isinstance(again, FromFields)
    assert again.fields == group.fields
    nested = Product(Product(Rescaling("x", "y")), Rescaling(["x:0", "b"], "y"))
    assert repr(from_spec(nested.spec())) == repr(nested)
    local = from_action(lambda xi, x: x * xi.exp(), 2, ["x"]).spec()
    with pytest.raises(SymmetryError, match="an import path"):
        from_spec(local, allow_import=True)
    with pytest.raises(ConfigError, match="did you mean 'Rescaling'"):
        from_spec({"group": "Rescalling", "parameters": ["p", "q"]})
    with pytest.raises(ConfigError, match="its fields"):
        from_spec({"group": "Rescaling"})
