"""What the C library does with memory that a CPU run has freed."""

import ctypes
import sys

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_GLIBC = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
"""glibc's own values."""


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep freed memory in this process for the next tensor, rather than give it back to the system.

    glibc maps every large tensor anew, and the system clears its pages one fault at a time: as much as a sixth of a
    training step on a CPU (README, Measured). torch has no cache of its own there, as it has on an accelerator.

    Args:
        keep: False is glibc's own way again, and gives back what is free.

    Returns:
        Whether it could be said: only glibc is told; other systems are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    asked = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0} if keep else _GLIBC
    said = [libc.mallopt(key, value) for key, value in asked.items()]
    if not keep:
        libc.malloc_trim(0)
    return all(said)


def keep_in_worker(number: int) -> None:
    """Keep freed memory in a loader's worker: decoders allocate as much as networks do."""
    keep_freed_memory()
