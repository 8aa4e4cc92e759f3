"""Configurations that are wrong in every way: valid tables, mutated, and written as TOML."""

from __future__ import annotations

import copy
import datetime
import json
import math
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from hypothesis import strategies as st

from sdebias.cli.start import example, names

DATA = """
[problem]
model = "HadamardRegression"
data = "data.nc"
initial = { p = 1.0, q = [0.2, 0.3, 0.4] }

[symmetry]
group = "Product"
factors = [{ group = "Rescaling", parameters = ["p", "q"] }]

[dynamics.sgd]
type = "SGD"
learning_rate = 0.01
batch_size = 2
replacement = false
epochs = true
weight_decay = 0.01

[dynamics.sde]
type = "SGDSDE"
learning_rate = { schedule = "power", initial = 0.01, exponent = 0.5, scale = 2.0 }
noise = { noise = "isotropic", temperature = 0.1 }
method = "srk"
engine = "torchsde"
gauge_stiffness = 0.5

[run]
trajectories = 3
steps = 4
save_every = 2
seed = 1
block_size = 2
memory = "1 GiB"
save = ["charge", "theta"]
dtype = "float32"
"""
STATISTICS = """
[problem]
model = "HadamardRegression"
stream = { law = "teacher-student", input_shape = [2], replicates = 2, pool = 8 }
initial_std = { p = 0.5, q = 0.5 }

[symmetry]
group = "Rescaling"
parameters = ["p", "q"]
level = 0.1

[dynamics.sde]
type = "SGDSDE"
learning_rate = [0.01, 0.02]
noise = "isotropic"
temperature = [0.1, 0.2]

[run]
trajectories = 4
steps = 4
statistics = [
  "mean",
  { statistic = "quantiles", levels = [0.1, 0.9], accuracy = 0.05 },
  { statistic = "histogram", observable = "loss", lower = 0.0, upper = 9.0, bins = 4, since = 2 },
]
"""
SMALL = {"trajectories": 3, "steps": 4, "save_every": 2}
# Names that mean something somewhere, each a wrong one nearly everywhere.
WORDS = """
    HadamardRegression ShallowReLU SoftmaxRegression MatrixFactorization SingleHeadAttention NormalizedRegression
    CumulativeSumRegression DeepDiagonalRegression WeightDecay ModuleProblem Rescaling GeneralLinear Orthogonal
    Scaling Translation Product FromAction FromFields DiscoveredSymmetry SGD SGDSDE p q W v u1 W:0 v:-1 p:9 p:x : p:
    q:0:1 minibatch isotropic label horizontal diagonal gaussian anisotropic rademacher milstein three-point euler
    srk midpoint heun ito stratonovich fused torchsde linear cosine power teacher-student mean variance covariance
    quantiles histogram theta loss none charge predictor log_orbit_volume float32 float16 cpu cuda cuda:7 meta auto
    data.nc run.toml . .. / /dev/null ../../etc/passwd os:system builtins:eval GiB μ∘η {0} %s
""".split()  # noqa: SIM905 (words read better)
WORDS += ["\x00", "", " ", "1 GiB", "nan GiB", "inf GiB", "-1 KiB", "1e400 GiB", "1 B", "a\nb", "x" * 5000]
KEYS = """
    model data initial initial_std stream weight_decay features depth units rank head classes bias law input_shape
    teacher label_noise pool replicates seed dtype device group parameters factors level action fields dim type
    learning_rate batch_size noise temperature order substeps method sde_type increments engine gauge_stiffness
    replacement epochs schedule exponent scale final steps trajectories save_every block_size memory compile save
    statistics statistic levels accuracy smallest observable lower upper bins since out problem symmetry dynamics
    run X y p q matrix orbit_dimension null_residual options initial_law é __class__ self
""".split()  # noqa: SIM905 (words read better)
KEYS += ["", "a b"]
NUMBERS = [0, 1, 2, 3, 4, 7, -1, -(2**63), 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400]
NUMBERS += [10**6, 10**9, 10**12]
FLOATS = [0.0, -0.0, 0.5, 1.0, 2.0, -1.5, 1e-320, 1e-30, 1e30, 1e308, math.inf, -math.inf, math.nan]
DATES = [datetime.date(2020, 1, 2), datetime.time(1, 2, 3), datetime.datetime(2020, 1, 2, 3, 4, 5)]

SCALARS = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(FLOATS),
    st.sampled_from(WORDS),
    st.booleans(),
    st.sampled_from(DATES),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def bases() -> list[dict[str, Any]]:
    """Return valid tables, each small enough to run in an instant."""
    tables = [tomllib.loads(text) for text in (*map(example, names()), DATA, STATISTICS)]
    for table in tables:
        table["run"] |= {key: size for key, size in SMALL.items() if key in table["run"]}
        if "stream" in table["problem"]:
            table["problem"]["stream"]["pool"] = 8
    return tables


def write_data(folder: Path) -> None:
    """Write the data that the tables name."""
    rng = np.random.default_rng(0)
    arrays = {"X": (("sample", "feature"), rng.standard_normal((6, 3))), "y": ("sample", rng.standard_normal(6))}
    xr.Dataset(arrays, {"feature": ["a", "b", "c"]}).to_netcdf(folder / "data.nc")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container and key in a nested value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def _replace(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    holder[key] = draw(VALUES)


def _drop(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    del holder[key]


def _rename(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        name = draw(st.sampled_from([*KEYS, f"{key}s", str(key)[:-1], str(key).upper()]))
        holder[name] = holder.pop(key)


def _add(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[draw(st.sampled_from(KEYS))] = draw(VALUES)
    else:
        holder.append(draw(VALUES))


def _swap(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    other, at = draw(st.sampled_from(list(places(table))))
    # A table inside itself has no text.
    holder[key], other[at] = copy.deepcopy(other[at]), copy.deepcopy(holder[key])


def _wrap(draw: Callable[..., Any], table: Any, holder: Any, key: Any) -> None:
    wrapped = holder[key]
    holder[key] = draw(st.sampled_from([[wrapped], [wrapped, wrapped], {"value": wrapped}, str(wrapped)]))


MUTATIONS = [_replace, _replace, _replace, _drop, _rename, _add, _add, _swap, _wrap]


@st.composite
def texts(draw: Callable[..., Any]) -> str:
    """Return the text of a configuration that was mutated in one to three places, or in its characters."""
    table = copy.deepcopy(draw(st.sampled_from(bases())))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = list(places(table))
        if found:
            draw(st.sampled_from(MUTATIONS))(draw, table, *draw(st.sampled_from(found)))
    text = to_toml(table)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        noise = draw(
            st.sampled_from(["", "[" * 3000, "=", "\x00", '"', "\n[run]\n", "a.b = 1\n", "\\", "}", "1" * 5000])
        )
        text = text[:at] + noise + text[at + draw(st.integers(0, 9)) :]
    return text


def to_toml(table: dict[str, Any]) -> str:
    """Return a table as TOML, each section on one line."""
    return "".join(f"{_text(key)} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _text(text: Any) -> str:
    return json.dumps(str(text), ensure_ascii=False)
