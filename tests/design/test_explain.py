"""Modules explained: every symmetry counted by hand, its bias in closed form, and "none" where there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import every_model
from explained import F64, Function, draw, module, rows
from torch import Tensor, nn

from sdebias.design.bias import kronecker_sum
from sdebias.design.explain import SampleWarning, explain
from sdebias.design.report import Explanation
from sdebias.problems import (
    HadamardRegression,
    WeightDecay,
)


class Block(nn.Module):
    """A transformer block: x + attention(LN(x)), then h + MLP(LN(h)), two heads, all biases, ReLU."""

    def __init__(self, width: int = 4, heads: int = 2, hidden: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.ln1(x)
        q, k, v = (layer(z).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        h = x + self.o(mixed.transpose(-3, -2).flatten(-2))
        return h + self.down(torch.relu(self.up(self.ln2(h))))


BLOCK = [
    # softmax forgets what is added to all scores of a query, q·(k + c): the biases of the keys
    ("translation in 4 directions", "k.bias", 4),
    # LN2 forgets a shift of all of h alike, and the bias of the MLP undoes it in the residual stream
    ("translation in 1 direction", "o.bias, down.bias", 1),
    # queries and keys of each head meet in products only: GL(2)
    ("gl(2)", "q.weight[0:2,:], q.bias[0:2], k.weight[0:2,:]", 4),
    ("gl(2)", "q.weight[2:4,:], q.bias[2:4], k.weight[2:4,:]", 4),
    # so do values and output of each head
    ("gl(2)", "v.weight[0:2,:], v.bias[0:2], o.weight[:,0:2]", 4),
    ("gl(2)", "v.weight[2:4,:], v.bias[2:4], o.weight[:,2:4]", 4),
    # γ_j, β_j → c γ_j, c β_j against column j of what LN feeds
    ("rescaling of 4 units", "ln1.weight, ln1.bias, q.weight, k.weight, v.weight", 4),
    ("rescaling of 4 units", "ln2.weight, ln2.bias, up.weight", 4),
    # ReLU
    ("rescaling of 3 units", "up.weight, up.bias, down.weight", 3),
    # β → β + s against b → b − W s (the keys' need none); values → + c against o.bias → − W_O c, for Σ softmax = 1
    ("shear in 4 directions", "ln1.bias, q.bias, v.bias", 4),
    ("shear in 4 directions", "ln2.bias, up.bias", 4),
    ("shear in 4 directions", "v.bias, o.bias, down.bias", 4),
    # LN's outputs sum to 0 over features, so that W_ij + u_i/γ_j is W to it: one direction for each row, not affine
    ("not affine", "q.weight (4), k.weight (4), v.weight (4), up.weight (3)", 15),
]


@pytest.fixture(scope="module")
def block() -> Explanation:
    return explain(module(Block), draw(40, 3, 4))


def test_a_transformer_block_has_the_symmetries_counted_by_hand(block: Explanation) -> None:
    assert rows(block) == BLOCK
    assert block.dimension == 4 + 1 + 4 * 4 + 4 + 4 + 3 + 3 * 4 == 44
    # Every direction that no gradient sees is in the table.
    assert block.identifiable == 127 - 44 - 15
    assert block.symmetry.violation < 1e-11
    assert block.symmetry.gap > 1e6
    assert (block.layers["rows"] != "none").all()
    assert block.layers.loc["o.weight", "rows"] == "4, 5"


def test_each_symmetry_of_a_transformer_block_has_its_bias(block: Explanation) -> None:
    words = {
        "translation": "none: the volume is constant",
        "gl(2)": "low rank",
        "rescaling": "1/2 T Σ_j log Π_k ‖a_kj‖",
        "shear": "no law",
        "not": "no prediction",
    }
    for _, row in block.table.iterrows():
        assert words[row["symmetry"].split()[0]] in row["isotropic_penalty"]
    text = repr(block)
    assert all(text.count(name) >= 1 for name, _, _ in BLOCK)
    assert "o.weight[:,2:4]" in block._repr_html_()


@pytest.mark.slow
def test_the_layer_of_torch_has_the_same_symmetries(block: Explanation) -> None:
    layer = module(
        lambda: nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True, norm_first=True, activation="relu")
    )
    with warnings.catch_warnings():
        # torch has no batching rule for its fused attention
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        found = explain(layer, draw(40, 3, 4))
    assert found.table["symmetry"].tolist() == block.table["symmetry"].tolist()
    assert found.table["dimension"].tolist() == block.table["dimension"].tolist()


MODELS: list[list[tuple[str, str, int]]] = [
    [("rescaling of 3 units", "p, q", 3)],
    [("rescaling of 3 units, 3 factors each", "u1, u2, u3", 6)],
    [("rescaling of 3 units", "p, q", 3)],
    [("scaling by 1 factor", "w", 1)],
    [("rescaling of 4 units", "W, v", 4)],
    [("rescaling of 4 units", "W, v", 4)],
    # Only one entry of this column is observed: what its row of V has across that row of U is free.
    [("gl(2)", "U, V", 4), ("1 field", "V[1,:]", 1)],
    [("gl(2)", "W_Q, W_K", 4)],
    [("translation in 3 directions", "W", 3), ("translation in 1 direction", "b", 1)],
]
PENALTIES = ["1/2 T Σ_j log |z_j|", "2/3 T Σ_j log |z_j|", "1/2 T Σ_j log |z_j|", "none at fixed norm", "path norm"]
PENALTIES += ["path norm", "T/2 Σ_i log 2σ_i: low rank", "T/2 Σ_i log 2σ_i: low rank", "none: the volume is constant"]


@pytest.mark.parametrize("index", range(9))
def test_every_model_has_the_symmetry_that_it_declares(index: int) -> None:
    problem = every_model()[index]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SampleWarning)
        found = explain(problem)
    assert rows(found) == MODELS[index]
    assert [w.category for w in caught] == ([SampleWarning] if len(MODELS[index]) > 1 and index == 6 else [])
    assert PENALTIES[index] in found.table["isotropic_penalty"][0]
    declared = problem.symmetry()
    assert declared is not None
    assert found.symmetry.dim == declared.bind(problem).dim
    assert found.identifiable == problem.layout.size - found.dimension


def test_every_model_is_tested() -> None:
    assert len(every_model()) == len(MODELS) == len(PENALTIES)


NONE: dict[str, Callable[[], Explanation]] = {
    "linear": lambda: explain(module(lambda: nn.Linear(3, 2)), (draw(30, 3), draw(30, 2, seed=1))),
    "tanh": lambda: explain(module(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))), draw(30, 2)),
    "decay": lambda: explain(WeightDecay(HadamardRegression(draw(20, 1), draw(20, seed=1)), 0.1)),
}


@pytest.mark.parametrize("name", NONE)
def test_none_where_there_is_none(name: str) -> None:
    found = NONE[name]()
    assert rows(found) == [("none", "", 0)]
    assert found.table["isotropic_penalty"].tolist() == found.table["horizontal_penalty"].tolist() == ["none"]
    assert (found.dimension, found.log_orbit_volume, len(found.charges)) == (0, 0.0, 0)
    assert set(found.layers["rows"]) == {"none"}
    assert "none" in repr(found)


def test_decay_leaves_no_affine_symmetry_but_level_sets() -> None:
    # p∘q and ‖p‖² + ‖q‖² are all that the losses see of six parameters: two directions are left, curved ones.
    found = explain(WeightDecay(HadamardRegression(draw(20, 3), draw(20, seed=1)), 0.1))
    assert found.table["symmetry"].tolist() == ["none", "not affine"]
    assert found.table["dimension"].tolist() == [0, 2]


def test_what_follows_a_layer_norm_is_counted_by_hand() -> None:
    # W diag(γ) up to u 1ᵀ (6 numbers) and W β + b (2) are all that is seen of 18 parameters.
    net = module(lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    found = explain(net, draw(40, 4))
    assert rows(found) == [
        ("rescaling of 4 units", "0.weight, 0.bias, 1.weight", 4),
        ("shear in 4 directions", "0.bias, 1.bias", 4),
        ("not affine", "1.weight (2)", 2),
    ]
    # β → β + s, b → b − W s: G = 1 + WᵀW
    weight = net[1].weight.detach()  # type: ignore[index]
    volume = 0.5 * torch.logdet(torch.eye(4, dtype=F64) + weight.mT @ weight)
    assert found.table["log_orbit_volume"][1] == pytest.approx(float(volume), rel=1e-9)


def test_without_its_affine_part_a_layer_norm_leaves_translations() -> None:
    net = module(lambda: nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)))
    assert rows(explain(net, draw(40, 4))) == [("translation in 2 directions", "1.weight", 2)]


def test_weights_before_a_layer_norm_scale_and_rotate() -> None:
    # W forgets 1 uᵀ and, with it set apart, its scale; rotations that keep 1 go through to the next layer.
    norm = nn.LayerNorm(4, elementwise_affine=False, eps=0.0)
    net = module(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.Linear(4, 2)))
    found = explain(net, draw(40, 3))
    assert rows(found) == [
        ("translation in 3 directions", "0.weight", 3),
        ("translation in 2 directions", "2.weight", 2),
        ("scaling of a subspace", "0.weight", 1),
        ("so(3)", "0.weight, 2.weight", 3),
    ]
    weight = net[0].weight.detach()  # type: ignore[index]
    assert found.table["log_orbit_volume"][2] == pytest.approx(float((weight - weight.mean(0)).norm().log()), rel=1e-9)
    assert found.table["isotropic_value"][2] == 0


def test_orbits_without_a_balanced_point_have_no_value() -> None:
    # p q² and no balance of (c² p, q/c) with p = 0: the iteration runs off to 0.
    net = Function(2, lambda w, x: x * w[0] * w[1].square())
    found = explain(net, draw(30, 1), theta=torch.tensor([0.0, 1.0], dtype=F64))
    assert math.isnan(found.table["isotropic_value"][0])
    assert "no balanced point" in found.table["isotropic_penalty"][0]


def test_consecutive_layers() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    found = explain(module(make), draw(60, 3))
    assert rows(found) == [
        ("rescaling of 4 units", "0.weight, 0.bias, 2.weight", 4),
        ("rescaling of 3 units", "2.weight, 2.bias, 4.weight", 3),
    ]
    assert found.layers["rows"].to_dict() == {
        "0.weight": "0",
        "0.bias": "0",
        "2.weight": "0, 1",
        "2.bias": "1",
        "4.weight": "1",
        "4.bias": "none",
    }
    linear = module(lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)))
    assert rows(explain(linear, draw(40, 3))) == [
        ("gl(2)", "0.weight, 0.bias, 1.weight", 4),
        ("shear in 2 directions", "0.bias, 1.bias", 2),
    ]


class Heads(nn.Module):
    """Scores x·Q_h K_hᵀ x of heads h, whose matrices are stacked in one tensor each."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Parameter(torch.randn(2, 3, 2)), nn.Parameter(torch.randn(2, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,hik,hjk,nj->nh", x, self.queries, self.keys, x**2)


