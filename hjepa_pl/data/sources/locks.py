"""A lock between processes of one machine, on a file beside what it guards."""

import contextlib
import os
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Wait until no other process holds the lock, and hold it; the system lets go of it when a process dies.

    Where the file cannot be made (a folder that may only be read) or locked, there is no lock: nothing is written there
    either.

    Args:
        path: The lock's file, which stays.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
