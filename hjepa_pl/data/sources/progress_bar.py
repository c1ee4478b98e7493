"""A progress bar for work before training, such as downloads and the reading of folders."""

import contextlib
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
)


@contextlib.contextmanager
def progress_bar(
    description: str,
    total: int | None = None,
    *,
    completed: int = 0,
    in_bytes: bool = False,
    console: Console | None = None,
) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar by a count. Shown on rank 0 and on terminals only, and removed at the end.

    Args:
        description: Shown before the bar.
        total: Final count, None if unknown.
        completed: Count at the start.
        in_bytes: Whether bytes are counted.
        console: Where to draw; standard error by default.
    """
    console = Console(stderr=True) if console is None else console
    counted: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TimeElapsedColumn())
    columns = (DownloadColumn(), TimeRemainingColumn()) if in_bytes else counted
    hidden = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    text = TextColumn("{task.description}")
    with Progress(text, BarColumn(), *columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda count: bar.advance(task, count)
