"""Two threads against one, each in a process of its own, measured in turn."""

from __future__ import annotations

from typing import Any

from . import processes
from .report import markdown, significant
from .workloads import WORKLOADS

KEYS = ("W2", "W5")


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the medians of W2 and W5 in sdebias with one thread, with two, and of two processes at once."""
    cases = {}
    for name in KEYS:
        workload = WORKLOADS[name]()
        for kind in ("gaussian", "rademacher"):
            options = (("increments", kind),)
            cases[f"{name}, {kind}"] = ("sdebias", name, workload.trajectories, workload.steps, options)
    return {"rows": processes.thread_times(cases, allowed) if len(allowed) > 1 else []}


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section."""
    title = "## Two threads against one"
    if not data["rows"]:
        return f"{title}\n\nNot measured: this machine has one core."
    rows = [
        [
            f"sdebias, {row['name']}",
            *(f"{significant(1e3 * row[count], 3)} ms" for count in ("1", "2", "apart")),
            significant(row["1"] / row["2"], 3),
            significant(2 * row["1"] / row["apart"], 3),
        ]
        for row in data["rows"]
    ]
    head = ["", "one thread", "two threads", "each of two processes", "ratio of threads", "of processes"]
    return (
        f"{title}\n\nTwo processes with one thread each, at once, share nothing: their joint rate over that of one is "
        f"what this machine's two cores can give.\n\n{markdown(head, rows)}"
    )
