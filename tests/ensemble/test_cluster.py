"""Workers compute the numbers of one process, lose nothing when they die, and say in one line what is wrong."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from conftest import ROOT
from distributed import Client, LocalCluster

import sdebias as sb
from sdebias import ensemble
from sdebias.ensemble import cluster as clusters
from sdebias.ensemble import run as runs
from sdebias.ensemble.cluster import DEATHS, Work, check_scheduler, connect, run_shards
from sdebias.ensemble.shard import Shard
from sdebias.ensemble.streams import block_seeds
from sdebias.errors import DataError, InputError, RunError
from sdebias.storage import RunDirectory

SDE = sb.SGDSDE(learning_rate=1e-2, batch_size=2, substeps=2)
ARGUMENTS: dict[str, Any] = {"trajectories": 44, "steps": 80, "save_every": 2, "block_size": 8, "seed": 3}
LONG = {**ARGUMENTS, "steps": 1200, "save_every": 30}


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    """Start two workers for all tests."""
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    limit = {"distributed.scheduler.allowed-failures": DEATHS - 1}
    with dask.config.set(limit), LocalCluster(n_workers=2, silence_logs=logging.CRITICAL, **options) as cluster:
        yield cluster


@pytest.fixture
def client(workers: LocalCluster) -> Iterator[Client]:
    with Client(workers, set_as_default=False) as client:
        yield client


@pytest.fixture(autouse=True)
def one_block_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each block a file, where the work of a second would be one."""
    monkeypatch.setattr(runs, "SHARD_NUMBERS", 1)


def assert_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """Raise unless every variable of the one is in the other, bit for bit."""
    for name, variable in wanted.variables.items():
        assert found[name].dtype == variable.dtype
        assert np.array_equal(found[name].values, variable.values, equal_nan=variable.dtype.kind == "f"), name


def simulated(problem: sb.Problem, symmetry: sb.symmetry.Symmetry | None = None, **more: Any) -> xr.Dataset:
    return sb.simulate(problem, SDE, symmetry=symmetry, progress=False, **ARGUMENTS, **more)


@functools.cache
def the_long_one(problem: sb.Problem) -> xr.Dataset:
    return sb.simulate(problem, SDE, progress=False, **LONG)


def prepared(problem: sb.Problem, path: Path, **more: Any) -> tuple[functools.partial[Shard], RunDirectory]:
    """Return a run directory, and what makes its shards."""
    directory = runs.prepare(problem, SDE, path, resume=False, **ARGUMENTS, **more)
    plan = runs.planned(problem, SDE, directory.manifest, **ARGUMENTS, **more)
    return functools.partial(Shard, plan, directory, checkpoint=0.0), directory


def test_workers_compute_the_numbers_of_simulate(
    workers: LocalCluster, problem: sb.Problem, symmetry: sb.symmetry.Symmetry, tmp_path: Path
) -> None:
    """Also with functions that only this process knows."""
    shift = 0.5
    more: dict[str, Any] = {
        "initial": lambda count, rng: shift + torch.rand(count, 6, generator=rng, dtype=torch.float64)
    }
    wanted = simulated(problem, symmetry, **more)
    for name, scheduler in (("threads", None), ("workers", workers.scheduler_address)):
        found = sb.run(problem, SDE, tmp_path / name, scheduler=scheduler, symmetry=symmetry, **ARGUMENTS, **more)
        assert_same(found, wanted)
        assert RunDirectory(tmp_path / name).missing() == []
    log = (tmp_path / "workers" / "run.log").read_text(encoding="utf-8")
    assert log.count("finished by a worker") == 6


