"""Fuzz configurations and files, and enter what becomes of them in docs/reliability.md: ``make fuzz``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import files
from configurations import check
from hypothesis import HealthCheck, Phase, given, settings
from outcomes import BUG, REFUSED, RIGHT, HangError, Tally, traceback_of
from tables import texts, write_data

from experiments.reliability import TARGET, write


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


HEAD = """Made by `make fuzz`, not by hand, and the same at every call. Each *configuration* was a valid one, mutated
in one to three places, or in its characters; one that is accepted is simulated, and its dataset compared with what it
says. Each *file* was one of the package, or a run directory with trajectories or statistics, of which bits were
flipped, stretches cut, inserted or overwritten, attributes, names, dims or values changed, or which something else
replaced; it is opened in every way that the package has, in a process that may die of it.

*Right* gave what was asked for, and where only bytes were changed, what was written; *refused* was in one line; *wrong*
is a traceback, or a result that is not what it says. Files without their hash are as another program writes them: there
nothing can tell a flipped bit from a measurement.

| what | examples | right | refused | wrong | hangs | deaths |
|---|---|---|---|---|---|---|
"""


def report(tallies: Mapping[str, Tally]) -> str:
    """Return the counts as a table."""
    outcomes = (RIGHT, REFUSED, BUG, files.HANG, files.DIED)
    counts = {what: [tally.counts.total(), *map(tally.counts.__getitem__, outcomes)] for what, tally in tallies.items()}
    return HEAD + "".join(f"| {what} | {' | '.join(map(str, row))} |\n" for what, row in counts.items())


def main() -> int:
    """Write counts, print whatever was found, and return 1 where that is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=2000)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--out", type=Path, default=TARGET, help="the report")
    options = parser.parse_args()
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tables", "files", "unsealed"):
            (folder / part).mkdir()
        tallies["configurations"] = configurations(options.configurations, folder / "tables")
        print(f"configurations: {tallies['configurations']}", flush=True)
        tallies["files"] = damaged(range(options.files), folder / "files")
        print(f"files: {tallies['files']}", flush=True)
        half = range(options.files // 2)
        unsealed = damaged(half, folder / "unsealed", sealed=False, kind="bytes")
        print(f"files without their hash: {unsealed}", flush=True)
    write(options.out, mutated=report({**tallies, "files without their hash": unsealed}))
    bugs = [bug for tally in tallies.values() for bug in tally.bugs]
    print("\n\n".join(bugs))
    return int(bool(bugs))


if __name__ == "__main__":
    sys.exit(main())
