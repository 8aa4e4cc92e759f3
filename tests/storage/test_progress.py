"""Status: told by one process, read by another, and never believed more than the files."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from tqdm import tqdm

from experiments.faults import clock_going_backwards, truncate
from sdebias.storage import RunDirectory
from sdebias.storage.directory import PROGRESS
from sdebias.storage.progress import Progress, describe_run


def test_running_interrupted_and_finished(half_run: RunDirectory) -> None:
    with half_run.locked(), tqdm(total=60 * 200, disable=True) as bar, Progress(half_run, bar) as told:
        now = told._begun
        with mock.patch("time.monotonic", return_value=now + 10):
            told(48, 1200, 0)  # of the last shard
        text = describe_run(half_run)
        assert text.splitlines()[:3] == [
            f"{half_run.path}: running",
            "  60 trajectories, 200 steps; 80.0 % done",
            "  3 of 4 shards, 0 of their trajectories flagged",
        ]
        assert text.splitlines()[3] == "  120 updates/s, 10 s to go"
    assert f"stopped; continue with sdebias run --resume {half_run.path}" in describe_run(half_run)


def test_a_process_that_died_said_running(half_run: RunDirectory) -> None:
    note = json.loads((half_run.path / PROGRESS).read_text())
    (half_run.path / PROGRESS).write_text(json.dumps({**note, "state": "running"}))
    assert f"interrupted; continue with sdebias run --resume {half_run.path}" in describe_run(half_run)


def test_finished_is_what_the_files_say(finished: object, half_run: RunDirectory) -> None:
    text = describe_run(RunDirectory(finished))  # type: ignore[arg-type]
    assert text.splitlines()[0] == f"{finished}: finished"
    assert "100.0 % done" in text
    (half_run.path / PROGRESS).write_text('{"state": "finished", "rate": 1, "eta_seconds": 0}')
    assert "80.0 % done" in describe_run(half_run)


@pytest.mark.parametrize(
    "note", ["", "[]", '{"state": 1}', "[" * 100_000, '{"state": "x", "rate": [], "eta_seconds": 0}']
)
def test_a_note_that_is_none(note: str, half_run: RunDirectory) -> None:
    (half_run.path / PROGRESS).write_text(note)
    assert "not begun" in describe_run(half_run)


def test_a_note_cannot_write_to_the_terminal(half_run: RunDirectory) -> None:
    (half_run.path / PROGRESS).write_text(json.dumps({"state": "\x1b[2Jwell\n", "rate": 1, "eta_seconds": 0}))
    assert "[2Jwell;" in describe_run(half_run).splitlines()[0]
    assert "\x1b" not in describe_run(half_run)


def test_damaged_files_are_counted(half_run: RunDirectory) -> None:
    truncate(half_run.parts()[-1].path)
    assert "1 files are damaged" in describe_run(half_run)


def test_a_clock_that_goes_backwards_does_not_matter(half_run: RunDirectory) -> None:
    with clock_going_backwards(), tqdm(total=60 * 200, disable=True) as bar, Progress(half_run, bar) as told:
        for updates in (10, 20, 30):
            told(48, updates, 0)
    note = json.loads((half_run.path / PROGRESS).read_text())
    assert note["rate"] > 0
    assert note["eta_seconds"] > 0
