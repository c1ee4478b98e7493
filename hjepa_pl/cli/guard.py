"""Unexpected errors: one sentence on the screen, the traceback in a file."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended: 128 + SIGINT."""


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; no error is printed as a traceback.

    Args:
        command: Returns its exit status; handles the errors that it expects.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("hjepa: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output (`| head`) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        print(f"hjepa: error: {unexpected(error)}", file=sys.stderr)
        return 1


def unexpected(error: BaseException, folder: Path | None = None) -> str:
    """Write the traceback of an error to a file and return the sentence that names it.

    With HJEPA_DEBUG=1 in the environment the traceback is printed too.

    Args:
        error: The error.
        folder: Folder of the run, if there is one.
    """
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("HJEPA_DEBUG", "0") not in ("", "0"):
        print(trace, file=sys.stderr)
    path = _write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n{trace}\n", folder)
    message = " ".join(str(error).split())[:300].rstrip(".")
    name = f"unexpected {type(error).__name__}{f': {message}' if message else ''}"
    if path is None:
        return f"{name}; no file could be written for the traceback, which follows:\n{trace}"
    return f"{name}; the traceback is in {path}."


def _write(text: str, folder: Path | None) -> Path | None:
    """Append a text to the first writable file: in the run, the working folder, or the temporary folder."""
    rank = os.environ.get("LOCAL_RANK", "0")
    name = "error.log" if rank == "0" else f"error.rank{rank}.log"
    paths = [Path(f"hjepa_{name}"), Path(tempfile.gettempdir()) / f"hjepa_{name}"]
    if folder is not None and (folder / "logs").is_dir():
        paths.insert(0, folder / "logs" / name)
    for path in paths:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None
