"""A small job in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config import TOML, write


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a configuration in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, TOML.replace("trajectories = 6", "trajectories = 300").replace("steps = 4", "steps = 40"))
