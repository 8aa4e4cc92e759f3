"""The benchmarks without their compiler, whose seconds are not the subject of these tests."""

import pytest

from sdebias.ensemble import engine


@pytest.fixture(autouse=True)
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the steps of a chunk as they are; that compiled ones equal them is tested with the engine."""
    monkeypatch.setattr(engine, "compiled", lambda chunk, inputs: chunk)
