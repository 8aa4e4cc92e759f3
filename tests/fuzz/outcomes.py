"""What became of an example, and a limit of time, so that a hang is an outcome, too."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdebias.cli import main
from sdebias.errors import SdebiasError

RIGHT, REFUSED, BUG = "accepted and right", "refused", "bug"


class BugError(Exception):
    """Something that must not happen: not one line, not refused, or wrong."""


class HangError(BaseException):
    """An example took too long; not an `Exception`, which might be caught on the way."""


@dataclass
class Tally:
    """Counts outcomes, and keeps what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)

    def add(self, outcome: str, what: str = "") -> None:
        """Count one."""
        self.counts[outcome] += 1
        if what:
            self.bugs.append(what)

    def __str__(self) -> str:
        total = sum(self.counts.values())
        return ", ".join([f"{total} examples", *(f"{count} {name}" for name, count in sorted(self.counts.items()))])


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `HangError` in the block after some seconds."""

    def raise_hang(number: int, frame: object) -> None:
        raise HangError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, raise_hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(function: Callable[[], object], seconds: float) -> tuple[str, str]:
    """Return what becomes of a call: refused in one line, right, or a bug with what it says."""
    try:
        with limited(seconds):
            function()
    except SdebiasError as error:
        return one_line(str(error))
    except (Exception, HangError, SystemExit):
        return BUG, traceback.format_exc()
    return RIGHT, ""


def one_line(text: str) -> tuple[str, str]:
    """Return whether the text of an error is one line that says something."""
    return (REFUSED, "") if text.strip() and "\n" not in text else (BUG, f"not one line: {text!r}")


def command_line(*arguments: str) -> int:
    """Call the command line, and return its exit code.

    Raises
    ------
    BugError
        If it fails otherwise than with a code and one line of its own.
    """
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = main(list(arguments))
    lines = told.getvalue().splitlines()
    own = [line for line in lines if line.startswith("sdebias: ")]
    if code not in (0, 1, 2) or len(own) != (code != 0) or any("Traceback" in line for line in lines):
        raise BugError(f"sdebias {' '.join(arguments)}: code {code}, {lines[-5:]}")
    return code


def traceback_of(error: BaseException) -> str:
    """Return an error with where it came from, as text."""
    return "".join(traceback.format_exception(error))
