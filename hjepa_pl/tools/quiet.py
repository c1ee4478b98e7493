"""Silence for runs within a tool."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about the hardware and the end of a run; warnings stay."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("fabric", "pytorch")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.WARNING)
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
