"""Atomic writes: a file of a name is always whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file next to `path`; when the block ends, flush it to the disk and rename it to `path`.

    A reader sees the old file or the new one, also after a kill, and with `sync` after a power failure. If the block
    raises, the old file stays and the temporary one is removed. Text is UTF-8, its line ends are written as they are.

    Args:
        path: The file; its folder is created if it does not exist.
        mode: "w" for text, "wb" for bytes.
        sync: Wait until the disk has the bytes, which may take many ms on a network disk.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(path) as file:
        ...     _ = file.write("whole")
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
