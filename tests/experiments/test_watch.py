"""A watched run: what it could go on from may not become less, and whoever shall be killed is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from experiments.faults import flip, parts_of
from experiments.watch import Watch, workers_of
from sdebias.storage import RunDirectory
from sdebias.storage.parts import Part

LASTS = "import time; time.sleep(60)"
HAS_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LASTS!r}])"
REMOVES = "import sys, time, os; time.sleep(0.3); os.unlink(sys.argv[1])"


@pytest.fixture
def states(half_run: RunDirectory) -> list[Part]:
    """Return the states of a run."""
    return half_run.parts("state")


def watched(watch: Watch, *command: object) -> Watch:
    """Return a watch that has watched a script of Python."""
    with subprocess.Popen([sys.executable, "-c", *map(str, command)]) as process:
        watch(process.pid)
    return watch


def test_nothing_is_lost_of_what_stays(states: list[Part]) -> None:
    assert watched(Watch(states[0].path.parent), "pass").lost == 0


def test_a_state_that_goes_is_lost(states: list[Part]) -> None:
    assert watched(Watch(states[0].path.parent), REMOVES, states[0].path).lost == 1


def test_a_part_that_goes_makes_the_states_behind_it_useless(states: list[Part]) -> None:
    part = parts_of(states[0].path.parent)[0]
    assert watched(Watch(part.path.parent), REMOVES, part.path).lost == 1


def test_a_state_behind_a_damaged_part_is_not_missed(states: list[Part]) -> None:
    """It cannot be gone on from, even where the part is made again; what is computed anew in its place can."""
    state, part = states[0].path, parts_of(states[0].path.parent)[0].path
    goods = [path.rename(path.with_name(f"good-{path.name}")) for path in (state, part)]
    state.write_bytes(goods[0].read_bytes())
    part.write_bytes(goods[1].read_bytes())
    flip(part)
    copy = "open(sys.argv[{}], 'wb').write(open(sys.argv[{}], 'rb').read())"
    again = ["import sys, os, time", copy.format(1, 2), "os.unlink(sys.argv[3])", copy.format(3, 4)]
    script = "; time.sleep(0.3); ".join(again)
    assert watched(Watch(part.parent), script, part, goods[1], state, goods[0]).lost == 0
    assert watched(Watch(part.parent), REMOVES, state).lost == 1


def test_the_process_is_killed_at_the_moment(tmp_path: Path) -> None:
    assert watched(Watch(tmp_path, [0.1]), LASTS).kills == 1


def test_a_process_that_has_ended_is_not_killed(tmp_path: Path) -> None:
    assert watched(Watch(tmp_path, [30.0]), "pass").kills == 0


def test_a_worker_is_killed_and_its_parent_lives_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def victim(child: int) -> int | None:
        seen[:] = [process.pid for process in psutil.Process(child).children()]
        assert workers_of(child) == []  # a child that is not dask's
        return seen[0] if seen else None

    watch = watched(Watch(tmp_path, [1.0], victim), HAS_A_CHILD)
    assert watch.kills == len(seen) == 1
    assert not psutil.pid_exists(seen[0])
