"""Reuse of freed memory on a CPU (glibc's mallopt)."""

import ctypes
import sys

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_RELEASED = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
"""The thresholds that glibc adapts to once large blocks have been freed; it stops adapting after any mallopt."""


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep freed memory in this process for the next tensor, instead of returning it to the system.

    By default glibc maps every tensor above 32 MiB anew and returns most others, and the system clears their pages one
    page fault at a time: a tenth of a ViT-S step on a CPU (`tests/benchmarks/tricks.py`). PyTorch caches memory on
    accelerators only.

    Args:
        keep: False returns the free memory, and restores glibc's behavior.

    Returns:
        True if glibc accepted the settings; False on other systems, where nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    accepted = [libc.mallopt(key, value) for key, value in (_KEPT if keep else _RELEASED).items()]
    if not keep:
        libc.malloc_trim(0)
    return all(accepted)


def keep_in_worker(number: int) -> None:
    """Keep freed memory in a loader's worker, where decoders allocate much."""
    keep_freed_memory()
