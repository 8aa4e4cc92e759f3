"""Types of arguments that verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Files = Positional[Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]", help_behavior_hint="")]]
Flag = tyro.conf.FlagCreatePairsOff[bool]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
Imports = Annotated[tuple[str, ...], arg(metavar="MODULE:FUNCTION", help_behavior_hint="")]
