"""Fuzz configurations and files, and count what becomes of them: ``python tests/fuzz/campaign.py [2000 [500]]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import files
from configurations import check
from hypothesis import HealthCheck, Phase, given, settings
from outcomes import BUG, REFUSED, RIGHT, HangError, Tally, traceback_of
from tables import texts, write_data


def configurations(count: int, folder: Path) -> Tally:
    """Return what becomes of so many mutated configurations, the same at every call."""
    write_data(folder)
    tally = Tally()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,  # `check` has a limit of its own, which a hang does not outlast
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(texts())
    def one(text: str) -> None:
        try:
            tally.add(check(text, folder, whole=tally.counts.total() % 20 == 0))
        except (Exception, HangError, SystemExit) as error:
            tally.add(BUG, f"{text}\n{traceback_of(error)}")

    one()
    return tally


def damaged(seeds: Sequence[int], folder: Path, *, sealed: bool = True, kind: str = "all") -> Tally:
    """Return what becomes of mutated files, the same at every call.

    Parameters
    ----------
    seeds : sequence of int
    folder : Path
    sealed : bool
        Whether the files end in the hash of their bytes, as the package writes them.
    kind : {"all", "bytes"}
        Whether contents are changed, too, by programs that write good files.
    """
    for name in ("originals", "mutated"):
        (folder / name).mkdir()
    originals = files.originals(folder / "originals")
    if not sealed:
        originals = [file for file in originals if file.is_file()]
        for file in originals:
            file.write_bytes(file.read_bytes()[: -files.SEAL_BYTES])
    changes = files.BYTES if kind == "bytes" else [*files.BYTES, *files.CONTENTS * 4]
    tally = Tally()
    for seed, (outcome, text) in files.outcomes(list(seeds), originals, folder / "mutated", changes).items():
        tally.add(outcome, "" if outcome in (RIGHT, REFUSED) else f"seed {seed}: {outcome}\n{text}")
    return tally


def main(counts: Sequence[str]) -> int:
    """Print counts and whatever was found, and return 1 where that is anything."""
    tables, mutated = map(int, [*counts, *("2000", "500")[len(counts) :]])
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tables", "files", "unsealed"):
            (folder / part).mkdir()
        tallies["configurations"] = configurations(tables, folder / "tables")
        print(f"configurations: {tallies['configurations']}", flush=True)
        tallies["files"] = damaged(range(mutated), folder / "files")
        print(f"files: {tallies['files']}", flush=True)
        unsealed = damaged(range(mutated // 2), folder / "unsealed", sealed=False, kind="bytes")
        print(f"files without a hash, which nothing can vouch for: {unsealed}", flush=True)
    bugs = [bug for tally in tallies.values() for bug in tally.bugs]
    print("\n\n".join(bugs))
    return int(bool(bugs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
