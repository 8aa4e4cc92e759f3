"""Opening and merging: finished or not, verified or not, without holding on to files."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sdebias as sb
from experiments.faults import Job, differences, flip, parts_of, rename_to_hash, small_job, small_pieces
from sdebias.errors import DataError, OutputError
from sdebias.storage import RunDirectory, merge
from sdebias.storage import parts as parts_module
from sdebias.storage.parts import Part


def test_a_finished_run(finished: Path, whole: xr.Dataset) -> None:
    with sb.open(finished) as found:
        assert found.chunks
        assert found.attrs["complete"] == 1
        assert differences(found, whole) == []
        assert [name for name in whole.variables if found[name].attrs.keys() != whole[name].attrs.keys()] == []
    with sb.open(finished.parent) as found:  # the one run of a folder
        assert differences(found, whole) == []


class TestUnfinished:
    def test_what_has_reached_the_end(self, half_run: RunDirectory, whole: xr.Dataset) -> None:
        with sb.open(half_run.path) as found:
            assert found.attrs["complete"] == 0
            assert differences(found, whole.isel(trajectory=slice(48))) == []

    def test_where_none_has_what_all_have_reached(self, half_run: RunDirectory, whole: xr.Dataset) -> None:
        since = half_run.manifest.legs[-1][0]
        for part in half_run.parts():
            if part.since == since:
                part.path.unlink()
        with sb.open(half_run.path) as found:
            assert differences(found, whole.isel(trajectory=slice(48), step=slice(since))) == []

    def test_nothing_yet(self, half_run: RunDirectory) -> None:
        for part in half_run.parts():
            part.path.unlink()
        with pytest.raises(DataError, match="at least one finished part"):
            sb.open(half_run.path)

    def test_states_may_vanish_meanwhile(
        self, half_run: RunDirectory, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process at work replaces its states between the moment they are listed and the next."""
        listed = RunDirectory.files

        def files(self: RunDirectory) -> list[Part]:
            found = listed(self)
            for part in self.path.glob("state-*"):
                part.unlink()
            return found

        monkeypatch.setattr(RunDirectory, "files", files)
        assert half_run.size() > 0
        with sb.open(half_run.path) as found:
            assert differences(found, whole.isel(trajectory=slice(48))) == []


