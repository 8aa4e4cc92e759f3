"""Plan: which seed blocks are walked side by side, and that numbers do not depend on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import sdebias as sb
from experiments.faults import Job, differences, shards_of
from sdebias.ensemble.plan import Plan, make_plan
from sdebias.storage import RunDirectory

BLOCK = 64


def toy() -> sb.problems.HadamardRegression:
    return sb.problems.HadamardRegression([[1.0]], [1.0], initial_std={"p": 0.3, "q": 0.3})


def deep() -> sb.problems.DeepDiagonalRegression:
    return sb.problems.DeepDiagonalRegression([[1.0]], [1.0], depth=3, initial_std={"u1": 0.5, "u2": 0.5})


def isotropic(**arguments: Any) -> sb.SGDSDE:
    defaults: dict[str, Any] = {"learning_rate": 0.05, "noise": "isotropic", "temperature": 0.1, "substeps": 1}
    return sb.SGDSDE(**(defaults | arguments))


BITS = isotropic(increments="rademacher")
CASES: dict[str, tuple[Callable[[], sb.Problem], sb.SGDSDE]] = {
    "bits": (toy, BITS),
    "normals": (toy, isotropic()),
    "schedule": (toy, isotropic(learning_rate=sb.schedule.cosine(0.05, 0.01, 30), increments="rademacher")),
    "substeps": (deep, isotropic(substeps=2, increments="rademacher")),
    "replicates": (lambda: toy().replicate(3), BITS),
    "double precision": (lambda: toy().to(dtype=torch.float64), BITS),
    "three points": (toy, isotropic(increments="three-point")),
    "three points, double precision": (lambda: toy().to(dtype=torch.float64), isotropic(increments="three-point")),
}


def plan(make: Callable[[], sb.Problem], dynamics: sb.SGDSDE, **arguments: Any) -> Plan:
    defaults = {"trajectories": 5 * BLOCK, "steps": 30, "save_every": 10, "block_size": BLOCK, "compile": True}
    return make_plan(make(), dynamics, **(defaults | arguments))


def run(make: Callable[[], sb.Problem], dynamics: sb.SGDSDE, blocks: int, **arguments: Any) -> xr.Dataset:
    """Simulate blocks, the last of which is not used up."""
    sizes: dict[str, Any] = {"trajectories": blocks * BLOCK - 10, "steps": 33, "save_every": 3, "block_size": BLOCK}
    return sb.simulate(make(), dynamics, **sizes, compile=True, progress=False, **arguments)


@given(count=st.integers(1, 40), most=st.integers(1, 12))
def test_groups_of_one_length_have_every_block_once_in_order(count: int, most: int) -> None:
    made = plan(toy, BITS)
    made = dataclasses.replace(made, sizes=dataclasses.replace(made.sizes, group=most))
    groups = made.groups(range(3, 3 + count))
    assert {len(group) for group in groups} == {len(groups[0])}
    assert len(groups[0]) <= most
    walked = [block for group in groups for block in dict.fromkeys(group)]
    assert walked == list(range(3, 3 + count))
    assert all(len(dict.fromkeys(group)) == len(group) for group in groups[:-1])


def test_only_compiled_steps_take_blocks_side_by_side() -> None:
    assert len(plan(toy, BITS).groups(range(5))) == 1
    assert len(plan(toy, BITS, compile=False).groups(range(5))) == 5


def test_no_thread_is_idle() -> None:
    torch.set_num_threads(3)
    try:
        assert [len(group) for group in plan(toy, BITS).groups(range(5))] == [2, 2, 2]
    finally:
        torch.set_num_threads(1)


def check_paths_of(fewer: int, case: str) -> None:
    """Compare the paths of five blocks with those of fewer, bit for bit."""
    assert len(plan(*CASES[case], steps=33, save_every=3).groups(range(5))) < 5
    many, few = (run(*CASES[case], blocks=blocks) for blocks in (5, fewer))
    for name in ("theta", "loss", "status"):
        same = many[name].isel(trajectory=slice(few.sizes["trajectory"]))
        np.testing.assert_array_equal(few[name], same, err_msg=name)


@pytest.mark.parametrize("fewer", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("plain_steps")
def test_paths_are_those_of_blocks_alone(case: str, fewer: int) -> None:
    check_paths_of(fewer, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("schedule", "replicates")])
def test_compiled_paths_are_those_of_blocks_alone(case: str) -> None:
    check_paths_of(2, case)


@pytest.mark.parametrize("arguments", [{}, {"statistics": ["mean", "covariance", "quantiles"], "save": ["theta"]}])
@pytest.mark.usefixtures("plain_steps")
def test_threads_do_not_matter(arguments: dict[str, Any]) -> None:
    one = run(toy, BITS, blocks=5, **arguments)
    torch.set_num_threads(2)
    try:
        two = run(toy, BITS, blocks=5, **arguments)
    finally:
        torch.set_num_threads(1)
    xr.testing.assert_equal(one, two)


@pytest.mark.usefixtures("plain_steps")
def test_a_run_goes_on_with_groups_of_another_length(tmp_path: Path) -> None:
    """States are those of blocks: on three threads a group is shorter, and the first run ends within drawn bits."""
    sizes: dict[str, Any] = {"trajectories": 5 * BLOCK - 10, "save_every": 3, "block_size": BLOCK, "compile": True}
    first, longer = (Job(toy(), BITS, {**sizes, "steps": steps}) for steps in (27, 33))
    with shards_of(5, longer):
        first.run(tmp_path / "run")
        torch.set_num_threads(3)
        try:
            found = longer.run(tmp_path / "run", resume=True)
        finally:
            torch.set_num_threads(1)
    assert RunDirectory(tmp_path / "run").manifest.shards == [(0, 5 * BLOCK - 10)]
    assert differences(found, longer.whole) == []
