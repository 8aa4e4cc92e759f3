"""Lifts, distances, warnings and bad input of the bundle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.integrate import quad
from symmetry_laws import INPUTS, LossProblem, Named, randn
from torch import Tensor

from sdebias.errors import InputError, SymmetryError
from sdebias.layout import ParameterLayout
from sdebias.problems import Problem
from sdebias.symmetry import (
    GeneralLinear,
    IllConditionedGramWarning,
    Orthogonal,
    Product,
    Rescaling,
    Scaling,
    Symmetry,
    Translation,
    check_invariance,
    from_action,
    from_fields,
)
from sdebias.symmetry.action import forward_derivative

LAYOUT = ParameterLayout(
    {"p": (3,), "q": (3,), "U": (5, 2), "V": (4, 2), "w": (3,), "W": (4, 3)}, {"p": [["a", "b", "c"]]}
)


def no_loss(named: Named) -> Tensor:
    return named["p"]


PROBLEM = LossProblem(LAYOUT, no_loss)


def product(theta: Tensor) -> Tensor:
    named = LAYOUT.unflatten(theta)
    return (named["U"] @ named["V"].mT).flatten(-2)


def test_horizontal_lift() -> None:
    symmetry = GeneralLinear("U", "V").bind(PROBLEM)
    theta, v = randn(0, 2, LAYOUT.size), randn(1, 2, LAYOUT.size)
    change = forward_derivative(product, theta, v)
    lift = symmetry.horizontal_lift(change, theta, product)
    torch.testing.assert_close(forward_derivative(product, theta, lift), change)
    torch.testing.assert_close(symmetry.horizontal_projection(lift, theta), lift)
    # U Vᵀ tells all orbits in (U, V) apart: the lift is the horizontal part of any vector that makes the change.
    on_factors = torch.zeros_like(v)
    for name in ("U", "V"):
        on_factors[..., LAYOUT.slices[name]] = v[..., LAYOUT.slices[name]]
    torch.testing.assert_close(lift, symmetry.horizontal_projection(on_factors, theta))
    with pytest.raises(SymmetryError, match="one entry a prediction"):
        symmetry.horizontal_lift(v, theta, product)


def test_distance_along_hyperbolas() -> None:
    symmetry = Rescaling("p", "q").bind(PROBLEM)
    theta = randn(2, LAYOUT.size)
    shift = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
    other = symmetry.act(symmetry.exp(shift), theta)
    lengths = []
    for p, q, end in zip(theta[:3].tolist(), theta[3:6].tolist(), shift.tolist(), strict=True):
        arc, _ = quad(
            lambda s, p=p, q=q: (p**2 * 2.718281828459045 ** (2 * s) + q**2 / 2.718281828459045 ** (2 * s)) ** 0.5,
            0,
            end,
        )
        lengths.append(arc)
    # The orbit is the product of the arcs, with the product metric.
    wanted = torch.tensor(lengths, dtype=torch.float64).norm()
    torch.testing.assert_close(symmetry.orbit_distance(theta, other), wanted, rtol=1e-5, atol=0)
    assert float((other - theta).norm()) < 0.999 * float(wanted)


def test_distance_on_spheres_rays_and_planes() -> None:
    theta = randn(3, 2, LAYOUT.size)
    w = theta[..., LAYOUT.slices["w"]]
    rotation = Orthogonal("w").bind(PROBLEM)
    other = rotation.act(rotation.exp(0.8 * randn(4, 3)), theta)
    turned = other[..., LAYOUT.slices["w"]]
    angle = torch.acos((w * turned).sum(-1) / w.square().sum(-1))
    distance = rotation.orbit_distance(theta, other)
    torch.testing.assert_close(distance, w.norm(dim=-1) * angle, rtol=1e-5, atol=0)
    for symmetry in (Scaling("w"), Translation("W")):
        straight = symmetry.bind(PROBLEM)
        moved = straight.act(straight.exp(0.8 * randn(5, straight.dim)), theta)
        torch.testing.assert_close(straight.orbit_distance(theta, moved), (moved - theta).norm(dim=-1))


def test_distance_refuses_points_of_different_orbits() -> None:
    with pytest.raises(SymmetryError, match="two points of one orbit"):
        Orthogonal("w").bind(PROBLEM).orbit_distance(randn(6, LAYOUT.size), randn(7, LAYOUT.size))


def test_ill_conditioned_gram_warns_with_its_number() -> None:
    symmetry = GeneralLinear("U", "V").bind(PROBLEM)
    theta = randn(8, LAYOUT.size)
    for name in ("U", "V"):
        theta[LAYOUT.slices[name]] *= torch.tensor([1.0, 1e-7], dtype=torch.float64).repeat(LAYOUT.shape(name)[0])
    with pytest.warns(IllConditionedGramWarning, match=r"condition number \d\.?\d*e\+1[34]"):
        symmetry.vertical_projection(theta, theta)
    with pytest.warns(IllConditionedGramWarning):
        symmetry.log_orbit_volume(theta)
    assert 1e13 < float(symmetry.condition_number(theta)) < 1e15
    GeneralLinear("U", "V").bind(PROBLEM, validate=False).vertical_projection(theta, theta)


def test_log_volume_has_second_derivatives_at_equal_eigenvalues() -> None:
    # All eigenvalues of this Gram matrix agree, where derivatives of eigenvectors are infinite.
    theta = torch.zeros(LAYOUT.size, dtype=torch.float64)
    theta[LAYOUT.slices["w"]] = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    generic = from_fields(
        [lambda w, k=k: torch.linalg.cross(torch.eye(3, dtype=w.dtype)[k], w) for k in range(3)], ["w"]
    ).bind(PROBLEM)
    start, stop = LAYOUT.slices["w"].start, LAYOUT.slices["w"].stop

    def volume(w: Tensor) -> Tensor:
        return Symmetry._log_volume(generic, torch.cat([theta[:start], w, theta[stop:]]), "all")

    hessian, wanted = (torch.func.jacrev(torch.func.grad(f)) for f in (volume, lambda w: 2 * w.norm().log()))
    w = theta[LAYOUT.slices["w"]]
    torch.testing.assert_close(hessian(w), wanted(w))


@pytest.mark.parametrize(
    ("symmetry", "text"),
    [
        (Rescaling("p", "q1"), "did you mean 'q'"),
        (Rescaling("p", "p"), "two different parameters"),
        (Rescaling("p", "U"), "two parameters of one shape"),
        (Rescaling("p"), "2 slots or more"),
        (Rescaling(("p", "U:0"), "q"), "parts of one slot with the same length"),
        (Rescaling.relu("W", "U"), "slots with the same number of units"),
        (GeneralLinear("U", "W"), "two factors that share an axis"),
        (GeneralLinear("U", "V:2"), "an axis of 'V'"),
        (GeneralLinear("U"), "expected 2 slots"),
        (Orthogonal("nowhere"), "valid names are"),
        (Orthogonal(), "at least one parameter"),
        (Translation(), "1 slots or more"),
        (Scaling("W:0", "p:0"), "same length"),
        (from_fields([lambda p: p], ["p1"]), "did you mean 'p'"),
        (from_fields([lambda p: p[:2]], ["p"]), "tensors of shapes"),
        (from_action(lambda xi, p: p + 1 + xi, 3, ["p"]), "exp\\(0\\)"),
        (from_action(lambda xi, p: p * (1 + xi), 3, ["p"]), "exp\\(2ξ\\)"),
        (Product(GeneralLinear("U", "V"), Orthogonal("U")), "factors that commute"),
    ],
)
def test_unfit_declarations(symmetry: Symmetry, text: str) -> None:
    with pytest.raises(SymmetryError, match=text):
        symmetry.bind(PROBLEM)


@pytest.mark.parametrize(
    ("symmetry", "element", "text"),
    [
        (Rescaling("p", "q"), torch.tensor([1.0, -1.0, 1.0]), "positive finite factors"),
        (Rescaling("p", "q"), torch.ones(2), r"shape \(..., 3\)"),
        (GeneralLinear("U", "V"), torch.ones(2, 2), "invertible matrices"),
        (GeneralLinear("U", "V"), torch.ones(2, 3), "square matrices"),
        (GeneralLinear("U", "V"), torch.full((2, 2), torch.inf), "finite entries"),
        (Orthogonal("w"), 2 * torch.eye(3), "orthogonal matrices"),
        (Translation("W"), torch.ones(2), r"shape \(..., 3\)"),
        (Translation("W"), torch.full((3,), torch.nan), "finite entries"),
        (Product(Scaling("w"), Scaling("p")), torch.ones(2), "a tuple of 2 elements"),
        (from_fields([lambda p: p], ["p"]), torch.ones(3), r"shape \(..., 1\)"),
        (from_fields([lambda p: p], ["p"]), torch.full((1,), torch.nan), "finite entries"),
    ],
)
def test_bad_elements(symmetry: Symmetry, element: Tensor, text: str) -> None:
    with pytest.raises(SymmetryError, match=text):
        symmetry.bind(PROBLEM).act(element.double(), randn(9, LAYOUT.size))


def test_other_bad_input() -> None:
    symmetry = Rescaling("p", "q")
    with pytest.raises(SymmetryError, match="not bound"):
        symmetry.dim  # noqa: B018
    bound, theta = symmetry.bind(PROBLEM), randn(10, LAYOUT.size)
    with pytest.raises(InputError, match="shape"):
        bound.vertical_projection(theta[:-1], theta)
    with pytest.raises(InputError, match="did you mean 'compact'"):
        bound.log_orbit_volume(theta, "compct")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stiffness"):
        bound.gauge_potential(theta, -1.0)
    with pytest.raises(SymmetryError, match="at least one factor"):
        Product()
    with pytest.raises(SymmetryError, match="at least one field"):
        from_fields([], ["p"])


def test_not_a_symmetry_names_the_culprit() -> None:
    def loss(named: Named) -> Tensor:
        # Rescaling entry b alone changes sample 2, and nothing else does.
        w = named["p"] * named["q"]
        losses = (w @ INPUTS.mT).square()
        return losses + torch.nn.functional.one_hot(torch.tensor(2), 4) * named["p"][..., 1:2].square()

    with pytest.raises(SymmetryError, match=r"sample 2, group element exp\(.*\) of p:q\[b\]"):
        check_invariance(LossProblem(LAYOUT, loss), Rescaling("p", "q"))
    with pytest.raises(SymmetryError, match=r"of U:V\[0,1\]"):
        check_invariance(
            LossProblem(LAYOUT, lambda named: named["U"][..., 0, 1:] * 1e3 + named["U"][..., 0, :1]),
            GeneralLinear("U", "V"),
        )


def test_units_of_different_size_need_no_warning() -> None:
    symmetry = Rescaling("p", "q", "w").bind(PROBLEM)
    theta = randn(11, LAYOUT.size)
    for name in ("p", "q", "w"):
        theta[LAYOUT.slices[name]] = torch.tensor([1.0, 1e-3, 1e-7], dtype=torch.float64)
    # Each unit has equal factors: its block has eigenvalues u² and 3u².
    wanted = (torch.tensor([1.0, 1e-3, 1e-7], dtype=torch.float64).log() * 2 + 0.5 * torch.tensor(3.0).log()).sum()
    torch.testing.assert_close(symmetry.log_orbit_volume(theta), wanted)
    assert int(symmetry.rank(theta)) == 6


def test_operators_give_the_noise_trace_of_a_problem() -> None:
    class Completion(Problem):
        model = "completion"

        def per_sample_loss(self, theta: Tensor) -> Tensor:
            return (product(theta)[..., :4] - self.data["y"][1]).square()

        def predictor(self, theta: Tensor) -> Tensor:
            return product(theta)

        @property
        def predictor_labels(self) -> list[str]:
            return []

    problem = Completion(LAYOUT, {"y": (("sample",), randn(12, 4))})
    symmetry = GeneralLinear("U", "V").bind(problem)
    theta = randn(13, 2, LAYOUT.size)
    forms: Any = symmetry.charge_matrices(theta)
    dense = torch.func.jacrev(torch.func.jacrev(symmetry.charge))(theta[0])
    covariance = problem.gradient_noise_covariance(theta)
    wanted = torch.einsum("bij,aji->ba", covariance, dense)
    torch.testing.assert_close(problem.gradient_noise_trace(theta, forms), wanted)
