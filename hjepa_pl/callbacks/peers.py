"""Ends all processes of a run when one has failed; otherwise the others would wait in a collective operation."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.utils.distributed import PEER_ENDED

_INTERVAL = 0.5
"""Seconds between two checks."""
_GRACE = 10.0
"""Seconds that a process has to write its summary and its message after another one has failed."""


class Peers(pl.Callback):
    """Watch, from the first process, the others that Lightning started on this machine.

    Lightning's own watch kills the first process five seconds after another has failed, before it has written why.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's watch, which does nothing once its list is empty."""
        launcher: Any = trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        if not started or not all(isinstance(process, subprocess.Popen) for process in started):
            return
        processes = launcher.procs = list(started)
        started.clear()

        def failed() -> bool:
            return any(process.poll() for process in processes)

        def end_all() -> None:
            for process in processes:
                process.kill()

        _watch(failed, end_all)


def watch_parent() -> None:
    """End this process when the one that started it has ended, if it is one of several of a run."""
    if "LOCAL_RANK" not in os.environ or not hasattr(os, "getppid"):
        return
    parent = os.getppid()
    _watch(lambda: os.getppid() != parent, lambda: None)


def _watch(failed: Callable[[], bool], end_others: Callable[[], None]) -> None:
    """Watch the other processes from a thread; when one has failed, end this one after the grace period."""

    def watch() -> None:
        while not failed():
            time.sleep(_INTERVAL)
        time.sleep(_GRACE)
        print(f"hjepa: error: {PEER_ENDED}", file=sys.stderr, flush=True)
        end_others()
        os._exit(1)  # the main thread waits in a collective operation and ignores signals

    threading.Thread(target=watch, daemon=True, name="hjepa-peers").start()
