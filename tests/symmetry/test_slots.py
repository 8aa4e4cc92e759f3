"""Groups on parts of a tensor: the heads of a packed weight, and neighbours that count as one row."""

# The laws are documented on their class; shapes are read only.
# ruff: noqa: RUF012
from __future__ import annotations

import pytest
import torch
from symmetry_laws import INPUTS, Named, SymmetryLaws, assert_close, randn
from test_groups import matrix_invariants, without
from torch import Tensor

from sdebias.errors import SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import GeneralLinear, Product, Rescaling, Scaling, Symmetry, Translation


class Packed:
    """The layout of a packed weight, as far as a symmetry sees it."""

    layout = ParameterLayout({"W": (6, 3), "b": (6,), "V": (2, 6)})


class TestHeadOfAPackedWeight(SymmetryLaws):
    """Scores (q x)·(k x) of one head, q and k being rows of one tensor with its bias."""

    symmetry = GeneralLinear(("W:0[0:2]", "b:0[0:2]"), ("W:0[3:5]", "b:0[3:5]"))
    shapes = {"W": (5, 3), "b": (5,), "c": (2,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        rows = INPUTS @ named["W"].mT + named["b"].unsqueeze(-2)
        return (
            (rows[..., :2] * rows[..., 3:]).sum(-1) + rows[..., 2].square() + named["c"].square().sum(-1, keepdim=True)
        )

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        rows = torch.cat([named["W"], named["b"].unsqueeze(-1)], dim=-1)
        rest = [rows[..., 2, :], named["c"]]
        return torch.cat([matrix_invariants(rows[..., :2, :].mT, rows[..., 3:, :].mT), *rest], dim=-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W=[0, 1, 2, 9, 10, 11], b=[0, 3]), 3 - 1 + 0 + 1


class TestChannelsAfterFlatten(SymmetryLaws):
    """relu units of two pixels each, which a linear layer reads side by side."""

    symmetry = Rescaling("K:0", "V:1/2")
    shapes = {"K": (2, 3), "V": (3, 4)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        pixels = torch.stack([INPUTS, INPUTS.flip(-1)], dim=-2)
        hidden = torch.relu(pixels @ named["K"].unsqueeze(-3).mT).mT.flatten(-2)
        return (hidden @ named["V"].mT).square().sum(-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, K=range(3), V=[0, 1, 4, 5, 8, 9]), 1


class TestTranslationOfARange(SymmetryLaws):
    symmetry = Translation("W:0[1:3]", "b:0[1:3]")
    shapes = {"W": (4, 2), "b": (4,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        rows = INPUTS[:, :2] @ named["W"].mT + named["b"].unsqueeze(-2)
        return (rows[..., 1:3].softmax(-1)[..., 0] + rows[..., 0] + rows[..., 3]).square()

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return theta, 3


def test_only_the_part_is_moved_and_read() -> None:
    theta = randn(0, 3, 36)
    named = Packed.layout.unflatten(theta)
    for symmetry, moved in (
        (Scaling("W:0[2:4]"), {"W": (slice(2, 4),)}),
        (Scaling("V:1[0:4]/2"), {"V": (slice(None), slice(0, 4))}),
        (Translation("b:0[1:3]/1"), {"b": (slice(1, 3),)}),
    ):
        bound = symmetry.bind(Packed())
        where = Packed.layout.flatten({name: torch.zeros(shape) for name, shape in Packed.layout.shapes.items()})
        parts = Packed.layout.unflatten(where)
        for name, place in moved.items():
            parts[name][place] = 1
        changed = bound.act(bound.exp(torch.full((bound.dim,), 0.3, dtype=theta.dtype)), theta) != theta
        assert torch.equal(changed.all(0), where.bool())
        assert torch.equal(bound.moved_entries, where.bool())
    assert Scaling("W:0[2:4]").bind(Packed()).charge_labels == ["W[2:4][2]", "W[2:4][3]"]
    assert Translation("b:0[1:3]/1").bind(Packed()).charge_labels == ["b[1]", "b[2]"]
    assert_close(
        Scaling("V:1[0:4]/2").bind(Packed()).charge(theta),
        0.5 * named["V"][..., :4].unflatten(-1, (2, 2)).square().sum((-3, -1)),
    )


def test_heads_of_one_tensor_are_independent() -> None:
    heads = Product(*(GeneralLinear(f"V:1[{k}:{k + 2}]", f"W:0[{k}:{k + 2}]") for k in (0, 2))).bind(Packed())
    assert not heads._coupled
    theta = randn(1, 4, 36)
    torch.testing.assert_close(heads.log_orbit_volume(theta), Symmetry.log_orbit_volume.__get__(Dense(heads))(theta))


class Dense(Product):
    """A product that is always treated by its whole Gram matrix."""

    def __init__(self, product: Product) -> None:
        super().__init__(*product.factors)
        object.__setattr__(self, "_layout", product.layout)

    @property
    def _coupled(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("symmetry", "words"),
    [
        (Scaling("W:0[4:7]"), "a range of the 6 rows of 'W', got 4:7"),
        (Scaling("W:0[3:3]"), "a range of the 6 rows"),
        (Scaling("W:0/4"), "a divisor of 6, to group 'W', got 4"),
        (Scaling("W:0/0"), "a divisor of 6"),
        (GeneralLinear("W:0[0:2]", "W:0[1:3]"), r"different parameters, got W\[1,0\] twice"),
        (GeneralLinear("W:0[0:2]", "W:0[2:5]"), "two factors that share an axis"),
    ],
)
def test_refusals(symmetry: Symmetry, words: str) -> None:
    with pytest.raises(SymmetryError, match=words):
        symmetry.bind(Packed())
