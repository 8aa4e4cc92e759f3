"""Pages of the site that are made while it is built: files of the repository, notebooks, and the public names.

Links are written as they work in the repository; on the site they lead to the page that was made of their target.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from sdebias.cli import main

ROOT = Path(__file__).parents[1]
# Pages made of files that stay where they are: generated results, and what a visitor of the repository reads first.
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "experiments/RESULTS.md": "results.md",
    "data/README.md": "reference/datasets.md",
}
# Pages of the reference: title, and the modules whose public names it documents. A name is documented once, by the
# last module that has it: sdebias itself collects those of its parts.
REFERENCE = {
    "sdebias": ("sdebias", ["sdebias"]),
    "problems": ("sdebias.problems", ["sdebias.problems"]),
    "symmetry": ("sdebias.symmetry", ["sdebias.symmetry"]),
    "dynamics": ("sdebias.noise, sdebias.schedule", ["sdebias.noise", "sdebias.schedule"]),
    "statistics": ("sdebias.statistics", ["sdebias.statistics"]),
    "prediction": ("sdebias.prediction", ["sdebias.prediction"]),
    "design": ("sdebias.design", ["sdebias.design"]),
    "files": (
        "Datasets, figures, errors",
        [
            "sdebias.schema",
            "sdebias.dataset",
            "sdebias.accessor",
            "sdebias.plotting",
            "sdebias.report",
            "sdebias.errors",
        ],
    ),
}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def public_names(module: ModuleType) -> dict[str, Any]:
    """Return the public classes and functions of a module, or those that a package collects."""
    own = "sdebias." if hasattr(module, "__path__") else module.__name__
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "").startswith(own)
    }


def reference() -> Iterator[tuple[str, str]]:
    """Yield path and text of the pages of the reference."""
    names: dict[Any, tuple[str, str]] = {}
    for page, (_, modules) in REFERENCE.items():
        for path in modules:
            names |= {value: (page, f"{path}.{name}") for name, value in public_names(resolve_name(path)).items()}
    for page, (title, _) in REFERENCE.items():
        entries = [
            f"::: {value.__module__}.{value.__qualname__}\n    options:\n"
            f"      heading: {name}\n      toc_label: {name.rpartition('.')[2]}"
            for value, (where, name) in sorted(names.items(), key=lambda item: item[1][1].lower())
            if where == page
        ]
        yield f"reference/api/{page}.md", "\n\n".join([f"# {title}", *entries])


def command_line() -> str:
    """Return the page of the command line: what ``--help`` says."""

    def said(*arguments: str) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
        return f"```text\n{output.getvalue().rstrip()}\n```"

    overview = said()
    found = re.search(r"\{(.+?)\}", overview)
    names = found[1].split(",") if found else []
    return "\n\n".join(["# Command line", overview, *(f"## sdebias {name}\n\n{said(name)}" for name in names)])


def source(page: str) -> str:
    """Return the file of the repository behind a page of the site."""
    sources = {made: file for file, made in INCLUDED.items()}
    notebook = f"docs/{page.removesuffix('.md')}.ipynb"
    return sources.get(page) or (notebook if (ROOT / notebook).exists() else f"docs/{page}")


def place(file: str) -> str:
    """Return the path on the site of a file of the repository."""
    return INCLUDED.get(file) or file.removeprefix("docs/").replace(".ipynb", ".md")


def targets(text: str, file: str) -> Iterator[tuple[str, str]]:
    """Yield the links of a text that lead to files of the repository, and these files."""
    for link in set(LINK.findall(text)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
        if not target.startswith("..") and (ROOT / target).is_file():
            yield link, target


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here, and the files outside of docs that they show."""
    for file, page in INCLUDED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for _, target in targets(text, file):
            if target not in INCLUDED and not target.startswith("docs/") and target not in files.src_uris:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    for page, text in [("reference/cli.md", command_line()), *reference()]:
        files.append(File.generated(config, page, content=text))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        folder = posixpath.basename(notebook.src_uri).removesuffix(".ipynb") + "_files"
        body, resources = MarkdownExporter().from_filename(
            str(notebook.abs_src_path), {"output_files_dir": folder, "unique_key": "figure"}
        )
        files.append(File.generated(config, place(notebook.src_uri), content=body))
        for name, data in resources["outputs"].items():
            path = posixpath.join(posixpath.dirname(notebook.src_uri), name)
            files.append(File.generated(config, path, content=data))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links of the repository to pages of the site."""
    file = source(page.file.src_uri)
    links = dict(targets(markdown, file))

    def moved(match: re.Match[str]) -> str:
        link = match[1]
        if link not in links:
            return link
        return os.path.relpath(place(links[link]), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
