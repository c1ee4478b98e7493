"""The end of a run whose sweep was killed."""

import os
import sys
import threading
import time

SWEEP = "HJEPA_SWEEP"
"""Environment variable in which `hjepa sweep` tells its runs its process id."""
_INTERVAL = 0.5
"""Seconds between two checks."""


def end_with_sweep() -> None:
    """End this process when the sweep that started it has ended; processes that it starts itself are not told.

    A run without its sweep would go on beside the one that a second sweep resumes in the same folder.
    """
    sweep = os.environ.pop(SWEEP, None)
    if sweep is None or not hasattr(os, "getppid"):
        return

    def watch() -> None:
        while os.getppid() == int(sweep):
            time.sleep(_INTERVAL)
        print("hjepa: the sweep of this run was killed.", file=sys.stderr, flush=True)
        os._exit(1)  # as a kill: the run is resumed from its last checkpoint

    threading.Thread(target=watch, daemon=True, name="hjepa-sweep").start()
