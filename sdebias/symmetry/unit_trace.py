"""What normalisations, matrix products and attention do to units; see `units`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .units import CONSTANT, UnitNumbers, leaves


class UnitTrace(UnitNumbers):
    """Units of a module, followed through the operations of torch's layers and through products of tensors."""

    # -- normalisation ---------------------------------------------------------------------------------------------

    def _normalise(
        self, name: str, result: Tensor, units: Tensor, dims: Any, eps: float, *affine: Any, channels: bool = True
    ) -> None:
        rows = units.movedim(tuple(dims), tuple(range(-len(dims), 0))).flatten(-len(dims))
        self.normalised.append((self._joined_along(rows, [-1]).unique(), name, eps))
        self._affine(result, torch.zeros(result.shape, dtype=torch.int64), *affine, channels=channels)

    def _affine(self, result: Tensor, units: Tensor, weight: Any = None, bias: Any = None, *, channels: bool) -> None:
        """Multiply by a weight and add a bias, along the channels on axis 1 or along the last axes."""
        self._set(result, units)
        for parameter, rule in ((weight, self._mul_rule), (bias, self._add_rule)):
            if parameter is not None:
                # The parameter as it meets the tensor: a view of the right shape, with its own numbers.
                shape = (-1, *[1] * (result.ndim - 2)) if channels else parameter.shape
                view = parameter.detach().reshape(shape)
                if self.entries(parameter) is not None:
                    self._set(view, self._entries[id(parameter)].reshape(view.shape), entries=True)
                rule(result, result, view)

    def _layer_norm_rule(
        self, result: Tensor, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> None:
        self._normalise("layer_norm", result, self.units(x), range(-len(shape), 0), eps, weight, bias, channels=False)

    def _rms_norm_rule(self, result: Tensor, x: Tensor, shape: Any, weight: Any = None, eps: Any = None) -> None:
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        self._normalise("rms_norm", result, self.units(x), range(-len(shape), 0), eps, weight, channels=False)

    def _normalize_rule(
        self, result: Tensor, x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 0, out: Any = None
    ) -> None:
        self._normalise("normalize", result, self.units(x), [dim] if isinstance(dim, int) else dim, 0.0)

    def _group_norm_rule(
        self, result: Tensor, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> None:
        units = self.units(x).unflatten(1, (groups, -1))
        self._normalise("group_norm", result, units, range(2, units.ndim), eps, weight, bias)

    def _instance_norm_rule(
        self, result: Tensor, x: Tensor, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None,
        use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        assert use_input_stats
        self._normalise("instance_norm", result, self.units(x), range(2, x.ndim), eps, weight, bias)

    def _batch_norm_rule(
        self, result: Tensor, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        if training:
            dims = [k for k in range(x.ndim) if k != 1]
            self._normalise("batch_norm", result, self.units(x), dims, eps, weight, bias)
            return
        units = self.units(x)
        self._unlike(units)
        # A channel less its running mean scales as the channel does where the mean is zero.
        shifted = (mean != 0).reshape(-1, *[1] * (x.ndim - 2)).expand(x.shape)
        self.ended.append((units[shifted].unique(), "a running mean that is not zero"))
        self._affine(result, torch.where(shifted, CONSTANT, units), weight, bias, channels=True)

    # -- products --------------------------------------------------------------------------------------------------

    def _matmul_rule(self, result: Tensor, one: Tensor, other: Tensor, out: Any = None) -> None:
        if one.ndim < 2 or other.ndim < 2:
            raise ValueError("vectors")
        lead = "abcdefgh"[: max(one.ndim, other.ndim) - 2]
        self._contract(
            result,
            one,
            other,
            f"{lead[len(lead) - one.ndim + 2 :]}xy",
            f"{lead[len(lead) - other.ndim + 2 :]}yz",
            f"{lead}xz",
        )

    def _einsum_rule(self, result: Tensor, equation: str, *operands: Any) -> None:
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
        left, _, out = equation.replace(" ", "").partition("->")
        one, other = left.split(",")
        if "." in equation or not out or len(operands) != 2 or any(len(set(part)) < len(part) for part in (one, other)):
            raise ValueError("an equation of another form")
        self._contract(result, *operands, one, other, out)

    def _contract(self, result: Tensor, one: Tensor, other: Tensor, la: str, lb: str, out: str) -> None:
        """Sum a product of two tensors over the letters that the result has not."""
        summed = [letter for letter in dict.fromkeys(la + lb) if letter not in out]
        order = out + "".join(summed)

        def spread(numbers: Tensor, letters: str) -> Tensor:
            placed = numbers.permute([letters.index(letter) for letter in order if letter in letters])
            shape = iter(placed.shape)
            return placed.reshape([next(shape) if letter in letters else 1 for letter in order])

        dims = range(len(out), len(order))
        if self.entries(one) is not None:
            one, other, la, lb = other, one, lb, la
        places = self.entries(other)
        if places is not None:
            if self.entries(one) is not None:
                raise ValueError("a product of parameters")
            units, at = torch.broadcast_tensors(spread(self.units(one), la), spread(places, lb))
            inner = [letter for letter in la if letter in lb and letter in summed]
            if inner:
                self._together(
                    self.units(one)
                    .movedim([la.index(c) for c in inner], list(range(-len(inner), 0)))
                    .flatten(-len(inner))
                )
            if any(letter in la and letter in lb for letter in out):
                self._unlike(units)
            # Outputs with the same entries are the same unit, whatever the sample.
            first = at.amin(tuple(dims), keepdim=True) if summed else at
            values, index = first.unique(return_inverse=True)
            fresh = self._new(len(values))[index]
            self._pair(self.consumed, at, units)
            self._pair(self.produced, at, fresh)
            self._remember_layer(fresh, at)
            self._set(result, fresh.reshape(result.shape))
            return
        a, b = torch.broadcast_tensors(spread(self.units(one), la), spread(self.units(other), lb))
        for tensor, own, foreign in ((one, la, lb), (other, lb, la)):
            # Units that the other factor does not tell apart may mix.
            free = [own.index(letter) for letter in own if letter not in foreign or letter in summed]
            if free:
                self._together(self.units(tensor).movedim(free, list(range(-len(free), 0))).flatten(-len(free)))
        both = (a > CONSTANT) & (b > CONSTANT)
        if bool(both.any()):
            if not bool(both.all()):
                raise ValueError("a product of which some terms scale")
            self.contracted.append((a[both], b[both]))
            return
        self._set(result, self._joined_along(torch.where(a > CONSTANT, a, b), list(dims)).reshape(result.shape))

    def _remember_layer(self, units: Tensor, places: Tensor) -> None:
        units, places = torch.broadcast_tensors(units, places)
        self.layers.append(
            (
                units.unique(),
                torch.stack([units.flatten(), places.flatten()]).unique(dim=1)[1][None],
                places.flatten()[:0],
            )
        )

    def _multi_head_attention_forward_rule(
        self,
        result: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed: int,
        heads: int,
        in_weight: Any,
        in_bias: Any,
        bias_k: Any,
        bias_v: Any,
        zero: bool,
        dropout: float,
        out_weight: Any,
        out_bias: Any,
        **options: Any,
    ) -> None:
        if bias_k is not None or bias_v is not None:
            raise ValueError("keys and values beside those of the tokens")
        parts = []
        for k, (tensor, name) in enumerate(((query, "q"), (key, "k"), (value, "v"))):
            if options.get("use_separate_proj_weight"):
                places = self.entries(options[f"{name}_proj_weight"])
            else:
                whole = self.entries(in_weight)
                places = None if whole is None else whole[k * embed : (k + 1) * embed]
            assert places is not None
            units = self.units(tensor)
            self._together(units)
            self._pair(self.consumed, places, self._joined_along(units, range(units.ndim - 1)).reshape(-1))
            shift = None if in_bias is None else self.entries(in_bias)
            fresh = self._new(embed)
            self._pair(self.produced, places, fresh[:, None])
            bias = places[:0, 0]
            if shift is not None:
                bias = shift[k * embed : (k + 1) * embed]
                self._pair(self.produced, bias, fresh)
            self.layers.append((fresh, places, bias))
            self._together(fresh.reshape(heads, -1))
            parts.append(fresh)
        self.contracted.append((parts[0], parts[1]))
        output = next(iter(leaves(result)))
        view = torch.empty(embed)
        self._set(view, parts[2])
        self._linear_rule(output, view, out_weight, out_bias)
