"""The screen of `hjepa monitor`: one frame, or frames until q is pressed."""

import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType

from hjepa_pl.tools.monitor.frame import frame
from hjepa_pl.tools.monitor.run_files import RunFiles

_INTERVAL = 1.0
"""Seconds between two frames; more if reading takes long."""


def print_once(runs: Sequence[RunFiles], width: int) -> None:
    """Print one frame."""
    console = Console(width=width, highlight=False)
    for run in runs:
        run.read()
    console.print(frame(runs, width, None, ascii_only=_is_ascii(console)))


def watch(runs: Sequence[RunFiles]) -> None:
    """Show frames until q is pressed or Ctrl-C."""
    from rich.live import Live

    console = Console(highlight=False)

    def draw() -> RenderableType:
        for run in runs:
            run.read()
        return frame(runs, console.width, console.height, ascii_only=_is_ascii(console))

    try:
        with Live(draw(), console=console, screen=True, auto_refresh=False) as live, _single_keys() as pressed:
            while True:
                began = time.monotonic()
                live.update(draw(), refresh=True)
                if pressed(max(_INTERVAL, 5 * (time.monotonic() - began))) in ("q", "Q", "\x1b", "\x03"):
                    return
    except KeyboardInterrupt:
        return


@contextmanager
def _single_keys() -> Iterator["_Keys"]:
    """Make the terminal give each key at once, unechoed; undone at the end."""
    keys = _Keys()
    try:
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
    except Exception:  # Windows, or no terminal to read from
        yield keys
        return
    keys.readable = True
    tty.setcbreak(sys.stdin)
    try:
        yield keys
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Keys:
    """Waits for a key."""

    readable = False

    def __call__(self, seconds: float) -> str:
        """Return the key that is pressed within some seconds; an empty string for none."""
        if not self.readable:
            return _windows_key(seconds)
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return ""
        return (os.read(sys.stdin.fileno(), 1) or b"q").decode(errors="replace")  # nothing: the terminal is gone


def _windows_key(seconds: float) -> str:
    """Wait, and return the key that was pressed, if this is Windows' console."""
    end = time.monotonic() + seconds
    try:
        import msvcrt
    except ImportError:
        time.sleep(seconds)
        return ""
    while time.monotonic() < end:
        if msvcrt.kbhit():  # type: ignore[attr-defined]
            return str(msvcrt.getwch())  # type: ignore[attr-defined]
        time.sleep(0.05)
    return ""


def _is_ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
