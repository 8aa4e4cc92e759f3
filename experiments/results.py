"""Make RESULTS.md from the records that the figures leave beside them: ``python -m experiments.results``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import ROOT, SHARE, Record, published

FOLDER = ROOT / "docs" / "figures" / "paper"
TARGET = ROOT / "experiments" / "RESULTS.md"
HEAD = f"""# The figures of arXiv:2601.06597, rebuilt

Made by `make figures`, of the records that the figures leave; not written by hand. A published number is that of the
one seed of the article (`data/published.json`). Ours is the median over seeds, in brackets the central {SHARE:.0%} of
them. They agree where the published number lies within the brackets; where it does not, an explanation names the
experiment that shows why.
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
            ours = f"{one.median:.3g} [{one.lower:.3g}, {one.upper:.3g}]"
            known = "–" if one.published is None else f"{one.published:.3g}"
            lines.append(f"| {summary['figure']} | {one.quantity} | {known} | {ours} | {one.seeds} | {agreement} |")
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([*lines, "", *numbered])


def times(summaries: Sequence[dict[str, Any]]) -> str:
    """Return run times and commands as a markdown table, the authors' one seed beside them."""
    authors: dict[str, float] = published("authors_seconds")
    lines = ["| figure | seeds | our seconds | authors' seconds, 1 seed | command |", "|---|---|---|---|---|"]
    total = 0.0
    for summary in summaries:
        theirs = authors.get(summary["figure"])
        total += summary["seconds"] if theirs is not None else 0
        cells = (summary["figure"], summary["settings"]["seeds"], f"{summary['seconds']:.0f}")
        lines.append(
            f"| {' | '.join(map(str, cells))} | {'–' if theirs is None else f'{theirs:.0f}'} | `{summary['command']}` |"
        )
    lines.append(f"| together, where both are known | | {total:.0f} | {sum(authors.values()):.0f} | |")
    return "\n".join(lines)


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
            "Each figure in a process of its own, on one or two threads, with compiling where that pays.",
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
