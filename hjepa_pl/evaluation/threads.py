"""Small problems on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Run the block on one CPU thread, and restore the number of threads afterwards.

    Solvers make thousands of calls too small to parallelize. On a busy machine each such call waits for its slowest
    thread: a linear probe of 60 images took 13.5 s on two busy cores, and 0.15 s on one thread.

    Args:
        when: False leaves the threads as they are.
    """
    threads = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if when:
            torch.set_num_threads(threads)
