"""Structures: maps, sections and groups that fit, penalties that geometry confirms, modules that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sdebias as sb
from sdebias.design import (
    DesignedRegression,
    Differences,
    Fourier,
    GroupSparse,
    Haar,
    Joined,
    Kronecker,
    LowRank,
    Sparse,
    Structure,
    grouped,
)
from sdebias.design.base import LAWS
from sdebias.design.structure import charged_magnitudes
from sdebias.design.unit_law import Unit
from sdebias.errors import DataError, InputError
from sdebias.prediction.stationary import log_stationary_density
from sdebias.symmetry import check_invariance

POINTS = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def joined(**options: Any) -> Joined:
    curve, block = Sparse(3, operator="differences", scale=0.3), GroupSparse(2, 2, scale=0.1)
    return Joined({"curve": ([4, 0, 2], curve), "groups": ([1, 3, 5, 6], block)}, **options)


EVERY: dict[str, Callable[[], Structure]] = {
    "sparse": lambda: Sparse(4, scale=0.2),
    "sparse, depth 3": lambda: Sparse(4, depth=3),
    "sparse, horizontal": lambda: Sparse(4, depth=4, noise="horizontal"),
    "total variation": lambda: Sparse(5, operator="differences"),
    "spectral": lambda: Sparse(6, operator="fourier"),
    "groups": lambda: GroupSparse(2, 3, operator="cosine"),
    "waves": lambda: grouped(Fourier(6).waves, operator="fourier"),
    "low rank": lambda: LowRank(3, 3),
    "low rank, horizontal": lambda: LowRank(3, 3, noise="horizontal"),
    "wide": lambda: LowRank(2, 4, scale=0.5),
    "rank 1": lambda: LowRank(3, 4, rank=1),
    "product of 3": lambda: LowRank(3, 2, depth=3),
    "product of 4, rank 1": lambda: LowRank(2, 2, depth=4, rank=1),
    "image of low rank": lambda: LowRank(2, 4, operator=Kronecker(Haar(2), Differences(4))),
    "joined": lambda: joined(operator=normal(7, 7)),
    "joined with a matrix": lambda: Joined({"M": ([0, 2, 4, 1], LowRank(2, 2)), "rest": ([3], Sparse(1))}),
}


def random_weight(design: Structure, *lead: int) -> Tensor:
    """Return weights that the design can make, of any rank that it has."""
    shapes = design.shapes((*lead, design.size))
    return design.weight({name: normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())})


@pytest.mark.parametrize("build", EVERY.values(), ids=EVERY)
class TestEveryStructure:
    def test_sections_are_inverse_with_the_charges_that_they_say(self, build: Callable[[], Structure]) -> None:
        design = build()
        weight = random_weight(design, 2, POINTS)
        problem = design.problem(normal(6, design.size), normal(6))
        group = design.symmetry.bind(problem)
        torch.testing.assert_close(problem.predictor(design.section(weight)), weight)
        charges = group.charge(design.section(weight))
        torch.testing.assert_close(charges, torch.zeros_like(charges), rtol=0, atol=1e-12)
        start = design.initialize(weight)
        assert {name: tuple(t.shape) for name, t in start.items()} == design.shapes((2, POINTS, design.size))
        torch.testing.assert_close(design.weight(start), weight)

    def test_the_losses_have_the_symmetry(self, build: Callable[[], Structure]) -> None:
        design = build()
        problem = design.problem(normal(6, design.size), normal(6, seed=1))
        assert check_invariance(problem, design.symmetry) < 1e-10

    def test_gradients(self, build: Callable[[], Structure]) -> None:
        design = build()
        problem = design.problem(normal(6, design.size), normal(6, seed=1))
        theta = normal(POINTS, problem.layout.size, seed=2).requires_grad_(True)
        (expected,) = torch.autograd.grad(problem.per_sample_loss(theta).mean(-1).sum(), theta)
        torch.testing.assert_close(problem.gradient(theta.detach()), expected)

    def test_the_penalty_is_that_of_the_geometry(self, build: Callable[[], Structure]) -> None:
        design = build()
        weight = random_weight(design, POINTS)
        problem = design.problem(normal(6, design.size), normal(6, seed=1))
        theta = design.section(weight)
        law = {"noise": LAWS[design.noise], "temperature": 1.0, "measure": "predictor"}
        density = log_stationary_density(problem, design.symmetry.bind(problem), theta, **law)  # type: ignore[arg-type]
        difference = design.penalty(weight) + density + problem.loss(theta)
        torch.testing.assert_close(difference, difference[:1].expand(POINTS))
        assert float(design.penalty(weight).std()) > 0.1

    def test_balanced_factors_are_the_smallest(self, build: Callable[[], Structure]) -> None:
        design = build()
        weight = random_weight(design, POINTS)
        theta = design.section(weight)
        group = design.symmetry.bind(design.problem(normal(6, design.size), normal(6)))
        smallest = design.weight_decay_penalty(weight)
        for seed in range(3):
            moved = group.act(group.exp(0.3 * normal(POINTS, group.dim, seed=seed)), theta)
            assert bool((0.5 * moved.square().sum(-1) > smallest).all())

    def test_a_tensor_of_zeros_can_be_trained(self, build: Callable[[], Structure]) -> None:
        design = build()
        problem = design.problem(normal(6, design.size), normal(6, seed=1))
        start = problem.draw_initial(1, torch.Generator().manual_seed(0))
        zero = torch.zeros(1, design.size, dtype=torch.float64)
        torch.testing.assert_close(problem.predictor(start), zero)
        assert float(problem.gradient(start).norm()) > 0

    def test_spec_is_plain(self, build: Callable[[], Structure]) -> None:
        assert isinstance(sb.dataset.config_attributes(build().spec())["config_json"], str)


class TestFormulas:
    """Penalties by hand, up to constants: differences between two weights."""

    first, second = normal(6), normal(6, seed=1)

    def change(self, function: Callable[[Tensor], Tensor]) -> float:
        return float(function(self.first) - function(self.second))

    @pytest.mark.parametrize("depth", [2, 3, 5])
    def test_sparse(self, depth: int) -> None:
        share = (depth - 1) / depth
        logs = self.change(lambda w: w.abs().log().sum())
        assert self.change(Sparse(6, depth=depth).penalty) == pytest.approx(2 * share * logs)
        assert self.change(Sparse(6, depth=depth, noise="horizontal").penalty) == pytest.approx(share * logs)
        power = depth / 2 * self.first.abs().pow(2 / depth).sum()
        torch.testing.assert_close(Sparse(6, depth=depth).weight_decay_penalty(self.first), power)

    def test_total_variation(self) -> None:
        expected = self.first[0].abs() + self.first.diff().abs().sum()
        torch.testing.assert_close(Sparse(6, operator="differences").weight_decay_penalty(self.first), expected)

    def test_groups(self) -> None:
        design = GroupSparse(2, 3)
        logs = self.change(lambda w: w.reshape(2, 3).norm(dim=-1).log().sum())
        assert self.change(design.penalty) == pytest.approx(2 * logs)
        norms = self.first.reshape(2, 3).norm(dim=-1).sum()
        torch.testing.assert_close(design.weight_decay_penalty(self.first), norms)

    def test_waves_do_not_see_the_phase(self) -> None:
        design, places = grouped(Fourier(8).waves, operator="fourier"), torch.arange(8, dtype=torch.float64)
        values = [
            design.weight_decay_penalty(torch.cos(2 * torch.pi * places / 8 + phase))
            for phase in torch.linspace(0, 3, 5, dtype=torch.float64)
        ]
        torch.testing.assert_close(torch.stack(values), values[0].expand(5))

    @pytest.mark.parametrize("depth", [2, 3])
    def test_spectra(self, depth: int) -> None:
        sigma = torch.linalg.svdvals(self.first.reshape(2, 3))
        expected = depth / 2 * sigma.pow(2 / depth).sum()  # the nuclear norm at depth 2
        torch.testing.assert_close(LowRank(2, 3, depth=depth).weight_decay_penalty(self.first), expected)

    def test_square_matrix_of_two_singular_values(self) -> None:
        def expected(w: Tensor) -> Tensor:
            one, two = torch.linalg.svdvals(w.reshape(2, 2))
            return (one * two * (one + two)).log()  # e^{−L/T} / (σ₁σ₂(σ₁ + σ₂))

        one, two = normal(4), normal(4, seed=1)
        change = LowRank(2, 2).penalty(one) - LowRank(2, 2).penalty(two)
        torch.testing.assert_close(change, expected(one) - expected(two))

    def test_rank_below_the_sides_keeps_the_best_approximation(self) -> None:
        matrix = normal(4, 3)
        left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        best = (left[:, :1] * sigma[:1]) @ right[:1]
        design = LowRank(4, 3, rank=1)
        torch.testing.assert_close(design.weight(design.factorize(matrix.flatten())), best.flatten())

    @pytest.mark.parametrize("depth", [2, 3, 6])
    @pytest.mark.parametrize("scale", [0.0, 1e-3, 2.0])
    def test_charged_magnitudes(self, depth: int, scale: float) -> None:
        size = torch.tensor([0.0, 1e-8, 1e-3, 1.0, 50.0], dtype=torch.float64)
        first, last = charged_magnitudes(size, depth, scale)
        torch.testing.assert_close(first ** (depth - 1) * last, size)
        torch.testing.assert_close(first.square() - last.square(), torch.full_like(size, scale**2))

    def test_scale_is_the_charge(self) -> None:
        design = joined()
        problem = design.problem(normal(6, 7), normal(6))
        start = problem.draw_initial(1, torch.Generator().manual_seed(0))
        charges = design.symmetry.bind(problem).charge(start)[0]
        torch.testing.assert_close(charges, torch.tensor([0.045] * 3 + [0.005] * 2, dtype=torch.float64))


class TestProblems:
    def test_models_of_the_package_are_used_where_they_are_the_design(self) -> None:
        X, y = normal(8, 4), normal(8, seed=1)
        kinds = [
            (Sparse(4), "HadamardRegression"),
            (Sparse(4, depth=3), "DeepDiagonalRegression"),
            (Sparse(4, operator="differences"), "CumulativeSumRegression"),
            (Sparse(4, operator=Differences(4, order=2)), "DesignedRegression"),
            (Sparse(4, operator="differences", depth=3), "DesignedRegression"),
        ]
        for design, kind in kinds:
            problem, theta = design.problem(X, y), normal(POINTS, 4 * design.depth, seed=2)
            assert problem.model == kind
            reference = super(Sparse, design).problem(X, y)
            assert type(reference).__mro__[1] is DesignedRegression
            assert problem.layout.shapes == reference.layout.shapes
            torch.testing.assert_close(problem.predictor(theta), reference.predictor(theta))
            torch.testing.assert_close(problem.gradient(theta), reference.gradient(theta))
            for start in zip(*(p.draw_initial(1, torch.Generator()) for p in (problem, reference)), strict=True):
                torch.testing.assert_close(*start)

    @pytest.mark.parametrize("replicates", [False, True])
    def test_completion(self, replicates: bool) -> None:
        lead = (2,) if replicates else ()
        M, mask = normal(*lead, 3, 2), torch.tensor([[True, False], [True, True], [False, True]])
        shallow, deep = (LowRank(3, 2, depth=depth).completion(M, mask) for depth in (2, 3))
        assert shallow.model == "MatrixFactorization"
        for design, problem in ((LowRank(3, 2), shallow), (LowRank(3, 2, depth=3), deep)):
            weight = random_weight(design, *lead, POINTS)
            theta = design.section(weight)
            errors = weight.unflatten(-1, (3, 2))[..., mask] - (M.unsqueeze(1) if replicates else M)[..., mask]
            torch.testing.assert_close(problem.per_sample_loss(theta), 0.5 * errors.square())

    def test_replicates(self) -> None:
        X, y = normal(2, 8, 6), normal(2, 8, seed=1)
        problem = grouped(Fourier(6).waves, operator="fourier").problem(X, y)
        sgd = sb.SGD(learning_rate=0.05, batch_size=4)
        ensemble = sb.simulate(problem, sgd, symmetry=problem.symmetry(), trajectories=2, steps=20, block_size=2)
        assert ensemble.sizes["replicate"] == 2
        assert float(ensemble.loss[..., -1].mean()) < float(ensemble.loss[..., 0].mean())

    def test_dynamics_hold_the_charges(self) -> None:
        design = GroupSparse(1, 2, scale=0.0)
        assert design.dynamics(temperature=0.1, learning_rate=0.1).gauge_stiffness == 20.0
        assert Sparse(2, noise="horizontal").dynamics(temperature=0.1, learning_rate=0.1).gauge_stiffness is None


class TestParametrization:
    @pytest.mark.parametrize(
        ("design", "shape"),
        [
            (Sparse(6, operator="fourier"), (2, 6)),
            (Sparse(6, depth=3), (6,)),
            (GroupSparse(3, 2), (4, 6)),
            (joined(), (3, 7)),
            (LowRank(4, 6, depth=3), (4, 6)),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_a_given_weight(self, design: Structure, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        net = nn.Module()
        net.weight = nn.Parameter(normal(*shape).to(dtype))
        before = net.weight.detach().clone()
        parametrize.register_parametrization(net, "weight", design.parametrization())
        torch.testing.assert_close(net.weight, before)
        assert {p.dtype for p in net.parameters()} == {dtype}
        assert len(list(net.parameters())) == len(design.factors)

    def test_training_of_a_plain_torch_module_finds_the_jumps(self) -> None:
        signal = torch.repeat_interleave(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64), 8)
        X = normal(16, 24)
        y = (X @ signal).unsqueeze(-1)
        errors = {}
        for designed in (False, True):
            net = nn.Linear(24, 1, bias=False).double()
            nn.init.zeros_(net.weight)
            if designed:
                design = Sparse(24, operator="differences")
                parametrize.register_parametrization(net, "weight", design.parametrization())
            optimiser = torch.optim.SGD(net.parameters(), lr=3e-3)
            for _ in range(4000):
                optimiser.zero_grad()
                nn.functional.mse_loss(net(X), y).backward()
                optimiser.step()
            errors[designed] = float((net.weight.detach()[0] - signal).norm() / signal.norm())
        assert errors[True] < 0.05
        assert errors[False] > 0.3

    def test_constants_of_an_operator_move_with_the_module(self) -> None:
        net = nn.Linear(3, 1, bias=False)
        design = Sparse(3, operator=np.tril(np.ones((3, 3))))
        parametrize.register_parametrization(net, "weight", design.parametrization())
        kinds = {name: buffer.dtype for name, buffer in net.double().named_buffers()}
        assert kinds == {
            "parametrizations.weight.0.operator.matrix": torch.float64,
            "parametrizations.weight.0.operator.inverse": torch.float64,
        }
        assert net(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64

    def test_a_problem_from_such_a_module(self) -> None:
        net = nn.Linear(4, 1, bias=False).double()
        parametrize.register_parametrization(net, "weight", GroupSparse(2, 2).parametrization())
        problem = sb.Problem.from_module(net, nn.functional.mse_loss, normal(6, 4), normal(6, 1))
        names = [f"parametrizations.weight.original{k}" for k in (0, 1)]
        assert check_invariance(problem, sb.symmetry.Rescaling(f"{names[0]}:1", f"{names[1]}:1")) < 1e-10

    @pytest.mark.parametrize("weight", [torch.zeros(2, 4), torch.zeros(()), torch.zeros(3, 4, 2)])
    def test_other_shapes_are_refused(self, weight: Tensor) -> None:
        with pytest.raises(InputError, match=r"a tensor of shape \(\.\.\., 3, 4\)"):
            LowRank(3, 4).parametrization().right_inverse(weight)


class Overstated(GroupSparse):
    """A group whose penalty is said to be 10 % larger than it is."""

    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        return 1.1 * super().coefficient_penalty(coefficients)

    def unit(self) -> Unit:
        return Unit(Overstated(1, self.width), (self.width, 1))


class TestCertificate:
    """Laws at fixed seeds: a true one is rejected with probability 0.001."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "design",
        [GroupSparse(4, 3), Sparse(4, depth=3), Sparse(4, noise="horizontal"), LowRank(2, 3)],
        ids=["group", "depth 3", "horizontal", "low rank"],
    )
    def test_the_law_of_a_unit_is_the_designed_one(self, design: Structure) -> None:
        certificate = design.verify(trajectories=2048)
        assert certificate.holds, certificate
        assert certificate.designed.attrs["verdict"] == "consistent", certificate

    @pytest.mark.slow
    def test_a_penalty_that_is_ten_per_cent_off_is_rejected(self) -> None:
        certificate = Overstated(1, 3).verify(trajectories=4096)
        assert certificate.designed.attrs["verdict"] == "rejected", certificate

    def test_reference_densities(self) -> None:
        # Directions drawn at random instead of integrated: errors of three standard deviations pass, 0.3 % each.
        size = np.array([0.5, 1.0, 1.7])
        for design, sides in ((GroupSparse(1, 3), (3, 1)), (LowRank(2, 3, rank=1), (2, 3))):
            unit = Unit(design, sides)
            left, right = (nn.functional.normalize(normal(100_000, n, seed=n), dim=-1) for n in sides)
            points = (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2) if sides[1] > 1 else left
            center = unit.weight(torch.tensor(0.8, dtype=torch.float64))
            loss = 0.5 * (torch.from_numpy(size)[:, None, None] * points - center).square().sum(-1)
            masses = (-loss / 0.5).exp()
            mean, error = masses.mean(-1).numpy(), masses.std(-1).numpy() / 100_000**0.5
            expected = unit.density(0.8, 0.5, False)(size) / size ** (sum(sides) - 2)
            np.testing.assert_array_less(np.abs(mean - expected), 3 * error)

    def test_a_coefficient_has_either_sign(self) -> None:
        size = np.array([0.5, 1.0, 1.7])
        density = Unit(Sparse(1), (1, 1)).density(0.8, 0.5, False)(size)
        expected = sum(np.exp(-((sign * size - 0.8) ** 2)) for sign in (1, -1)) / 2
        np.testing.assert_allclose(density, expected)

    def test_blocks_are_verified_one_by_one(self) -> None:
        with pytest.raises(InputError, match=r"design.blocks\[name\] for name in curve, groups"):
            joined().verify()
        with pytest.raises(InputError, match="target"):
            Sparse(1).verify(target=0.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("build", "words"),
        [
            (lambda: Sparse(0), "size"),
            (lambda: Sparse(3, depth=1), "depth"),
            (lambda: Sparse(3, scale=-1.0), "scale"),
            (lambda: Sparse(3, noise=cast(Any, "gauged")), "did you mean"),
            (lambda: Sparse(3, operator=Fourier(4)), "size 3"),
            (lambda: GroupSparse(2, 0), "width"),
            (lambda: LowRank(2, 3, rank=3), "at most 2"),
            (lambda: LowRank(2, 3, noise="horizontal"), "square matrix"),
            (lambda: LowRank(3, 3, depth=3, noise="horizontal"), "depth 2"),
            (lambda: Joined({}), "at least one block"),
            (lambda: Joined({"a": ([0, 1], Sparse(3))}), "3 entries"),
            (lambda: Joined({"a": ([0, 1], Sparse(2)), "b": ([1], Sparse(1))}), "entry 1 in 2"),
            (lambda: Joined({"a": ([0, 2], Sparse(2))}), "entry 1 in 0"),
            (lambda: Joined({"a": ([0], Sparse(1)), "b": ([1], Sparse(1, noise="horizontal"))}), "one noise"),
            (lambda: grouped([]), "at least one block"),
            (lambda: grouped([[0], [0, 1]]), "entry 0 in 2"),
        ],
    )
    def test_designs(self, build: Callable[[], Structure], words: str) -> None:
        with pytest.raises(InputError, match=words):
            build()

    def test_data(self) -> None:
        for design in (Sparse(4), Sparse(4, operator="fourier"), GroupSparse(2, 2)):
            with pytest.raises(InputError, match="design it for the length"):
                design.problem(normal(5, 3), normal(5))
        with pytest.raises(DataError, match="design it for the shape of M"):
            LowRank(2, 3).completion(normal(3, 2))
        with pytest.raises(InputError, match="design it for the length"):
            Sparse(4).initialize(normal(3))
