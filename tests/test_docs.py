"""The documentation: its code runs, its links lead somewhere, its version is the package's."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from conftest import ROOT

import sdebias as sb

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "experiments" / "RESULTS.md",
]
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    mpl.use("agg")
    # The same code at a size that a test can afford.
    exec(code.replace("trajectories=2048, steps=400", "trajectories=64, steps=40"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_is_at_most_two_screens_and_its_example_fifteen_lines() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == sb.__version__  # type: ignore[index]
    assert f"## [{sb.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_documentation_lists_every_model_and_group() -> None:
    models, symmetry = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("models", "symmetry"))
    assert [name for name in sb.problems.MODELS if f"| `{name}` |" not in models] == []
    made_by_functions = {"FromAction": "from_action", "FromFields": "from_fields", "DiscoveredSymmetry": "discover"}
    assert [name for name in sb.symmetry.GROUPS if f"`{made_by_functions.get(name, name)}" not in symmetry] == []
