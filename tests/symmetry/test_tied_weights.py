"""What tied weights leave of the symmetries of a module."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdebias as sb
from sdebias.errors import SymmetryError
from sdebias.symmetry import check_invariance, of_module


class TiedAutoencoder(nn.Module):
    """An autoencoder of one or two layers, decoded by the transposes of its own weights."""

    def __init__(self, activation: nn.Module, *widths: int) -> None:
        super().__init__()
        self.activation = activation
        self.weights = nn.ParameterList(torch.randn(b, a) / 2 for a, b in itertools.pairwise(widths))
        self.biases = nn.ParameterList(torch.randn(b) for b in widths[1:])
        self.decoder_biases = nn.ParameterList(torch.randn(a) for a in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = self.activation(functional.linear(x, weight, bias))
        for k in reversed(range(len(self.weights))):
            x = functional.linear(x, self.weights[k].T, self.decoder_biases[k])
            x = self.activation(x) if k else x
        return x


class TestTiedWeights:
    """The docstring's words: what holds, and that what does not hold is not proposed."""

    @staticmethod
    def build(*widths: int, activation: nn.Module | None = None) -> tuple[sb.Problem, sb.symmetry.ModuleSymmetry]:
        torch.manual_seed(3)
        net = TiedAutoencoder(activation or nn.ReLU(), *widths).double()
        X = torch.randn(24, widths[0]).double()
        problem = sb.Problem.from_module(net, functional.mse_loss, X, X)
        return problem, of_module(net, problem)

    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU()], ids=["relu", "leaky"])
    def test_one_layer_has_no_rescaling(self, activation: nn.Module) -> None:
        problem, found = self.build(3, 2, activation=activation)
        assert found.symmetry is None
        assert sb.symmetry.discover(problem).dim == 0
        for slots in (("weights.0:0", "biases.0:0"), ("weights.0:0", "weights.0:0")):
            with pytest.raises(SymmetryError):
                check_invariance(problem, sb.symmetry.Rescaling(*slots))

    def test_linear_codes_turn(self) -> None:
        problem, found = self.build(4, 3, activation=nn.Identity())
        assert found.symmetry is None
        check_invariance(problem, sb.symmetry.Orthogonal(("weights.0:0", "biases.0:0")))

    def test_units_between_two_layers_scale(self) -> None:
        """It is not proposed, and holds as it is declared; without the inner bias's share it fails."""
        problem, found = self.build(3, 3, 2)
        assert found.symmetry is None
        forth, back = ("weights.0:0", "biases.0:0"), ("weights.1:1", "decoder_biases.1:0")
        check_invariance(problem, sb.symmetry.Rescaling(forth, back))
        with pytest.raises(SymmetryError, match="not invariant"):
            check_invariance(problem, sb.symmetry.Rescaling(forth, "weights.1:1"))
