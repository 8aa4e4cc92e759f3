"""Run benchmarks and write `RESULTS.md`: ``python -m benchmarks`` for all, ``python -m benchmarks W1 W2`` for some."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import machine

HERE = Path(__file__).parent
RAW, REPORT = HERE / "results.json", HERE / "RESULTS.md"
SECTIONS = {
    "W1": "sde",
    "W1 long": "sde",
    "W2": "sde",
    "W3": "sgd",
    "W4": "sde",
    "W5": "sde",
    "W6": "growth",
    "threads": "threads",
    "gpu": "gpu",
    "replicates": "replicates",
    "geometry": "geometry",
    "job": "job",
    "store": "store",
}
"""Module of each section, in the order of the report; a module has `measure` and `render`."""

INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks` (`make bench` installs the peers first); raw numbers are in `results.json`. Machines
are noisy: only ratios within a table mean something. One process, one thread, float32 unless a section says otherwise;
contenders take turns, in which calls are repeated for half a second, and every time is the median of the medians of at
least 5 turns. What the first call of a turn takes, when caches hold what others worked on, is in the column "after
others". The first call of all, which compiles, does not count: what it took longer is in a column of its own. Ratios
are speeds over the speed of the row that heads their column."""


def module(section: str) -> Any:
    """Import the module of a section, after the threads are set."""
    import importlib

    return importlib.import_module(f".{SECTIONS[section]}", __package__)


def write_report(results: dict[str, Any]) -> None:
    """Write the sections that have been measured, each with its machine where that is not the one of most of them."""
    from . import gpu, report, sde

    machines = Counter(report.machine_text(entry["environment"]) for entry in results.values())
    usual = machines.most_common(1)[0][0]
    parts = [INTRODUCTION, usual, sde.CHECK]
    for section in SECTIONS:
        if section in results:
            entry = results[section]
            text = report.machine_text(entry["environment"])
            parts.append(module(section).render(section, entry["data"]))
            if text != usual:
                parts.append(f"Measured on {text}")
        elif section == "gpu":
            parts.append(gpu.UNTESTED)
    REPORT.write_text("\n\n".join(parts) + "\n")


def main() -> int:
    """Measure the sections that are asked for, and write all that have been measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda measures the section gpu")
    arguments = parser.parse_args()
    chosen = arguments.sections or (["gpu"] if arguments.device == "cuda" else [s for s in SECTIONS if s != "gpu"])

    allowed = machine.cores()
    machine.pin(allowed, 1)
    results = json.loads(RAW.read_text()) if RAW.exists() else {}
    for section in chosen:
        start = time.perf_counter()
        data = module(section).measure(section, allowed)
        device = "cuda" if section == "gpu" else "cpu"
        results[section] = {"environment": machine.environment(device, len(allowed)), "data": data}
        RAW.write_text(json.dumps(results, indent=1) + "\n")
        write_report(results)
        print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
