"""The runs of a sweep as subprocesses, some at once, resumed where they were cut off."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hjepa_pl.cli.parent import SWEEP
from hjepa_pl.cli.resume import COMPLETE
from hjepa_pl.optim.budget import EXHAUSTED
from hjepa_pl.tools.format import duration
from hjepa_pl.tools.sweep.plan import LOCK, Run
from hjepa_pl.types import ConfigError

_INTERVAL = 0.2
"""Seconds between two looks at the running processes."""
_COMMAND, _ERROR = "hjepa fit ", "hjepa: error: "
"""Beginnings of lines in a run's log: of each start, and of what ended it."""
_AT_ITS_END = (COMPLETE, EXHAUSTED)
"""In the error of a resumed run whose checkpoint is at the end of its steps, or of its time budget."""
_PATIENCE = 10.0
"""Seconds that the runs of a killed sweep have to end."""


class _Child(NamedTuple):
    run: Run
    number: int
    process: subprocess.Popen[bytes]
    began: float
    resumed: bool


class Runner:
    """Runs what is not finished yet.

    Args:
        out: Folder of the sweep.
        words: The arguments of fit that all runs have.
        jobs: Largest number of runs at once.
        lock: File descriptor of the folder's lock, which the runs hold too; None without one.
    """

    def __init__(self, out: Path, words: Sequence[str], jobs: int, lock: int | None) -> None:
        self.out, self.words, self.jobs, self.lock = out, list(words), jobs, lock
        self._children: list[_Child] = []

    def run_all(self, runs: Sequence[Run]) -> None:
        """Run all; one that fails is reported, and the others go on.

        Raises:
            KeyboardInterrupt: After Ctrl-C, when the runs have ended; a second one kills them.
        """
        waiting, done = list(enumerate(runs, 1)), 0
        try:
            while waiting or self._children:
                while waiting and len(self._children) < self.jobs:
                    number, run = waiting.pop(0)
                    self._children.append(self._start(run, number, len(runs)))
                for child in [c for c in self._children if c.process.poll() is not None]:
                    self._children.remove(child)
                    if child.resumed and any(words in last_line(child.run) for words in _AT_ITS_END):
                        # Killed between its last step and its summary: the probes of the end are lost.
                        self._children.append(self._start(child.run, child.number, len(runs), resume=False))
                        continue
                    done += 1
                    print(f"[{done}/{len(runs)}] {_outcome(child)}", flush=True)
                time.sleep(_INTERVAL)
        except KeyboardInterrupt:
            self._end()
            raise

    def _start(self, run: Run, number: int, total: int, *, resume: bool = True) -> _Child:
        resume = resume and (run.folder / "checkpoints" / "last.ckpt").is_file()
        own = [f"--experiment_name={run.folder.name}", f"--results_dir={self.out}", f"--seed_everything={run.seed}"]
        words = [*self.words, *run.cell.words, *own, *(["--ckpt_path=last"] if resume else [])]
        environment = os.environ | {SWEEP: str(os.getpid())}
        environment.setdefault("WANDB_RUN_GROUP", self.out.resolve().name)
        print(f"{'resuming' if resume else 'running'} {number} of {total}: {run.title} (log: {run.log})", flush=True)
        with run.log.open("ab") as log:
            log.write(f"{_COMMAND}{shlex.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "hjepa_pl", "fit", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if self.lock is None else (self.lock,),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on once
            )
        return _Child(run, number, process, time.monotonic(), resume)

    def _end(self) -> None:
        """Interrupt the running processes as Ctrl-C would, and wait for them; kill them at a second Ctrl-C."""
        try:
            for child in self._children:
                child.process.send_signal(signal.SIGINT)
            for child in self._children:
                child.process.wait()
        except KeyboardInterrupt:
            for child in self._children:
                child.process.kill()
                child.process.wait()


def last_line(run: Run) -> str:
    """Return what ended a run since it was last started: its error, or else the last line that it has printed."""
    try:
        text = run.log.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith(_COMMAND)]
    lines = lines[starts[-1] + 1 :] if starts else lines
    errors = [line for line in lines if line.startswith(_ERROR)]
    return (errors or lines or ["nothing was printed"])[-1]


def failure(run: Run) -> str:
    """Return why a run has no result: its last line, after its status."""
    line = last_line(run)
    status = run.summary.get("status", "failed" if line.startswith(_ERROR) else "not finished")
    return f"{status}: {line.removeprefix(_ERROR)}"


def _outcome(child: _Child) -> str:
    run, seconds = child.run, time.monotonic() - child.began
    if not run.finished:
        return f"{run.title}: {failure(run)}"
    return f"{run.title}: {run.summary['status']} in {duration(seconds)}"


@contextmanager
def locked(out: Path) -> Iterator[int | None]:
    """Hold the lock of a sweep's folder; its runs inherit it, so that those of a killed sweep hold it until they end.

    Yields:
        The file descriptor of the lock; None on Windows, where there is none.

    Raises:
        ConfigError: If another sweep holds it.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    with (out / LOCK).open("w") as file:
        limit = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise ConfigError(f"another sweep works in {out}; wait for its end, or set --out.") from None
                time.sleep(_INTERVAL)
        yield file.fileno()
