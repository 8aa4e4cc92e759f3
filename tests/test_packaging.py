"""What is distributed: a wheel with the package and its data and nothing else, a source that the tests run from."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from hatchling.build import build_sdist, build_wheel

import sdebias as sb


def test_the_wheel_has_the_package_and_its_data_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        names = set(wheel.namelist())
        info = f"sdebias-{sb.__version__}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sdebias").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    examples = {f"sdebias/cli/examples/{name}.toml" for name in ("hadamard", "relu", "schedule")}
    templates = {f"sdebias/report/templates/report.{ending}" for ending in ("css", "html", "js")}
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names - modules == {"sdebias/py.typed"} | examples | templates | about
    assert f"\nVersion: {sb.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata


def test_the_source_distribution_has_what_the_tests_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    files = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "pyproject.toml"}
    folders = ("sdebias", "tests", "experiments", "benchmarks", "docs", "data")
    kinds = ("*.py", "*.toml", "*.nc", "*.json", "*.md", "*.ipynb")
    tracked = {
        str(path.relative_to(ROOT))
        for folder in folders
        for kind in kinds
        for path in (ROOT / folder).rglob(kind)
        if ".ipynb_checkpoints" not in path.parts
    }
    assert (files | tracked | {"constraints.txt", "mkdocs.yml", "sdebias/py.typed"}) - names == set()
    assert [
        name for name in names if name.startswith((".ci", ".git/", "dist", "results")) or "__pycache__" in name
    ] == []
