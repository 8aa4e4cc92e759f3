"""Every group obeys the laws of `symmetry_laws`."""

# The laws are documented on their class; shapes are read only.
# ruff: noqa: RUF012
from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from symmetry_laws import INPUTS, TARGETS, Named, SymmetryLaws
from torch import Tensor

from sdebias.errors import InputError, SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import (
    FromFields,
    GeneralLinear,
    Orthogonal,
    Product,
    Rescaling,
    Scaling,
    Symmetry,
    Translation,
    from_action,
)


def squared_error(weights: Tensor) -> Tensor:
    """Return ½ (x_i·w − y_i)² for w of shape (..., 3)."""
    return 0.5 * (weights @ INPUTS.mT - TARGETS).square()


def completion(product: Tensor) -> Tensor:
    """Return four squared errors of a matrix of at least 2 × 2."""
    return (product[..., :2, :2].flatten(-2) - TARGETS).square()


def without(theta: Tensor, layout: ParameterLayout, **indices: Sequence[int]) -> Tensor:
    """Return a copy of θ with some flat entries of named parameters set to zero."""
    out = theta.clone()
    for name, entries in indices.items():
        out[..., layout.slices[name]][..., list(entries)] = 0
    return out


def matrix_invariants(*factors: Tensor) -> Tensor:
    """Return the inner products of all rows of factors (..., rows, r): what O(r) from the right leaves unchanged."""
    rows = torch.cat(factors, dim=-2)
    return (rows @ rows.mT).flatten(-2)


class Pair:
    """A problem of two numbers p and q, as far as a symmetry sees it."""

    layout = ParameterLayout({"p": (), "q": ()})


