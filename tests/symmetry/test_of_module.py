"""Symmetries that are read off a module: what is proposed for which layers, what the losses refuse, and use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdebias as sb
from sdebias.errors import InputError
from sdebias.symmetry import check_invariance, of_module


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Residual(nn.Module):
    """x = e(x); x + b(relu(a(x))); o: the stream's producers scale alike, and mix alike."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b, self.o = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        x = x + self.b(functional.relu(self.a(x)))
        return self.o(x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.gate(x)) * self.value(x))


class Bilinear(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x) * self.value(x)).sum(-1, keepdim=True)


class Heads(nn.Module):
    """Two heads of two, from separate linear layers, by matrix products or torch's own function."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (f(x).view(batch, tokens, 2, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) / 2**0.5).softmax(-1) @ v
        return torch.tanh(self.o(mixed.transpose(1, 2).reshape(batch, tokens, width))).mean((1, 2))[:, None]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.attention(x, x, x)[0]).mean((1, 2))[:, None]


class PreNorm(nn.Module):
    """A residual stream that only normalisations read."""

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.embed, self.inner, self.back, self.head = (
            nn.Embedding(5, 4),
            nn.Linear(4, 3),
            nn.Linear(3, 4),
            nn.Linear(4, 3),
        )
        self.first, self.last = nn.LayerNorm(4, eps=eps), nn.LayerNorm(4, eps=eps)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.back(torch.relu(self.inner(self.first(x))))
        return self.head(self.last(x))[:, -1]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), 4)
        for k in range(x.shape[1]):
            hidden, cell = self.cell(x[:, k], (hidden, cell))
        return self.out(hidden)


class ReluRecurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.RNN(3, 4, nonlinearity="relu", batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(self.encoder(x)), self.encoder.weight.T)


class Ignored(nn.Module):
    """A forward pass of operations that nothing is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cumsum(torch.relu(self.a(x)), -1))


class SelfNormed(Ignored):
    """Divides by the norm of a weight that it also multiplies by."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) / self.a.weight.norm()


class InPlace(Ignored):
    """Changes a tensor of units in place, first by what is known and then by what is not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu_().sigmoid_())


