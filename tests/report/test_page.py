"""Reports: well-formed, self-contained, escaped, and with the numbers of the dataset, for every sort of dataset."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT
from matplotlib.figure import Figure
from reports import (
    HOSTILE,
    SMALL,
    SORTS,
    bare,
    chargeless,
    comparison,
    flagged,
    hadamard,
    law,
    plain,
    replicates,
    rotation,
)

import sdebias as sb
from sdebias import cli
from sdebias.errors import DataError, InputError
from sdebias.report import figures, html_report
from sdebias.report.citation import AUTHORS, EPRINT, PACKAGE, TITLE, citations
from sdebias.report.tables import ROWS, SERIES, drift_series, drift_table
from sdebias.storage import save_dataset

VOID = {"meta", "img", "input", "br", "link"}
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}


class Document(HTMLParser):
    """Elements of a page; raises where a tag is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


# Rendering is what takes the time of a report; this sort has the longest and the worst texts.
RENDERED = {"hostile"}


@pytest.fixture(autouse=True)
def drawn_but_not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "data_uri", lambda figure: "data:image/png;base64,")


@pytest.fixture(scope="module")
def datasets() -> dict[str, xr.Dataset]:
    return {name: sort() for name, sort in SORTS.items()}


@pytest.fixture(scope="module")
def pages(datasets: dict[str, xr.Dataset]) -> dict[str, str]:
    found = {name: html_report(datasets[name]) for name in RENDERED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "data_uri", lambda figure: "data:image/png;base64,")
        return found | {name: html_report(dataset) for name, dataset in datasets.items() if name not in RENDERED}


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_well_formed_and_fetch_nothing(pages: dict[str, str], sort: str) -> None:
    document = Document(pages[sort])
    for tag, attributes in document.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in FETCHING & set(attributes):
            assert str(attributes[name]).startswith("data:image/"), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert re.findall(r"https?://|//[a-z]+\.[a-z]+|@import|url\(", pages[sort]) == []
    identifiers = [a["id"] for _, a in document.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert sum(tag == "h1" for tag, _ in document.elements) == 1


@pytest.mark.parametrize("sort", SORTS)
def test_only_the_scripts_of_the_package_may_run(pages: dict[str, str], sort: str) -> None:
    document = Document(pages[sort])
    policy = next(str(a["content"]) for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    scripts = [a for tag, a in document.elements if tag == "script"]
    assert [a.get("type") for a in scripts if a.get("type") != "application/json"] == [None]
    for name in ("script", "style"):
        text = document.text(name)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_images_are_in_the_page(pages: dict[str, str]) -> None:
    images = [str(a["src"]) for tag, a in Document(pages["hostile"]).elements if tag == "img"]
    assert len(images) == 5
    for image in images:
        kind, content = image.removeprefix("data:image/").split(";base64,")
        start = {"png": b"\x89PNG", "svg+xml": b"<?xml"}[kind]
        assert base64.b64decode(content).startswith(start)


def test_a_figure_with_much_in_it_is_a_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    figure = Figure(figsize=(1, 1))
    assert figures.data_uri(figure).startswith("data:image/svg+xml")
    monkeypatch.setattr(figures, "SVG_BYTES", 10)
    assert figures.data_uri(figure).startswith("data:image/png")


def test_hostile_texts_are_texts(pages: dict[str, str]) -> None:
    assert HOSTILE not in pages["hostile"]
    document = Document(pages["hostile"])
    assert [a for tag, a in document.elements if tag == "img" and not str(a["src"]).startswith("data:")] == []
    assert any(HOSTILE in text for text in document.text("td"))
    assert any(HOSTILE in text for text in document.text("dd"))
    series = json.loads(next(text for text in document.text("script") if text.startswith("{")))["series"]
    assert series[0]["label"] == f"p:q[{HOSTILE}]"
    Document(html_report(plain(), title=HOSTILE, source=Path(f"{HOSTILE}.nc")))


def test_the_table_holds_the_comparison(datasets: dict[str, xr.Dataset], pages: dict[str, str]) -> None:
    found = datasets["plain"].sdebias.compare()
    cells = Document(pages["plain"]).text("td")
    for charge, row in sb.comparison.comparison_table(found).iterrows():
        at = cells.index(str(charge))
        assert cells[at + 1 : at + 3] == [f"{row['predicted']:.4g}", f"{row['measured']:.4g}"]
        assert cells[at + 5] == f"{row['z']:.2f}"
    assert "consistent" in Document(pages["plain"]).text("span")
    rejected = found.assign_attrs(verdict="rejected")
    assert 'class="badge bad"' in html_report(rejected)
    assert 'class="badge bad"' not in html_report(found)


def test_curves_are_those_of_the_comparison() -> None:
    found = comparison()
    drift = drift_series(found)
    assert drift["steps"] == [0, 4, 8, 12, 16, 20]
    for one in drift["series"]:
        np.testing.assert_allclose(one["measured"], found["empirical"].sel(charge=one["label"]), rtol=1e-5)
        np.testing.assert_allclose(one["upper"], found["interval"].sel(charge=one["label"], bound="upper"), rtol=1e-5)
    found["empirical"][1, 0] = np.nan
    assert drift_series(found)["series"][0]["measured"][1] is None


def test_long_comparisons_are_cut_and_say_so() -> None:
    found = replicates().sdebias.compare()
    many = xr.concat([found.assign_coords(replicate=range(3 * k, 3 * k + 3)) for k in range(30)], "replicate")
    many.attrs = found.attrs
    drift = drift_series(many)
    table = drift_table(many, {})
    assert (len(drift["series"]), len(table["rows"])) == (SERIES, ROWS)
    assert f"The {ROWS} of 270" in table["note"]
    smallest = min(abs(float(dict(row["cells"])["z"])) for row in table["rows"])
    assert smallest >= np.sort(abs(many["z"].isel(step=-1).values.ravel()))[270 - ROWS] - 0.005


def test_replicates_and_finite_steps_are_named(pages: dict[str, str]) -> None:
    cells = Document(pages["replicates"]).text("td")
    assert "p:q[0], replicate 2" in cells
    assert "finite step" in Document(pages["euler"]).text("th")
    assert "finite step" not in Document(pages["plain"]).text("th")


def test_flagged_trajectories_are_said(pages: dict[str, str]) -> None:
    assert "2 of 48 trajectories are flagged (1 diverged and 1 non-finite)" in pages["flagged"]
    assert "flagged" not in pages["plain"]


def test_what_cannot_be_done_is_said(pages: dict[str, str]) -> None:
    page = html_report(chargeless(), *rotation())
    assert "it has no charges" in page
    assert "Gram spectrum" in page
    assert 'id="drift"' not in page
    assert "The problem is not known" in pages["bare"]
    assert 'id="explorer"' not in pages["bare"]
    lost = flagged()
    lost["status"][:] = 1
    page = html_report(lost)
    assert "Not drawn: " in page
    assert "Orbit drift is not compared" in page


def test_a_problem_of_ones_own_is_passed() -> None:
    problem = hadamard()
    unknown = plain()
    del unknown.attrs["config_json"]
    assert "The problem is not known" in html_report(unknown)
    assert "Orbit drift at the last step" in html_report(unknown, hadamard(["a", "b", "c"]))
    with pytest.raises(InputError, match="pass the ensemble"):
        html_report(comparison(), problem)
    with pytest.raises(DataError, match="kind 'unknown'"):
        html_report(xr.Dataset())


def test_how_to_cite_is_that_of_the_repository() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for text in (TITLE, PACKAGE, f"arXiv:{EPRINT}"):
        assert text in citation
    families = [author.split(". ")[1] for author in AUTHORS]
    assert re.findall(r'family-names: "?([^"}]*?)"? }', citation) == families
    assert sb.__version__ in citations()[1]


class TestCommand:
    def test_it_writes_beside_the_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = save_dataset(plain(), tmp_path / "run.nc")
        assert cli.main(["report", str(file)]) == 0
        page = tmp_path / "run.html"
        assert capsys.readouterr().out.strip() == str(page)
        document = Document(page.read_text(encoding="utf-8"))
        command = next(text for text in document.text("pre") if text.startswith("sdebias run"))
        assert command == f"sdebias run {file} --out {tmp_path / 'run-again'}"
        assert "run.nc" in document.text("h1")

    def test_it_takes_a_run_directory(self, tmp_path: Path) -> None:
        problem = hadamard(["a", "b", "c"])
        folder = tmp_path / "sgd"
        sb.run(problem, sb.SGD(learning_rate=0.01), folder, symmetry=problem.symmetry(), **SMALL)
        assert cli.main(["report", str(folder)]) == 0
        page = Document((tmp_path / "sgd.html").read_text(encoding="utf-8"))
        assert page.text("h1") == ["sgd"]
        assert "p:q[a]" in page.text("td")

    def test_it_overwrites_only_when_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = save_dataset(law(), tmp_path / "law.nc")
        out = tmp_path / "pages" / "law.html"
        words: list[Any] = ["report", str(file), "--out", str(out)]
        assert cli.main(words) == 0
        assert cli.main(words) == 2
        assert "pass --overwrite" in capsys.readouterr().err
        assert cli.main([*words, "--overwrite"]) == 0

    def test_bad_files_are_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["report", str(tmp_path / "none.nc")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_ensemble_without_a_file_says_how_to_get_a_command() -> None:
    assert "Save the ensemble to a file" in html_report(plain())
    assert "It cannot be made again" in html_report(bare(), source=Path("none.nc"))
