"""One self-contained HTML page about a dataset: nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr

from .. import config
from ..comparison import compare
from ..dataset import validate
from ..errors import InputError, SdebiasError, message
from ..prediction import predict_orbit_drift
from ..problems import Problem
from ..schema import STATUS
from ..symmetry import Symmetry
from .citation import bibtex, citations
from .figures import dataset_figures, ensemble_figures
from .tables import drift_series, drift_table, summary_table
from .text import reproduce_command, verdict

TEMPLATES = files(__package__) / "templates"
# A value of the configuration beyond this length is cut in the overview; the whole of it stands below.
SHORT = 160
VERSIONS = ("creation_library", "creation_library_version", "creation_library_language", "git_commit")


def html_report(
    dataset: xr.Dataset,
    problem: Problem | None = None,
    symmetry: Symmetry | None = None,
    *,
    title: str | None = None,
    source: Path | None = None,
) -> str:
    """Return an HTML page about a dataset: what was run, verdicts, figures, tables, how to make it again, how to cite.

    Of an ensemble the orbit drift is predicted and compared first, with the problem and the symmetry given or those
    that its configuration and data say. What cannot be done is said with the reason. Style, script and images are in
    the page, whose content security policy forbids it to load anything; texts from the dataset are escaped.

    Parameters
    ----------
    dataset : xr.Dataset
        Of any kind.
    problem : Problem, optional
        Of an ensemble whose model is not in `sdebias.problems.MODELS`.
    symmetry : Symmetry, optional
        By default that of the file, or the one that the problem declares.
    title : str, optional
        By default the name of the file.
    source : Path, optional
        File of the dataset, for the command that makes it again; by default what xarray remembers.

    Returns
    -------
    str
        Whole document; write it as UTF-8.

    Raises
    ------
    DataError
        If the dataset is not one of this package.
    InputError
        If a problem or a symmetry is given for a dataset that is no ensemble.
    """
    kind = str(validate(dataset).attrs["kind"])
    if kind != "ensemble" and (problem is not None or symmetry is not None):
        raise InputError(message("problem", "none", f"one with a dataset of kind {kind!r}", "pass the ensemble"))
    remembered = dataset.encoding.get("source")
    source = source or (Path(remembered) if remembered else None)
    context: dict[str, Any] = {"title": title or (source.name if source else kind), "kind": kind.replace("_", " ")}
    context |= {"facts": _facts(dataset), "notes": _notes(dataset), "panels": [], "summary": None}
    comparison = dataset if kind == "comparison" else None
    if kind == "ensemble":
        model, prediction, comparison = _compared(dataset, problem, symmetry, context["notes"])
        context["summary"] = _summary(dataset, context["notes"])
        context["panels"] = ensemble_figures(dataset, prediction, model)
    if comparison is not None:
        context["panels"] = [*dataset_figures(comparison), *context["panels"]]
    elif kind != "ensemble":
        context["panels"] = dataset_figures(dataset)
    context |= _drift(comparison)
    context["verdicts"] = _verdicts(dataset if comparison is None else comparison)
    context |= {"variables": _variables(dataset), "citations": citations(), "bibtex": bibtex()}
    context |= _origin(dataset, source)
    return _render(context)


def _render(context: dict[str, Any]) -> str:
    """Fill the template; the hashes of script and style are all that the page's policy lets run."""
    script, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((TEMPLATES / "report.html").read_text(encoding="utf-8"))
    return template.render(
        **context, script=script, style=style, script_hash=_sha256(script), style_hash=_sha256(style)
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _compared(
    ensemble: xr.Dataset, problem: Problem | None, symmetry: Symmetry | None, notes: list[str]
) -> tuple[tuple[Problem, Symmetry | None] | None, xr.Dataset | None, xr.Dataset | None]:
    """Return model, prediction and comparison of an ensemble, None for each that cannot be had, and note why."""
    try:
        stored = config.rebuild(ensemble) if problem is None else (problem, problem.symmetry())
    except SdebiasError as error:
        notes.append(f"The problem is not known, so that nothing is predicted: {error}")
        return None, None, None
    model = (stored[0], symmetry or stored[1])
    if model[1] is None:
        notes.append("No symmetry is known, so that there are no orbits to compare.")
        return model, None, None
    prediction = None
    try:
        prediction = predict_orbit_drift(ensemble, model[0], model[1])
        return model, prediction, compare(ensemble, prediction)
    except SdebiasError as error:
        notes.append(f"Orbit drift is not compared: {error}")
        return model, prediction, None


def _summary(ensemble: xr.Dataset, notes: list[str]) -> dict[str, Any] | None:
    try:
        return summary_table(ensemble.sdebias.summary())
    except SdebiasError as error:
        notes.append(f"There is no summary: {error}")
        return None


def _drift(comparison: xr.Dataset | None) -> dict[str, Any]:
    """Return table and curves of a comparison."""
    if comparison is None:
        return {"drift": None, "table": None}
    drift = drift_series(comparison)
    numbers = {one["label"]: number for number, one in enumerate(drift["series"])}
    return {"drift": drift, "table": drift_table(comparison, numbers)}


def _verdicts(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """Return the verdict of a dataset that has one: a word and the sentences behind it."""
    if "verdict" not in dataset.attrs:
        return []
    word = str(dataset.attrs["verdict"])
    if dataset.attrs["kind"] == "comparison":
        sentences = [line.strip() for line in verdict(dataset).splitlines()]
    else:
        numbers = {name: float(dataset[name].min()) for name in ("p_value", "kl", "ks_statistic") if name in dataset}
        sentences = [", ".join(f"{name} = {value:.3g}" for name, value in numbers.items())]
    return [{"word": word, "sentences": sentences}]


def _facts(dataset: xr.Dataset) -> list[tuple[str, str]]:
    """Return what was run, as terms and their values."""
    attrs = dataset.attrs
    found = {"kind": str(attrs["kind"]), "sizes": ", ".join(f"{size} {dim}" for dim, size in dataset.sizes.items())}
    for name, section in _configuration(dataset).items():
        if isinstance(section, dict):
            found[name] = ", ".join(f"{key} = {_short(value)}" for key, value in section.items())
    for name in ("dynamics", "equation", "noise", "measure", "temperature", "confidence", "prediction", "trajectories"):
        if name in attrs:
            found.setdefault(name, str(attrs[name]))
    if "step" in dataset.coords:
        steps = dataset["step"].values
        found["updates"] = f"{int(steps[0])} to {int(steps[-1])}, {len(steps)} saves"
    for name, label in (("trajectories_used", "trajectories used"), ("learning_rate", "learning rate")):
        if name in dataset:
            low, high = float(dataset[name].min()), float(dataset[name].max())
            found[label] = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if "status" in dataset:
        counts = _status(dataset)
        found["status"] = ", ".join(f"{count} {name}" for name, count in counts.items())
    return list(found.items())


def _configuration(dataset: xr.Dataset) -> dict[str, Any]:
    """Return the configuration that a dataset holds, empty where it holds none that can be read."""
    try:
        table = json.loads(dataset.attrs["config_json"])
    except (KeyError, TypeError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]} …"


def _status(dataset: xr.Dataset) -> dict[str, int]:
    return {name: int((dataset["status"] == code).sum()) for name, code in STATUS.items()}


def _notes(dataset: xr.Dataset) -> list[str]:
    """Return what a reader must know before the numbers."""
    if "status" not in dataset:
        return []
    counts = _status(dataset)
    flagged = {name: count for name, count in counts.items() if name != "ok" and count}
    if not flagged:
        return []
    which = " and ".join(f"{count} {name.replace('_', '-')}" for name, count in flagged.items())
    return [
        f"{sum(flagged.values())} of {sum(counts.values())} trajectories are flagged ({which}). Means, comparisons and "
        "figures leave them out, which conditions on survival."
    ]


def _variables(dataset: xr.Dataset) -> list[dict[str, str]]:
    """Return what the dataset holds."""
    rows = []
    for name, variable in dataset.variables.items():
        units = str(variable.attrs.get("units", ""))
        meaning = str(variable.attrs.get("long_name", "")) + (f" [{units}]" if units not in ("", "1") else "")
        dims = ", ".join(map(str, variable.dims))
        equation = str(variable.attrs.get("equation", ""))
        rows.append({"name": str(name), "dims": dims, "meaning": meaning, "equation": equation})
    return rows


def _origin(dataset: xr.Dataset, source: Path | None) -> dict[str, Any]:
    """Return how a dataset was made, and how to make it again."""
    attrs = dataset.attrs
    names = [*VERSIONS, *(name for name in attrs if name.endswith("_version") and name not in VERSIONS)]
    names += ["created_at", "seed", "block_size", "device", "dtype", "threads", "cpu_capability", "compile"]
    names += ["config_hash"]
    found: dict[str, Any] = {"origin": [(name.replace("_", " "), str(attrs[name])) for name in names if name in attrs]}
    table = _configuration(dataset)
    found["configuration"] = json.dumps(table, indent=2, ensure_ascii=False) if table else ""
    found["command"], found["why_not"] = "", ""
    if attrs["kind"] != "ensemble":
        found["why_not"] = "Open this page of the ensemble from which the dataset was made for a command."
    elif source is None:
        found["why_not"] = "Save the ensemble to a file: sdebias run FILE.nc then makes it again."
    else:
        try:
            config.load(source)
            found["command"] = reproduce_command(source)
        except SdebiasError as error:
            found["why_not"] = f"It cannot be made again from the command line: {error}"
    return found
