"""Any nn.Module as a problem: the laws, against the module itself, and the modules that are refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from problem_laws import POINTS, REPLICATES, ProblemLaws, normal
from torch import Tensor, nn
from torch.nn import functional

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.problems import ModuleProblem, Problem, Stream, base
from sdebias.symmetry import Rescaling


def relu_net(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs)).double()


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


class ModuleLaws(ProblemLaws):
    """A problem made of a module; the symmetry is declared by the names of its parameters."""

    group: Any = Rescaling.relu("0", "2")

    def module(self) -> nn.Module:
        return relu_net()

    loss_fn: Any = staticmethod(half_square)

    def build(self, *arrays: Tensor) -> Problem:
        problem = sb.Problem.from_module(
            self.module(), type(self).loss_fn, *arrays, replicated=arrays[0].shape[0] == REPLICATES
        )
        problem.symmetry = lambda: self.group  # type: ignore[method-assign]
        return problem

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(9, 3, seed=seed), normal(9, 1, seed=seed + 10)


class TestRegressionNet(ModuleLaws):
    def test_names_and_start(self, single: Problem) -> None:
        assert list(single.layout.shapes) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert single.layout.labels[5] == "0.weight[1,2]"
        net = self.module()
        start = single.draw_initial(2, torch.Generator())
        assert torch.equal(start[1], nn.utils.parameters_to_vector(net.parameters()).detach())

    def test_gradient_is_that_of_the_module(self, single: Problem) -> None:
        net, (X, y) = self.module(), self.arrays(0)
        for row in normal(3, single.layout.size):
            nn.utils.vector_to_parameters(row, net.parameters())
            loss = 0.5 * functional.mse_loss(net(X), y)
            expected = nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(net.parameters())))
            torch.testing.assert_close(single.gradient(row), expected)
            torch.testing.assert_close(single.predictor(row), net(X).flatten().detach())

    def test_model_of_the_package(self) -> None:
        X, y = self.arrays(0)
        net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
        problem = sb.Problem.from_module(net, half_square, X, y)
        model = sb.problems.ShallowReLU(X, y.squeeze(-1), units=4)
        theta = normal(POINTS, 16)
        torch.testing.assert_close(problem.per_sample_loss(theta), model.per_sample_loss(theta))
        torch.testing.assert_close(problem.gradient_variance(theta), model.gradient_variance(theta))


class TestClassifier(ModuleLaws):
    loss_fn = staticmethod(functional.cross_entropy)

    def module(self) -> nn.Module:
        return relu_net(outputs=3)

    def arrays(self, seed: int) -> tuple[Tensor, ...]:
        return normal(9, 3, seed=seed), torch.randint(3, (9,), generator=torch.Generator().manual_seed(seed))


class TestBatchNormInEvaluation(ModuleLaws):
    """Running statistics are buffers, carried along as constants."""

    group = Rescaling.relu("1", "3")

    def module(self) -> nn.Module:
        norm = nn.BatchNorm1d(3, affine=False).double()
        norm(normal(50, 3, seed=9) * 2 + 1)
        return nn.Sequential(norm, *relu_net()).eval()


class TiedNet(nn.Module):
    """A linear autoencoder whose decoder is the transpose of its encoder, and a frozen offset."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(3, 3, bias=False).double()
        self.second = nn.Linear(3, 3, bias=False).double()
        self.second.weight = self.first.weight
        self.offset = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.offset


class TestTiedAndFrozen:
    X, y = normal(6, 3), normal(6, 3, seed=1)

    def test_one_parameter(self) -> None:
        problem = sb.Problem.from_module(TiedNet(), half_square, self.X, self.y)
        assert list(problem.layout.shapes) == ["first.weight"]
        W = normal(3, 3, seed=2).requires_grad_(True)
        loss = 0.5 * (self.X @ W.T @ W.T + 1 - self.y).square().mean()
        theta = W.detach().flatten()
        torch.testing.assert_close(problem.loss(theta), loss.detach())
        torch.testing.assert_close(problem.gradient(theta), torch.autograd.grad(loss, W)[0].flatten())

    def test_constants_follow_the_problem(self) -> None:
        problem = sb.Problem.from_module(TiedNet(), half_square, self.X, self.y)
        theta = normal(POINTS, 9)
        single = problem.to(dtype=torch.float32)
        assert single.loss(theta.float()).dtype == torch.float32
        torch.testing.assert_close(single.loss(theta.float()).double(), problem.loss(theta), rtol=1e-4, atol=1e-4)

    def test_the_module_is_left_alone(self) -> None:
        module = TiedNet()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        problem = sb.Problem.from_module(module, half_square, self.X, self.y, initial_std={"first.weight": 1.0})
        sb.SGD(learning_rate=0.01).bind(problem).integrate(
            problem.draw_initial(2, torch.Generator()), [0, 3], torch.Generator()
        )
        module.first.weight.data.zero_()
        assert bool((problem.initial["first.weight"] == before["first.weight"]).all())


