"""What the C library does with memory that a CPU run has freed."""

import ctypes
import sys

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_RELEASED = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
"""What glibc comes to by itself once large blocks have been freed; it stops adapting when it has been told anything."""


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep freed memory in this process for the next tensor, rather than give it back to the system.

    glibc maps every tensor above 32 MiB anew, and gives most others back, and the system clears their pages one fault
    at a time: a tenth of a ViT-S step on a CPU (`tests/benchmarks/tricks.py`). torch has no cache of its own there,
    as it has on an accelerator.

    Args:
        keep: False gives back what is free, and keeps no more than glibc does.

    Returns:
        Whether it could be said: only glibc is told; other systems are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    said = [libc.mallopt(key, value) for key, value in (_KEPT if keep else _RELEASED).items()]
    if not keep:
        libc.malloc_trim(0)
    return all(said)


def keep_in_worker(number: int) -> None:
    """Keep freed memory in a loader's worker: decoders allocate as much as networks do."""
    keep_freed_memory()
