"""Benchmarks as they are tested: what is timed is of no interest."""

from __future__ import annotations

import pytest

from benchmarks import timing


@pytest.fixture(autouse=True)
def single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each turn be one call."""
    monkeypatch.setattr(timing, "ENOUGH", 0)
