"""A bar for what makes a person wait before training: only on a terminal, and only if it takes long."""

import contextlib
import time
from collections.abc import Callable, Iterator

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_PATIENCE = 2.0
"""Seconds without a bar."""


@contextlib.contextmanager
def waiting(
    what: str, total: int | None = None, console: Console | None = None, *, start: int = 0, count_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Count towards `total` (None if it is not known) by calling what is yielded with how many more are done.

    Nothing is shown on ranks other than 0, nor where standard error is no terminal.

    Args:
        what: Is done, for the person who waits.
        total: Of what is counted.
        console: Where it is shown; standard error if not given.
        start: How many were done before.
        count_bytes: Whether bytes are counted: then they are shown as such, with the time left.
    """
    console = Console(stderr=True) if console is None else console
    seen = console.is_terminal and getattr(rank_zero_only, "rank", 0) == 0
    counted: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TimeElapsedColumn())
    if count_bytes:
        counted = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), BarColumn(), *counted, console=console, transient=True)
    task = bar.add_task(what, total=total, completed=start)
    began = time.monotonic()

    def advance(count: int) -> None:
        if seen and not bar.live.is_started and time.monotonic() - began > _PATIENCE:
            bar.start()
        bar.advance(task, count)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