class Written(Ignored):
    """Writes units into a tensor of zeros, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x.new_zeros(len(x), 2, 4)
        for k in range(2):
            kept[:, k] = torch.relu(self.a(x.roll(k, 1)))
        return self.b(kept.sum(1))


def convolutions() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), norm,
        nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 1),
    ).eval()  # fmt: skip


X, TOKENS, IMAGES = normal(6, 3), normal(6, 5, 4), normal(6, 1, 8, 8)
WORDS = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
QK = "GeneralLinear('q:0[{0}:{1}]', 'k:0[{0}:{1}]')"
VO = "GeneralLinear('o.weight:1[{0}:{1}]', 'v:0[{0}:{1}]')"
HEADS = [text.format(*head) for text in (QK, VO) for head in ((0, 2), (2, 4))]
IN = "('attention.in_proj_weight:0[{0}:{1}]', 'attention.in_proj_bias:0[{0}:{1}]')"


def packed(a: tuple[int, int], b: tuple[int, int]) -> str:
    return f"GeneralLinear({IN.format(*a)}, {IN.format(*b)})"


CASES: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "relu": (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1)), X,
        ["Rescaling('0:0', '2.weight:1')", "Rescaling('2:0', '4.weight:1')"],
    ),
    "no bias": (
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)), X,
        ["Rescaling('0.weight:0', '2.weight:1')"],
    ),
    "linear": (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Dropout(0.0), nn.Linear(2, 1)), X,
        ["GeneralLinear('1.weight:1', '0:0')", "GeneralLinear('3.weight:1', '1:0')"],
    ),
    "smooth": (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)), X, []),
    "convolutions": (
        convolutions(), IMAGES,
        ["Rescaling('0:0', '3.weight:1')", "Rescaling('3:0', '4.weight:0')", "Rescaling('4:0', '8.weight:1')"],
    ),
    "flattened": (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, 1)), IMAGES,
        ["Rescaling('0:0', '4.weight:1/3')"],
    ),
    "depthwise": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(2),
                      nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 1)), IMAGES,
        ["Rescaling('0:0', '2.weight:0')", "Rescaling('2:0', '7.weight:1')"],
    ),
    "residual": (
        Residual(), X,
        ["GeneralLinear(('a.weight:1', 'o.weight:1'), ('e:0', 'b:0'))", "Rescaling('a:0', 'b.weight:1')"],
    ),
    "gated": (Gated(), X, ["Rescaling('value:0', 'out.weight:1')"]),
    "heads": (Heads(), TOKENS, HEADS),
    "fused heads": (Heads(fused=True), TOKENS, HEADS),
    "packed heads": (
        Packed(), TOKENS,
        [packed((0, 2), (4, 6)), packed((2, 4), (6, 8)),
         f"GeneralLinear('attention.out_proj.weight:1[0:2]', {IN.format(8, 10)})",
         f"GeneralLinear('attention.out_proj.weight:1[2:4]', {IN.format(10, 12)})"],
    ),
    "pre-norm": (
        PreNorm(), WORDS,
        ["Rescaling('inner:0', 'back.weight:1')", "Rescaling('first:0', 'inner.weight:1')",
         "Rescaling('last:0', 'head.weight:1')", "Scaling('embed.weight', 'back.weight', 'back.bias')"],
    ),
    "group norm": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4, eps=0.0), nn.Tanh(), nn.Flatten(), nn.Linear(144, 1)),
        IMAGES,
        ["Scaling('0:0/2')"],
    ),
    "rms norm": (
        nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4, eps=0.0), nn.Tanh(), nn.Linear(4, 1)), X,
        ["Scaling('0.weight', '0.bias')"],
    ),
    "LSTM cell": (Cell(), TOKENS[..., :3], []),
    "ReLU recurrence": (ReluRecurrence(), TOKENS[..., :3], []),
    "tied": (Tied(), X, []),
    "unknown operation": (Ignored(), X, []),
    "self-normed": (SelfNormed(), X, []),
    "in place": (InPlace(), X, []),
}  # fmt: skip


def targets(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return normal(*module(inputs).shape, seed=9)


@pytest.mark.parametrize("case", list(CASES))
def test_what_is_kept(case: str) -> None:
    """All of the expected and nothing else; each holds on the losses; the whole is a symmetry that can be used."""
    module, inputs, expected = CASES[case]
    module = module.double()
    problem = sb.Problem.from_module(module, functional.mse_loss, inputs, targets(module, inputs))
    symmetry, report = of_module(module, problem)
    kept = report[report["kept"]]
    assert sorted(kept["symmetry"]) == sorted(expected)
    assert (kept["violation"] < 2e-12).all()
    assert (report.loc[~report["kept"], "reason"].str.len() > 0).all()
    if symmetry is None:
        assert not expected
        return
    assert check_invariance(problem, symmetry) < 2e-12
    alone, _ = of_module(module, sample=inputs)
    assert repr(alone) == repr(symmetry)
    assert repr(sb.symmetry.from_spec(symmetry.spec())) == repr(symmetry)


@pytest.mark.parametrize(
    ("module", "inputs", "text", "reason"),
    [
        (PreNorm(eps=1e-5), WORDS, "Scaling('embed.weight', 'back.weight', 'back.bias')", "eps = 1e-05 of layer_norm"),
        (PreNorm(), WORDS, "Translation('back:0')", "holds, but does not commute"),
        (ReluRecurrence(), TOKENS[..., :3], None, "'layer.weight_hh_l0' twice.*see discover"),
        (Tied(), X, "encoder.weight, encoder.bias", "reaches the output"),
        (SelfNormed(), X, "a.weight, a.bias", "no scale: norm"),
        (Heads(), TOKENS, "Translation('k.bias:0/1')", "holds, but does not commute"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), X, "Translation('2:0')", "softmax"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), X, "0.weight, 0.bias", "no scale: gelu"),
    ],
)
def test_what_is_left_out_is_reported(module: nn.Module, inputs: Tensor, text: str | None, reason: str) -> None:
    module = module.double()
    problem = sb.Problem.from_module(module, functional.mse_loss, inputs, targets(module, inputs))
    _, report = of_module(module, problem)
    rows = report[~report["kept"]]
    rows = rows if text is None else rows[rows["symmetry"] == text]
    assert rows["reason"].str.contains(reason, regex=True).any()


def test_a_shift_before_layer_normalisation_holds_whatever_its_eps() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    problem = sb.Problem.from_module(module, functional.mse_loss, X, normal(6, 1, seed=9))
    symmetry, _ = of_module(module, problem)
    assert repr(symmetry) == "Translation('0:0')"


def test_the_loss_decides_on_the_shift_of_the_outputs() -> None:
    module = nn.Sequential(nn.Tanh(), nn.Linear(3, 2)).double()
    classes = torch.tensor([0, 1, 1, 0, 1, 0])
    softmax = sb.Problem.from_module(module, functional.cross_entropy, X, classes)
    square = sb.Problem.from_module(module, functional.mse_loss, X, normal(6, 2, seed=9))
    assert repr(of_module(module, softmax).symmetry) == "Translation('1:0')"
    assert of_module(module, square).symmetry is None
    assert of_module(module).symmetry is None


def test_a_product_of_two_layers_is_rescaled() -> None:
    module = Bilinear().double().requires_grad_(True)
    problem = sb.Problem.from_module(module, functional.mse_loss, X, normal(6, 1, seed=9))
    assert "Rescaling('gate:0', 'value:0')" in list(of_module(module, problem).report["symmetry"])


def test_a_running_mean_ends_the_scale_of_its_channel() -> None:
    module = convolutions().double()
    module.get_buffer("4.running_mean").add_(1.0)
    problem = sb.Problem.from_module(module, functional.mse_loss, IMAGES, normal(6, 1, seed=9))
    symmetry, report = of_module(module, problem)
    assert "Rescaling('3:0', '4.weight:0')" not in repr(symmetry)
    assert report["reason"].str.contains("running mean").any()


def test_frozen_parameters_do_not_move() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    module[2].weight.requires_grad_(False)
    problem = sb.Problem.from_module(module, functional.mse_loss, X, normal(6, 1, seed=9))
    symmetry, report = of_module(module, problem)
    assert symmetry is None
    assert report["reason"].str.contains("2.weight is frozen").any()


def test_the_module_is_left_as_it_is() -> None:
    """A forward pass in training mode would move running means and draw random numbers."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    symmetry, report = of_module(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert "Scaling('0:0')" in repr(symmetry)
    assert report["reason"].str.contains("not checked").any()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 30 * 30, 2)),
        nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)),
        Packed(),
        Cell(),
    ],
)
def test_inputs_are_guessed_where_none_are_given(module: nn.Module) -> None:
    _, report = of_module(module)
    assert len(report)


