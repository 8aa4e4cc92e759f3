"""Laws that every symmetry obeys, as one class: a group's test is a subclass that says how to build it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdebias.errors import InputError, SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.symmetry import Symmetry, check_invariance, from_spec
from sdebias.symmetry.action import forward_derivative
from sdebias.symmetry.bundle import PARTS, matrix_traces, quadratic_form

Named = Mapping[str, Tensor]

settings.register_profile(
    "laws", max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)
laws = settings.get_profile("laws")
seeds = st.integers(0, 2**31 - 1)


@dataclass
class LossProblem:
    """The least that a symmetry and `check_invariance` need of a problem."""

    layout: ParameterLayout
    loss: Callable[[Named], Tensor]
    replicates: int | None = None
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return the losses from named parameters."""
        return self.loss(self.layout.unflatten(theta))


def randn(seed: int, *shape: int) -> Tensor:
    """Draw standard normals, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Data that the losses of the groups use; fixed, so that a loss is a function of the parameters alone.
INPUTS = randn(17, 4, 3)
TARGETS = randn(18, 4)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    """Compare relative to the size of the whole tensor."""
    assert got.shape == wanted.shape
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * (1 + scale))


class SymmetryLaws(ABC):
    """Subclass, state the class attributes, and every law is tested."""

    symmetry: ClassVar[Symmetry]
    shapes: ClassVar[dict[str, tuple[int, ...]]]
    composes: ClassVar[bool] = True  # whether elements have a composition law

    @staticmethod
    @abstractmethod
    def loss(named: Named) -> Tensor:
        """Return per-sample losses that the group leaves unchanged, shape (..., sample)."""

    @staticmethod
    def compact_invariants(named: Named) -> Tensor:
        """Return what the compact part of the group cannot change but the rest can, shape (..., invariant)."""
        return torch.cat([t.flatten(-1) if t.ndim == 1 else t.flatten(1) for t in named.values()], dim=-1)

    def isometries(self, bound: Symmetry, like: Tensor) -> Tensor:
        """Return the directions along which the group acts by isometries, shape (k, dim)."""
        return bound.compact_basis(like)

    @abstractmethod
    def degenerate(self, theta: Tensor, layout: ParameterLayout) -> tuple[Tensor, int]:
        """Return a point with an orbit of lower dimension, and that dimension."""

    # -- helpers ---------------------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def problem(cls) -> LossProblem:
        return LossProblem(ParameterLayout(cls.shapes), cls.loss)

    @pytest.fixture(scope="class")
    @classmethod
    def bound(cls, problem: LossProblem) -> Symmetry:
        return cls.symmetry.bind(problem)

    def points(self, bound: Symmetry, seed: int, *lead: int) -> Tensor:
        return randn(seed, *lead, bound.layout.size)

    def coefficients(self, bound: Symmetry, seed: int, *lead: int) -> Tensor:
        return 0.4 * randn(seed + 1, *lead, bound.dim)

    # -- projections -----------------------------------------------------------------------------------------------

    def check_projector(self, bound: Symmetry, theta: Tensor, seed: int) -> None:
        v, w = self.points(bound, seed + 2, *theta.shape[:-1]), self.points(bound, seed + 3, *theta.shape[:-1])
        vertical = bound.vertical_projection(v, theta)
        assert_close(bound.vertical_projection(vertical, theta), vertical)
        assert_close((w * vertical).sum(-1), (bound.vertical_projection(w, theta) * v).sum(-1))
        assert_close(vertical + bound.horizontal_projection(v, theta), v)
        field = bound.infinitesimal_action(self.coefficients(bound, seed, *theta.shape[:-1]), theta)
        assert_close(bound.vertical_projection(field, theta), field)
        assert_close(bound.infinitesimal_action_adjoint(v - vertical, theta), theta.new_zeros(*v.shape[:-1], bound.dim))

    @laws
    @given(seed=seeds)
    def test_projector(self, bound: Symmetry, seed: int) -> None:
        theta = self.points(bound, seed, 3)
        self.check_projector(bound, theta, seed)
        units = torch.eye(bound.layout.size, dtype=theta.dtype)
        trace = bound.vertical_projection(units, theta[0]).diagonal().sum()
        assert_close(trace, bound.rank(theta[0]).to(trace))

    @laws
    @given(seed=seeds)
    def test_vertical_space_moves_with_the_group(self, bound: Symmetry, seed: int) -> None:
        # For any element: dg maps the orbit's tangent space at θ to that at g·θ.
        theta, v = self.points(bound, seed), self.points(bound, seed + 2)
        element = bound.exp(self.coefficients(bound, seed))
        moved = forward_derivative(lambda p: bound.act(element, p), theta, bound.vertical_projection(v, theta))
        assert_close(bound.vertical_projection(moved, bound.act(element, theta)), moved, 1e-8)

    @laws
    @given(seed=seeds)
    def test_equivariance_under_isometries(self, bound: Symmetry, seed: int) -> None:
        theta, v = self.points(bound, seed), self.points(bound, seed + 2)
        basis = self.isometries(bound, theta)
        element = bound.exp(randn(seed + 4, basis.shape[0]) @ basis)
        pushed = forward_derivative(lambda p: bound.act(element, p), theta, v)
        torch.testing.assert_close(pushed.norm(), v.norm())
        wanted = forward_derivative(lambda p: bound.act(element, p), theta, bound.vertical_projection(v, theta))
        assert_close(bound.vertical_projection(pushed, bound.act(element, theta)), wanted)

    @laws
    @given(seed=seeds)
    def test_per_sample_gradients_are_horizontal(self, problem: LossProblem, bound: Symmetry, seed: int) -> None:
        theta = self.points(bound, seed)
        gradients = torch.func.jacrev(problem.per_sample_loss)(theta)
        assert float(gradients.norm(dim=-1).min()) > 1e-6
        assert_close(bound.horizontal_projection(gradients, theta), gradients)

    # -- structured against dense ----------------------------------------------------------------------------------

    @laws
    @given(seed=seeds)
    def test_structure_equals_dense_formula(self, bound: Symmetry, seed: int) -> None:
        theta, v = self.points(bound, seed, 2), self.points(bound, seed + 2, 2)
        xi = self.coefficients(bound, seed, 2)
        fields = bound.fundamental_vector_fields(theta)
        assert_close(bound.infinitesimal_action(xi, theta), Symmetry.infinitesimal_action(bound, xi, theta))
        assert_close(bound.infinitesimal_action(xi, theta), torch.einsum("ba,bap->bp", xi, fields))
        products = bound.infinitesimal_action_adjoint(v, theta)
        assert_close(products, Symmetry.infinitesimal_action_adjoint(bound, v, theta))
        assert_close(products, torch.einsum("bp,bap->ba", v, fields))
        gram = fields @ fields.mT
        assert_close(bound.gram_matrix(theta), gram)
        assert_close(bound.gram_eigenvalues(theta).sort(-1).values, torch.linalg.eigvalsh(gram))
        pinv = torch.linalg.pinv(gram, hermitian=True)
        assert_close(bound.solve_gram(products, theta), (pinv @ products.unsqueeze(-1)).squeeze(-1))
        for part in PARTS:
            assert_close(bound.log_orbit_volume(theta, part), Symmetry._log_volume(bound, theta, part))
        assert_close(bound._second_derivative_trace(theta), Symmetry._second_derivative_trace(bound, theta))

    # -- volume and curvature --------------------------------------------------------------------------------------

    @laws
    @given(seed=seeds)
    def test_curvature_is_horizontal_and_volume_gradient_if_isometric(self, bound: Symmetry, seed: int) -> None:
        theta = self.points(bound, seed)
        curvature = bound.mean_curvature_vector(theta)
        assert_close(bound.vertical_projection(curvature, theta), torch.zeros_like(theta))
        gradient = torch.func.grad(bound.bind(bound, validate=False).log_orbit_volume)(theta)
        if self.isometries(bound, theta).shape[0] == bound.dim:
            assert_close(gradient, -curvature)

    def test_derivatives(self, bound: Symmetry) -> None:
        theta, v = self.points(bound, 5).requires_grad_(True), self.points(bound, 6).requires_grad_(True)
        assert torch.autograd.gradcheck(bound.vertical_projection, (v, theta))
        assert torch.autograd.gradcheck(bound.log_orbit_volume, (theta,))
        assert torch.autograd.gradcheck(bound.mean_curvature_vector, (theta,))

    # -- group and gauge -------------------------------------------------------------------------------------------

    @laws
    @given(seed=seeds)
    def test_group_law(self, bound: Symmetry, seed: int) -> None:
        theta, xi = self.points(bound, seed, 3), self.coefficients(bound, seed, 3)
        g = bound.exp(xi)
        assert_close(bound.act(bound.exp(0 * xi), theta), theta)
        assert_close(bound.act(bound.exp(-xi), bound.act(g, theta)), theta)
        assert_close(bound.act(bound.exp(0.3 * xi), bound.act(g, theta)), bound.act(bound.exp(1.3 * xi), theta))
        h = bound.exp(self.coefficients(bound, seed + 5, 3))
        if self.composes:
            assert_close(bound.act(bound.compose(g, h), theta), bound.act(g, bound.act(h, theta)))
        else:
            with pytest.raises(SymmetryError, match="no composition law"):
                bound.compose(g, h)

    @laws
    @given(seed=seeds)
    def test_balance(self, problem: LossProblem, bound: Symmetry, seed: int) -> None:
        theta = self.points(bound, seed, 3)
        balanced = bound.balance(theta)
        assert_close(bound.charge(balanced), bound.gauge_level(theta).expand(3, -1), 1e-10)
        assert_close(problem.per_sample_loss(balanced), problem.per_sample_loss(theta), 1e-8)
        assert_close(bound.balance(balanced), balanced, 1e-8)
        other = bound.balance(bound.act(bound.exp(self.coefficients(bound, seed, 3)), theta))
        got, wanted = (self.compact_invariants(bound.layout.unflatten(point)) for point in (other, balanced))
        assert_close(got, wanted, 1e-8)
        potential = bound.gauge_potential(torch.stack([theta, balanced]), 2.0)
        assert_close(potential[1], torch.zeros(3, dtype=theta.dtype))
        assert bool((potential[0] > 0).all()) == bool(bound.charge_labels)

    @laws
    @given(seed=seeds)
    def test_gauge_coordinates_are_coordinates(self, bound: Symmetry, seed: int) -> None:
        theta = self.points(bound, seed, 2)
        back = bound.from_gauge_coordinates(bound.gauge_coordinates(theta))
        got, wanted = (self.compact_invariants(bound.layout.unflatten(point)) for point in (back, theta))
        assert_close(got, wanted, 1e-7)

    @laws
    @given(seed=seeds)
    def test_charges_generate_fields(self, bound: Symmetry, seed: int) -> None:
        theta, v = self.points(bound, seed), self.points(bound, seed + 2)
        gradients = torch.func.jacrev(bound.charge)(theta)
        basis = bound.charge_basis(theta)
        assert gradients.shape[0] == len(bound.charge_labels) == basis.shape[0]
        assert_close(gradients, basis @ bound.fundamental_vector_fields(theta))
        matrices = bound.charge_matrices(theta)
        hessians = torch.func.jacrev(torch.func.jacrev(bound.charge))(theta)
        assert_close(quadratic_form(matrices, v), torch.einsum("i,aij,j->a", v, hessians, v))
        assert_close(matrix_traces(matrices), hessians.diagonal(dim1=-2, dim2=-1).sum(-1))
        compact = bound.compact_basis(theta)
        assert compact.shape == (bound.compact_dim, bound.dim)
        assert_close(compact @ compact.mT, torch.eye(bound.compact_dim, dtype=theta.dtype))

    # -- batches, dtypes, degenerate and bad points ----------------------------------------------------------------

    def test_batch_equals_loop(self, bound: Symmetry) -> None:
        theta, v = self.points(bound, 7, 2, 3), self.points(bound, 8, 2, 3)
        for function in (
            bound.gram_matrix,
            bound.rank,
            bound.log_orbit_volume,
            bound.charge,
            bound.balance,
            bound.mean_curvature_vector,
            lambda p: bound.vertical_projection(v if p.ndim > 1 else v.reshape(-1, p.shape[-1])[0], p),
        ):
            assert_close(function(theta)[0, 0], function(theta[0, 0]))

    def test_float32(self, problem: LossProblem, bound: Symmetry) -> None:
        theta, v = self.points(bound, 7, 3), self.points(bound, 8, 3)
        for function in (bound.log_orbit_volume, bound.balance, bound.mean_curvature_vector, bound.charge):
            single = function(theta.float())
            assert single.dtype == torch.float32
            assert_close(single.double(), function(theta), 2e-3)
        single = bound.vertical_projection(v.float(), theta.float())
        assert single.dtype == torch.float32
        assert_close(single.double(), bound.vertical_projection(v, theta), 2e-4)

    def test_rank_drop(self, bound: Symmetry) -> None:
        theta, rank = self.degenerate(self.points(bound, 9), bound.layout)
        theta = torch.stack([theta, self.points(bound, 10)])
        generic = int(bound.rank(theta)[1])
        assert bound.rank(theta).tolist() == [rank, generic]
        assert bound.stabilizer_dimension(theta).tolist() == [bound.dim - rank, bound.dim - generic]
        self.check_projector(bound, theta, 11)
        for value in (bound.log_orbit_volume(theta), bound.mean_curvature_vector(theta), bound.balance(theta)):
            assert bool(torch.isfinite(value).all())
        gradient = torch.func.grad(lambda p: bound.log_orbit_volume(p).sum())(theta)
        assert bool(torch.isfinite(gradient).all())
        slope = torch.func.grad(lambda p: bound.vertical_projection(p.detach() + 1, p).square().sum())(theta)
        assert bool(torch.isfinite(slope).all())

    def test_non_finite_points(self, bound: Symmetry) -> None:
        theta = self.points(bound, 12, 2)
        theta[0] = torch.nan
        with pytest.raises(InputError, match="finite entries only"):
            bound.vertical_projection(theta, theta)
        volume = bound.log_orbit_volume(theta)
        assert bool(torch.isfinite(volume[1]))
        loose = bound.bind(bound, validate=False)
        projected = loose.vertical_projection(torch.ones_like(theta), theta)
        assert_close(projected[1], bound.vertical_projection(torch.ones_like(theta[1]), theta[1]))
        assert_close(bound.log_orbit_volume(theta[1]), volume[1])

    # -- problem and declaration -----------------------------------------------------------------------------------

    def test_invariance(self, problem: LossProblem) -> None:
        assert check_invariance(problem, self.symmetry) < 2e-12
        broken = LossProblem(problem.layout, lambda named: self.loss(named) + sum_of_cubes(named).unsqueeze(-1))
        with pytest.raises(SymmetryError, match="not invariant"):
            check_invariance(broken, self.symmetry)

    def test_spec_builds_the_same_group(self, problem: LossProblem, bound: Symmetry) -> None:
        again = from_spec(self.symmetry.spec(), allow_import=True)
        assert repr(again) == repr(self.symmetry)
        assert again.bind(problem).direction_labels == bound.direction_labels
        theta, xi = self.points(bound, 13), self.coefficients(bound, 13)
        assert_close(again.bind(problem).infinitesimal_action(xi, theta), bound.infinitesimal_action(xi, theta))

    def test_labels_and_names(self, bound: Symmetry) -> None:
        assert len(set(bound.direction_labels)) == len(bound.direction_labels) == bound.dim
        assert len(set(bound.charge_labels)) == len(bound.charge_labels)
        field = bound.infinitesimal_action(self.coefficients(bound, 14), self.points(bound, 14))
        moved = {name for name, part in bound.layout.unflatten(field).items() if float(part.abs().max()) > 0}
        assert moved == set(bound.parameter_names)


def sum_of_cubes(named: Named) -> Tensor:
    """Return Σ (θ_i + 0.1 i)³ / d over all parameters, shape (...): a function without symmetry."""
    parts = [t.reshape(*t.shape[:1], -1) if t.ndim > 1 else t for t in named.values()]
    theta = torch.cat(parts, dim=-1)
    return (theta + 0.1 * torch.arange(theta.shape[-1], dtype=theta.dtype)).pow(3).mean(-1)
