"""Memory is kept between steps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from sdebias.ensemble.memory import keep_memory
    keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**18)
before = faults()
for _ in range(100):
    torch.zeros(2**18)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_is_not_mapped_anew() -> None:
    """Where the C library gives all back, 100 tensors of 1 MiB touch 256 pages each; where it keeps them, few."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    faults = {}
    for mode in ("given back", "kept"):
        run = subprocess.run([sys.executable, "-c", COUNT, mode], env=environment, capture_output=True, check=True)
        faults[mode] = int(run.stdout)
    assert faults["given back"] > 100 * 128
    assert faults["kept"] < 100 * 16