@pytest.mark.parametrize("ansatz", ["dense", "structured"])
def test_stacked_heads_have_a_group_each(ansatz: Any) -> None:
    assert rows(explain(module(Heads), draw(40, 3), ansatz=ansatz)) == [
        ("gl(2)", "queries[0,:,:], keys[0,:,:]", 4),
        ("gl(2)", "queries[1,:,:], keys[1,:,:]", 4),
    ]


def test_rotations_and_ignored_parameters() -> None:
    found = explain(Function(6, lambda w, x: x * w[:4].square().sum()), draw(30, 1))
    assert rows(found) == [("translation in 2 directions", "w[4:6]", 2), ("so(4)", "w[0:4]", 3)]
    radius = float(draw(6, seed=3)[:4].norm())
    assert found.table["isotropic_value"][1] == pytest.approx(-3 * math.log(radius), rel=1e-9)
    assert f"−3 T log r, r = ‖θ_S‖ = {radius:.3g}" in found.table["isotropic_penalty"][1]


def test_no_closed_form_is_named_where_it_does_not_hold() -> None:
    # p q² is kept by (p, q) → (c² p, q/c): a rescaling, but not one of a product of two slots of equal weight.
    found = explain(Function(2, lambda w, x: x * w[0] * w[1].square()), draw(30, 1))
    row = found.table.iloc[0]
    assert row["symmetry"] == "rescaling of 1 unit"
    assert "numeric" in row["isotropic_penalty"]
    p, q = draw(2, seed=3).tolist()
    # X = (p, −q/2); on the slice p² = q²/2, and p q² stays.
    assert row["log_orbit_volume"] == pytest.approx(0.5 * math.log(p * p + q * q / 4), rel=1e-9)
    square = (abs(p * q * q) / 2) ** (2 / 3)
    assert row["isotropic_value"] == pytest.approx(0.5 * math.log(square + 2 * square / 4), rel=1e-6)


