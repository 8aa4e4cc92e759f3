"""Sections that need another machine run here at small sizes, so that they do not fail there first."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu, growth, machine, store
from benchmarks.workloads import Hadamard, Toy

pytestmark = pytest.mark.usefixtures("plain_steps", "single_calls")


def test_the_gpu_section_runs_on_a_cpu_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = [Toy(trajectories=500, steps=10), Hadamard(trajectories=50, steps=5)]
    monkeypatch.setattr(gpu, "workloads", lambda: small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    data = gpu.measure("gpu", machine.cores())
    text = gpu.render("gpu", data)
    assert "### W1: toy w = uv, isotropic noise, 500 trajectories × 10 steps" in text
    assert [gpu.STATE in {row["name"] for row in found["rows"]} for found in data["contests"]] == [True, True]


def test_without_a_gpu_the_section_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a CUDA device, found none"):
        gpu.measure("gpu", machine.cores())


@pytest.mark.parametrize("case", growth.CASES)
def test_a_call_of_the_growth_curves(case: str) -> None:
    row = growth.call(case, trajectories=10, steps=4, parameters=4)
    assert row["seconds"] > 0
    assert row["result"] > 10 * 2 * 4 / machine.MIB  # the loss of ten trajectories at two steps, in float32


def test_flatness_is_judged_where_it_is_asked_for() -> None:
    seconds = {100: 9.0, 1_000: 10.0, 10_000: 75.0, 100_000: 800.0}
    found = [
        {"case": case, "trajectories": 10, "steps": steps, "seconds": value}
        for case in growth.CASES
        for steps, value in seconds.items()
    ]
    text = "-20 %, largest over smallest 1.33"
    assert growth.flatness("steps", found).endswith(f"1,000 to 100,000 steps: W1: {text}; W2: {text}.")


@pytest.mark.parametrize("name", [store.MEMORY, store.STORED])
def test_ways_to_keep_an_ensemble(name: str) -> None:
    row = store.measure_one(name, trajectories=10, steps=40)
    assert row["seconds"] > 0
    assert (row["written"] > 0) == (name == store.STORED)
    rows = [{**row, "name": kind} for kind in {store.VALUES, name}]
    assert name in store.render("store", {"rows": rows, "cores": 1})
