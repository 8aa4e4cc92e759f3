"""Run the shards of a run directory in worker processes of dask.distributed, on this machine or on many."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeAlias

import dask
import torch
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker

from .._version import __version__
from ..errors import DataError, InputError, RunError, message
from ..problems.base import Problem
from ..storage import RunDirectory
from .memory import keep_memory
from .plan import memory_errors, workers
from .shard import Bounds, Make, Report, Shard

log = logging.getLogger("sdebias")

# What a shard last told: see `Report`.
Reached: TypeAlias = tuple[int, int, int]

SCHEDULER = re.compile(r"(?P<kind>local|slurm)(:(?P<count>[1-9][0-9]{0,4}))?|(?P<address>(tcp|tls)://\S+:[0-9]{1,5})")
# Workers that may die under one shard, and times that it may come back unfinished.
DEATHS = 3
# Seconds: between two messages of a shard; between two looks at the workers; without one before it is said; to connect.
TELL = 0.5
LOOK = 0.2
PATIENCE = 10.0
CONNECT = 10.0
# A terminal sends Ctrl-C to all processes; the main one decides what becomes of it.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class Work(WorkerPlugin):
    """What a worker process needs for its shards; dask sends it once to each, and to those that come later.

    Parameters
    ----------
    make : callable
        From bounds and files to a shard: the plan, and with it compiled steps, are there once in a process.
    topic : str
        Of the messages about progress.
    """

    def __init__(self, make: Make, topic: str) -> None:
        self.make, self.topic = make, topic
        self.versions = _versions()

    def setup(self, worker: Worker) -> None:
        """Prepare the process: a shard has one thread, so that numbers do not depend on how many there are."""
        torch.set_num_threads(1)
        keep_memory()
        self.stop = threading.Event()

    def teardown(self, worker: Worker) -> None:
        """Have the shards that are under way write their states and stop: the worker ends, or the run does."""
        self.stop.set()

    def run(self, bounds: Bounds, worker: Worker) -> tuple[bool, Reached | None]:
        """Run one shard; return whether it was finished, and what it last told.

        Raises
        ------
        DataError
            If the process has other versions, or does not see the run directory.
        RunError
            As by `Shard.run`.
        """
        directory = self._check(self.make(bounds, []), worker.address)
        shard = self.make(bounds, directory.by_shard().get(bounds, []))
        reached: Reached | None = None
        told = 0.0

        def report(first: int, updates: int, flagged: int) -> None:
            nonlocal reached, told
            reached = first, updates, flagged
            if time.monotonic() - told > TELL:
                worker.log_event(self.topic, reached)
                told = time.monotonic()

        with memory_errors():
            return shard.run(self.stop, report), reached

    def _check(self, shard: Shard, address: str) -> RunDirectory:
        """Return the directory as this process sees it."""
        if self.versions != (here := _versions()):
            remedy = "install the same on every worker"
            raise DataError(message(f"worker {address}", self.versions, here, remedy))
        with suppress(DataError):
            directory = RunDirectory(shard.folder)
            if directory.manifest.identity == shard.manifest.identity:
                return directory
        want, remedy = f"the run directory {shard.folder}", "put it on a disk that all workers share"
        raise DataError(message(f"worker {address}", want, "none, or another", remedy))


def _versions() -> str:
    return f"sdebias {__version__} with torch {torch.__version__}"


def _run_shard(name: str, bounds: Bounds) -> tuple[bool, Reached | None]:
    """Run one shard in a worker process; where the work was called off, do nothing."""
    worker = get_worker()
    work = worker.plugins.get(name)
    return work.run(bounds, worker) if isinstance(work, Work) else (False, None)


def run_shards(client: Client, make: Make, pending: Collection[Bounds], stop: threading.Event, told: Report) -> None:
    """Run shards on the workers of a client, one on each of their threads.

    Where a worker dies, dask gives its shard to another, which goes on from the last state. `stop` has the shards that
    are under way write their states; no other is begun.

    Parameters
    ----------
    client : distributed.Client
    make : callable
        From bounds and files to a shard; it travels to the workers, which look for the files themselves.
    pending : collection of (int, int)
        Bounds of the shards.
    stop : threading.Event
    told : callable
        See `Report`; called in this thread.

    Raises
    ------
    InputError
        If the problem cannot travel, or a worker has not the package, its versions or the directory.
    RunError
        If three workers die under one shard, or the scheduler is lost. Where a shard fails, the others that are under
        way write their states first.
    """
    if pending:
        with closing(_Run(client, make, pending)) as run:
            run.wait(stop, told)


class _Run:
    """Shards that wait, those that workers have, and what has come back."""

    def __init__(self, client: Client, make: Make, pending: Collection[Bounds]) -> None:
        self.client, self.make = client, make
        self.waiting = deque(pending)
        self.running: dict[Future, Bounds] = {}
        self.unfinished: Counter[Bounds] = Counter()
        self.failure: Exception | None = None
        self.inbox: queue.SimpleQueue[Future | Reached] = queue.SimpleQueue()
        # One name for one directory: what an earlier process that was killed has left at work on it ends here.
        self.name, self.topic = f"sdebias {make(self.waiting[0], []).folder}", uuid.uuid4().hex
        self.called_off = False
        self._seen = time.monotonic()
        client.subscribe_topic(self.topic, lambda event: self.inbox.put(tuple(event[1])))
        self._send()

    def wait(self, stop: threading.Event, told: Report) -> None:
        """Give shards to workers until all have come back; see `run_shards`."""
        while self._more():
            if self.client.status != "running":
                raise self._lost([*self.running.values(), *self.waiting][0])
            if stop.is_set() or self.failure is not None:
                self._call_off()
            self._give()
            with suppress(queue.Empty):
                item = self.inbox.get(timeout=LOOK)
                reached = self._take(item) if isinstance(item, Future) else item
                if reached is not None:
                    told(*reached)
        if self.failure is not None:
            raise self.failure

    def _more(self) -> bool:
        """Return whether there is anything to wait for: where the last worker is gone, nobody writes states."""
        if self.called_off:
            return bool(self.running) and self._manned()
        return bool(self.running or self.waiting)

    def close(self) -> None:
        """Leave nothing on the workers."""
        with suppress(Exception):  # of a scheduler that is gone, after the error that says so
            self.client.unsubscribe_topic(self.topic)
            self._call_off()

    def _send(self) -> None:
        try:
            with suppress(OSError):  # a worker that dies at that moment; the one in its place gets it
                self.client.register_plugin(Work(self.make, self.topic), name=self.name)
        except ImportError as error:
            remedy = "install on every worker what is installed here"
            raise InputError(message("scheduler", "workers that can import the problem", error, remedy)) from None
        except (TypeError, AttributeError, ValueError) as error:  # what pickle raises of objects that cannot travel
            remedy = "use functions without open files, locks or other objects of this process"
            raise InputError(message("problem", "something that can be sent to a worker", error, remedy)) from None

    def _call_off(self) -> None:
        """Have what is under way stop at the end of a segment."""
        if not self.called_off:
            self.called_off = True
            with suppress(OSError, ValueError):  # a worker that dies at that moment, or a scheduler that is another
                self.client.unregister_worker_plugin(self.name)
            self._seen = time.monotonic()

    def _give(self) -> None:
        """Give out as many shards as can run: a worker that dies is blamed on all that were waiting there."""
        slots = self._slots()
        if not self.called_off and not self._manned():
            log.warning("no worker for %.0f s; waiting for one", PATIENCE)
            self._seen = time.monotonic() + 59 * PATIENCE
        while self.waiting and len(self.running) < slots and not self.called_off:
            bounds = self.waiting.popleft()
            future = self.client.submit(_run_shard, self.name, bounds, pure=False)
            self.running[future] = bounds
            future.add_done_callback(self.inbox.put)

    def _slots(self) -> int:
        """Return how many shards the workers can run at once."""
        slots = 0
        with suppress(OSError, RuntimeError, ValueError):  # the scheduler is going, as the client's status will say
            slots = sum(self.client.nthreads().values())
        if slots:
            self._seen = time.monotonic()
        return slots

    def _manned(self) -> bool:
        """Return whether there has been a worker of late."""
        return time.monotonic() - self._seen < PATIENCE

    def _take(self, future: Future) -> Reached | None:
        """Take back a shard, and return what it last told."""
        bounds = self.running.pop(future)
        if future.cancelled():
            raise self._lost(bounds)
        try:
            finished, reached = future.result()
        except Exception as error:
            if isinstance(error, KilledWorker):
                died = f"{error.allowed_failures + 1} that died, the last at {error.last_worker.address}"
                error = self._error("a worker that lives until it is done", died, bounds)
            self.failure = self.failure or error
            return None
        if finished:
            log.info("trajectories %d to %d: finished by a worker", *bounds)
        elif not self.called_off:
            # Its worker was told to close in an orderly way.
            self.waiting.append(bounds)
            self.unfinished[bounds] += 1
            if self.unfinished[bounds] == DEATHS:
                self.failure = self._error("a worker that stays until it is done", f"{DEATHS} that closed", bounds)
        told: Reached | None = reached
        return told

    def _lost(self, bounds: Bounds) -> RunError:
        return self._error("a scheduler that lives to the end", "none", bounds)

    def _error(self, want: str, got: object, bounds: Bounds) -> RunError:
        what = f"trajectories {bounds[0]} to {bounds[1]}"
        remedy = "what was finished stays; look at the memory and the log of the workers, then continue with "
        return RunError(message(what, want, got, f"{remedy}sdebias run --resume {self.make(bounds, []).folder}"))


def check_scheduler(scheduler: str) -> tuple[str, int | None]:
    """Return what a text asks for: "local", "slurm" or an address, and perhaps how many.

    Raises
    ------
    InputError
        If it asks for nothing that is known.
    """
    match = SCHEDULER.fullmatch(scheduler) if isinstance(scheduler, str) else None
    if match is None:
        want = "local, local:N, slurm, slurm:N or tcp://HOST:PORT, N >= 1"
        raise InputError(message("scheduler", want, repr(scheduler), "for instance scheduler='local:4'"))
    count = match["count"]
    return match["kind"] or match["address"], None if count is None else int(count)


@contextmanager
def connect(scheduler: str, problem: Problem) -> Iterator[Client]:
    """Give a client of the workers that a text asks for, and end those that were started here.

    Parameters
    ----------
    scheduler : str
        ``"local"`` or ``"local:N"``: N processes on this machine, by default as many as torch has threads; on CUDA one
        for each GPU, by dask-cuda, which pins it (written after its documentation, and never run on a machine with
        several GPUs). ``"tcp://HOST:PORT"``: the workers of a scheduler that is there. ``"slurm"`` or ``"slurm:N"``: N
        jobs, by default 1, of dask-jobqueue, which reads from its own configuration what a job is.
    problem : Problem
        Its device decides.

    Raises
    ------
    InputError
        If the text asks for nothing that is known, a package is missing, or there is no such scheduler.
    RunError
        If workers cannot be started.
    """
    kind, count = check_scheduler(scheduler)
    if kind in ("local", "slurm"):
        start = _start_local if kind == "local" else _start_slurm
        # What the user sees are errors of the run, not dask's remarks on workers that come and go.
        limits = {"distributed.scheduler.allowed-failures": DEATHS - 1, "distributed.logging.distributed": "critical"}
        with dask.config.set(limits), start(count, problem) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    try:
        client = Client(kind, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        remedy = "check the address, or start one with dask scheduler"
        raise InputError(message("scheduler", f"a scheduler at {kind}", error, remedy)) from None
    with client:
        yield client


def _start_local(count: int | None, problem: Problem) -> Any:
    """Start processes on this machine."""
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0}
    # Without a dashboard there is still a port, which another run on this machine may hold, and on all interfaces.
    options |= {"scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
    options |= {"silence_logs": logging.CRITICAL, "preload": [DEAF]}
    make: Any
    if problem.device.type == "cuda":
        try:
            import dask_cuda
        except ImportError:
            want, remedy = "the package dask-cuda, for one process on each GPU", "pip install dask-cuda"
            raise InputError(message("scheduler", want, "none", remedy)) from None
        make, remedy = dask_cuda.LocalCUDACluster, "ask for no more than there are GPUs"
    else:
        count = workers(problem) if count is None else count
        make, remedy = LocalCluster, "put what a script does under if __name__ == '__main__': workers import it"
    try:
        return make(n_workers=count, **options)
    except (OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise RunError(message("scheduler", "processes that start", error, remedy)) from None


def _start_slurm(count: int | None, problem: Problem) -> Any:
    """Submit jobs."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InputError(
            message("scheduler", "the package dask-jobqueue", "none", "pip install 'sdebias[distributed]'")
        ) from None
    want, remedy = "cores and memory of a job in dask's section jobqueue.slurm", "write ~/.config/dask/jobqueue.yaml"
    given = {key: value for key, value in dask.config.get("jobqueue.slurm").items() if value is not None}
    if missing := {"cores", "memory"} - given.keys():
        raise InputError(message("scheduler", want, f"no {' and no '.join(sorted(missing))}", remedy))
    try:
        cluster = SLURMCluster(scheduler_options={"dashboard_address": ":0", **given["scheduler-options"]})
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(message("scheduler", want, error, remedy)) from None
    cluster.adapt(minimum_jobs=count or 1, maximum_jobs=count or 1)
    return cluster