def test_in_mixed_coordinates_there_are_numbers_but_no_names() -> None:
    mixing = draw(3, 3, seed=4)

    def product(w: Tensor, x: Tensor) -> Tensor:
        z = mixing @ w
        return x[:, :1] * z[0] * z[1] + x[:, 1:] * z[2]

    found = explain(Function(3, product), draw(30, 2))
    row = found.table.iloc[0]
    assert (row["symmetry"], row["dimension"], len(found.table)) == ("one-parameter group", 1, 1)
    assert "no law in these coordinates" in row["isotropic_penalty"]
    z, back = mixing @ draw(3, seed=3), torch.linalg.inv(mixing)
    field = back @ torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=F64)) @ z
    size = torch.linalg.matrix_norm(back @ torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=F64)) @ mixing, ord=2)
    assert row["log_orbit_volume"] == pytest.approx(float((field.norm() / size).log()), rel=1e-6)


def test_sums_of_two_singular_values_are_recognised() -> None:
    sigma = torch.tensor([2.5, 1.25, 0.5, 0.5], dtype=F64)
    sums = (sigma[:, None] + sigma).flatten()
    found = kronecker_sum(sums[torch.randperm(16, generator=torch.Generator().manual_seed(0))])
    assert found is not None
    torch.testing.assert_close(found, sigma)
    sums[3] *= 1.001
    assert kronecker_sum(sums) is None
