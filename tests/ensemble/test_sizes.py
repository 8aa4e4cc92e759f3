"""Sizes of blocks and chunks: counted on one step, bounded by the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import regression

import sdebias as sb
from sdebias.ensemble.sizes import LARGEST_BLOCK, SMALLEST_BLOCK, choose_sizes, parse_memory
from sdebias.errors import InputError


def big(features: int = 256, samples: int = 4096) -> sb.Problem:
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(samples, features, generator=rng, dtype=torch.float64)
    return sb.problems.HadamardRegression(X, X[:, 0])


SDE = sb.SGDSDE(learning_rate=1e-3, substeps=1)


def test_small_problems_have_large_blocks_and_large_ones_small_blocks() -> None:
    toy = sb.problems.HadamardRegression([[1.0]], [1.0])
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, substeps=1)
    small, large = (choose_sizes(d, saves=1, interval=64) for d in (dynamics.bind(toy), SDE.bind(big())))
    assert (small.block, small.chunk) == (LARGEST_BLOCK["cpu"], 64)
    assert SMALLEST_BLOCK <= large.block < small.block
    assert large.chunk < small.chunk


def test_the_choice_is_the_same_on_every_call(problem: sb.problems.HadamardRegression) -> None:
    assert choose_sizes(SDE.bind(problem), saves=2, interval=5) == choose_sizes(SDE.bind(problem), saves=2, interval=5)


@pytest.mark.parametrize(
    ("interval", "saves", "chunk"), [(500, 1, 50), (64, 8, 64), (97, 1, 48), (4, 8, 32), (5, 8, 40), (3, 2, 6)]
)
def test_chunks_fit_the_saves(interval: int, saves: int, chunk: int) -> None:
    toy = sb.problems.HadamardRegression([[1.0]], [1.0])
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, substeps=1).bind(toy)
    assert choose_sizes(dynamics, saves=saves, interval=interval).chunk == chunk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "chunk"), [("gaussian", 50), ("rademacher", 50), ("three-point", 25)])
def test_steps_of_one_loop_make_long_chunks(kind: Any, chunk: int, dtype: torch.dtype) -> None:
    """A number that takes another dtype on its way keeps nothing from being one loop."""
    toy = sb.problems.HadamardRegression([[1.0]], [1.0]).to(dtype=dtype)
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, substeps=1, increments=kind)
    sizes = choose_sizes(dynamics.bind(toy), saves=1, interval=500)
    assert (sizes.block, sizes.chunk) == (LARGEST_BLOCK["cpu"], chunk)


@pytest.mark.parametrize(("interval", "saves", "at_once"), [(5, 100, 32), (5, 20, 20), (5, 3, 3), (1000, 100, 8)])
def test_many_saves_at_once_where_they_are_little_work(interval: int, saves: int, at_once: int) -> None:
    """However many there are from eight on, chunks are the same, and thus the paths."""
    toy = sb.problems.HadamardRegression([[1.0]], [1.0])
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, substeps=1).bind(toy)
    sizes = choose_sizes(dynamics, saves=saves, interval=interval)
    assert sizes.saves == at_once
    if saves >= 8:
        assert sizes.chunk == choose_sizes(dynamics, saves=8, interval=interval).chunk


def test_large_states_are_saved_few_at_once() -> None:
    dynamics = SDE.bind(big(features=4096, samples=64))
    assert choose_sizes(dynamics, saves=100, interval=1).saves == 8


def test_a_budget_makes_blocks_smaller() -> None:
    dynamics = SDE.bind(big())
    free = choose_sizes(dynamics, saves=8, interval=10, block=1024)
    tight = choose_sizes(dynamics, saves=8, interval=10, block=1024, budget=free.bytes // 3)
    assert tight.bytes <= free.bytes // 3
    assert tight.block == 256
    with pytest.raises(InputError, match="memory: expected at least .* bytes, for one trajectory, got 1000"):
        choose_sizes(dynamics, saves=8, interval=10, budget=1000)


@pytest.mark.parametrize("kind", ["rademacher", "three-point"])
def test_blocks_are_those_of_normals(kind: Any) -> None:
    """Bits take room where they are expanded; compiled steps do that in registers."""
    choices = (
        choose_sizes(replace(SDE, increments=i).bind(big(32, 64)), saves=1, interval=60) for i in ("gaussian", kind)
    )
    normal, bits = choices
    assert SMALLEST_BLOCK < normal.block == bits.block < LARGEST_BLOCK["cpu"]
    assert bits.numbers > normal.numbers


def group(problem: sb.Problem, increments: Any = "rademacher", **arguments: Any) -> int:
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, substeps=1, increments=increments)
    return choose_sizes(dynamics.bind(problem), saves=1, interval=500, **arguments).group


def test_blocks_of_little_work_are_walked_side_by_side() -> None:
    """Not where normals are the work, nor where rounding may depend on their number: in sums, at ends of registers."""
    toy = sb.problems.HadamardRegression([[1.0]], [1.0])
    assert group(toy) > 1
    assert group(toy, block=640) > group(toy, block=1280) > group(toy)
    assert group(toy, "gaussian") == group(toy, block=650) == group(big(4, 8)) == 1


def test_a_budget_makes_groups_smaller_before_blocks() -> None:
    dynamics = sb.SGDSDE(learning_rate=0.1, noise="isotropic", temperature=0.1, increments="rademacher", substeps=1)
    bound = dynamics.bind(sb.problems.HadamardRegression([[1.0]], [1.0]))
    free = choose_sizes(bound, saves=1, interval=500)
    tight, tighter = (
        choose_sizes(bound, saves=1, interval=500, budget=free.bytes // free.group * blocks) for blocks in (3, 1)
    )
    assert (tight.group, tight.block) == (3, free.block)
    assert (tighter.group, tighter.block) == (1, free.block)
    assert free.bytes == free.group * tighter.bytes


def test_replicates_share_a_block() -> None:
    single, many = sb.problems.HadamardRegression(*regression()), sb.problems.HadamardRegression(*regression())
    one, ten = (
        choose_sizes(sb.SGD(learning_rate=0.1).bind(p), saves=1, interval=9) for p in (single, many.replicate(100))
    )
    assert ten.block * 16 <= one.block


@pytest.mark.parametrize(
    ("text", "value"), [(1000, 1000), ("1000", None), ("2 GiB", 2**31), ("1.5MiB", 3 * 2**19), ("10 B", 10)]
)
def test_memory_is_parsed(text: int | str, value: int | None) -> None:
    if value is None:
        with pytest.raises(InputError, match="memory: expected bytes, or a number with one of B, KiB"):
            parse_memory(text)
    else:
        assert parse_memory(text) == value


@pytest.mark.parametrize("bad", [0, -5, "-1 GiB", "lots", "GiB", float("nan"), "nan B"])
def test_nonsense_is_refused(bad: int | str) -> None:
    with pytest.raises(InputError, match="memory"):
        parse_memory(bad)


def test_results_must_fit(problem: sb.problems.HadamardRegression) -> None:
    with pytest.raises(InputError, match="the size of the results, got 5000; state more, save less often"):
        sb.simulate(problem, SDE, trajectories=1000, steps=10, memory=5000, progress=False)
    ens = sb.simulate(problem, SDE, trajectories=1000, steps=10, memory="64 MiB", progress=False)
    assert ens.attrs["block_size"] <= LARGEST_BLOCK["cpu"]
