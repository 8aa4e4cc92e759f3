"""What users may rely on, names and signatures, changes only deliberately."""

from __future__ import annotations

import difflib

import pytest
from public_api import FILE, text

import sdebias as sb


def changes() -> list[str]:
    """Return the lines that were added to the public names, changed or removed."""
    frozen = FILE.read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(frozen, text().splitlines(), "promised", "found", n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def test_public_names_and_signatures_are_those_promised() -> None:
    found = "\n".join(changes())
    accept = "if that is meant, run `python tests/public_api.py` and say so in CHANGELOG.md"
    assert not found, f"the public interface changed; {accept}\n{found}"


def test_a_changed_signature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(path: str) -> str:
        return path

    merge.__module__ = "sdebias.storage.opening"
    monkeypatch.setattr(sb, "merge", merge)
    assert "+sdebias.merge(path: str) -> str" in changes()
    monkeypatch.delattr(sb, "merge")
    assert [line for line in changes() if not line.startswith("-sdebias.merge(")] == []
