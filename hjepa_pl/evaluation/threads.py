"""Keeps small problems on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Compute the block on one CPU thread, and give the threads back afterwards.

    Solvers make thousands of calls too small to share. On a machine where others compute too, each such call waits for
    threads that do not get their turn: a linear probe of 60 images took 13.5 s on two busy cores, and 0.15 s on one
    thread.

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
