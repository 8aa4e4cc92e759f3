"""Orbit volumes on the balanced slice, numeric Gram matrix against formulas, for every architecture."""

from __future__ import annotations

import math

import pytest
import torch
from symmetry_laws import LossProblem, randn
from torch import Tensor

from sdebias.layout import ParameterLayout
from sdebias.symmetry import GeneralLinear, Orthogonal, Rescaling, Scaling, Symmetry, Translation


def bind(symmetry: Symmetry, **shapes: tuple[int, ...]) -> Symmetry:
    return symmetry.bind(LossProblem(ParameterLayout(shapes), lambda named: named["none"]))


def dense_volume(symmetry: Symmetry, theta: Tensor) -> Tensor:
    """Return ½ log pdet of the Gram matrix of dense fields, whatever structure the group knows."""
    fields = symmetry.fundamental_vector_fields(theta)
    values = torch.linalg.eigvalsh(fields @ fields.mT)
    kept = values > values.amax(-1, keepdim=True) * 1e-12
    return 0.5 * torch.where(kept, values, 1.0).log().sum(-1)


def assert_volume(symmetry: Symmetry, theta: Tensor, wanted: Tensor) -> None:
    for volume in (dense_volume(symmetry, theta), symmetry.log_orbit_volume(theta)):
        torch.testing.assert_close(volume, wanted.expand(volume.shape), rtol=0, atol=1e-10)


def test_hadamard() -> None:
    symmetry = bind(Rescaling("p", "q"), p=(5,), q=(5,))
    theta = symmetry.balance(randn(0, 7, 10))
    w = theta[..., :5] * theta[..., 5:]
    assert_volume(symmetry, theta, 0.5 * (2 * w.abs()).log().sum(-1))


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_deep_diagonal(depth: int) -> None:
    names = [f"u{k}" for k in range(depth)]
    symmetry = bind(Rescaling(*names), **dict.fromkeys(names, (4,)))
    theta = symmetry.balance(randn(1, 7, 4 * depth))
    w = theta.unflatten(-1, (depth, 4)).prod(-2)
    assert_volume(symmetry, theta, ((depth - 1) / depth * w.abs().log() + 0.5 * math.log(depth)).sum(-1))


def test_relu_unit() -> None:
    symmetry = bind(Rescaling.relu("W", "v"), W=(4, 3), v=(4,))
    theta = symmetry.balance(randn(2, 7, 16))
    w, v = theta[..., :12].unflatten(-1, (4, 3)), theta[..., 12:]
    assert_volume(symmetry, theta, 0.5 * (v.square() + w.square().sum(-1)).log().sum(-1))
    # On the slice both norms agree, so that this is the log of the path norm |v| ‖w‖ up to a constant.
    path = v.abs() * w.norm(dim=-1)
    assert_volume(symmetry, theta, 0.5 * (2 * path).log().sum(-1))


@pytest.mark.parametrize(
    ("symmetry", "shapes"),
    [
        (GeneralLinear("U", "V"), {"U": (6, 3), "V": (5, 3)}),
        (GeneralLinear("W_Q:0", "W_K:0"), {"W_Q": (3, 6), "W_K": (3, 5)}),
        (GeneralLinear("W_V", "W_O:0"), {"W_V": (6, 3), "W_O": (3, 5)}),
    ],
)
def test_matrix_products(symmetry: Symmetry, shapes: dict[str, tuple[int, ...]]) -> None:
    group = bind(symmetry, **shapes)
    theta = group.balance(randn(3, 4, 33))
    left, right = (slot.read(theta) for slot in group.slots)  # type: ignore[attr-defined]
    sigma = torch.linalg.svdvals(left.mT @ right)[..., :3]
    sums = sigma.unsqueeze(-1) + sigma.unsqueeze(-2)
    assert_volume(group, theta, 0.5 * sums.log().sum((-2, -1)))
    i, j = torch.triu_indices(3, 3, 1)
    torch.testing.assert_close(group.log_orbit_volume(theta, "compact"), 0.5 * sums[..., i, j].log().sum(-1))
    # The parts are orthogonal on the slice; three charges off the diagonal carry the factor ½.
    parts = group.log_orbit_volume(theta, "compact") + group.log_orbit_volume(theta, "noncompact")
    torch.testing.assert_close(parts - 0.5 * 3 * math.log(0.5), group.log_orbit_volume(theta))


def test_scale_invariance() -> None:
    symmetry = bind(Scaling("w"), w=(6,))
    theta = randn(4, 7, 6)
    assert_volume(symmetry, theta, theta.norm(dim=-1).log())


def test_softmax_shift() -> None:
    symmetry = bind(Translation("W", "b"), W=(4, 3), b=(4,))
    assert_volume(symmetry, randn(5, 7, 16), torch.tensor(0.5 * 4 * math.log(4), dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_rotations(size: int) -> None:
    symmetry = bind(Orthogonal("w"), w=(size,))
    theta = randn(6, 7, size)
    assert_volume(symmetry, theta, (size - 1) * theta.norm(dim=-1).log())
    assert symmetry.rank(theta).tolist() == [size - 1] * 7
    assert symmetry.stabilizer_dimension(theta).tolist() == [(size - 1) * (size - 2) // 2] * 7
    # The sphere of radius ‖w‖: H = −(m − 1) w / ‖w‖².
    wanted = -(size - 1) * theta / theta.square().sum(-1, keepdim=True)
    torch.testing.assert_close(symmetry.mean_curvature_vector(theta), wanted)
