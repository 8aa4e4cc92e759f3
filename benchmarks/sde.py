"""W1, W2, W4, W5: one SDE each, all contenders in one process and in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import jax_peers, processes, torch_peers
from .report import table
from .timing import CHECKED, FALSE_ALARM, ROUNDS, Contender, as_states, compare, moments_about
from .workloads import WORKLOADS, HadamardByAutograd, Workload

REFERENCE_FACTOR = 4
MEMORY_STEPS = 3  # a peak does not depend on how often it is reached
BASELINES = {"torchsde": torch_peers.PLAIN, "diffrax": jax_peers.DIFFRAX, "normals": torch_peers.NORMALS}


def contest(
    workload: Workload, further: Sequence[Contender] = (), rounds: int = ROUNDS, jax: bool = True
) -> dict[str, Any]:
    """Check and time all contenders of a workload, and `further` ones; return its sizes and rows.

    Parameters
    ----------
    workload : Workload
    further : sequence of Contender
    rounds : int
        Of which medians are taken.
    jax : bool
        Whether the peers in jax take part.
    """
    device = str(workload.device)
    sizes: dict[str, Any] = {"trajectories": workload.trajectories, "steps": workload.steps}
    exact = type(workload)(device, torch.float64, **sizes)
    count = min(REFERENCE_FACTOR * workload.trajectories, CHECKED)
    reference = as_states(torch_peers.loop(exact, count)())

    def loss(states: Any) -> Any:
        return exact.loss(torch.as_tensor(states, device=device)).cpu().numpy()

    moments = moments_about(reference.mean(0), loss)
    by_autograd = HadamardByAutograd(device, **sizes) if workload.has_closed_form else None
    contenders = [*torch_peers.contenders(workload, by_autograd), *further]
    if jax:
        contenders += jax_peers.contenders(workload)
    return {"title": workload.title, **sizes, "rows": compare(contenders, moments, moments(reference), rounds)}


def measure(key: str, allowed: list[int]) -> dict[str, Any]:
    """Return the numbers of one workload on the CPU, with the peak memory of two contenders where g is dense."""
    workload = WORKLOADS[key]()
    result = contest(workload)
    if workload.dense_trajectories < workload.trajectories:
        cases = {
            name: (kind, key, workload.trajectories, MEMORY_STEPS)
            for name, kind in ((torch_peers.PLAIN, "torchsde"), ("sdebias, gaussian", "sdebias"))
        }
        result["peaks"] = processes.peaks(cases, allowed)
    return result


def with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose bound says what share of the time the limits alone would take."""
    alone = {row["name"]: row["seconds"] for row in rows if "seconds" in row}
    result = []
    for row in rows:
        if row["bound"] == torch_peers.REST:
            drawn = torch_peers.OWN_NORMALS if row["name"].startswith("sdebias") else torch_peers.NORMALS
            words = {drawn: "normals", torch_peers.PRODUCTS: "matrix products"}
            if any(kind in row["name"] for kind in torch_peers.INCREMENTS[1:]):
                del words[drawn]
            parts = {word: alone[name] for name, word in words.items() if name in alone}
            shares = [f"{word} {100 * time / row['seconds']:.0f} %" for word, time in parts.items()]
            row = {**row, "bound": ", ".join([*shares, row["bound"]])}
        result.append(row)
    return result


def render(key: str, data: dict[str, Any]) -> str:
    """Return the section of one workload."""
    size = f"{data['trajectories']:,} trajectories × {data['steps']} steps"
    lines = [f"## {key}: {data['title']}, {size}", "", table(with_shares(data["rows"]), BASELINES)]
    if "peaks" in data:
        plain, ours = data["peaks"].values()
        names = [f"{name}: {value:.0f} MiB" for name, value in data["peaks"].items()]
        lines += [
            "",
            f"Peak memory at {data['trajectories']} trajectories, each in a process of its own, above what "
            f"is resident before the call: {'; '.join(names)} ({plain / ours:.0f} times less).",
        ]
    return "\n".join(lines)


CHECK = (
    "Before it is timed, each contender's loss, ‖θ‖², pooled variance and mean of every parameter at the end are "
    f"compared with those of {REFERENCE_FACTOR} times as many trajectories in float64 by hand; |z| is the largest "
    "deviation in standard errors, and a run fails beyond the limit in brackets "
    f"(false alarms: {FALSE_ALARM:.0e} a contender)."
)
