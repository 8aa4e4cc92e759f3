"""Parts and states: named by what they cover and hold, of one run, and data only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from experiments.faults import flip, plant_pickle, rename_to_hash, truncate
from sdebias.errors import DataError, RunError
from sdebias.storage import RunDirectory
from sdebias.storage.parts import digest, find_parts, read_state, write_part, write_state

PLACE = (0, 8, 3, 10)
ARRAYS = {"theta": np.arange(6.0), "rng": np.zeros(5, np.uint8)}


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = write_state(tmp_path, PLACE, ARRAYS, "run")
    assert state.path.name == f"state-000000000-000000008-000000003-000000010-{digest(state.path, 'run')}.npz"
    assert find_parts(tmp_path, "run") == [state]
    again = read_state(state)
    assert again.keys() == ARRAYS.keys()
    assert all(np.array_equal(again[name], array) for name, array in ARRAYS.items())


def test_the_same_part_has_the_same_bytes(tmp_path: Path) -> None:
    dataset = xr.Dataset({"x": ("t", np.arange(3.0))})
    one, again = (write_part(tmp_path, PLACE, dataset, "run") for _ in range(2))
    assert one.path == again.path
    assert write_part(tmp_path, PLACE, dataset, "another").path != one.path


def test_only_files_with_the_name_of_a_part_are_parts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".part-000000000-000000008-000000000-000000010.abc.tmp").touch()
    (tmp_path / f"part-000000000-000000008-000000000-000000010-{'0' * 32}.nc").mkdir()
    assert find_parts(tmp_path, "run") == []


@pytest.mark.parametrize("harm", [truncate, flip])
def test_damage_is_seen(harm: object, tmp_path: Path) -> None:
    state = write_state(tmp_path, PLACE, ARRAYS, "run")
    assert state.intact()
    harm(state.path)  # type: ignore[operator]
    assert not state.intact()
    with pytest.raises(DataError, match="the bytes that this run wrote"):
        read_state(state)


def test_a_file_of_another_run_is_not_one_of_this(tmp_path: Path) -> None:
    write_state(tmp_path, PLACE, ARRAYS, "another")
    (found,) = find_parts(tmp_path, "run")
    assert not found.intact()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text", b"PK\x05\x06" + bytes(18)[:10]])
def test_what_is_no_state_under_a_name_that_fits(content: bytes, tmp_path: Path) -> None:
    state = write_state(tmp_path, PLACE, ARRAYS, "run")
    state.path.write_bytes(content)
    rename_to_hash(state.path, "run")
    with pytest.raises(DataError, match="expected arrays of numbers"):
        read_state(find_parts(tmp_path, "run")[0])


def test_nothing_is_unpickled(half_run: RunDirectory) -> None:
    trace = plant_pickle(half_run.path)
    with pytest.raises(DataError, match="expected arrays of numbers"):
        read_state(half_run.parts("state")[-1])
    assert not trace.exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_state(tmp_path, PLACE, ARRAYS, "run")
    assert list(tmp_path.iterdir()) == []