class TestOptions:
    X, y = normal(6, 3), normal(6, 1, seed=1)

    def test_initial_law(self) -> None:
        problem = sb.Problem.from_module(
            relu_net(), half_square, self.X, self.y, initial={"2.bias": 5.0}, initial_std={"0.weight": 0.1}
        )
        theta = problem.draw_initial(2000, torch.Generator().manual_seed(0))
        named = problem.layout.unflatten(theta)
        assert bool((named["2.bias"] == 5).all())
        # 24,000 draws: deviation within five standard errors, false alarm 6e-7.
        assert (
            abs(float((named["0.weight"] - next(relu_net().parameters()).detach()).std()) / 0.1 - 1) < 5 / 48_000**0.5
        )

    @pytest.mark.parametrize(
        ("labels", "expected"), [(None, ["predictor[0]", "predictor[1]"]), (["a", "b"], ["a", "b"])]
    )
    def test_predictor(self, labels: list[str] | None, expected: list[str]) -> None:
        def norms(named: Mapping[str, Tensor]) -> Tensor:
            return torch.stack([named["0.weight"].norm(), named["2.weight"].norm()])

        problem = sb.Problem.from_module(
            relu_net(), half_square, self.X, self.y, predictor=norms, predictor_labels=labels
        )
        theta = normal(2, POINTS, problem.layout.size)
        named = problem.layout.unflatten(theta)
        expected_norms = torch.stack([named[name].flatten(-2).norm(dim=-1) for name in ("0.weight", "2.weight")], -1)
        torch.testing.assert_close(problem.predictor(theta), expected_norms)
        assert problem.predictor_labels == expected

    def test_default_labels(self) -> None:
        problem = sb.Problem.from_module(relu_net(), half_square, self.X, self.y)
        assert problem.predictor_labels[:2] == ["output[0,0]", "output[1,0]"]

    def test_whole_numbers_alone(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(-2), nn.Linear(8, 5)).double()
        tokens = torch.randint(5, (7, 2), generator=torch.Generator().manual_seed(0))
        problem = sb.Problem.from_module(net, nn.CrossEntropyLoss(), tokens, tokens[:, 0])
        theta = problem.draw_initial(1, torch.Generator())[0]
        expected = functional.cross_entropy(net(tokens), tokens[:, 0]).detach()
        torch.testing.assert_close(problem.loss(theta), expected)
        assert problem.to(dtype=torch.float32).dtype == torch.float32

    @pytest.mark.parametrize("dynamics", [sb.SGD(learning_rate=0.01, batch_size=2), sb.SGDSDE(learning_rate=0.01)])
    def test_stream(self, dynamics: Any) -> None:
        def sampler(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
            X = torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
            return {"X": X, "y": X.sum(-1, keepdim=True)}

        problem = sb.Problem.from_module(relu_net(), half_square, self.X, self.y).with_stream(Stream(sampler))
        start = problem.draw_initial(3, torch.Generator())
        path = dynamics.bind(problem).integrate(start, [0, 2], torch.Generator().manual_seed(0))
        assert len({tuple(row) for row in path[-1].tolist()}) == 3

    def test_spec_says_what_it_is(self) -> None:
        spec = sb.Problem.from_module(relu_net(), half_square, self.X, self.y).spec()
        assert spec["model"] == "ModuleProblem"
        assert spec["loss_fn"] == "half_square"
        assert "ReLU" in spec["module"]


class BatchCentred(nn.Module):
    """Couples the samples of a batch, without any layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))


class Noisy(BatchCentred):
    """Draws random numbers in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + torch.randn_like(x))


def frozen() -> nn.Module:
    return relu_net().requires_grad_(False)


X, Y = normal(6, 3), normal(6, 1, seed=1)


