"""Propose the symmetries that the layers of a module have, and check each on the losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import pandas as pd
import torch
from torch import Tensor, nn

from ..errors import InputError, SymmetryError, message
from ..layout import ParameterLayout
from ..plain import PlainOperations, copy_module
from .bundle import Symmetry
from .groups import Product
from .invariance import HasPerSampleLoss, check_invariance
from .proposals import Proposal, Structure
from .unit_trace import UnitTrace

# Samples on which the module is run to see what it does.
SAMPLES = 2
# Sizes of images and sequences that are tried where no sample is given.
SIZES = (28, 32, 16, 8, 64, 224, 4, 12, 20, 24)
COLUMNS = ("symmetry", "kind", "kept", "violation", "reason")


class HasData(HasPerSampleLoss, Protocol):
    """What `of_module` needs of a problem."""

    data: dict[str, tuple[tuple[str, ...], Tensor]]

    def to(self, *, dtype: torch.dtype) -> Self:
        """Return the problem in another dtype."""
        ...


class ModuleSymmetry(NamedTuple):
    """Symmetries of a module.

    Attributes
    ----------
    symmetry : Symmetry or None
        The proposals that hold, together; None if there are none.
    report : pandas.DataFrame
        One row a proposal: ``symmetry``, ``kind``, ``kept``, ``violation`` (largest relative change of a loss, NaN
        where it was not measured) and ``reason``.
    """

    symmetry: Symmetry | None
    report: pd.DataFrame


def of_module(
    module: nn.Module, problem: HasData | None = None, *, sample: Tensor | None = None, seed: int = 0
) -> ModuleSymmetry:
    """Propose the symmetries of the layers of a module, and check each on the losses of a problem.

    The module is run once on two samples, every tensor carrying the numbers of its units (`unit_trace.UnitTrace`),
    whatever way its forward pass is written. What scales together, and what undoes it, gives

    - rescaling of each unit between positively homogeneous layers (linear, convolution, embedding, affine part of a
      normalisation, with ReLU, leaky ReLU, pooling, reshapes and residual sums between them);
    - GL(r) between linear maps with nothing else between them, and within each attention head between queries and keys,
      and between values and outputs;
    - scaling of what feeds a normalisation, and the shift that layer normalisation removes;
    - the shift of the keys' bias in attention, and of the outputs where the loss is a softmax cross entropy.

    Other continuous symmetries, such as shears that move a bias through a linear layer, or those of a recurrent ReLU
    layer, have no group that is declared by names: `discover` finds them in small modules.

    Tied weights break the rescaling where a layer is undone by its own transpose, as in an autoencoder σ(x Wᵀ) W: what
    scales a unit on the way there scales it again on the way back. A deeper one keeps a rescaling of the units between
    its layers, whose factor is undone by the next layer on both ways, and linear codes may turn. Neither is proposed,
    since each entry is taken to scale one way only: declare the rescaling, as ``Rescaling(("W1:0", "b1:0"), ("W2:1",
    "c1:0"))``, or `discover` it.

    Parameters
    ----------
    module : nn.Module
    problem : Problem, optional
        Made from the module. Each proposal is checked on it in float64 with `check_invariance`; what it refuses is not
        in the result. Without it, nothing is checked, and what depends on the loss is left out.
    sample : Tensor, shape=(sample, ...), optional
        Inputs that the module takes; by default those of the problem, or a guess from the first layer.
    seed : int
        Of the points at which losses are compared.

    Returns
    -------
    ModuleSymmetry
        ``symmetry, report``.

    Raises
    ------
    InputError
        If the module cannot be run, or is not that of the problem.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> symmetry, report = of_module(net)
    >>> symmetry
    Rescaling('0:0', '2.weight:1')
    """
    if not isinstance(module, nn.Module):
        raise InputError(message("module", "a torch.nn.Module", type(module).__name__, "pass the module itself"))
    trained = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    if problem is not None and trained != {name: tuple(shape) for name, shape in problem.layout.shapes.items()}:
        got, want = ", ".join(trained) or "none", ", ".join(problem.layout.shapes)
        raise InputError(message("module", f"the trained parameters of the problem, {want}", got, "pass its module"))
    if not trained:
        raise InputError(message("module", "parameters that require a gradient", "none", "unfreeze some"))
    trace, outputs = _trace(module, problem, sample)
    proposals = Structure(trace, trained).proposals(outputs)
    layout = ParameterLayout(trained) if problem is None else problem.layout
    checked = None if problem is None else problem.to(dtype=torch.float64)
    return _checked(proposals, layout, checked, seed)


def _checked(
    proposals: Sequence[Proposal], layout: ParameterLayout, problem: HasData | None, seed: int
) -> ModuleSymmetry:
    """Measure each proposal, and put together those that hold and commute."""

    class Names:
        """What symmetries bind to where there is no problem."""

        def __init__(self) -> None:
            self.layout = layout

    kept: list[Symmetry] = []
    rows = []
    limit = 1e4 * torch.finfo(torch.float64).eps
    for proposal in proposals:
        group, violation, reason = proposal.group, math.nan, proposal.note
        holds = group is not None
        try:
            if group is not None:
                group.bind(Names())
        except SymmetryError as error:
            holds, reason = False, f"no group is declared so ({error}); see discover"
        if holds and group is not None and problem is not None:
            violation = check_invariance(problem, group, seed=seed, tolerance=math.inf)
            holds = violation <= limit
            if not holds:
                more = f"; {proposal.note}" if proposal.note else ""
                reason = f"the losses change by {violation:.2g} (limit {limit:.0e}){more}"
        elif holds and proposal.of_loss:
            holds, reason = False, f"{proposal.note}; pass a problem to check it"
        if holds and group is not None:
            try:
                for other in kept:
                    Product(other, group).bind(Names())
                kept.append(group)
                reason = "holds" if problem is not None else "proposed, not checked: no problem was given"
            except SymmetryError:
                holds, reason = False, "holds, but does not commute with those kept before it"
        rows.append((proposal.text, proposal.kind, holds, violation, reason))
    symmetry = None if not kept else kept[0] if len(kept) == 1 else Product(*kept)
    return ModuleSymmetry(symmetry, pd.DataFrame(rows, columns=list(COLUMNS)))


# -- running the module ------------------------------------------------------------------------------------------------


def _trace(module: nn.Module, problem: HasData | None, sample: Tensor | None) -> tuple[UnitTrace, Any]:
    if sample is None and problem is not None and "X" in problem.data:
        dims, sample = problem.data["X"]
        sample = sample[0] if "replicate" in dims else sample
    if sample is not None:
        kind = next(module.parameters()).dtype
        sample = sample[:SAMPLES].to("cpu", kind if sample.is_floating_point() else sample.dtype)
    # A copy, since a forward pass in training mode may change buffers.
    module = copy_module(module).cpu()
    failure = "no layer says what it takes"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for inputs in [sample] if sample is not None else _guesses(module):
            trace = UnitTrace(module)
            try:
                with trace, PlainOperations():
                    outputs = module(inputs)
            except Exception as error:  # whatever a user's module raises
                failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                continue
            trace.end_outputs(outputs)
            return trace, outputs
    raise InputError(message("module", "one that runs on the sample", failure, "pass problem=... or sample=..."))


def _guesses(module: nn.Module) -> Iterable[Tensor]:
    """Yield inputs that the first layer takes."""
    kind = next(module.parameters()).dtype
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            yield torch.zeros(SAMPLES, 5, dtype=torch.int64)
            yield torch.zeros(SAMPLES, dtype=torch.int64)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            axes = len(layer.kernel_size)
            yield from (torch.randn(SAMPLES, layer.in_channels, *[n] * axes, dtype=kind) for n in SIZES)
        else:
            widths = ("in_features", "embed_dim", "d_model", "input_size", "num_features")
            width = next((n for name in widths if isinstance(n := getattr(layer, name, None), int)), None)
            if width is None:
                continue
            yield torch.randn(SAMPLES, width, dtype=kind)
            yield torch.randn(SAMPLES, 5, width, dtype=kind)
        return
