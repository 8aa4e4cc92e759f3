"""Files: round trips, readable by anybody, whole or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sdebias as sb
from sdebias.errors import DataError, OutputError, RunError
from sdebias.storage import check_outputs, save_dataset


@pytest.fixture
def ensemble(replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> xr.Dataset:
    sgd = sb.SGD(learning_rate=[0.01, 0.02, 0.03])
    return sb.simulate(replicated, sgd, symmetry=symmetry, trajectories=5, steps=4, progress=False)


def test_round_trip(ensemble: xr.Dataset, tmp_path: Path) -> None:
    with sb.open(save_dataset(ensemble, tmp_path / "new" / "run.nc")) as again:
        xr.testing.assert_equal(again, ensemble)
        assert {key: str(value) for key, value in again.attrs.items()} == {k: str(v) for k, v in ensemble.attrs.items()}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.nc"]


def test_the_file_needs_no_sdebias(ensemble: xr.Dataset, tmp_path: Path) -> None:
    save_dataset(ensemble, tmp_path / "run.nc")
    code = (
        "import sys; sys.modules['sdebias'] = None\n"
        "import xarray\n"
        "d = xarray.open_dataset('run.nc')\n"
        "print(d.charge_value.attrs['units'], '|', d.charge_value.attrs['long_name'], '|', d.attrs['creation_library'],"
        " '|', d.status.attrs['flag_meanings'], '|', 'sdebias' in [m for m in sys.modules if sys.modules[m]])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "parameter^2 | charge (moment map) | sdebias | ok diverged non_finite | False"


class TestOpenRefuses:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            sb.open(tmp_path / "none.nc")

    def test_not_netcdf(self, tmp_path: Path) -> None:
        (tmp_path / "text.nc").write_text("hello")
        with pytest.raises(DataError, match="something else"):
            sb.open(tmp_path / "text.nc")

    def test_truncated(self, ensemble: xr.Dataset, tmp_path: Path) -> None:
        path = save_dataset(ensemble, tmp_path / "run.nc")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match="something else"):
            sb.open(path)

    def test_foreign_netcdf(self, tmp_path: Path) -> None:
        xr.Dataset({"x": ("t", np.arange(3))}).to_netcdf(tmp_path / "foreign.nc")
        with pytest.raises(DataError, match="foreign.nc: dataset: expected a dataset of kind"):
            sb.open(tmp_path / "foreign.nc")


def test_a_failed_write_leaves_what_was_there(
    ensemble: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_dataset(ensemble, tmp_path / "run.nc")
    before = path.read_bytes()

    def fail(self: xr.Dataset, name: str, **options: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(RunError, match="No space left on device"):
        save_dataset(ensemble, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


class TestCheckOutputs:
    def test_nothing_is_written(self, tmp_path: Path) -> None:
        check_outputs([tmp_path / "deep" / "er" / "a.nc"], size=10, overwrite=False)
        assert list(tmp_path.iterdir()) == []

    def test_existing(self, tmp_path: Path) -> None:
        (tmp_path / "a.nc").touch()
        with pytest.raises(OutputError, match="pass --overwrite"):
            check_outputs([tmp_path / "a.nc"], size=0, overwrite=False)
        check_outputs([tmp_path / "a.nc"], size=0, overwrite=True)

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file"):
            check_outputs([tmp_path / "file" / "a.nc"], size=0, overwrite=True)
        with pytest.raises(OutputError, match="expected a file, got a folder"):
            check_outputs([tmp_path], size=0, overwrite=True)

    def test_unwritable(self) -> None:
        with pytest.raises(OutputError, match="a writable folder"):
            check_outputs([Path("/proc/sdebias/a.nc")], size=0, overwrite=False)

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 2**24, 2**24))
        check_outputs([tmp_path / "a.nc"], size=2**22, overwrite=False)
        with pytest.raises(OutputError, match="expected 40 MiB of free space, got 16 MiB"):
            check_outputs([tmp_path / "a.nc"], size=2**25, overwrite=False)
