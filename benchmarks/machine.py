"""The machine: which cores and flags a run has, and what it ran on."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "torchsde", "jax", "jaxlib", "diffrax", "equinox", "numpy")
MIB = 2**20


def cores() -> list[int]:
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def pin(allowed: Sequence[int], threads: int) -> None:
    """Keep this process, its torch and its XLA on the last `threads` of the allowed cores.

    XLA has no call for its threads: it reads flags when it is imported and otherwise takes as many threads as the
    process has cores, so the process gets no more cores than threads.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed[-threads:])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import torch

    torch.set_num_threads(threads)


def environment(device: str, count: int) -> dict[str, str]:
    """Return the machine and the versions that numbers belong to.

    Parameters
    ----------
    device : str
    count : int
        Cores of the machine that the benchmarks may use.
    """
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    result = {"cpu": name, "cores": str(count), "capability": torch.backends.cpu.get_cpu_capability()}
    result |= {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "not installed"
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
        result["cuda"] = str(torch.version.cuda)
    return result


def commit() -> str:
    """Return the commit that was measured, marked where the tree had changes, empty outside a repository."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return git.stdout.strip()


def resident(field: str) -> float:
    """Return a line of /proc/self/status in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError(f"/proc/self/status has no {field}")


def settle() -> float:
    """Give free memory back, let the peak of this process start anew, and return what is resident, in MiB (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide as much of the next peak
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")
