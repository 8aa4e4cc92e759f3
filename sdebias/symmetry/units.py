"""Which units a module has: what scales together, what feeds it and what it feeds, read off one forward pass.

A module is run once while every tensor carries, for each of its entries, the number of the unit that the entry belongs
to: an output of a linear map is a new unit, a reshape moves numbers about, a ReLU keeps them, a sum joins those of its
terms, a sigmoid ends them. A unit whose incoming entries are multiplied by c and whose outgoing entries by 1/c leaves
the outputs unchanged. What an operation does to units that is not known here ends them: nothing is claimed of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Numbers of entries that belong to no unit: any constant, and zeros, which every scale leaves as they are.
CONSTANT, ZERO = 0, -1

VIEWS = set(
    """
    view reshape flatten unflatten transpose permute movedim moveaxis swapaxes swapdims squeeze unsqueeze expand
    expand_as view_as reshape_as contiguous clone detach getitem select narrow chunk split tensor_split unbind T mT t
    tile repeat repeat_interleave roll flip index_select gather data cat concat stack hstack vstack unfold atleast_2d
    """.split()  # noqa: SIM905
)
# Same shape, and linear in the unit.
PASSES = {"neg", "dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "to", "type", "double", "float"}
# Positively homogeneous, entry by entry.
HOMOGENEOUS = {"relu", "leaky_relu", "prelu", "abs"}
LINEAR_SUMS = {"sum", "mean"}
SUMS = LINEAR_SUMS | {"amax", "amin", "max", "min"}
# What tells nothing of the values of its arguments.
SILENT = {"ones_like", "empty_like", "full_like", "new_ones", "new_full", "new_empty"}
# Operations by other names.
SAME = {
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "rmul": "mul",
    "imul": "mul",
    "rmatmul": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "sub": "add",
    "subtract": "add",
    "radd": "add",
    "iadd": "add",
    "rsub": "add",
    "isub": "add",
    "clamp_min": "clamp",
}


class UnitNumbers(TorchFunctionMode):
    """Numbers of units of tensors, and what happened to each unit, while a module runs.

    Parameters
    ----------
    module : nn.Module
        Its parameters get numbers for their entries, in the order of `names`.

    Attributes
    ----------
    names : dict of str to (first, shape)
        Place of each parameter among the numbered entries.
    produced, consumed : list of (entries, units)
        Flat tensors: entries that multiply a unit by c when they are, and entries that undo that.
    joined, contracted : list of (units, units)
        Pairs that must scale alike, and pairs of which only the product is seen.
    ended : list of (units, reason)
        Units whose scale is seen.
    seen : list of (entries, reason)
        Entries whose scale is seen beside what they do to units.
    normalised : list of (units, operation, eps)
        Units whose common scale a normalisation takes away.
    mixed : list of tensor of units
        Units that enter all sums of one operation together.
    layers : list of (units, entries of the weight, entries of the bias)
        The linear maps.
    nonlinear : set of int
        Units that do not pass linearly, or not all in the same way.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.count = 1
        self.produced: list[tuple[Tensor, Tensor]] = []
        self.consumed: list[tuple[Tensor, Tensor]] = []
        self.joined: list[tuple[Tensor, Tensor]] = []
        self.contracted: list[tuple[Tensor, Tensor]] = []
        self.ended: list[tuple[Tensor, str]] = []
        self.seen: list[tuple[Tensor, str]] = []
        self.normalised: list[tuple[Tensor, str, float]] = []
        self.mixed: list[Tensor] = []
        self.layers: list[tuple[Tensor, Tensor, Tensor]] = []
        self.nonlinear: set[int] = set()
        self._units: dict[int, Tensor] = {}
        self._entries: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []
        first = 0
        for name, parameter in module.named_parameters():
            self.names[name] = first, tuple(parameter.shape)
            places = torch.arange(first, first + parameter.numel()).reshape(parameter.shape)
            self._entries[id(parameter)] = places
            self._alive.append(parameter)
            first += parameter.numel()
        self.size = first

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func)
        result = func(*args, **kwargs)
        if name in SILENT or not (name == "setitem" or any(isinstance(t, Tensor) for t in leaves(result))):
            return result
        try:
            self._follow(name, func, result, args, kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError, AssertionError):
            # A call of a form that is not foreseen here: what it took ends, so that nothing is claimed of it.
            self._end(name, args, kwargs)
            self._forget(result)
        return result

    def _follow(self, name: str, func: Any, result: Any, args: Any, kwargs: Any) -> None:
        handler: Callable[..., None] | None = getattr(self, f"_{name}_rule", None)
        if name in VIEWS:
            self._view(func, result, args, kwargs)
        elif handler is not None:
            handler(result, *args, **kwargs)
        elif name in PASSES or name in HOMOGENEOUS:
            units = self.units(args[0])
            if name in HOMOGENEOUS:
                self._unlike(units)
            self._set(result, units)
        elif name in SUMS:
            self._sum(name, result, *args, **kwargs)
        elif "pool" in name or name in ("interpolate", "upsample"):
            self._pool(name, result, args[0])
        elif name.startswith("conv"):
            self._convolution(name, result, *args, **kwargs)
        else:
            self._end(name, args, kwargs)
            self._forget(result)

    def units(self, tensor: Any) -> Tensor:
        """Return the number of the unit of each entry of a tensor."""
        if id(tensor) in self._entries:
            raise ValueError("a parameter where a tensor of the forward pass is expected")
        found = self._units.get(id(tensor))
        return found if found is not None else torch.zeros(tensor.shape, dtype=torch.int64)

    def entries(self, tensor: Any) -> Tensor | None:
        """Return the numbers of a parameter's entries, or of a view of one; None for another tensor."""
        return self._entries.get(id(tensor))

    def _set(self, tensor: Tensor, units: Tensor, *, entries: bool = False) -> None:
        assert units.shape == tensor.shape
        (self._entries if entries else self._units)[id(tensor)] = units
        self._alive.append(tensor)

    def _new(self, count: int) -> Tensor:
        first, self.count = self.count, self.count + count
        return torch.arange(first, self.count)

    def _unlike(self, units: Tensor) -> None:
        self.nonlinear.update(units.unique().tolist())

    def _join(self, one: Tensor, other: Tensor) -> Tensor:
        """Note that units must scale alike, entry by entry, and return one of each pair."""
        one, other = torch.broadcast_tensors(one, other)
        both = (one != ZERO) & (other != ZERO) & (one != other)
        self.joined.append((one[both], other[both]))
        return torch.where(one == ZERO, other, one)

    def _joined_along(self, units: Tensor, dims: Sequence[int]) -> Tensor:
        """Note that units along some dims must scale alike, and return one of them, the dims kept with length 1."""
        if not len(dims):
            return units
        first = torch.where(units == ZERO, torch.iinfo(torch.int64).max, units).amin(tuple(dims), keepdim=True)
        first = torch.where(first == torch.iinfo(torch.int64).max, ZERO, first)
        self._join(units, first)
        return first

    def _end(self, reason: str, *tensors: Any) -> None:
        for tensor in leaves(tensors):
            if isinstance(tensor, Tensor) and id(tensor) in self._units:
                self.ended.append((self._units[id(tensor)].unique(), reason))
            elif isinstance(tensor, Tensor) and id(tensor) in self._entries:
                self.seen.append((self._entries[id(tensor)].flatten(), reason))

    def _forget(self, result: Any) -> None:
        """Note that a tensor, which an operation may have changed in place, belongs to no unit any more."""
        for tensor in leaves(result):
            self._units.pop(id(tensor), None)

    def end_outputs(self, outputs: Any) -> None:
        """Note that the loss sees the outputs."""
        self._end("reaches the output", outputs)

    def _pair(self, kept: list[tuple[Tensor, Tensor]], one: Tensor, other: Tensor) -> None:
        one, other = torch.broadcast_tensors(one, other)
        used = other > CONSTANT
        if bool(used.any()):
            pairs = torch.stack([one[used], other[used]]).unique(dim=1)
            kept.append((pairs[0], pairs[1]))

    def _together(self, units: Tensor) -> None:
        """Note units that enter all sums of an operation together, the rows of (..., unit)."""
        for row in units.reshape(-1, units.shape[-1]).unique(dim=0):
            self.mixed.append(row[row > CONSTANT].unique())

    # -- operations ------------------------------------------------------------------------------------------------

    def _view(self, func: Any, result: Any, args: Any, kwargs: Any) -> None:
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        known = [self.entries(t) is not None for t in given]
        if not given:
            return  # indices and masks
        whole = all(known)
        if any(known) and not whole:
            raise ValueError("a parameter joined to other tensors")

        def numbers(value: Any) -> Any:
            if isinstance(value, Tensor):
                if not value.is_floating_point():
                    return value
                return self._entries[id(value)] if whole else self.units(value)
            if isinstance(value, tuple | list):
                return type(value)(map(numbers, value))
            return value

        moved = func(*map(numbers, args), **{key: numbers(value) for key, value in kwargs.items()})
        for tensor, units in zip(leaves(result), leaves(moved), strict=True):
            self._set(tensor, units, entries=whole)

    def _setitem_rule(self, result: None, x: Tensor, index: Any, value: Any) -> None:
        units = self.units(x).clone()
        units[index] = self.units(value) if isinstance(value, Tensor) else (CONSTANT if value else ZERO)
        self._set(x, units)

    def _zeros_rule(self, result: Tensor, *args: Any, **options: Any) -> None:
        self._set(result, torch.full(result.shape, ZERO))

    _zeros_like_rule = _new_zeros_rule = _zeros_rule

    def _pad_rule(
        self, result: Tensor, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None
    ) -> None:
        fill = ZERO if not value else CONSTANT
        units = self.units(x)
        self._set(result, nn.functional.pad(units, pad, mode, fill if mode == "constant" else None))

    def _clamp_rule(self, result: Tensor, x: Tensor, min: Any = None, max: Any = None) -> None:
        if max is not None or min != 0:
            raise ValueError("limits that are not scales")
        self._unlike(self.units(x))
        self._set(result, self.units(x))

    def _sum(self, name: str, result: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> None:
        dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        units = self._joined_along(self.units(x), list(dims))
        if name not in LINEAR_SUMS:
            self._unlike(units)
        value = next(iter(leaves(result)))
        self._set(value, units.reshape(value.shape))

    def _pool(self, name: str, result: Any, x: Tensor) -> None:
        spatial = int(name[-2]) if name[-2:-1].isdigit() else x.ndim - 2
        units = self._joined_along(self.units(x), range(-spatial, 0))
        if "avg" not in name:
            self._unlike(units)
        value = next(iter(leaves(result)))
        self._set(value, units.expand(value.shape))

    def _add_rule(self, result: Tensor, one: Any, other: Any, alpha: Any = 1, out: Any = None) -> None:
        terms = []
        for term in (one, other):
            if not isinstance(term, Tensor):
                terms.append(torch.tensor(CONSTANT if term else ZERO))
            elif self.entries(term) is None:
                terms.append(self.units(term))
        if len(terms) == 1:
            entries = self.entries(other if isinstance(other, Tensor) and self.entries(other) is not None else one)
            assert entries is not None
            self._pair(self.produced, entries, terms[0].expand(result.shape))
            self._set(result, terms[0].expand(result.shape))
        else:
            self._set(result, self._join(*terms).expand(result.shape))

    def _mul_rule(self, result: Tensor, one: Any, other: Any, out: Any = None) -> None:
        one, other = (other, one) if not isinstance(one, Tensor) or self.entries(one) is not None else (one, other)
        assert self.entries(one) is None
        units = self.units(one)
        entries = self.entries(other) if isinstance(other, Tensor) else None
        if entries is not None:
            self._scale(result, units, entries)
            return
        if isinstance(other, Tensor):
            self._unlike(units)
            factor = self.units(other)
            self._unlike(factor)
            units, factor = torch.broadcast_tensors(units, factor)
            both = (units > CONSTANT) & (factor > CONSTANT)
            self.contracted.append((units[both], factor[both]))
            lone = torch.where(units > CONSTANT, units, factor)
            self.ended.append((lone[both.any() & ~both & (lone > CONSTANT)], "mul"))
            units = torch.where(both, CONSTANT, lone)
        self._set(result, units)

    def _scale(self, result: Tensor, units: Tensor, entries: Tensor) -> None:
        """Multiply by a parameter, entry by entry: each pair of a unit and an entry is a new unit."""
        units, entries = torch.broadcast_tensors(units, entries)
        pairs, places = torch.stack([units, entries]).flatten(1).unique(dim=1, return_inverse=True)
        fresh = self._new(pairs.shape[1])
        self._pair(self.consumed, pairs[1], pairs[0])
        self._pair(self.produced, pairs[1], fresh)
        self._unlike(pairs[0])
        self._unlike(fresh)
        self._set(result, fresh[places].reshape(result.shape))

    def _div_rule(self, result: Tensor, one: Any, other: Any, **options: Any) -> None:
        if isinstance(other, Tensor):
            if self.entries(other) is not None or bool((self.units(other) > CONSTANT).any()):
                raise ValueError("a divisor that scales")
            self._unlike(self.units(one))
        self._set(result, self.units(one).expand(result.shape))

    def _linear_rule(self, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        places = self.entries(weight)
        assert places is not None
        units = self.units(input)
        self._together(units)
        incoming = self._joined_along(units, range(units.ndim - 1)).reshape(-1)
        self._pair(self.consumed, places, incoming)
        self._set(result, self._layer(places, bias).expand(result.shape))

    def _layer(self, places: Tensor, bias: Tensor | None) -> Tensor:
        """Return new units for the rows of a weight (out, ...) with a bias."""
        fresh = self._new(places.shape[0])
        rows = places.reshape(places.shape[0], -1)
        self._pair(self.produced, rows, fresh[:, None])
        shift = None if bias is None else self.entries(bias)
        if shift is not None:
            self._pair(self.produced, shift, fresh)
        elif bias is not None:
            self.ended.append((fresh, "a bias that is no parameter"))
        self.layers.append((fresh, rows, rows[:0, 0] if shift is None else shift))
        return fresh

    def _convolution(
        self,
        name: str,
        result: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        **options: Any,
    ) -> None:
        places = self.entries(weight)
        if places is None or ("transpose" in name and (groups != 1 or isinstance(dilation, bool))):
            raise ValueError("a weight that is no parameter")
        places = places.transpose(0, 1) if "transpose" in name else places
        channel = input.ndim - places.ndim + 1
        units = self.units(input).movedim(channel, -1)
        incoming = self._joined_along(units, range(units.ndim - 1)).reshape(groups, -1)
        for group in incoming:
            self._together(group)
        if groups > 1:
            self._unlike(incoming)
        spread = incoming.repeat_interleave(places.shape[0] // groups, 0)
        self._pair(self.consumed, places.flatten(2), spread[..., None])
        fresh = self._layer(places, bias)
        self._set(result, fresh.reshape(-1, *[1] * (places.ndim - 2)).expand(result.shape))

    def _embedding_rule(self, result: Tensor, input: Tensor, weight: Tensor, *args: Any, **options: Any) -> None:
        places = self.entries(weight)
        assert places is not None
        self._set(result, self._layer(places.mT, None).expand(result.shape))


def _name_of(func: Any) -> str:
    """Return the name of an operation, the same for its method, operator and in-place forms."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(func.__self__, "__name__", "")
    stripped = name.strip("_")
    return SAME.get(stripped, stripped)


def leaves(value: Any) -> Iterator[Any]:
    """Yield what nested tuples, lists and dicts hold."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value
