"""What the tests of explanations share: seeded tensors and modules, and how a table reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdebias.design.report import Explanation

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def module(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def rows(found: Explanation) -> list[tuple[Any, ...]]:
    return list(found.table[["symmetry", "parameters", "dimension"]].itertuples(index=False, name=None))


def column(found: Explanation, name: str) -> Tensor:
    return torch.tensor(found.charges[name].tolist(), dtype=F64)


class Function(nn.Module):
    """A function of one parameter vector and the inputs."""

    def __init__(self, size: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(size, seed=3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w, x)