def test_units_written_into_zeros_are_followed() -> None:
    assert repr(of_module(Written(), sample=X).symmetry) == "Rescaling('a:0', 'b.weight:1')"


class Wants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such\ninput")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: of_module(functional.relu), "a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: of_module(nn.ReLU()), "parameters that require a gradient"),
        (lambda: of_module(Wants()), "no layer says what it takes"),
        (lambda: of_module(Wants(), sample=X), "ValueError: no such input; pass"),
        (
            lambda: of_module(
                nn.Linear(3, 2).double(),
                sb.Problem.from_module(nn.Sequential(nn.Linear(3, 1)).double(), functional.mse_loss, X, X[:, :1]),
            ),
            "the trained parameters of the problem, 0.weight",
        ),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_the_result_goes_through_simulate_predict_and_compare() -> None:
    """False alarm 1e-3; a prediction 10 % larger is rejected."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    problem = sb.Problem.from_module(module, functional.mse_loss, normal(8, 2), normal(8, 1, seed=1))
    symmetry, _ = of_module(module, problem)
    assert symmetry is not None
    sgd = sb.SGD(learning_rate=0.02, batch_size=2)
    ens = sb.simulate(problem, sgd, symmetry=symmetry, trajectories=1024, steps=40, save_every=4)
    comparison = sb.compare(ens, sb.predict_orbit_drift(ens, problem, symmetry))
    assert comparison.attrs["verdict"] == "consistent"
    assert comparison.attrs["verdict_scaled"] == "rejected"
