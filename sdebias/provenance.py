"""Provenance: who made a dataset, when, and with what."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ._version import __version__

PACKAGES = ("torch", "torchsde", "numpy", "xarray")


def provenance() -> dict[str, str]:
    """Return who made a dataset, when and with what: the ArviZ four, versions, commit."""
    return {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), **_software()}


@functools.cache
def _software() -> dict[str, str]:
    """Return versions and commit, as they were when the process first asked: those of the code that runs."""
    return {
        "creation_library": "sdebias",
        "creation_library_version": __version__,
        "creation_library_language": f"Python {platform.python_version()}",
        **{f"{name}_version": version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Return the commit of the package's own source, or "none" where it is not a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    if shutil.which("git") is None:
        return "none"
    # An installed copy may lie inside somebody else's checkout, whose commit would be a lie.
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "_version.py"], capture_output=True, check=False)
    if tracked.returncode:
        return "none"
    name = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(name, capture_output=True, text=True, check=False).stdout.strip() or "none"
