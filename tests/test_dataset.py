"""The schema: what is made, what is refused, and that the documentation shows it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT

from sdebias._version import __version__
from sdebias.dataset import config_attributes, make_dataset, validate
from sdebias.errors import DataError
from sdebias.schema import SCHEMA, schema_table


def ensemble() -> xr.Dataset:
    variables = {"loss": np.ones((2, 3)), "status": np.zeros(2, np.int8), "learning_rate": np.asarray(0.5)}
    return make_dataset("ensemble", variables, {"trajectory": [0, 1], "step": [0, 2, 4]}, {"dynamics": "SGD"})


def test_variables_carry_the_schema() -> None:
    dataset = ensemble()
    for name in ("loss", "status", "learning_rate"):
        assert dataset[name].attrs["long_name"] == SCHEMA[name].long_name
        assert dataset[name].attrs["units"] == SCHEMA[name].units
    np.testing.assert_array_equal(dataset["time"], [0, 1, 2])
    assert list(dataset["status"].attrs["flag_values"]) == [0, 1, 2]


def test_provenance() -> None:
    attrs = ensemble().attrs
    assert attrs["creation_library"] == "sdebias"
    assert attrs["creation_library_version"] == __version__
    assert {"created_at", "creation_library_language", "schema_version", "torch_version", "git_commit"} <= set(attrs)
    assert all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in attrs.values())


def test_one_more_axis_is_the_replicate() -> None:
    variables = {"loss": np.ones((4, 2, 3)), "status": np.zeros((4, 2), np.int8), "learning_rate": np.ones(4)}
    dataset = make_dataset("ensemble", variables, {"step": [0, 1, 2]}, {})
    assert dataset["loss"].dims == ("replicate", "trajectory", "step")
    assert dataset["time"].dims == ("replicate", "step")


def test_the_hash_follows_the_configuration() -> None:
    one, same, other = (
        config_attributes(c)["config_hash"] for c in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3})
    )
    assert one == same != other


class TestRefusals:
    def test_missing_variable(self) -> None:
        with pytest.raises(DataError, match="expected a variable 'status', got none"):
            validate(ensemble().drop_vars("status"))

    def test_other_dims(self) -> None:
        with pytest.raises(DataError, match="variable 'loss': expected dims .*transpose it"):
            validate(ensemble().transpose("step", "trajectory"))

    def test_foreign(self) -> None:
        with pytest.raises(DataError, match="kind 'unknown'"):
            validate(xr.Dataset())
        with pytest.raises(DataError, match="an xarray.Dataset, got dict"):
            validate({})  # type: ignore[arg-type]


def test_the_documentation_shows_the_schema() -> None:
    assert schema_table() in (ROOT / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