class Sequence(nn.Module):
    """A layer on sequences, of which a linear layer reads the mean over tokens of the first output."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = (
            self.layer(x, x, x, need_weights=False) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        )
        return self.out((found if isinstance(found, Tensor) else found[0]).mean(1))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """Apply the function that parametrizations have replaced, which says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


SEQUENCES = {
    "lstm": (nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True), 6),
    "gru": (nn.GRU(4, 3, bias=False, batch_first=True), 3),
    "rnn": (nn.RNN(4, 3, batch_first=True), 3),
    "attention": (nn.MultiheadAttention(4, 2, batch_first=True), 4),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), 3),
    "old weight norm": (old_weight_norm(nn.Linear(4, 3)), 3),
    "transformer": (nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), 4),
}


class TestLayersOfFusedKernels:
    """Recurrence, attention, weight norm: gradients of the module itself, second derivatives, per-sample gradients."""

    tokens, targets = normal(5, 3, 4), normal(5, 1, seed=1)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("name", list(SEQUENCES))
    def test_derivatives(self, name: str, mode: str) -> None:
        torch.manual_seed(0)
        module = Sequence(*SEQUENCES[name]).double().train(mode == "train")
        problem = sb.Problem.from_module(module, half_square, self.tokens, self.targets)
        theta = normal(POINTS, problem.layout.size)
        for row, gradient in zip(theta, problem.gradient(theta), strict=True):
            nn.utils.vector_to_parameters(row, module.parameters())
            loss = 0.5 * functional.mse_loss(module(self.tokens), self.targets)
            expected = nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(module.parameters())))
            torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(problem.per_sample_gradient(theta).mean(-2), problem.gradient(theta))
        v, step = normal(POINTS, problem.layout.size, seed=3), 1e-5
        slope = (problem.gradient(theta + step * v) - problem.gradient(theta - step * v)) / (2 * step)
        torch.testing.assert_close(problem.hessian_vector_product(theta, v), slope, rtol=1e-5, atol=1e-6)


class TestPieces:
    """Evaluation in pieces gives what evaluation at once gives, whatever the shapes."""

    @pytest.mark.parametrize("replicated", [False, True])
    def test_agree(self, replicated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        lead = (REPLICATES,) if replicated else ()
        arrays = normal(*lead, 16, 3), normal(*lead, 16, 1, seed=1)
        problem = sb.Problem.from_module(relu_net(), half_square, *arrays, replicated=replicated)
        theta = normal(2, *lead, 5, problem.layout.size)
        weights = normal(2, *lead, 5, 16, seed=2)
        index = torch.randint(16, (*lead, 5, 1), generator=torch.Generator().manual_seed(0))

        def values() -> list[Tensor]:
            return [
                problem.per_sample_loss(theta),
                problem.predictor(theta),
                problem.gradient(theta),
                problem.weighted_gradient(theta, weights),
                problem.weighted_gradient(theta[:1], weights),
                problem.hessian_vector_product(theta, theta.flip(0)),
                problem.gradient_variance(theta),
                problem.batch_gradient(theta[0], index),
            ]

        whole = values()
        counted: list[int] = []
        inner = ModuleProblem._outputs_of_one

        def counting(self: ModuleProblem, theta: Tensor, inputs: Tensor) -> Tensor:
            counted.append(1)
            return inner(self, theta, inputs)

        monkeypatch.setattr(ModuleProblem, "_outputs_of_one", counting)
        values()
        at_once = len(counted)
        monkeypatch.setattr(
            base, "CHUNK_ELEMENTS", problem.numbers_per_point * 2 * (REPLICATES if replicated else 1) * 2
        )
        for got, wanted in zip(values(), whole, strict=True):
            torch.testing.assert_close(got, wanted)
        assert len(counted) > 2 * at_once

    def test_a_point_costs_its_activations(self) -> None:
        """A convolution of 10 parameters on 64 pixels writes hundreds of numbers a sample."""
        module = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.AvgPool1d(64)).double()
        problem = sb.Problem.from_module(module, half_square, normal(7, 1, 8, 8), normal(7, 1, seed=1))
        assert problem.numbers_per_point >= 7 * 2 * (64 + 64)


