"""The notebooks run from top to bottom, quickly, and are committed with what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def printed(notebook: Any) -> str:
    """Return what is printed, without numbers, whose last digits differ from one machine to another."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return re.sub(r"\S*\d\S*", "", text)


def figures(notebook: Any) -> int:
    """Return the number of images."""
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_and_show_what_is_committed(path: Path) -> None:
    """The assertions in the notebook are part of it: a result that it does not have stops it."""
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=60, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert printed(fresh).split() == printed(committed).split() != []
    assert figures(fresh) == figures(committed) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_small_and_free_of_warnings_and_errors(path: Path) -> None:
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    assert path.stat().st_size < 200_000
    assert [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"] == []


def test_five_lines_are_what_the_designed_training_adds() -> None:
    cells = [cell.source for cell in nbformat.read(ROOT / "docs" / "notebooks" / "parametrize.ipynb", 4).cells]
    added = next(source for source in cells if "register_parametrization" in source)
    lines = [line for source in cells for line in source.splitlines()]
    imports = [line for line in lines if line.startswith(("import sdebias", "from torch.nn.utils import parametrize"))]
    wiring = [line for line in added.splitlines() if "net = " not in line and "train(" not in line]
    assert len(imports) + len(wiring) == 5
