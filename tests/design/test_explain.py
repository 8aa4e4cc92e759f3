"""Modules explained: every symmetry counted by hand, its bias in closed form, and "none" where there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import every_model
from torch import Tensor, nn

from sdebias.design.bias import kronecker_sum
from sdebias.design.explain import SampleWarning, explain
from sdebias.design.report import Explanation
from sdebias.errors import InputError
from sdebias.prediction import log_stationary_density
from sdebias.problems import (
    DeepDiagonalRegression,
    HadamardRegression,
    MatrixFactorization,
    Problem,
    ShallowReLU,
    WeightDecay,
)
from sdebias.symmetry import GeneralLinear, Rescaling

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def module(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def rows(found: Explanation) -> list[tuple[Any, ...]]:
    return list(found.table[["symmetry", "parameters", "dimension"]].itertuples(index=False, name=None))


def column(found: Explanation, name: str) -> Tensor:
    return torch.tensor(found.charges[name].tolist(), dtype=F64)


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


def test_rescalings_have_the_volume_penalty_and_drift_of_the_declared_group() -> None:
    problem = HadamardRegression(draw(20, 4), draw(20, seed=1))
    declared, theta = Rescaling("p", "q").bind(problem), draw(8, seed=2)
    found = explain(problem, theta=theta)
    row = found.table.iloc[0]
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-12)
    penalty = float(0.5 * (2 * problem.predictor(theta).abs()).log().sum())
    assert row["isotropic_value"] == pytest.approx(penalty, rel=1e-12)
    assert penalty == pytest.approx(float(declared.log_orbit_volume(declared.balance(theta))), rel=1e-12)
    # det J_F J_Fᵀ = Π (p² + q²): for this model the volume of the orbit
    assert found.predictor_volume == pytest.approx(row["log_orbit_volume"], rel=1e-12)
    matrices = declared.charge_matrices(theta)
    noise = problem.gradient_noise_trace(theta, matrices)
    torch.testing.assert_close(column(found, "minibatch"), noise)
    torch.testing.assert_close(column(found, "value"), declared.charge(theta))
    assert row["noise_drift"] == pytest.approx(float(noise.norm()), rel=1e-12)
    eye = torch.eye(8, dtype=F64)
    across = declared.horizontal_projection(eye, theta.expand(8, 8)).diagonal()
    torch.testing.assert_close(column(found, "horizontal"), matrices @ across)
    assert found.charges["isotropic"].abs().max() < 1e-12


@pytest.mark.parametrize("depth", [3, 4])
def test_deep_diagonal_networks_have_the_closed_form(depth: int) -> None:
    problem = DeepDiagonalRegression(draw(20, 2), draw(20, seed=1), depth=depth)
    declared, theta = problem.symmetry().bind(problem), draw(2 * depth, seed=2)
    row = explain(problem, theta=theta).table.iloc[0]
    w = problem.predictor(theta).abs()
    closed = float(((depth - 1) / depth * w.log() + 0.5 * math.log(depth)).sum())
    assert row["isotropic_value"] == pytest.approx(closed, rel=1e-12)
    assert closed == pytest.approx(float(declared.log_orbit_volume(declared.balance(theta))), rel=1e-9)
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-9)
    assert f"{depth - 1}/{depth} T Σ_j log |z_j|" in row["isotropic_penalty"]


def test_relu_units_have_the_path_norm() -> None:
    problem = ShallowReLU(draw(40, 3), draw(40, seed=1), units=4)
    theta = draw(16, seed=2)
    named = problem.layout.unflatten(theta)
    path = named["v"].abs() * named["W"].norm(dim=1)
    row = explain(problem, theta=theta).table.iloc[0]
    assert row["isotropic_value"] == pytest.approx(float(0.5 * (2 * path).log().sum()), rel=1e-12)


def test_factorisations_have_the_singular_values_of_the_product() -> None:
    problem = MatrixFactorization(draw(5, 4), rank=3)
    declared, theta = GeneralLinear("U", "V").bind(problem), draw(27, seed=2)
    found = explain(problem, theta=theta)
    row = found.table.iloc[0]
    sigma = torch.linalg.svdvals(problem.predictor(theta).unflatten(-1, (5, 4)))[:3]
    assert row["isotropic_value"] == pytest.approx(float(0.5 * (2 * sigma).log().sum()), rel=1e-9)
    assert ", ".join(f"{s:.3g}" for s in sigma.tolist()) in row["isotropic_penalty"]
    assert row["log_orbit_volume"] == pytest.approx(float(declared.log_orbit_volume(theta)), rel=1e-9)
    # The whole volume on the balanced slice is that of the table, ½ Σ_ij log(σ_i + σ_j).
    whole = 0.5 * (sigma[:, None] + sigma).log().sum()
    torch.testing.assert_close(found.symmetry.log_orbit_volume(declared.balance(theta)), whole + _units(found, theta))


@pytest.mark.parametrize(
    "problem",
    [
        HadamardRegression(draw(20, 3), draw(20, seed=1)),
        DeepDiagonalRegression(draw(20, 2), draw(20, seed=1), depth=3),
        ShallowReLU(draw(40, 3), draw(40, seed=1), units=4),
        MatrixFactorization(draw(5, 4), rank=2),
    ],
    ids=lambda problem: problem.model,
)
def test_penalties_are_those_of_the_stationary_law(problem: Problem) -> None:
    declared = problem.symmetry()
    assert declared is not None
    points = declared.bind(problem).balance(draw(2, problem.layout.size, seed=5))
    values = [explain(problem, theta=theta).table["isotropic_value"][0] for theta in points]
    temperature = 0.3
    density = log_stationary_density(
        problem, declared.bind(problem), points, noise="soft_gauge", temperature=temperature, measure="slice"
    )
    penalty = -(density + problem.loss(points) / temperature)
    assert values[1] - values[0] == pytest.approx(float(penalty[1] - penalty[0]), rel=1e-9)


def _units(found: Explanation, theta: Tensor) -> Tensor:
    """Return the constant by which the sparse basis of the discovered fields measures volumes differently."""
    return found.symmetry.log_orbit_volume(theta) - found.table["log_orbit_volume"][0]


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


class Function(nn.Module):
    """A function of one parameter vector and the inputs."""

    def __init__(self, size: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(size, seed=3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w, x)


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


def test_too_few_samples_are_noticed() -> None:
    # Two samples see two directions of each row of [W b], of four.
    net = module(lambda: nn.Linear(3, 2))
    with pytest.warns(SampleWarning, match="2 given samples leave 6 directions unchanged, fresh samples 0"):
        found = explain(net, (draw(2, 3), draw(2, 2, seed=1)))
    assert found.table["symmetry"].tolist() == ["none", "6 fields"]
    assert found.table["origin"].tolist() == ["architecture", "sample"]
    assert (found.samples, found.seen, found.identifiable) == (2, 2, 8)


def test_inputs_in_a_subspace_are_noticed_however_many_they_are() -> None:
    inputs = draw(200, 3)
    inputs[:, 2] = 0
    with pytest.warns(SampleWarning, match="200 given samples leave 4 directions unchanged, fresh samples 3"):
        found = explain(HadamardRegression(inputs, draw(200, seed=1)))
    assert rows(found)[0] == ("rescaling of 3 units", "p, q", 3)
    assert set(found.table["origin"]) == {"architecture", "sample"}


def test_samples_whose_neighbours_cannot_be_evaluated_are_noticed() -> None:
    net = Function(2, lambda w, x: w[0] * w[1] * x.log())
    with pytest.warns(SampleWarning, match="not finite"):
        found = explain(net, draw(30, 1).abs())
    assert found.table["symmetry"].tolist() == ["rescaling of 1 unit"]


def test_single_precision_and_classes_are_taken() -> None:
    net = nn.Linear(3, 3)
    labels = torch.arange(30) % 3
    found = explain(net, (draw(30, 3).float(), labels), loss_fn=nn.CrossEntropyLoss())
    assert rows(found) == [("translation in 3 directions", "weight", 3), ("translation in 1 direction", "bias", 1)]
    assert found.theta.dtype == F64


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((nn.Linear(2, 1),), "sample: expected inputs X"),
        ((HadamardRegression(draw(4, 2), draw(4)), draw(4, 2)), "a Problem has its own"),
        ((nn.Linear(2, 1), draw(4, 3).float()), "inputs that the module takes"),
        (("linear", draw(4, 3)), "an nn.Module or a Problem"),
        ((nn.Linear(40, 40).double(), draw(50, 40)), "at most 512 parameters"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        explain(*arguments)


@pytest.mark.parametrize(
    ("theta", "match"),
    [(draw(3), "flatten the parameters"), (draw(2, 8), "take one row"), (torch.full((8,), torch.nan), "NaN")],
)
def test_bad_points_are_refused(theta: Tensor, match: str) -> None:
    problem: Problem = HadamardRegression(draw(10, 4), draw(10, seed=1))
    with pytest.raises(InputError, match=match):
        explain(problem, theta=theta)
