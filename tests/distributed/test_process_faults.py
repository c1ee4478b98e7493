"""What ends one of two processes ends both, within seconds and with a sentence: as `hjepa fit` starts them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.test_cli import TINY

# The command, with a fault of one process in its second step. Lightning starts the second process by this module too.
SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from hjepa_pl import HJEPALightningModule
from hjepa_pl.__main__ import main
torch.set_num_threads(1)
fault, rank = __spec__.name.split("_")
honest = HJEPALightningModule.training_step

def training_step(self, batch, batch_idx):
    Path(f"{self.global_rank}.pid").write_text(str(os.getpid()))
    if self.global_rank == int(rank) and self.trainer.global_step == 1:
        Path("fault").touch()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise ZeroDivisionError("of this process alone")
        batch = batch._replace(views=tuple(view * float("nan") for view in batch.views))
    return honest(self, batch, batch_idx)

HJEPALightningModule.training_step = training_step
sys.exit(main())
"""
WORDS = [
    "fit", "--config=tiny.yaml", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=16",
    "--data.init_args.probe=[]", "--logging.tensorboard=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
PEER = "another process of this run ended; what it says itself is the cause."
CASES = {
    "nan_1": ["hjepa: error: step 1: image is not finite", "hjepa: error (process 1): step 1: last_c1 is not finite"],
    "raise_1": [f"hjepa: error: {PEER}", "(process 1): unexpected ZeroDivisionError: of this process alone; the"],
    "kill_1": [f"hjepa: error: {PEER}"],
    "kill_0": [f"hjepa: error (process 1): {PEER}"],
}


@pytest.mark.parametrize(
    "case", [case if case == "kill_1" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_fault_of_one_process_ends_both(tmp_path, case) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / f"{case}.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    try:
        # Both processes hold standard error: it ends when the last of them has.
        done = subprocess.run(
            [sys.executable, "-m", case, *WORDS],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    finally:
        ended = time.time()
        processes = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        left = [process for process in processes if alive(process)]
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert not left
    assert ended - (tmp_path / "fault").stat().st_mtime < 60  # 15 s of a busy machine; it was for ever
    assert len(processes) == 2
    assert done.returncode == (-signal.SIGKILL if case == "kill_0" else 1), done.stderr
    for sentence in CASES[case]:
        assert sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    if case == "raise_1":
        assert "of this process alone" in (tmp_path / "results/tiny/logs/error.rank1.log").read_text()


def alive(process: int) -> bool:
    """Whether a process is there, after the time that its end, and the system's note of it, may take."""
    for _ in range(150):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
