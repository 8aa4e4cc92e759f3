"""Forward-mode differentiation from several threads, as simulations and lazy predictions do it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from sdebias.symmetry.action import forward_derivative


def test_threads_differentiate_side_by_side() -> None:
    """torch's own levels of forward mode belong to the process: nested derivatives of 4 threads would mix them up."""

    def second(scale: float) -> torch.Tensor:
        point = torch.full((3,), scale, dtype=torch.float64)
        ones = torch.ones_like(point)
        return forward_derivative(lambda p: forward_derivative(torch.exp, p, ones), point, ones)

    scales = [k / 100 for k in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = torch.stack(list(pool.map(second, scales)))
    torch.testing.assert_close(found[:, 0], torch.tensor(scales, dtype=torch.float64).exp())