class TestRescaling(SymmetryLaws):
    symmetry = Rescaling("p", "q")
    shapes = {"p": (3,), "q": (3,), "other": (2,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return squared_error(named["p"] * named["q"]) + named["other"].square().sum(-1, keepdim=True)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, p=[0, 1], q=[0]), 2


class TestRescalingAtALevel(TestRescaling):
    symmetry = Rescaling("p", "q", level=0.4)

    def test_rank_drop(self, bound: Symmetry) -> None:
        theta, rank = self.degenerate(self.points(bound, 9), bound.layout)
        assert bound.rank(theta) == rank
        with pytest.raises(InputError, match="expected an orbit with a balanced point, got a charge 0.4 off"):
            bound.balance(theta)

    def test_balance_is_the_point_of_the_hyperbola(self) -> None:
        bound = self.symmetry.bind(Pair())
        p, q = bound.balance(torch.tensor([0.3, 2.0], dtype=torch.float64))
        torch.testing.assert_close(0.5 * (p.square() - q.square()), torch.tensor(0.4, dtype=torch.float64))
        torch.testing.assert_close(p * q, torch.tensor(0.6, dtype=torch.float64))
        assert repr(self.symmetry) == "Rescaling('p', 'q', level=0.4)"
        with pytest.raises(SymmetryError, match="level: expected a finite number"):
            Rescaling("p", "q", level=float("nan"))


class TestDeepRescaling(SymmetryLaws):
    symmetry = Rescaling("u1", "u2", "u3", "u4")
    shapes = {"u1": (3,), "u2": (3,), "u3": (3,), "u4": (3,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return squared_error(named["u1"] * named["u2"] * named["u3"] * named["u4"])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        # One factor zero costs nothing; with z ≥ 1 zeros a unit has D − z free directions.
        return without(theta, layout, u1=[0, 1], u2=[1], u3=[2], u4=[2]), 3 + 2 + 2


class TestReluUnits(SymmetryLaws):
    symmetry = Rescaling.relu("W", "v", bias="b")
    shapes = {"W": (4, 3), "b": (4,), "v": (2, 4), "c": (2,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        hidden = torch.relu(INPUTS @ named["W"].mT + named["b"].unsqueeze(-2))
        return (hidden @ named["v"].mT + named["c"].unsqueeze(-2)).square().sum(-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W=[0, 1, 2], b=[0], v=[0, 4]), 3


class TestGroupSparsity(SymmetryLaws):
    symmetry = Rescaling("c", "W:0")
    shapes = {"c": (3,), "W": (3, 2)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return squared_error((named["c"].unsqueeze(-1) * named["W"]).square().sum(-1))

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, c=[1], W=[2, 3]), 2


class TestAttentionColumns(SymmetryLaws):
    symmetry = Rescaling.columns("W_Q", "W_K")
    shapes = {"W_Q": (3, 2), "W_K": (4, 2)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return completion(named["W_Q"] @ named["W_K"].mT)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W_Q=[1, 3, 5], W_K=[1, 3, 5, 7]), 1


class TestGeneralLinear(SymmetryLaws):
    symmetry = GeneralLinear("U", "V")
    shapes = {"U": (5, 3), "V": (4, 3)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return completion(named["U"] @ named["V"].mT)

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["U"], named["V"])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        # U of rank 2 and V of rank 1: the eigenvalue sums a_i + b_j vanish for one zero of A and two of B.
        return without(theta, layout, U=range(0, 15, 3), V=[*range(0, 12, 3), *range(1, 12, 3)]), 7


class TestAttentionValues(SymmetryLaws):
    symmetry = GeneralLinear("W_V", "W_O:0")
    shapes = {"W_V": (4, 2), "W_O": (2, 3)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return completion(named["W_V"] @ named["W_O"])

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["W_V"], named["W_O"].mT)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W_V=range(8), W_O=range(6)), 0


class TestConsecutiveLayers(SymmetryLaws):
    symmetry = GeneralLinear.layers("0", "1")
    shapes = {"0.weight": (2, 3), "0.bias": (2,), "1.weight": (3, 2), "1.bias": (3,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        hidden = INPUTS @ named["0.weight"].mT + named["0.bias"].unsqueeze(-2)
        return (hidden @ named["1.weight"].mT + named["1.bias"].unsqueeze(-2)).square().sum(-1)

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["0.weight"].mT, named["0.bias"].unsqueeze(-2), named["1.weight"])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, **{"0.weight": [0, 1, 2], "0.bias": [0], "1.weight": [0, 2, 4]}), 3


class TestWideFactor(SymmetryLaws):
    """More columns than rows: U has rank 2 < r = 3 everywhere, and the orbit of a generic point is still free."""

    symmetry = GeneralLinear("U", "V")
    shapes = {"U": (2, 3), "V": (4, 3)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return completion(named["U"] @ named["V"].mT)

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["U"], named["V"])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, V=range(0, 12, 3)), 8

    def test_gauge_coordinates_are_coordinates(self, bound: Symmetry) -> None:
        # U Vᵀ has rank below r: the balanced point is a limit outside the orbit, from which there is no way back.
        theta = self.points(bound, 1)
        balanced = bound.gauge_coordinates(theta).balanced
        assert int(bound.rank(balanced)) < int(bound.rank(theta))


class TestOrthogonalVector(SymmetryLaws):
    symmetry = Orthogonal("w")
    shapes = {"w": (4,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return (named["w"].square().sum(-1, keepdim=True) - TARGETS).square()

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return named["w"].norm(dim=-1, keepdim=True)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return 0 * theta, 0


class TestOrthogonalColumns(SymmetryLaws):
    symmetry = Orthogonal("U")
    shapes = {"U": (4, 3)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        return completion(named["U"] @ named["U"].mT)

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["U"])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, U=[*range(0, 12, 3), *range(1, 12, 3)]), 2


class TestOrthogonalPair(SymmetryLaws):
    symmetry = Orthogonal("U", "V:0")
    shapes = {"U": (4, 2), "V": (2, 3)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        decay = named["U"].square().sum((-2, -1)) + named["V"].square().sum((-2, -1))
        return completion(named["U"] @ named["V"]) + decay.unsqueeze(-1)

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return matrix_invariants(named["U"], named["V"].mT)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return 0 * theta, 0


class TestScaling(SymmetryLaws):
    symmetry = Scaling("w", "b")
    shapes = {"w": (3,), "b": (1,), "free": (1,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        joint = torch.cat([named["w"], named["b"]], dim=-1)
        return squared_error((joint / joint.norm(dim=-1, keepdim=True))[..., :3]) * named["free"].square()

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, w=range(3), b=[0]), 0


class TestScalingRows(SymmetryLaws):
    symmetry = Scaling("W:0")
    shapes = {"W": (3, 2)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        rows = named["W"] / named["W"].norm(dim=-1, keepdim=True)
        return squared_error(rows[..., 0])

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W=[0, 1]), 2


class TestTranslation(SymmetryLaws):
    symmetry = Translation("W", "b")
    shapes = {"W": (3, 3), "b": (3,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        logits = INPUTS @ named["W"].mT + named["b"].unsqueeze(-2)
        return -torch.log_softmax(logits, dim=-1)[..., 0]

    def isometries(self, bound: Symmetry, like: Tensor) -> Tensor:
        return torch.eye(bound.dim, dtype=like.dtype)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return 0 * theta, 4  # shifts have no stabilizer anywhere


class TestDisjointProduct(SymmetryLaws):
    symmetry = Product(Rescaling("p", "q"), GeneralLinear("U", "V"), Orthogonal("w"))
    shapes = {"U": (3, 2), "p": (3,), "w": (3,), "q": (3,), "V": (3, 2)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        norm = named["w"].square().sum(-1, keepdim=True)
        return squared_error(named["p"] * named["q"]) + completion(named["U"] @ named["V"].mT) * norm

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        rest = [named["p"], named["q"], named["w"].norm(dim=-1, keepdim=True)]
        return torch.cat([matrix_invariants(named["U"], named["V"]), *rest], dim=-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, p=[0], q=[0], U=[0, 2, 4], V=[0, 2, 4], w=range(3)), 2 + 3


class TestDeepLinearNetwork(SymmetryLaws):
    """Groups between consecutive layers share the middle layer: two coupled factors, and one of its own."""

    symmetry = Product(GeneralLinear("W2", "W1:0"), GeneralLinear("W3", "W2:0"), Scaling("s"))
    shapes = {"W1": (2, 3), "W2": (2, 2), "W3": (3, 2), "s": (2,)}

    @staticmethod
    def loss(named: Named) -> Tensor:
        direction = named["s"] / named["s"].norm(dim=-1, keepdim=True)
        return completion(named["W3"] @ named["W2"] @ named["W1"]) * (2 + direction[..., :1])

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        outer = [named["W1"].mT @ named["W1"], named["W3"] @ named["W3"].mT, named["W3"] @ named["W2"] @ named["W1"]]
        return torch.cat([*(m.flatten(-2) for m in outer), named["s"]], dim=-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, W1=range(6), W2=range(4), W3=range(6)), 1

    def test_gauge_coordinates_are_coordinates(self, bound: Symmetry) -> None:
        mixed = bound.gauge_coordinates(self.points(bound, 1))
        with pytest.raises(SymmetryError, match="abelian factors"):
            Product(*self.symmetry.factors[:2]).bind(bound).from_gauge_coordinates(mixed)


def boost(xi: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale pairs."""
    return p * xi.exp(), q * (-xi).exp()


class TestFromAction(SymmetryLaws):
    symmetry = from_action(boost, dim=3, parameters=["p", "q"])
    shapes = {"q": (3,), "between": (1,), "p": (3,)}
    composes = False

    @staticmethod
    def loss(named: Named) -> Tensor:
        return squared_error(named["p"] * named["q"]) * named["between"]

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return without(theta, layout, p=[0, 1], q=[0]), 2


def stretch(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field of z → e^s z, w → e^{-s} w."""
    return z, -w


def turn(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field of the rotation of both vectors by one angle."""
    return torch.stack([-z[1], z[0]]), torch.stack([-w[1], w[0]])


class TestFromFields(SymmetryLaws):
    """GL(1, C) acting on a pair of complex numbers as (z, w) → (c z, w / c̄): one boost, one rotation."""

    symmetry = FromFields([stretch, turn], parameters=["z", "w"])
    shapes = {"z": (2,), "w": (2,)}
    composes = False

    @staticmethod
    def loss(named: Named) -> Tensor:
        z, w = named["z"], named["w"]
        inner = (z * w).sum(-1, keepdim=True)
        cross = (z[..., 0] * w[..., 1] - z[..., 1] * w[..., 0]).unsqueeze(-1)
        return (inner * INPUTS[:, 0] + cross * INPUTS[:, 1] - TARGETS).square()

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        return torch.stack([named["z"].norm(dim=-1), named["w"].norm(dim=-1)], dim=-1)

    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        return 0 * theta, 0
