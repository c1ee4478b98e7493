"""What nobody foresaw: one sentence for the person, the traceback in a file for who mends it."""

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
    """Run a command and return its exit status, whatever happens in it: never a traceback.

    Args:
        command: Returns its own exit status, also of what it refuses.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("hjepa: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads the output (`| head`) has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        print(f"hjepa: error: {unexpected(error)}", file=sys.stderr)
        return 1


def unexpected(error: BaseException, folder: Path | None = None) -> str:
    """Write the traceback of an error to a file and return the sentence that names it.

    With HJEPA_DEBUG=1 in the environment the traceback is printed too.

    Args:
        error: Of the program, or of what it builds on.
        folder: Of the run, if there is one.
    """
    told = "".join(traceback.format_exception(error))
    if os.environ.get("HJEPA_DEBUG", "0") not in ("", "0"):
        print(told, file=sys.stderr)
    path = _write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n{told}\n", folder)
    said = " ".join(str(error).split())[:300].rstrip(".")
    what = f"unexpected {type(error).__name__}{f': {said}' if said else ''}"
    if path is None:
        return f"{what}; no file could be written for the traceback, which follows:\n{told}"
    return f"{what}; the traceback is in {path}."


def _write(text: str, folder: Path | None) -> Path | None:
    """Append a text to the first file that can be written: of the run, of the working folder, of the system."""
    rank = os.environ.get("LOCAL_RANK", "0")
    name = "error.log" if rank == "0" else f"error.rank{rank}.log"
    places = [Path(f"hjepa_{name}"), Path(tempfile.gettempdir()) / f"hjepa_{name}"]
    if folder is not None and (folder / "logs").is_dir():
        places.insert(0, folder / "logs" / name)
    for path in places:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None