def test_progress_is_that_of_all_workers(client: Client, problem: sb.Problem, tmp_path: Path) -> None:
    make, directory = prepared(problem, tmp_path / "run")
    last: dict[int, tuple[int, int]] = {}

    def told(shard: int, updates: int, flagged: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        last[shard] = (updates, flagged)

    run_shards(client, make, directory.missing(), threading.Event(), told)
    assert last == {first: ((end - first) * 80, 0) for first, end in directory.manifest.shards}


def test_what_is_stopped_goes_on_elsewhere(client: Client, problem: sb.Problem, tmp_path: Path) -> None:
    make, directory = prepared(problem, tmp_path / "run")
    stop = threading.Event()
    run_shards(client, make, directory.missing(), stop, lambda *now: stop.set())
    begun, missing = directory.fraction(), directory.missing()
    assert 0 < begun < 1
    run_shards(client, make, missing, stop, lambda *now: None)  # nothing is begun after the stop
    assert (directory.fraction(), directory.missing()) == (begun, missing)
    assert_same(sb.run(problem, SDE, tmp_path / "run", resume=True, **ARGUMENTS), simulated(problem))


def test_a_shard_at_work_twice_is_harmless(problem: sb.Problem, tmp_path: Path) -> None:
    """A worker that was taken for dead, and the one in its place."""
    make, directory = prepared(problem, tmp_path / "run")
    ended: list[bool] = []

    def walk(bounds: tuple[int, int]) -> None:
        ended.append(make(bounds, []).run(threading.Event(), lambda *now: None))

    for bounds in directory.missing():
        both = [
            threading.Thread(
                target=lambda b=bounds: ended.append(make(b, []).run(threading.Event(), lambda *now: None))
            )
            for _ in range(2)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert ended == [True] * 2 * len(directory.manifest.shards)
    assert_same(sb.open(tmp_path / "run"), simulated(problem))


def test_an_error_of_a_worker_is_that_of_the_run(client: Client, problem: sb.Problem, tmp_path: Path) -> None:
    wrong = block_seeds(ARGUMENTS["seed"], 6)[3]

    def fails(count: int, rng: torch.Generator) -> torch.Tensor:
        return torch.zeros(count, 5 if rng.initial_seed() == wrong else 6)

    make, directory = prepared(problem, tmp_path / "run", initial=fails)
    with pytest.raises(InputError, match=r"initial: expected a tensor of shape \(8, 6\), got shape \(8, 5\)"):
        run_shards(client, make, directory.missing(), threading.Event(), lambda *now: None)


def test_what_cannot_travel_is_refused(client: Client, problem: sb.Problem, tmp_path: Path) -> None:
    lock = threading.Lock()

    def initial(count: int, rng: torch.Generator) -> torch.Tensor:
        with lock:
            return torch.zeros(count, 6, dtype=torch.float64)

    make, directory = prepared(problem, tmp_path / "run", initial=initial)
    with pytest.raises(InputError, match="problem: expected something that can be sent to a worker"):
        run_shards(client, make, directory.missing(), threading.Event(), lambda *now: None)


def test_a_worker_of_another_version_or_without_the_folder_is_refused(problem: sb.Problem, tmp_path: Path) -> None:
    make, directory = prepared(problem, tmp_path / "run")
    worker: Any = SimpleNamespace(address="tcp://10.0.0.7:4000", log_event=lambda topic, now: None)
    work = Work(make, "topic")
    work.setup(worker)
    bounds = directory.missing()[0]
    assert work.run(bounds, worker) == (True, (0, 8 * 80, 0))
    work.versions = "sdebias 0.0.1 with torch 1.0"
    with pytest.raises(DataError, match="worker tcp://10.0.0.7:4000: expected sdebias 0.0.1 with torch 1.0, got"):
        work.run(bounds, worker)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="put it on a disk that all workers share"):
        Work(make, "topic").run(bounds, worker)
    assert not (tmp_path / "run").exists()


def test_a_plan_travels_without_its_compiled_steps(problem: sb.Problem, tmp_path: Path) -> None:
    make, _ = prepared(problem, tmp_path / "run", compile=True)
    plan = make.args[0]
    assert plan.engine is not None
    assert "engine" not in plan.__getstate__()


@pytest.mark.parametrize("scheduler", ["locl", "local:0", "local:two", "tcp://", "tcp://host", "slurm:-1", "", 3])
def test_a_scheduler_that_is_none_is_refused(scheduler: Any, problem: sb.Problem, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scheduler: expected local, local:N, slurm, slurm:N or tcp://HOST:PORT"):
        sb.run(problem, SDE, tmp_path / "run", scheduler=scheduler, **ARGUMENTS)
    assert not (tmp_path / "run").exists()


def test_schedulers_by_their_text() -> None:
    assert check_scheduler("local") == ("local", None)
    assert check_scheduler("slurm:12") == ("slurm", 12)
    assert check_scheduler("tcp://node-1.cluster:8786") == ("tcp://node-1.cluster:8786", None)


def test_a_scheduler_that_is_not_there(problem: sb.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT", 0.5)
    with pytest.raises(InputError, match="scheduler: expected a scheduler at tcp://127.0.0.1:1, got") as caught:
        sb.run(problem, SDE, tmp_path / "run", scheduler="tcp://127.0.0.1:1", **ARGUMENTS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing(problem: sb.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match=r"the package dask-jobqueue, got none; pip install 'sdebias\[distributed\]'"):
        sb.run(problem, SDE, tmp_path / "run", scheduler="slurm", **ARGUMENTS)
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(InputError, match="dask-cuda, for one process on each GPU"), connect("local:2", on_gpu):
        pass
    monkeypatch.delattr(ensemble, "cluster")
    monkeypatch.setitem(sys.modules, "sdebias.ensemble.cluster", None)
    with pytest.raises(InputError, match=r"the package distributed, got none; pip install 'sdebias\[distributed\]'"):
        sb.run(problem, SDE, tmp_path / "run", scheduler="local", **ARGUMENTS)
    assert not (tmp_path / "run").exists()


def test_slurm_without_a_description_of_its_jobs(problem: sb.Problem, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobqueue.slurm, got no cores and no memory"):
        sb.run(problem, SDE, tmp_path / "run", scheduler="slurm", **ARGUMENTS)


@pytest.mark.slow
def test_two_runs_side_by_side_do_not_want_the_same_port(problem: sb.Problem) -> None:
    """Which distributed would warn of; and it is open to this machine only."""
    with connect("local:1", problem) as one, connect("local:1", problem) as other:
        ports = [client.run_on_scheduler(_listening) for client in (one, other)]
    assert len({port for _, port in ports}) == 2
    assert {host for host, _ in ports} == {"127.0.0.1"}


def _listening(dask_scheduler: Any) -> tuple[str, int]:
    """Return where a scheduler answers HTTP."""
    (socket,) = dask_scheduler.http_server._sockets.values()
    host, port = socket.getsockname()
    return str(host), int(port)


# -- deaths --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_worker_killed_at_any_moment_loses_nothing(
    seed: int, workers: LocalCluster, client: Client, problem: sb.Problem, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    processes = list(client.run(os.getpid).values())
    victim, moment = int(rng.choice(processes)), rng.uniform(0, 2)
    killer = threading.Timer(moment, lambda: os.kill(victim, signal.SIGKILL))
    killer.start()
    scheduler = workers.scheduler_address
    found = sb.run(problem, SDE, tmp_path / "run", scheduler=scheduler, checkpoint=1e-3, **LONG)
    killer.join()
    assert_same(found, the_long_one(problem))


@pytest.mark.slow
def test_a_shard_that_kills_three_workers_ends_the_run(
    workers: LocalCluster, problem: sb.Problem, tmp_path: Path
) -> None:
    """What was finished stays, and the run goes on where the cause is gone."""
    deadly, marker, deaths = block_seeds(ARGUMENTS["seed"], 6)[2], tmp_path / "deadly", tmp_path / "deaths"
    marker.touch()

    def initial(count: int, rng: torch.Generator) -> torch.Tensor:
        if rng.initial_seed() == deadly and marker.exists():
            with deaths.open("a", encoding="utf-8") as file:
                file.write("x")
            os._exit(9)
        return torch.rand(count, 6, generator=rng, dtype=torch.float64)

    arguments = {**ARGUMENTS, "initial": initial}
    with pytest.raises(RunError, match=r"trajectories 16 to 24: expected a worker that lives") as caught:
        sb.run(problem, SDE, tmp_path / "run", scheduler=workers.scheduler_address, **arguments)
    assert "\n" not in str(caught.value)
    assert f"sdebias run --resume {tmp_path / 'run'}" in str(caught.value)
    assert deaths.read_text(encoding="utf-8") == "x" * DEATHS
    missing = RunDirectory(tmp_path / "run").missing()
    assert (16, 24) in missing
    assert len(missing) < 6
    marker.unlink()
    found = sb.run(problem, SDE, tmp_path / "run", resume=True, scheduler=workers.scheduler_address, **arguments)
    assert_same(found, simulated(problem, initial=initial))


SCRIPT = """
import numpy as np
import sdebias as sb
from conftest import regression
from sdebias.ensemble import run as runs

runs.SHARD_NUMBERS = 1

def main():
    X, y = regression()
    problem = sb.problems.HadamardRegression(X, y, features=["a", "b", "c"], initial={"p": 1.0, "q": 0.3})
    sde = sb.SGDSDE(learning_rate=1e-2, batch_size=2, substeps=2)
    sb.run(problem, sde, OUT, scheduler=SCHEDULER, checkpoint=1e-3, **LONG)
"""


def started(path: Path, scheduler: str, *, guard: bool = True) -> subprocess.Popen[str]:
    """Start a script that runs `LONG` in a directory."""
    script = path / "script.py"
    names = f"OUT, SCHEDULER, LONG = {str(path / 'run')!r}, {scheduler!r}, {LONG!r}\n"
    script.write_text(SCRIPT + names + ('if __name__ == "__main__":\n    main()\n' if guard else "main()\n"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def wait_until(true: Callable[[], bool], seconds: float = 80.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def begun(path: Path) -> bool:
    return (path / "run").is_dir() and any((path / "run").glob("state-*.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_main_process_that_is_stopped_or_killed(number: int, problem: sb.Problem, tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too: the terminal sends it to all processes."""
    process = started(tmp_path, "local:2")
    wait_until(lambda: begun(tmp_path))
    children = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert f"KeyboardInterrupt: stopped; continue with: sdebias run --resume {tmp_path / 'run'}" in errors
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert 0 < RunDirectory(tmp_path / "run").fraction() < 1
    found = sb.run(problem, SDE, tmp_path / "run", resume=True, **LONG)
    assert_same(found, the_long_one(problem))


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run(problem: sb.Problem, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    options = ["--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    dask_cli = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*dask_cli, "scheduler", *options], **quiet)
    wait_until(lambda: file.exists() and bool(file.read_text()))
    options = ["--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", "--death-timeout", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen([*dask_cli, "worker", *options], **quiet, env=environment)

    def kill() -> None:
        wait_until(lambda: begun(tmp_path))
        scheduler.kill()

    watch = threading.Thread(target=kill)
    watch.start()
    address = json.loads(file.read_text())["address"]
    try:
        with pytest.raises(RunError, match="expected a scheduler that lives to the end, got none; what was"):
            sb.run(problem, SDE, tmp_path / "run", scheduler=address, checkpoint=1e-3, **LONG)
    finally:
        watch.join()
        worker.terminate()
        scheduler.wait()
        worker.wait()
    found = sb.run(problem, SDE, tmp_path / "run", resume=True, **LONG)
    assert_same(found, the_long_one(problem))


@pytest.mark.slow
def test_a_script_without_its_guard_is_told(tmp_path: Path) -> None:
    process = started(tmp_path, "local:1", guard=False)
    _, errors = process.communicate(timeout=80)
    assert process.returncode != 0
    assert "put what a script does under if __name__ == '__main__'" in errors.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_jobs_of_slurm_are_workers(problem: sb.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch` here starts the job at once, in the background, and `scancel` kills it."""
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytest.importorskip("dask_jobqueue")
    with dask.config.set(
        {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1 GiB", "jobqueue.slurm.interface": "lo"}
    ):
        found = sb.run(problem, SDE, tmp_path / "run", scheduler="slurm:2", **ARGUMENTS)
    assert_same(found, simulated(problem))


SBATCH = """#!/bin/sh
setsid sh -c "$(cat "$1")" > /dev/null 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -- "-$1"
"""


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_how_many_workers_there_are(
    workers: LocalCluster, client: Client, problem: sb.Problem, tmp_path: Path
) -> None:
    for count in (1, 2, 4):
        workers.scale(count)
        wait_until(functools.partial(lambda wanted: len(client.nthreads()) == wanted, count))
        found = sb.run(problem, SDE, tmp_path / str(count), scheduler=workers.scheduler_address, **LONG)
        assert_same(found, the_long_one(problem))
    workers.scale(2)
