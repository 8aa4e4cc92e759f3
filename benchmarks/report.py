"""Tables and text: numbers in, Markdown out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .timing import ratio


def significant(value: float, digits: int = 2) -> str:
    """Return a number with few digits and no exponent, empty for NaN."""
    if not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(places, 0)}f}"


def scientific(value: float) -> str:
    """Return a rate such as 1.23e7."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, str], unit: str = "trajectory-steps/s") -> str:
    """Return the table of a contest.

    Parameters
    ----------
    rows : sequence of mapping
        From `timing.compare`.
    baselines : mapping of str to str
        Heading of a column of ratios, and the name of the row that it divides by.
    unit : str
        Of the rate.
    """
    ratios = [f"/ {name}" for name in baselines]
    head = ["", "trajectories", unit, "median", *ratios, "after others", "first call", "check \\|z\\|"]
    lines = []
    for row in rows:
        if "missing" in row:
            blank = [""] * len(baselines)
            lines.append([row["name"], "", row["missing"], "", *blank, "", "", "", row["bound"]])
            continue
        ratios = [significant(ratio(rows, row, name), 3) for name in baselines.values()]
        check = f"{row['z']:.1f} ({row['limit']:.1f})" if "z" in row else ""
        first = f"+{row['first']:.1f} s" if row["first"] >= 0.05 else ""
        size = f"{row['trajectories']:,}"
        time, after = (f"{significant(1e3 * row[name], 3)} ms" for name in ("seconds", "after"))
        lines.append([row["name"], size, scientific(row["rate"]), time, *ratios, after, first, check, row["bound"]])
    return markdown([*head, "bound by"], lines)


def machine_text(environment: Mapping[str, str]) -> str:
    """Return machine and versions as one sentence."""
    known = ("cpu", "cores", "capability", "gpu", "cuda")
    versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name not in known)
    gpu = f"{environment['gpu']}, CUDA {environment['cuda']}; " if "gpu" in environment else ""
    cpu = f"{environment['cpu']}, {environment['cores']} cores, torch uses {environment['capability']}"
    return f"{gpu}{cpu}; {versions}."
