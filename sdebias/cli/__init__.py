"""The command line: ``sdebias examples | init | run | extend | status | merge | compare | plot | report | info``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from .._version import __version__
from ..errors import InputError, SdebiasError
from .analyse import CompareCommand, InfoCommand, PlotCommand, ReportCommand
from .runs import ExtendCommand, MergeCommand, RunCommand, StatusCommand
from .start import ExamplesCommand, InitCommand

# Not wrapped by tyro: each paragraph is a line of at most 80 columns.
DESCRIPTION = """Compare the orbit drift of SGD and of its SDE with what geometry predicts.

Exit codes: 0 done, 1 a run that failed, 2 bad input, 130 interrupted.

sdebias --version says which version this is."""

Command = (
    Annotated[ExamplesCommand, tyro.conf.subcommand("examples")]
    | Annotated[InitCommand, tyro.conf.subcommand("init")]
    | Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[ExtendCommand, tyro.conf.subcommand("extend")]
    | Annotated[StatusCommand, tyro.conf.subcommand("status")]
    | Annotated[MergeCommand, tyro.conf.subcommand("merge")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[PlotCommand, tyro.conf.subcommand("plot")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[InfoCommand, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 done, 2 bad input, 1 a run that failed, 130 interrupted.
    """
    try:
        words = sys.argv[1:] if arguments is None else arguments
        if list(words) == ["--version"]:
            print(f"sdebias {__version__}")
            return 0
        return tyro.cli(Command, prog="sdebias", description=DESCRIPTION, args=words)()
    except KeyboardInterrupt as interruption:
        print(f"sdebias: {str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"sdebias: {error}", file=sys.stderr)
        return 2
    except SdebiasError as error:
        print(f"sdebias: {error}", file=sys.stderr)
        return 1
