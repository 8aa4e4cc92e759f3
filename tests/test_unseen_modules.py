"""Five modules as others write them, from `from_module` to a verdict: none was at hand when the package was written.

Each verdict has a false-alarm rate of 1e-3, with fixed seeds; each has a twin, the prediction 10 % larger, which must
be rejected.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdebias as sb
from sdebias.errors import InputError, SymmetryError

BY_SGD = sb.SGD(learning_rate=1e-2, batch_size=4)
BY_SDE = sb.SGDSDE(learning_rate=1e-2, batch_size=4, substeps=4)
DYNAMICS = pytest.mark.parametrize(
    "dynamics", [pytest.param(BY_SGD, id="sgd"), pytest.param(BY_SDE, id="sde", marks=pytest.mark.slow)]
)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judged(
    problem: sb.Problem, symmetry: sb.symmetry.Symmetry, dynamics: sb.SGD | sb.SGDSDE, *, trajectories: int = 256
) -> tuple[str, str]:
    """Return the verdicts on the prediction and on one that is 10 % larger."""
    ensemble = sb.simulate(problem, dynamics, symmetry=symmetry, trajectories=trajectories, steps=20, save_every=2)
    prediction = sb.predict_orbit_drift(ensemble, problem, symmetry)
    wrong = prediction.assign(predicted_drift=1.1 * prediction.predicted_drift)
    first, second = (sb.compare(ensemble, guess).attrs["verdict"] for guess in (prediction, wrong))
    return first, second


class StripeNet(nn.Module):
    """Strided convolution, overlapping and adaptive pooling, leaky units without bias, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.block = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d((2, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.stem(image)), 2, stride=1)
        x = functional.leaky_relu(self.block(x), 0.1)
        return self.head(self.pool(x).flatten(1))


def stripes() -> tuple[Tensor, Tensor]:
    """Waves along three directions, with noise."""
    kind = torch.arange(24) % 3
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([torch.sin(2 * row), torch.sin(2 * column), torch.sin(1.4 * (row + column))])
    return waves[kind, None].double() + 0.5 * draw(24, 1, 8, 8, seed=0), kind


@pytest.mark.slow
@DYNAMICS
def test_convolutions_with_pooling(dynamics: sb.SGD | sb.SGDSDE) -> None:
    torch.manual_seed(7)
    net = StripeNet().double()
    problem = sb.Problem.from_module(net, functional.cross_entropy, *stripes())
    symmetry, report = sb.symmetry.of_module(net, problem)
    # Each pooled channel feeds two inputs of the head.
    kept = {"Rescaling('stem:0', 'block.weight:1')", "Rescaling('block.weight:0', 'head.weight:1/3')"}
    assert set(report.symmetry[report.kept]) == kept
    assert symmetry is not None
    assert judged(problem, symmetry, dynamics) == ("consistent", "rejected")


