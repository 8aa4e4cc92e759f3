"""The documentation: its code runs, its commands exist, its links lead somewhere, its version is the package's."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import matplotlib as mpl
import nbformat
import pytest
import tyro
from conftest import ROOT

import sdebias as sb
from sdebias.cli import Command

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.ipynb")),
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "data" / "README.md",
    ROOT / "experiments" / "RESULTS.md",
]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# Its code makes the data files from packages that are not installed.
NOT_RUN = ROOT / "data" / "README.md"


def text_of(page: Path) -> str:
    """Return the text of a page, of a notebook that between its cells."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def blocks(*languages: str) -> list[object]:
    """Return the blocks of code in one of these languages, by page."""
    return [
        pytest.param(textwrap.dedent(code), id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        if page != NOT_RUN
        for number, (language, code) in enumerate(FENCE.findall(text_of(page)))
        if language in languages
    ]


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("code", blocks("python"))
def test_code_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    mpl.use("agg")
    # The same code at a size that a test can afford.
    exec(code.replace("trajectories=2048, steps=400", "trajectories=64, steps=40"), {})


def commands(code: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block, without variables before them and what they are connected by."""
    for line in code.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in ("|", "&&", "||", ";", "&", ">", "do", "done"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)


@pytest.mark.parametrize("code", blocks("sh", "bash", "console"))
def test_commands_exist(code: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for program, *arguments in commands(code):
        name = Path(program).name
        # Help and completion are tyro's; the latter would write files.
        if name == "sdebias" and arguments != ["--help"] and not arguments[0].startswith("--tyro-"):
            tyro.cli(Command, prog="sdebias", args=arguments)  # exits where an option does not exist
        elif name == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments), arguments
        elif name.startswith("python") and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), arguments


def test_commands_that_do_not_exist_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    for code in ("sdebias rum file.toml", ".venv/bin/sdebias run file.toml --trajectory 3", "A=1 sdebias info"):
        with pytest.raises(SystemExit):
            test_commands_exist(code)
    with pytest.raises(AssertionError):
        test_commands_exist("cd here && make nothing")
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page)))
    wrong = []
    for link in links:
        address = urlsplit(link)
        if address.scheme:
            # What is elsewhere cannot be visited by a test.
            good = address.scheme == "https" and "." in address.netloc
        else:
            target = page.parent / address.path if address.path else page
            good = target.exists() and (not address.fragment or address.fragment in anchors(target))
        if not good:
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_of_tables_have_as_many_cells_as_their_heads(page: Path) -> None:
    tables = re.findall(r"(?:^\|.*\|$\n)+", FENCE.sub("", text_of(page)) + "\n", re.MULTILINE)
    sizes = [{len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()} for table in tables]
    assert [size for size in sizes if len(size) > 1] == []


def test_the_readme_is_at_most_two_screens_and_its_example_fifteen_lines() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == sb.__version__  # type: ignore[index]
    assert f"## [{sb.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_reference_has_every_public_namespace() -> None:
    public = re.findall(r"^from \S+ import (\w+) as \1$", Path(sb.__file__).read_text(encoding="utf-8"), re.MULTILINE)
    namespaces = [f'"sdebias.{name}"' for name in public if isinstance(getattr(sb, name), ModuleType)]
    hooks = (ROOT / "docs" / "hooks.py").read_text(encoding="utf-8")
    assert len(namespaces) > 5
    assert [name for name in namespaces if name not in hooks] == []


def test_the_documentation_lists_every_model_and_group() -> None:
    folder = ROOT / "docs" / "reference"
    models, symmetry = ((folder / f"{page}.md").read_text(encoding="utf-8") for page in ("models", "symmetry"))
    assert [name for name in sb.problems.MODELS if f"| `{name}` |" not in models] == []
    made_by_functions = {"FromAction": "from_action", "FromFields": "from_fields", "DiscoveredSymmetry": "discover"}
    assert [name for name in sb.symmetry.GROUPS if f"`{made_by_functions.get(name, name)}" not in symmetry] == []
