"""Make RESULTS.md from the records that the figures leave beside them: ``python -m experiments.results``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import ROOT, SHARE, TIMES, Record, published

FOLDER = ROOT / "docs" / "figures" / "paper"
TARGET = ROOT / "experiments" / "RESULTS.md"
HEAD = f"""# The figures of arXiv:2601.06597, rebuilt

Made by `make figures`, of the records that the figures leave; not written by hand. A published number is that of the
one seed of the article (`data/published.json`). Ours is the median over seeds, in brackets the central {SHARE:.0%} of
them. They agree where the published number lies within the brackets; where it does not, an explanation names the
experiment that shows why.
"""
RUN_TIMES = """
Each figure in a process of its own, controls included, with the time that compiling takes. `make figures` runs two
processes side by side, so that two quiet cores need about half of the processor time; seconds on the clock depend on
what else the machine did, and on which it was: records are of several. The authors' scripts were timed on one thread,
for one seed and without controls.
"""


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries that the figures of a folder left, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the headline numbers as a markdown table, explanations below it."""
    lines = ["| figure | number | published | ours | seeds | agreement |", "|---|---|---|---|---|---|"]
    notes: list[str] = []
    for summary in summaries:
        for fields in summary["records"]:
            one = Record(**fields)
            agreement = one.agreement
            if agreement == "explained":
                if one.explanation not in notes:
                    notes.append(one.explanation)
                agreement += f" ({notes.index(one.explanation) + 1})"
            ours = f"{one.median:.4g} [{one.lower:.4g}, {one.upper:.4g}]"
            known = "–" if one.published is None else f"{one.published:.4g}"
            quantity = one.quantity.replace("|", r"\|")
            lines.append(f"| {summary['figure']} | {quantity} | {known} | {ours} | {one.seeds} | {agreement} |")
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([*lines, "", *numbered])


def times(summaries: Sequence[dict[str, Any]]) -> str:
    """Return run times and commands as a markdown table, those of the authors' scripts for one seed beside them."""
    authors: dict[str, float] = published("authors_seconds")
    known = [summary for summary in summaries if summary["figure"] in authors]
    lines = [
        "| figure | seeds | seconds | of processor time | authors' script, 1 seed | command |",
        "|---|---|---|---|---|---|",
    ]
    for one in summaries:
        cells = [_whole(value) for value in (*(one.get(name) for name in TIMES), authors.get(one["figure"]))]
        lines.append(f"| {one['figure']} | {one['settings']['seeds']} | {' | '.join(cells)} | `{one['command']}` |")
    sums = [_whole(sum(one.get(name, 0) for one in known)) for name in TIMES]
    total = _whole(sum(authors[one["figure"]] for one in known))
    lines.append(f"| together, where both are known | | {' | '.join([*sums, total])} | |")
    return "\n".join(lines)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def pictures(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the figures, each with a link to its caption."""
    blocks = []
    for summary in summaries:
        stem = f"../docs/figures/paper/{summary['figure']}"
        blocks.append(f"![{summary['figure']}]({stem}.png)\n\n[Caption, settings and versions]({stem}.md)")
    return "\n\n".join(blocks)


def report(summaries: Sequence[dict[str, Any]]) -> str:
    """Return RESULTS.md."""
    return "\n\n".join(
        [
            HEAD.strip(),
            "## Headline numbers",
            table(summaries).strip(),
            "## Run times",
            RUN_TIMES.strip(),
            times(summaries),
            "## Figures",
            pictures(summaries),
        ]
    )


def main() -> None:
    """Write RESULTS.md."""
    TARGET.write_text(report(load(FOLDER)) + "\n", encoding="utf-8")
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