class Block(nn.Module):
    """A causal transformer block: one map for queries, keys and values, learned positions, pre-norm, GELU."""

    def __init__(self, vocabulary: int = 4, width: int = 4, heads: int = 2, context: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Parameter(0.3 * torch.randn(context, width))
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe
        B, T, C = x.shape
        parts = self.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (z.view(B, T, self.heads, C // self.heads).transpose(1, 2) for z in parts)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        mask = torch.tril(torch.ones(T, T, dtype=torch.bool))
        mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(B, T, C))
        return self.lm_head(x + self.mlp(self.ln_2(x)))


def text() -> tuple[Tensor, Tensor]:
    """Count up, modulo 4, and now and then skip a letter; the target is the next one."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(4, (20, 1), generator=generator)
    skips = (torch.rand(20, 6, generator=generator) < 0.2).long().cumsum(1)
    letters = (start + torch.arange(6) + skips) % 4
    return letters[:, :-1], letters[:, 1:]


@pytest.mark.slow
@DYNAMICS
def test_transformer_block_of_two_heads(dynamics: sb.SGD | sb.SGDSDE) -> None:
    torch.manual_seed(7)
    net = Block().double()
    problem = sb.Problem.from_module(net, functional.cross_entropy, *text())
    symmetry, report = sb.symmetry.of_module(net, problem)
    kinds = report[report.kept].kind.value_counts()
    assert dict(kinds) == {"general linear": 4, "rescaling": 2, "translation": 1}  # QK and VO of two heads; two norms
    assert "gelu" in report.set_index("symmetry").loc["mlp.0.weight, mlp.0.bias", "reason"]
    assert symmetry is not None
    assert judged(problem, symmetry, dynamics) == ("consistent", "rejected")


class Forecaster(nn.Module):
    """An `LSTMCell`, unrolled over a series; forecasts are read through a bottleneck, or straight from the state."""

    def __init__(self, bottleneck: bool) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, 3)
        self.compress = nn.Linear(3, 2, bias=False) if bottleneck else nn.Identity()
        self.readout = nn.Linear(2 if bottleneck else 3, 2)

    def forward(self, series: Tensor) -> Tensor:
        h = c = series.new_zeros(len(series), self.cell.hidden_size)
        for value in series.split(1, dim=1):
            h, c = self.cell(value, (h, c))
        return self.readout(self.compress(h))


def waves() -> tuple[Tensor, Tensor]:
    """Six values of a wave with noise, and the next two."""
    phase = 6.28 * torch.rand(20, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    series = torch.sin(0.9 * torch.arange(8.0) + phase) + 0.1 * draw(20, 8, seed=2)
    return series[:, :6], series[:, 6:]


@DYNAMICS
def test_lstm_cell_with_a_bottleneck(dynamics: sb.SGD | sb.SGDSDE) -> None:
    torch.manual_seed(7)
    net = Forecaster(bottleneck=True).double()
    problem = sb.Problem.from_module(net, functional.mse_loss, *waves())
    symmetry, _ = sb.symmetry.of_module(net, problem)
    assert repr(symmetry) == "GeneralLinear('readout.weight:1', 'compress.weight:0')"
    assert symmetry is not None
    assert judged(problem, symmetry, dynamics) == ("consistent", "rejected")


def test_lstm_cell_alone_has_only_what_noise_does_not_drive() -> None:
    torch.manual_seed(7)
    net = Forecaster(bottleneck=False).double()
    problem = sb.Problem.from_module(net, functional.mse_loss, *waves())
    symmetry, report = sb.symmetry.of_module(net, problem)
    assert symmetry is None
    gates = report[report.symmetry.str.startswith("cell.weight_ih")]
    assert set(gates.reason) == {"no scale: sigmoid", "no scale: tanh"}
    # The two biases of each gate are seen as their sum only.
    found = sb.symmetry.discover(problem)
    assert found.description == "translation of cell.bias_ih, cell.bias_hh in 12 directions"
    ensemble = sb.simulate(problem, BY_SGD, symmetry=found, trajectories=16, steps=20)
    moved = ensemble.charge_value - ensemble.charge_value.isel(step=0)
    assert float(abs(moved).max()) < 1e-13  # rounding
    assert float(abs(ensemble.theta - ensemble.theta.isel(step=0)).max()) > 1e-3
    assert float(abs(sb.predict_orbit_drift(ensemble, problem, found).predicted_drift).max()) == 0.0


class NormalisedMLP(nn.Module):
    """Normalised weights with gains, batch normalisation, layer normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.direction, self.gain, self.shift = (nn.Parameter(torch.randn(4, *n)) for n in ((4,), (1,), ()))
        self.bn = nn.BatchNorm1d(4)
        self.mid = nn.Linear(4, 3)
        self.ln = nn.LayerNorm(3)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gain * self.direction / self.direction.norm(dim=1, keepdim=True)
        x = functional.relu(self.bn(functional.linear(x, weight, self.shift)))
        return self.out(functional.relu(self.ln(self.mid(x)))).squeeze(-1)


def table() -> tuple[Tensor, Tensor]:
    """Return a product and a linear term, with noise."""
    X = draw(32, 4, seed=3)
    return X, torch.tanh(X[:, 0] * X[:, 1]) + 0.5 * X[:, 2] + 0.2 * draw(32, seed=4)


@DYNAMICS
def test_normalised_mlp(dynamics: sb.SGD | sb.SGDSDE) -> None:
    torch.manual_seed(7)
    net, (X, y) = NormalisedMLP().double(), table()
    with pytest.raises(InputError, match=r"layer 'bn' \(BatchNorm1d\), which in training mode couples the samples"):
        sb.Problem.from_module(net, functional.mse_loss, X, y)
    for _ in range(20):  # running statistics
        net(X)
    net.eval()
    problem = sb.Problem.from_module(net, functional.mse_loss, X, y)
    symmetry, report = sb.symmetry.of_module(net, problem)
    assert set(report.symmetry[report.kept]) >= {
        "Rescaling('bn:0', 'mid.weight:1')",
        "Rescaling('ln:0', 'out.weight:1')",
    }
    assert symmetry is not None
    assert judged(problem, symmetry, dynamics) == ("consistent", "rejected")


class TiedAutoencoder(nn.Module):
    """Codes of W x + b, decoded by the same weights: Wᵀ code + c."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(2, 5) / 2)
        self.b, self.c = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(5))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        code = self.activation(functional.linear(x, self.W, self.b))
        return functional.linear(code, self.W.T, self.c)


class DeepTiedAutoencoder(nn.Module):
    """Two layers there, the same two back."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.W2 = nn.Parameter(torch.randn(4, 5) / 2), nn.Parameter(torch.randn(2, 4) / 2)
        self.b1, self.b2 = nn.Parameter(0.1 * torch.randn(4)), nn.Parameter(torch.zeros(2))
        self.c1, self.c2 = nn.Parameter(0.1 * torch.randn(4)), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        code = functional.linear(functional.relu(functional.linear(x, self.W1, self.b1)), self.W2, self.b2)
        return functional.linear(functional.relu(functional.linear(code, self.W2.T, self.c1)), self.W1.T, self.c2)


def cloud() -> tuple[Tensor, Tensor]:
    """Points near a curved surface, which are to be given back."""
    X = torch.tanh(draw(24, 2, seed=5) @ draw(2, 5, seed=6)) + 0.1 * draw(24, 5, seed=7)
    return X, X


@pytest.mark.parametrize(
    ("activation", "found", "dim", "reason"),
    [
        (nn.Identity(), "algebra of dimension 3 (1 compact) on W, b, c", 3, "none of its fields is a gradient"),
        (nn.ReLU(), "no affine symmetry", 0, "it has no directions"),
    ],
    ids=["linear", "relu"],
)
def test_tied_autoencoder_is_refused(activation: nn.Module, found: str, dim: int, reason: str) -> None:
    torch.manual_seed(7)
    net = TiedAutoencoder(activation).double()
    problem = sb.Problem.from_module(net, functional.mse_loss, *cloud())
    assert sb.symmetry.of_module(net, problem).symmetry is None
    # Linear codes may turn, and be shifted: neither is the gradient of a charge.
    symmetry = sb.symmetry.discover(problem)
    assert (symmetry.description, symmetry.dim) == (found, dim)
    ensemble = sb.simulate(problem, BY_SGD, symmetry=symmetry, trajectories=4, steps=4)
    with pytest.raises(SymmetryError, match=reason):
        sb.predict_orbit_drift(ensemble, problem, symmetry)


@DYNAMICS
def test_deep_tied_autoencoder(dynamics: sb.SGD | sb.SGDSDE) -> None:
    """A unit that is scaled on the way there is scaled back on the way back, since both use the same weights."""
    torch.manual_seed(7)
    net = DeepTiedAutoencoder().double()
    problem = sb.Problem.from_module(net, functional.mse_loss, *cloud())
    symmetry = sb.symmetry.discover(problem)
    assert symmetry.description.startswith("rescaling of 4 units W1:W2:b1:c1; ")
    assert judged(problem, symmetry, dynamics, trajectories=1024) == ("consistent", "rejected")
