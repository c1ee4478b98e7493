"""No process of a run outlives the others: what a collective operation would wait for, for minutes or for ever."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.utils.distributed import PEER_ENDED

_EVERY = 0.5
"""Seconds between two looks."""
_GRACE = 10.0
"""Seconds that a process has to end by itself once another is gone, with a summary and a sentence of its own."""


class Peers(pl.Callback):
    """Watch the processes that Lightning started on this machine, from the first of them.

    Lightning's own watch kills the first process five seconds after another has failed, before it has written why.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over from Lightning's watch, which has nothing to look at once its list is empty."""
        launcher: Any = trainer.strategy.launcher
        given = getattr(launcher, "procs", [])
        if not given or not all(isinstance(process, subprocess.Popen) for process in given):
            return
        processes = launcher.procs = list(given)
        given.clear()

        def failed() -> bool:
            return any(process.poll() for process in processes)

        def end_all() -> None:
            for process in processes:
                process.kill()

        _watch(failed, end_all)


def watch_parent() -> None:
    """End this process after the one that started it, where it is one of several of a run."""
    if "LOCAL_RANK" not in os.environ or not hasattr(os, "getppid"):
        return
    parent = os.getppid()
    _watch(lambda: os.getppid() != parent, lambda: None)


def _watch(failed: Callable[[], bool], last_act: Callable[[], None]) -> None:
    """Look from a thread whether another process has failed; if so, end this one when its time of grace is over."""

    def look() -> None:
        while not failed():
            time.sleep(_EVERY)
        time.sleep(_GRACE)
        print(f"hjepa: error: {PEER_ENDED}", file=sys.stderr, flush=True)
        last_act()
        os._exit(1)  # the main thread waits in a collective operation, deaf to signals

    threading.Thread(target=look, daemon=True, name="hjepa-peers").start()
