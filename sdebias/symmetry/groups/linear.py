"""Matrix groups that act on one axis of the parameters: GL(r) between two factors, O(m) on one."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ...errors import SymmetryError, check_positive, message
from ..bundle import Part
from ..gauge import QuadraticForms
from ..linalg import Sylvester, log_sum, symmetric_eigenvalues
from .named import NamedGroup


def check_square(element: Tensor, size: int) -> Tensor:
    """Return a group element if it is a finite matrix (..., size, size).

    Raises
    ------
    SymmetryError
        If it is not.
    """
    if element.ndim < 2 or element.shape[-2:] != (size, size):
        got, remedy = tuple(element.shape), "use symmetry.exp(coefficients) to build elements"
        raise SymmetryError(message("group element", f"square matrices (..., {size}, {size})", got, remedy))
    if not bool(torch.isfinite(element).all()):
        remedy = "use smaller coefficients"
        raise SymmetryError(message("group element", "finite entries only", "NaN or infinite ones", remedy))
    return element


def pairwise_sums(eigenvalues: Tensor, offset: int) -> Tensor:
    """Return λ_i + λ_j for j ≥ i + offset, shape (..., pairs)."""
    size = eigenvalues.shape[-1]
    i, j = torch.triu_indices(size, size, offset, device=eigenvalues.device)
    return eigenvalues[..., i] + eigenvalues[..., j]


class GeneralLinear(NamedGroup):
    """GL(r) between the two factors of M = U Vᵀ: U → U g, V → V g⁻ᵀ, which leaves M unchanged.

    X_ξ = (U ξ, −V ξᵀ), directions E_ij in row-major order. With A = UᵀU and B = VᵀV the Gram operator is
    ξ ↦ A ξ + ξ B, a Kronecker sum: projections solve a Sylvester equation, ½ log det G = ½ Σ_ij log(a_i + b_j) with the
    eigenvalues of A and B; memory O((n + m) r) a point. Charges are the entries i ≤ j of the symmetric matrix
    ½ (UᵀU − VᵀV). Symmetric directions are non-compact, antisymmetric ones, O(r), compact. Elements are matrices
    (..., r, r); the action composes from the right, act(g, act(h, θ)) = act(hg, θ).

    Parameters
    ----------
    *parameters : str or sequence of str
        Two factors, each with the axis of length r after a colon; by default the last: ``GeneralLinear("U", "V")`` is
        U Vᵀ, ``GeneralLinear("W_Q", "W_K")`` is W_Q W_Kᵀ, ``GeneralLinear("W_V", "W_O:0")`` is W_V W_O. A sequence
        joins parameters that transform alike.
    """

    default_axis = -1

    @classmethod
    def layers(cls, first: str, second: str) -> Self:
        """Return the group between two consecutive linear layers, W_second (W_first x + b_first).

        Parameters
        ----------
        first, second : str
            Weights (r, input) and (output, r), or layers of an ``nn.Module``, the first with its bias.
        """
        return cls(f"{second}:1", f"{first}:0")

    def _check_layout(self) -> None:
        self._check_slots(2, 2, "name the two factors")
        super()._check_layout()
        if self.slots[0].rows != self.slots[1].rows:
            got = " and ".join(f"{slot.label!r} {slot.rows}" for slot in self.slots)
            raise self._error("two factors that share an axis", got, "name the axis to contract, as 'W:0'")

    @property
    def size(self) -> int:
        """The r of GL(r)."""
        return self.slots[0].rows

    @property
    def dim(self) -> int:
        """Number of entries of ξ, r²."""
        return self.size**2

    @property
    def _name(self) -> str:
        return f"{self.slots[0].label}:{self.slots[1].label}"

    @property
    def direction_labels(self) -> list[str]:
        """``U:V[i,j]`` for E_ij."""
        return [f"{self._name}[{i},{j}]" for i in range(self.size) for j in range(self.size)]

    @property
    def charge_labels(self) -> list[str]:
        """``U:V[i,j]`` for i ≤ j."""
        return [f"{self._name}[{i},{j}]" for i in range(self.size) for j in range(i, self.size)]

    def _factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return Uᵀ (..., r, n) and Vᵀ (..., r, m)."""
        self.layout.check(theta)
        return self.slots[0].read(theta), self.slots[1].read(theta)

    def _place(self, first: Tensor, second: Tensor, background: Tensor | None = None) -> Tensor:
        return self._written({**self.slots[0].write(first), **self.slots[1].write(second)}, background)

    def _grams(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self._factors(theta)
        return first @ first.mT, second @ second.mT

    def _matrix(self, coefficients: Tensor) -> Tensor:
        return coefficients.unflatten(-1, (self.size, self.size))

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the matrix exponential, shape (..., r, r)."""
        return torch.linalg.matrix_exp(self._matrix(coefficients))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return hg for g = `first` and h = `second`: the action is from the right."""
        return second @ first

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return (U g, V g⁻ᵀ), all other parameters unchanged.

        Raises
        ------
        SymmetryError
            If the element is not a square matrix of size r, not finite, or singular.
        """
        element = check_square(element, self.size)
        scales = torch.linalg.svdvals(element.detach())
        if bool((scales[..., -1] <= scales[..., 0] * (self.size * torch.finfo(element.dtype).eps)).any()):
            remedy = "use symmetry.exp(coefficients) to build elements"
            raise SymmetryError(message("group element", "invertible matrices", "a singular one", remedy))
        first, second = self._factors(theta)
        return self._place(element.mT @ first, torch.linalg.solve(element, second), theta)

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return (U ξ, −V ξᵀ), shape (..., parameter)."""
        xi = self._matrix(coefficients)
        first, second = self._factors(base_point)
        return self._place(xi.mT @ first, -(xi @ second))

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return Uᵀ v_U − v_Vᵀ V, shape (..., r²)."""
        first, second = self._factors(base_point)
        v_first, v_second = self._factors(tangent_vec)
        return (first @ v_first.mT - v_second @ second.mT).flatten(-2)

    def gram_matrix(self, theta: Tensor) -> Tensor:
        """Return the Kronecker sum A ⊗ I + I ⊗ B, shape (..., r², r²). Dense: for small r."""
        a, b = self._grams(theta)
        eye = torch.eye(self.size, dtype=theta.dtype, device=theta.device)
        return (
            (torch.einsum("...ik,jl->...ijkl", a, eye) + torch.einsum("ik,...jl->...ijkl", eye, b))
            .flatten(-4, -3)
            .flatten(-2)
        )

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return a_i + b_j, shape (..., r²)."""
        a, b = (symmetric_eigenvalues(gram) for gram in self._grams(theta))
        return (a.unsqueeze(-1) + b.unsqueeze(-2)).flatten(-2)

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return the ξ of least norm with A ξ + ξ B = c, shape (..., r²)."""
        operator = Sylvester(*self._grams(base_point))
        self._warn(operator.values.flatten(-2))
        return operator.solve(self._matrix(coefficients)).flatten(-2)

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        """Return ½ Σ_ij log(a_i + b_j), or with s the eigenvalues of A + B ½ Σ_{i<j} log((s_i + s_j)/2) of O(r)."""
        if part == "all":
            values = self.gram_eigenvalues(theta)
            self._warn(values)
            return 0.5 * log_sum(values)
        a, b = self._grams(theta)
        values = 0.5 * pairwise_sums(symmetric_eigenvalues(a + b), 1 if part == "compact" else 0)
        # Charges are entries of a symmetric matrix: for i ≠ j ∇C_ij has half the square of a unit direction.
        norms = 0.0 if part == "compact" else self.size * (self.size - 1) / 2 * torch.log(values.new_tensor(0.5))
        return 0.5 * (log_sum(values) + norms)

    def _second_derivative_trace(self, theta: Tensor) -> Tensor:
        """Return (U S, V Sᵀ) where A S + S B = I."""
        first, second = self._factors(theta)
        identity = torch.eye(self.size, dtype=theta.dtype, device=theta.device).expand(*theta.shape[:-1], -1, -1)
        solution = Sylvester(*self._grams(theta)).solve(identity)
        return self._place(solution.mT @ first, solution @ second)

    # -- gauge -----------------------------------------------------------------------------------------------------

    def charge_matrix(self, theta: Tensor) -> Tensor:
        """Return the moment map ½ (UᵀU − VᵀV), shape (..., r, r)."""
        a, b = self._grams(theta)
        return 0.5 * (a - b)

    def _upper(self, matrix: Tensor) -> Tensor:
        i, j = torch.triu_indices(self.size, self.size, device=matrix.device)
        return matrix[..., i, j]

    def charge(self, theta: Tensor) -> Tensor:
        """Return the entries i ≤ j of ½ (UᵀU − VᵀV), shape (..., r(r+1)/2)."""
        return self._upper(self.charge_matrix(theta))

    def charge_matrices(self, like: Tensor) -> QuadraticForms:
        """Return the A_a as operators, vᵀA_a v = 2 C_a(v): r²·d numbers are never formed."""
        first, second = self.slots
        trace = float(first.columns - second.columns)
        eye = torch.eye(self.size, dtype=like.dtype, device=like.device)
        return QuadraticForms(lambda v: 2 * self.charge(v), self._upper(trace * eye))

    def charge_basis(self, like: Tensor) -> Tensor:
        """Return the symmetric directions (E_ij + E_ji)/2, shape (r(r+1)/2, r²)."""
        eye = self._matrix(torch.eye(self.dim, dtype=like.dtype, device=like.device))
        i, j = torch.triu_indices(self.size, self.size, device=like.device)
        return (0.5 * (eye + eye.mT))[i * self.size + j].flatten(-2)

    def gauge_potential(self, theta: Tensor, stiffness: float) -> Tensor:
        """Return (κ/2) ‖½ (UᵀU − VᵀV)‖²_F, shape (...), which O(r) leaves unchanged."""
        check_positive("stiffness", stiffness)
        return 0.5 * stiffness * self.charge_matrix(theta).square().sum((-2, -1))

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the balanced point U g, V g⁻¹ with g symmetric positive definite, in closed form.

        With U Vᵀ = W Σ Zᵀ the balanced points are (W √Σ R, Z √Σ R), R in O(r). The one returned lies in the positive
        part of the group: R is the polar factor of g₀ᵀ, where U g₀ = W √Σ, so that g = g₀ R is symmetric. Where U Vᵀ
        has rank below r the orbit has no balanced point, and the result is a limit of the orbit.
        """
        first, second = self._factors(self.check_point(theta))
        (q_first, r_first), (q_second, r_second) = torch.linalg.qr(first.mT), torch.linalg.qr(second.mT)
        left, sigma, right = torch.linalg.svd(r_first @ r_second.mT, full_matrices=False)
        # U is a tall matrix of r columns only if n ≥ r; else there are fewer singular values, and zero columns fill up.
        missing = self.size - sigma.shape[-1]
        root = sigma.sqrt()
        kept = sigma > sigma[..., :1] * (self.size * torch.finfo(sigma.dtype).eps)
        inverse_root = torch.where(kept, 1 / torch.where(kept, root, 1.0), 0.0)
        start = r_second.mT @ right.mT * inverse_root.unsqueeze(-2)
        polar_left, _, polar_right = torch.linalg.svd(torch.nn.functional.pad(start, (0, missing)))
        rotation = (polar_left @ polar_right).mT[..., : sigma.shape[-1], :]
        new_first = q_first @ (left * root.unsqueeze(-2)) @ rotation
        new_second = q_second @ (right.mT * root.unsqueeze(-2)) @ rotation
        return self._place(new_first.mT, new_second.mT, theta)


class Orthogonal(NamedGroup):
    """Rotations SO(m) of one axis, the same for all named parameters: Θ → R Θ, with that axis as the rows of Θ.

    X_ξ = ξ Θ for antisymmetric ξ, directions E_ij − E_ji for i < j. With S = ΘΘᵀ of eigenvalues s_i the Gram operator
    is ξ ↦ S ξ + ξ S, eigenvalues s_i + s_j: a vector in R^m has s = (‖θ‖², 0, …), orbits of dimension m − 1, stabilizer
    SO(m − 1) and volume (m − 1) log ‖θ‖. The group is compact and acts by isometries: no charges, nothing to balance.
    Elements are orthogonal matrices (..., m, m).

    Parameters
    ----------
    *parameters : str
        Names, each with the axis that is rotated after a colon, by default the last. ``Orthogonal("w")`` rotates a
        vector (losses of ‖w‖); ``Orthogonal("U")`` the columns of U (losses of U Uᵀ); ``Orthogonal("U", "V")`` both
        at once (factorisation with weight decay).
    """

    default_axis = -1
    joint = True

    def _check_layout(self) -> None:
        if not self.parameters:
            raise self._error("at least one parameter", "none", "name the parameters that are rotated")
        super()._check_layout()

    @property
    def size(self) -> int:
        """The m of SO(m)."""
        return self.slots[0].rows

    @property
    def dim(self) -> int:
        """Number of pairs of axes, m (m − 1)/2."""
        return self.size * (self.size - 1) // 2

    @property
    def direction_labels(self) -> list[str]:
        """``w[i,j]`` for the rotation from axis j to axis i."""
        pairs = [(i, j) for i in range(self.size) for j in range(i + 1, self.size)]
        return [f"{self.slots[0].label}[{i},{j}]" for i, j in pairs]

    @property
    def charge_labels(self) -> list[str]:
        """None: the group is compact."""
        return []

    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return no matrices, shape (0, parameter)."""
        return like.new_zeros(0, self.layout.size)

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return θ: a compact group has nothing to balance."""
        return self.check_point(theta)

    def _matrix(self, coefficients: Tensor) -> Tensor:
        """Return the antisymmetric matrix of coefficients, shape (..., m, m)."""
        i, j = torch.triu_indices(self.size, self.size, 1, device=coefficients.device)
        upper = coefficients.new_zeros(*coefficients.shape[:-1], self.size, self.size)
        upper = torch.index_put(upper.movedim((-2, -1), (0, 1)), (i, j), coefficients.movedim(-1, 0))
        upper = upper.movedim((0, 1), (-2, -1))
        return upper - upper.mT

    def _coefficients(self, matrix: Tensor) -> Tensor:
        i, j = torch.triu_indices(self.size, self.size, 1, device=matrix.device)
        return matrix[..., i, j]

    def _gram(self, theta: Tensor) -> Tensor:
        matrix = self.slots[0].read(self.layout.check(theta))
        return matrix @ matrix.mT

    def _rotated(self, matrix: Tensor, theta: Tensor, background: Tensor | None = None) -> Tensor:
        slot = self.slots[0]
        return self._written(slot.write(matrix @ slot.read(self.layout.check(theta))), background)

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the rotation, shape (..., m, m)."""
        return torch.linalg.matrix_exp(self._matrix(coefficients))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the matrix product."""
        return first @ second

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return R Θ, all other parameters unchanged.

        Raises
        ------
        SymmetryError
            If the element is not an orthogonal matrix of size m.
        """
        element = check_square(element, self.size)
        eye = torch.eye(self.size, dtype=element.dtype, device=element.device)
        error = float((element.mT @ element - eye).detach().abs().max())
        if error > torch.finfo(element.dtype).eps ** 0.5:
            remedy = "use symmetry.exp(coefficients) to build elements"
            raise SymmetryError(message("group element", "orthogonal matrices", f"RᵀR − I = {error:.2g}", remedy))
        return self._rotated(element, theta, theta)

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return ξ Θ, shape (..., parameter)."""
        return self._rotated(self._matrix(coefficients), base_point)

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return the entries i < j of v Θᵀ − Θ vᵀ, shape (..., dim)."""
        product = self.slots[0].read(self.layout.check(tangent_vec)) @ self.slots[0].read(base_point).mT
        return self._coefficients(product - product.mT)

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return s_i + s_j for i < j, shape (..., dim)."""
        return pairwise_sums(symmetric_eigenvalues(self._gram(theta)), 1)

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return the ξ of least norm with S ξ + ξ S = c, shape (..., dim)."""
        gram = self._gram(base_point)
        self._warn(self.gram_eigenvalues(base_point.detach()))
        return self._coefficients(Sylvester(gram, gram).solve(self._matrix(coefficients)))

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        """Return ½ Σ_{i<j} log(s_i + s_j), shape (...), with unit directions E_ij − E_ji."""
        if part == "noncompact":
            return theta.new_zeros(theta.shape[:-1])
        values = self.gram_eigenvalues(theta)
        self._warn(values)
        return 0.5 * log_sum(values)
