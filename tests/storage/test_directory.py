"""Run directories: a manifest that is data, one process at a time, and nothing damaged kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from experiments.faults import edit_manifest, flip, parts_of
from sdebias.dataset import config_attributes
from sdebias.errors import DataError, OutputError, RunError
from sdebias.storage import RunDirectory, remove_run
from sdebias.storage.directory import MANIFEST, Manifest

Table = dict[str, Any]


def hashed(table: Table, **changes: int) -> None:
    """Change the section ``run``, and the hash with it."""
    table["config"]["run"].update(changes)
    table["config_hash"] = config_attributes(table["config"])["config_hash"]


class TestManifest:
    def test_round_trip(self, half_run: RunDirectory) -> None:
        assert Manifest.from_json(half_run.manifest.to_json(), half_run.path) == half_run.manifest

    def test_more_trajectories_and_steps_are_the_same_run_and_all_else_is_not(self, half_run: RunDirectory) -> None:
        def changed(**changes: Any) -> str:
            config = {**half_run.manifest.config, "run": {**half_run.manifest.run, **changes}}
            return dataclasses.replace(half_run.manifest, config=config).identity

        assert changed(trajectories=10**6, steps=10**6) == half_run.manifest.identity
        assert changed(seed=1) != half_run.manifest.identity
        assert dataclasses.replace(half_run.manifest, chunk=7).identity != half_run.manifest.identity

    @pytest.mark.parametrize(
        "change",
        [
            lambda table: table.update(data="../x"),
            lambda table: table.update(data="/etc/passwd"),
            lambda table: table["config"]["run"].update(seed=9),
            lambda table: table.update(chunk=0),
            lambda table: table.update(version=2),
            lambda table: table.update(shards=[[0, 10], [20, 60]]),
            lambda table: table.update(shards=[]),
            lambda table: table.update(legs=[[0, 3]]),
            lambda table: table.update(legs="all"),
            lambda table: table.pop("config"),
            lambda table: hashed(table, trajectories=10**9),
            lambda table: hashed(table, save_every=0),
        ],
    )
    def test_one_that_was_changed_is_refused(self, change: Callable[[Table], None], half_run: RunDirectory) -> None:
        edit_manifest(half_run.path, change)
        with pytest.raises(DataError, match="restore the file; the parts beside it are not lost"):
            RunDirectory(half_run.path)

    @pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": NaN}', "\x00"])
    def test_what_is_none_is_refused(self, text: str, half_run: RunDirectory) -> None:
        (half_run.path / MANIFEST).write_text(text)
        with pytest.raises(DataError, match="a manifest"):
            RunDirectory(half_run.path)


class TestOneProcess:
    def test_at_a_time(self, half_run: RunDirectory) -> None:
        assert not half_run.busy()
        with half_run.locked():
            assert half_run.busy()
            assert json.loads((half_run.path / "owner.json").read_text())["pid"] > 0
            with pytest.raises(RunError, match='no other process at work on it, got {"pid"'), half_run.locked():
                pass
            with pytest.raises(RunError, match="no other process at work"):
                remove_run(half_run.path)
        assert not half_run.busy()
        assert not (half_run.path / "owner.json").exists()

    def test_a_manifest_that_changed_before_the_lock(self, half_run: RunDirectory) -> None:
        other = RunDirectory(half_run.path)
        other.grow(dataclasses.replace(half_run.manifest, provenance={"torch_version": "9"}))
        with pytest.raises(RunError, match="one that another process changed; try again"), half_run.locked():
            pass

    def test_a_run_is_made_once(self, half_run: RunDirectory) -> None:
        with pytest.raises(OutputError, match="no run directory yet"):
            RunDirectory.create(half_run.path, half_run.manifest, half_run.data())


class TestSweep:
    def test_damaged_files_are_set_aside_and_missing(self, half_run: RunDirectory) -> None:
        missing = half_run.missing()
        part = parts_of(half_run.path)[0]
        flip(part.path)
        assert half_run.sweep() == [part.path.with_name(f"{part.path.name}.damaged")]
        assert half_run.missing() == [(part.first, part.last), *missing]
        assert half_run.sweep() == []

    def test_what_a_dead_process_was_writing_goes_and_the_rest_stays(self, half_run: RunDirectory) -> None:
        before = sorted(half_run.path.iterdir())
        (half_run.path / ".part-0.abc.tmp").touch()
        (half_run.path / ".store.abc.tmp").mkdir()
        (half_run.path / "notes.txt").touch()
        assert half_run.sweep() == []
        after = sorted([*before, half_run.path / ".store.abc.tmp", half_run.path / "notes.txt"])
        assert sorted(half_run.path.iterdir()) == after

    def test_a_disk_that_cannot_be_read(self, half_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object) -> str:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("sdebias.storage.parts.digest", fail)
        with pytest.raises(RunError, match="Input/output error"):
            half_run.sweep()


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_the_data_are_checked(harm: str, half_run: RunDirectory) -> None:
    file = half_run.path / half_run.manifest.data
    if harm == "missing":
        file.unlink()
    else:
        flip(file)
    with pytest.raises(DataError, match="expected the data of the run"):
        half_run.data()


def test_how_much_is_done(half_run: RunDirectory) -> None:
    assert half_run.fraction() == pytest.approx(48 / 60)
    assert half_run.missing() == [(48, 60)]
    assert half_run.size() == sum(part.path.stat().st_size for part in half_run.files())
