"""What an evaluation costs, counted and not timed: the same on every run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that are not marked as elementwise, and yet do not keep a compiler from fusing what is before and after.
TRANSPARENT = {
    "_to_copy",
    "cat",
    "empty",
    "new_empty",
    "new_zeros",
    "normal_",
    "ones_like",
    "random_",
    "stack",
    "zeros_like",
}


class OperationCounter(TorchDispatchMode):
    """Counts tensor operations and adds up the sizes of what they return.

    Attributes
    ----------
    written : int
        Numbers that operations returned, views apart.
    operations : int
    elementwise : bool
        Whether all of them are, so that a compiler makes one loop of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.operations = 0
        self.elementwise = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler at the first count, in case somebody compiles the counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        if not func.is_view:
            self.operations += 1
            self.elementwise &= torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in TRANSPARENT
            self.written += sum(value.numel() for value in outputs if isinstance(value, Tensor))
        return result
