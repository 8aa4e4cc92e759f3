"""Groups that the units of a module allow: what scales together, what undoes it, and how to name both."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .bundle import Symmetry
from .groups import GeneralLinear, Rescaling, Scaling, Translation
from .units import CONSTANT, UnitNumbers


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A group that a module should have, or the reason why its parameters have none that can be declared."""

    kind: str
    group: Symmetry | None
    text: str
    note: str = ""
    of_loss: bool = False  # whether it is up to the loss


class Structure:
    """Units of a trace in classes that scale together, and the groups that these allow."""

    def __init__(self, trace: UnitNumbers, trained: Mapping[str, tuple[int, ...]]) -> None:
        self.trace, self.trained = trace, trained
        pairs = list(trace.joined)
        # An entry scales one way only: units that share it are one.
        for kept, offset in ((trace.produced, 0), (trace.consumed, trace.size)):
            pairs += [(units, entries + trace.count + offset) for entries, units in kept]
        self.label = self._classes(pairs)
        while True:
            # Partners of one class are one class.
            more = [
                (a[firsts], a)
                for one, other in self._contracted()
                for a, b in ((one, other), (other, one))
                for firsts in [_first_of_each(b)]
            ]
            labels = self._classes(pairs + [(self._member(x), self._member(y)) for x, y in more])
            if len(np.unique(labels)) == len(np.unique(self.label)):
                break
            self.label, pairs = labels, pairs + [(self._member(x), self._member(y)) for x, y in more]
        self.made, self.used = self._maps(trace.produced), self._maps(trace.consumed)
        self.ended = {int(c): why for units, why in trace.ended for c in self.label[units.numpy()]}
        self.ended[int(self.label[CONSTANT])] = self.ended.get(int(self.label[CONSTANT]), "is added to a constant")
        for name, (first, shape) in trace.names.items():
            if name not in trained:
                for c in np.unique([*self._labels_at(first, shape)]):
                    self.ended[int(c)] = f"{name} is frozen"
        for entries, why in trace.seen:
            for c in {*self.made[entries.numpy()], *self.used[entries.numpy()]} - {-1}:
                self.ended[int(c)] = why
        self.norms: dict[int, tuple[str, float]] = {}
        for units, name, eps in trace.normalised:
            for c in self.label[units[units > CONSTANT].numpy()]:
                self.norms[int(c)] = (name, max(eps, self.norms.get(int(c), ("", 0.0))[1]))
        self.partner: dict[int, int] = {}
        for one, other in self._contracted():
            for a, b in zip(one.tolist(), other.tolist(), strict=True):
                self.partner[a], self.partner[b] = b, a
                if a == b:
                    self.ended[a] = "multiplies itself"
        self.nonlinear = {int(self.label[u]) for u in trace.nonlinear if u > CONSTANT}
        self.mixed: dict[int, set[int]] = defaultdict(set)
        for key, units in enumerate(trace.mixed):
            for c in self.label[units.numpy()]:
                self.mixed[int(c)].add(key)

    def _classes(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
        nodes = self.trace.count + 2 * self.trace.size
        one, other = (np.concatenate([np.zeros(0, int), *[np.asarray(p[k]) for p in pairs]]) for k in (0, 1))
        graph = coo_array((np.ones(len(one)), (one, other)), shape=(nodes, nodes))
        return np.asarray(connected_components(graph, directed=False)[1])

    def _contracted(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self.label[one.numpy()], self.label[other.numpy()]) for one, other in self.trace.contracted]

    def _member(self, labels: np.ndarray) -> Tensor:
        """Return a node of each class."""
        names, nodes = np.unique(self.label, return_index=True)
        return torch.as_tensor(nodes[np.searchsorted(names, labels)])

    def _maps(self, events: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
        """Return the class of each entry, -1 where it has none."""
        found = np.full(self.trace.size, -1)
        for entries, units in events:
            found[entries.numpy()] = self.label[units.numpy()]
        return found

    def _labels_at(self, first: int, shape: tuple[int, ...]) -> list[int]:
        span = slice(first, first + math.prod(shape))
        return [c for c in (*np.unique(self.made[span]), *np.unique(self.used[span])) if c >= 0]

    def _of_names(self, found: np.ndarray) -> dict[int, tuple[str, ...]]:
        """Return the names of the parameters with entries of each class."""
        names: dict[int, list[str]] = defaultdict(list)
        for name, (first, shape) in self.trace.names.items():
            for c in np.unique(found[first : first + math.prod(shape)]):
                names[int(c)].append(name)
        return {c: tuple(own) for c, own in names.items() if c >= 0}

    def proposals(self, outputs: Any) -> list[Proposal]:
        """Return all proposals: those of most directions first."""
        made, used = self._of_names(self.made), self._of_names(self.used)
        families: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        refused: dict[tuple[tuple[str, ...], str], None] = {}
        for c in sorted(made, key=lambda c: int(np.argmax(self.made == c))):
            partner = self.partner.get(c)
            partner_ended = partner is not None and partner in self.ended
            sees = (c in used) + (c in self.norms) + (partner is not None)
            if c in self.ended or partner_ended or sees != 1:
                why = self.ended.get(c, self.ended.get(-1 if partner is None else partner, ""))
                if sees > 1 and not why:
                    why = "it is normalised on one way and used as it is on another"
                if why and (sees or why != "reaches the output"):
                    refused[made[c], why] = None
                continue
            if partner is not None:
                if partner not in made or partner in used or partner in self.norms:
                    continue
                if int(np.argmax(self.made == partner)) < int(np.argmax(self.made == c)):
                    continue  # the pair was taken from its other end
                linear = c not in self.nonlinear and partner not in self.nonlinear
                mixed = frozenset(self.mixed[c] | {-1 - key for key in self.mixed[partner]}) if linear else None
                families["pair", made[c], made[partner], mixed].append(c)
            elif c in self.norms:
                families["norm", made[c], self.norms[c]].append(c)
            else:
                mixed = frozenset(self.mixed[c]) if c not in self.nonlinear else None
                families["chain", made[c], used[c], mixed].append(c)
        found = [self._proposal(key, classes) for key, classes in families.items()]
        order = ["general linear", "rescaling", "scaling"]
        found = sorted(found, key=lambda proposal: order.index(proposal.kind))
        found += self._shifts(outputs)
        reasons = [Proposal("none", None, ", ".join(names), f"no scale: {why}") for names, why in refused]
        return found + reasons

    def _proposal(self, key: tuple[Any, ...], classes: list[int]) -> Proposal:
        if key[0] == "norm":
            name, eps = key[2]
            slots = self._slots(self.made, classes, key[1])
            note = f"the eps = {eps:g} of {name} breaks it" if eps else ""
            if name == "batch_norm":
                note = "batch statistics couple samples" + (f", and {note}" if note else "")
            if slots is not None and len(classes) == 1 and not any("[" in slot for slot in slots):
                slots = list(key[1])  # one factor for whole tensors
            return self._declared("scaling", Scaling, slots, key[1], note)
        first = self._slots(self.made, classes, key[1])
        if key[0] == "pair":
            second = self._slots(self.made, [self.partner[c] for c in classes], key[2])
        else:
            second = self._slots(self.used, classes, key[2])
        names = (*key[1], *key[2])
        parts = None if first is None or second is None else [_joined(first), _joined(second)]
        if key[3] is not None and len(classes) > 1:
            turned = parts and (parts if key[0] == "pair" else parts[::-1])
            return self._declared("general linear", GeneralLinear, turned, names)
        return self._declared("rescaling", Rescaling, parts, names)

    def _declared(
        self,
        kind: str,
        group: Any,
        slots: Sequence[Any] | None,
        names: Sequence[str],
        note: str = "",
        loss: bool = False,
    ) -> Proposal:
        if slots is None:
            why = "its units lie across the axes of the tensors: no group is declared so; see discover"
            return Proposal(kind, None, ", ".join(dict.fromkeys(names)), why)
        made = group(*slots)
        return Proposal(kind, made, repr(made), note, loss)

    def _slots(self, found: np.ndarray, classes: Sequence[int], names: Sequence[str]) -> list[str] | None:
        """Return the slots, in the words of `NamedGroup`, that hold the entries of classes as rows, in their order."""
        rank = {c: k for k, c in enumerate(classes)}
        texts: list[str] = []
        for name in names:
            first, shape = self.trace.names[name]
            own = found[first : first + math.prod(shape)].reshape(shape)
            rows = np.vectorize(lambda c: rank.get(int(c), -1), otypes=[int])(own)
            parts = _slot_texts(name, rows, len(classes))
            if parts is None:
                return None
            texts += parts
        return _layers(texts, self.trace.names)

    def _shifts(self, outputs: Any) -> list[Proposal]:
        """Return the translations: before layer normalisation, of keys, and of the outputs."""
        found: list[Proposal] = []
        keys = {int(self.label[u]) for _, other in self.trace.contracted for u in other.tolist()}
        values = [outputs] if isinstance(outputs, Tensor) else []
        last = {int(u) for value in values for u in self.trace.units(value).unique() if u > CONSTANT}
        for units, weight, bias in self.trace.layers:
            classes = {int(c) for c in self.label[units.numpy()]}
            linear = not classes & self.nonlinear
            slots = self._rows(weight, bias)
            if slots is None or len(units) < 2:
                continue
            names = [slot.partition(":")[0] for slot in slots]
            if any(name not in self.trained and f"{name}.weight" not in self.trained for name in names):
                continue
            if (
                linear
                and all(self.norms.get(c, ("",))[0] == "layer_norm" for c in classes)
                and not classes & set(self.ended)
            ):
                found.append(self._declared("translation", Translation, slots, names))
            if classes <= keys and len(bias):
                # All entries as one row: each key may be shifted on its own.
                own = [f"{text}/1" for text in self._rows(bias[:0, None], bias) or ()]
                found += [self._declared("translation", Translation, own, names)] if own else []
            if last and set(units.tolist()) == last:
                note = "a shift of all outputs, which a softmax takes away"
                found.append(self._declared("translation", Translation, slots, names, note, loss=True))
        unique = {proposal.text: proposal for proposal in found}
        return list(unique.values())

    def _rows(self, weight: Tensor, bias: Tensor) -> list[str] | None:
        """Return slots whose rows are the rows of a weight, and the entries of a bias."""
        texts: list[str] = []
        for entries in (weight.reshape(weight.shape[0], -1) if weight.numel() else weight[:0], bias[:, None]):
            if not entries.numel():
                continue
            rows = np.full(self.trace.size, -1)
            rows[entries.numpy()] = np.arange(len(entries))[:, None]
            for name, (first, shape) in self.trace.names.items():
                own = rows[first : first + math.prod(shape)].reshape(shape)
                if (own >= 0).any():
                    parts = _slot_texts(name, own, len(entries))
                    if parts is None:
                        return None
                    texts += parts
        return _layers(texts, self.trace.names)


def _first_of_each(labels: np.ndarray) -> np.ndarray:
    """Return for each label the place where it occurs first."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


def _joined(slots: Sequence[str]) -> str | tuple[str, ...]:
    return slots[0] if len(slots) == 1 else tuple(slots)


def _slot_texts(name: str, rows: np.ndarray, count: int) -> list[str] | None:
    """Return the slots that hold the given rows of a tensor, or None where no axis does.

    Parameters
    ----------
    name : str
    rows : array of int
        Of the shape of the tensor: the row, below `count`, that each entry belongs to, or -1.
    count : int
    """
    for axis in range(rows.ndim):
        moved = np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
        if (moved != moved[:, :1]).any():
            continue
        line = moved[:, 0]
        texts, at = [], 0
        while at < len(line):
            if line[at] < 0:
                at += 1
                continue
            each = sum(1 for _ in itertools.takewhile(lambda row: row == 0, line[at:]))
            end = at + each * count
            if each == 0 or not np.array_equal(line[at:end], np.repeat(np.arange(count), each)):
                return None
            limits = "" if (at, end) == (0, len(line)) else f"[{at}:{end}]"
            texts.append(f"{name}:{axis}{limits}" + (f"/{count}" if each > 1 else ""))
            at = end
        return texts
    return None


def _layers(texts: Sequence[str], names: Iterable[str]) -> list[str]:
    """Write the weight and the bias of a layer, on the axis of its outputs, as the layer."""
    known, short = set(names), list(texts)
    for text in texts:
        name, _, rest = text.partition(":")
        layer, _, part = name.rpartition(".")
        bias = f"{layer}.bias:{rest}"
        if part == "weight" and rest.startswith("0") and layer and bias in short and layer not in known:
            short[short.index(text)] = f"{layer}:{rest}"
            short.remove(bias)
    return short