class Pair(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 1).double(), kind
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        out = self.linear(x)
        if self.kind == "counts":
            self.get_buffer("calls").add_(1)
        if self.kind == "asserts":
            raise AssertionError("not\nthis")
        return {"pair": (out, out), "dict": {"out": out}, "flat": out.sum(0)}.get(self.kind, out)


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("pair", "one tensor as output, got tuple of 2; wrap it"),
            ("dict", "one tensor as output, got dict; wrap it"),
            ("flat", "keep the sample axis first"),
            ("counts", "buffers change|in-place"),
            ("asserts", "got AssertionError: not this; the module must map"),
        ],
    )
    def test_forward_passes(self, kind: str, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            sb.Problem.from_module(Pair(kind), half_square, X, Y)
        assert "\n" not in str(caught.value)

    def test_a_loss_that_fails(self) -> None:
        def broken(output: Tensor, target: Tensor) -> Tensor:
            raise KeyError("weights")

        with pytest.raises(InputError, match="loss_fn: .*KeyError: 'weights'; give a function of one output"):
            sb.Problem.from_module(relu_net(), broken, X, Y)

    def test_lazy_layers_and_batch_statistics(self) -> None:
        with pytest.raises(InputError, match="lazy layers"):
            sb.Problem.from_module(nn.LazyLinear(1), half_square, X, Y)
        norm = nn.BatchNorm1d(3, track_running_stats=False).double().eval()
        with pytest.raises(InputError, match="without running statistics couples.*layer or group norm"):
            sb.Problem.from_module(nn.Sequential(norm, relu_net()), half_square, X, Y)
        packed = Sequence(nn.LSTM(3, 4, proj_size=2, batch_first=True), 2).double()
        with pytest.raises(InputError, match="plain recurrent layer.*proj_size"):
            sb.Problem.from_module(packed, half_square, normal(6, 2, 3), Y)

    @pytest.mark.parametrize(
        ("module", "words"),
        [
            (nn.Sequential(relu_net(), nn.Dropout(0.5)), r"layer '1' \(Dropout\).*random numbers"),
            (nn.Sequential(nn.BatchNorm1d(3).double(), relu_net()), r"layer '0' \(BatchNorm1d\).*couples"),
            (nn.Sequential(nn.RReLU(), relu_net()), "random numbers"),
            (BatchCentred(), "samples treated one by one"),
            (Noisy(), "draw no random numbers"),
            (frozen(), "no parameter that requires a gradient"),
            (nn.Linear(4, 1).double(), "one that evaluates on X and y"),
            (functional.relu, "a torch.nn.Module"),
            (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).double()), "of one dtype"),
        ],
        ids=["dropout", "batch-norm", "rrelu", "centred", "noisy", "frozen", "shape", "function", "dtypes"],
    )
    def test_modules(self, module: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            sb.Problem.from_module(module, half_square, X, Y)

    @pytest.mark.parametrize(
        "module", [nn.Sequential(relu_net(), nn.Dropout(0.0)), nn.Sequential(relu_net(), nn.Dropout(0.5)).eval()]
    )
    def test_dropout_that_drops_nothing_is_fine(self, module: nn.Module) -> None:
        problem = sb.Problem.from_module(module, half_square, X, Y)
        assert isinstance(problem, ModuleProblem)

    @pytest.mark.parametrize(
        ("arrays", "options", "error", "words"),
        [
            ((X.float(), Y), {}, DataError, "module's dtype"),
            ((X, Y[:3]), {}, DataError, "one length of dim 'sample'"),
            ((X * torch.nan, Y), {}, DataError, "X: expected finite"),
            ((X, Y), {"replicated": True}, DataError, "one length of dim|axes"),
            ((torch.tensor(1.0).double(), Y), {}, DataError, "add the missing axis"),
            (("text", Y), {}, DataError, "numeric array"),
            ((X, Y), {"initial_std": {"0.weights": 1.0}}, InputError, "did you mean '0.weight'"),
            ((X, Y), {"initial": {"2.bias": [1.0, 2.0]}}, InputError, "broadcasts"),
            ((X, Y), {"predictor_labels": ["a"]}, InputError, "6 labels"),
            ((X, Y), {"predictor": lambda named: named["2.bias"].sum()}, InputError, "1-D tensor"),
            ((X, Y), {"replicated": 1}, InputError, "true or false"),
        ],
    )
    def test_options(
        self, arrays: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            sb.Problem.from_module(relu_net(), half_square, *arrays, **options)

    def test_loss_must_be_a_number(self) -> None:
        with pytest.raises(InputError, match="a scalar for one sample"):
            sb.Problem.from_module(relu_net(2), nn.MSELoss(reduction="none"), X, normal(6, 2))
