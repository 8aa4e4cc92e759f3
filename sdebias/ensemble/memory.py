"""Memory that steps use again and again."""

from __future__ import annotations

import ctypes
import functools
import sys

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Where the C library's own adaptive rule ends, if nobody interferes: largest block from the heap, and free memory kept.
LARGEST, KEPT = 2**25, 2**26


@functools.cache
def keep_memory() -> None:
    """Let the C library keep up to 64 MiB that is freed, for what is allocated next.

    Else each intermediate tensor of a step may be mapped, touched and unmapped anew: a third of the time of small
    steps, and more on threads and in workers of dask, which starts them with MALLOC_TRIM_THRESHOLD_ = 64 KiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # it is glibc's
        for parameter, size in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, KEPT)):
            mallopt(parameter, size)