class TestRefused:
    def test_damaged(self, half_run: RunDirectory) -> None:
        flip(parts_of(half_run.path)[0].path)
        with pytest.raises(DataError, match="sets it aside and computes it again"):
            sb.open(half_run.path)

    def test_not_looked_at_where_that_is_not_wanted(
        self, half_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sdebias.storage.parts.digest", lambda *arguments: "other")
        with pytest.raises(DataError, match="the bytes that this run wrote"):
            sb.open(half_run.path)
        sb.open(half_run.path, verify=False).close()

    def test_a_part_of_another_run_even_unverified(self, half_run: RunDirectory, tmp_path: Path) -> None:
        with small_pieces(2**16):
            small_job(seed=1).run(tmp_path / "other")
        mine, other = half_run.parts()[0].path, parts_of(tmp_path / "other")[0].path
        mine.unlink()
        shutil.copy(other, half_run.path)
        for verify in (True, False):
            with pytest.raises(DataError, match="of this run|this run wrote"):
                sb.open(half_run.path, verify=verify)

    @pytest.mark.parametrize(
        "change",
        [
            lambda part: part.drop_vars("loss"),
            lambda part: part.assign(loss=part["loss"].astype(np.float32)),
            lambda part: part.assign(loss=part["loss"].astype(str)),
            lambda part: part.isel(step=slice(1, None)),
            lambda part: part.isel(trajectory=slice(1, None)),
            lambda part: part.transpose(..., "trajectory"),
            lambda part: part.assign_attrs(identity="another"),
            lambda part: part.assign_attrs(kind="statistics"),
        ],
    )
    @pytest.mark.parametrize("number", [0, -1])
    def test_what_bears_the_right_name_and_is_no_part(
        self, change: Callable[[xr.Dataset], xr.Dataset], number: int, half_run: RunDirectory
    ) -> None:
        """The first part, whose metadata are read, and one that is compared with it."""
        part = half_run.parts()[number]
        with xr.open_dataset(part.path, engine="h5netcdf") as opened:
            other = change(opened.load())
        other.to_netcdf(part.path, engine="h5netcdf")
        rename_to_hash(part.path, part.identity)
        for verify in (True, False):
            with pytest.raises(DataError) as caught:
                sb.open(half_run.path, verify=verify)
            assert "\n" not in str(caught.value)

    def test_two_runs_in_a_folder(self, half_run: RunDirectory) -> None:
        shutil.copytree(half_run.path, half_run.path.with_name("second"))
        with pytest.raises(DataError, match="expected one run directory, got run, second; name one"):
            sb.open(half_run.path.parent)


def test_files_are_closed(finished: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with sb.open(finished) as found:
        found["loss"].load()
    assert len(os.listdir("/dev/fd")) == before


@pytest.fixture
def statistics_job(small: Job) -> Job:
    arguments = {key: value for key, value in small.arguments.items() if key != "save"}
    more = {"statistics": ["mean", "covariance", "quantiles"], "save": ["loss", "theta"]}
    return replace(small, arguments={**arguments, **more, "steps": 40})


class TestStatistics:
    def test_of_many_parts(self, statistics_job: Job, tmp_path: Path) -> None:
        """Sketches of shards have different keys; counts are the same, moments up to the rounding of their sums."""
        with small_pieces(2**14):
            statistics_job.run(tmp_path / "run")
        parts = parts_of(tmp_path / "run")
        assert len({(part.since, part.until) for part in parts}) > 1
        keys = set()
        for part in parts:
            with xr.open_dataset(part.path) as opened:
                keys.add(opened.sizes["loss_key"])
        assert len(keys) > 1
        with sb.open(tmp_path / "run") as found:
            whole = statistics_job.simulate()
            moments = [
                name for name in map(str, whole) if name.endswith(("_mean", "_error", "_variance", "_covariance"))
            ]
            assert differences(found.drop_vars(moments), whole.drop_vars(moments)) == []
            for name in moments:
                xr.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-12)

    def test_in_either_format_they_are_the_same(
        self, statistics_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Small ones are netCDF-3, which has other integers and text, and numbers the other way round."""
        found = []
        for name, limit, begin in (("small", parts_module.CLASSIC_BYTES, b"CDF"), ("large", 0, b"\x89HDF")):
            monkeypatch.setattr(parts_module, "CLASSIC_BYTES", limit)
            statistics_job.run(tmp_path / name)
            assert all(part.path.read_bytes().startswith(begin) for part in parts_of(tmp_path / name))
            found.append(sb.open(tmp_path / name))
        assert differences(*found) == []
        for label, variable in found[0].variables.items():
            assert variable.dtype.isnative
            attributes = [{key: str(value) for key, value in each[label].attrs.items()} for each in found]
            assert attributes[0] == attributes[1]
        assert found[0]["loss_sketch"].dtype == found[1]["loss_sketch"].dtype == np.int64

    def test_what_netcdf_3_cannot_hold_is_kept_all_the_same(self, statistics_job: Job, tmp_path: Path) -> None:
        large = replace(statistics_job, arguments={**statistics_job.arguments, "seed": 2**40})
        large.run(tmp_path / "run")
        assert sb.open(tmp_path / "run").attrs["seed"] == 2**40

    def test_parts_hold_what_does_not_follow(self, statistics_job: Job, tmp_path: Path) -> None:
        statistics_job.run(tmp_path / "run")
        follows = {f"{name}_{what}" for name in ("loss", "theta") for what in ("variance", "mean_error", "quantile")}
        with xr.open_dataset(parts_of(tmp_path / "run")[0].path) as part:
            assert follows.isdisjoint(part.variables)
        assert follows <= set(sb.open(tmp_path / "run"))

    def test_a_part_that_is_not_like_the_others(self, statistics_job: Job, tmp_path: Path) -> None:
        with small_pieces(2**14):
            statistics_job.run(tmp_path / "run")
        part = parts_of(tmp_path / "run")[-1]
        with xr.open_dataset(part.path) as opened:
            other = opened.load().drop_vars("loss_mean")
        other.to_netcdf(part.path, engine="scipy")
        rename_to_hash(part.path, part.identity)
        with pytest.raises(DataError, match=r"a part of this run, loss_mean .*, got None"):
            sb.open(tmp_path / "run")

    def test_damage_is_refused_in_our_own_words(self, statistics_job: Job, tmp_path: Path) -> None:
        """Where nobody looks at the hash, a number may be another, but nothing fails from below."""
        statistics_job.run(tmp_path / "run")
        path = parts_of(tmp_path / "run")[0].path
        rng, whole, refused = random.Random(0), path.read_bytes(), []
        for count in range(300):
            data = bytearray(whole)
            for _ in range(rng.choice([1, 2, 8])):
                data[rng.randrange(5000)] ^= 1 << rng.randrange(8)
            path.write_bytes(data if count % 3 else data[: rng.randrange(len(data))])
            try:
                with warnings.catch_warnings(action="ignore"):
                    sb.open(tmp_path / "run", verify=False)
            except DataError as error:
                refused.append(str(error))
        assert 100 < len(refused) < 300
        assert not any("\n" in told for told in refused)


class TestMerge:
    @pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
    def test_round_trip(self, name: str, finished: Path, whole: xr.Dataset, tmp_path: Path) -> None:
        out = tmp_path / name
        assert merge(finished, out, zarr=name.endswith("zarr")) == out
        zarr: dict[str, Any] = {"engine": "zarr", "consolidated": False}
        with xr.open_dataset(out, **(zarr if out.is_dir() else {})) as found:
            xr.testing.assert_equal(found, whole)
            assert found.attrs["complete"] == 1
            assert all(found[name].dtype == whole[name].dtype for name in whole.data_vars)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert out.stat().st_mode & 0o055 in (0o044, 0o055)

    def test_nothing_is_replaced_unasked(self, finished: Path, tmp_path: Path) -> None:
        (tmp_path / "run.nc").touch()
        with pytest.raises(OutputError, match="pass --overwrite"):
            merge(finished, tmp_path / "run.nc")


def test_after_an_extension_attributes_tell_of_the_whole(half_run: RunDirectory, small: Job) -> None:
    longer = replace(small, arguments={**small.arguments, "trajectories": 64})
    with small_pieces(2**16):
        found = longer.run(half_run.path, resume=True)
    whole = longer.simulate()
    assert found.attrs["config_json"] == whole.attrs["config_json"]
    np.testing.assert_array_equal(found["theta"], whole["theta"])
