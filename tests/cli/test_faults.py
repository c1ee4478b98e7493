"""What goes wrong around a run, by the real command: one sentence, the right status, no traceback."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from hjepa_pl import HJEPALightningModule
from hjepa_pl.__main__ import main
from hjepa_pl.callbacks.train_log import TrainLog
from tests.cli.test_cli import config, fit  # noqa: F401 (a fixture)

SUMMARY = Path("results/tiny/summary.json")


def test_a_defect_of_the_program_is_a_sentence_that_names_a_log(config, capsys, monkeypatch) -> None:  # noqa: F811
    def broken(self, *args):
        return 1 / 0

    monkeypatch.setattr(HJEPALightningModule, "compute", broken)
    assert fit(config) == 1
    said = capsys.readouterr().err
    log = Path("results/tiny/logs/error.log")
    assert f"hjepa: error: unexpected ZeroDivisionError: division by zero; the traceback is in {log}." in said
    assert "Traceback" not in said
    assert "return 1 / 0" in log.read_text()
    assert json.loads(SUMMARY.read_text())["status"] == "failed"
    monkeypatch.setenv("HJEPA_DEBUG", "1")
    assert fit(config) == 1
    assert "return 1 / 0" in capsys.readouterr().err
    # A tool has no folder of a run: the log lies where it was called.
    monkeypatch.delenv("HJEPA_DEBUG")
    assert main(["bench", "--config", str(config), "--steps=2"]) == 1
    assert "unexpected ZeroDivisionError: division by zero; the traceback is in hjepa_error.log." in (
        capsys.readouterr().err
    )
    assert "return 1 / 0" in Path("hjepa_error.log").read_text()


def test_a_folder_that_cannot_be_written_is_refused(config, capsys) -> None:  # noqa: F811
    Path("results").mkdir()
    Path("results/tiny").write_text("a file")
    assert fit(config) == 2
    assert f"{Path('results/tiny').absolute()} is a file; remove it, or choose another name." in capsys.readouterr().err
    assert fit(config, "--results_dir=results/tiny/deeper") == 2
    assert f"{Path('results/tiny').absolute()} is a file" in capsys.readouterr().err
    Path("still").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "still"], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        assert fit(config, "--results_dir=still/x") == 2
        assert f"the folder {Path('still').absolute()} is read-only; make it writable, or" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", "still"], check=True)


def test_files_that_someone_removes_are_written_anew(config, capsys, monkeypatch) -> None:  # noqa: F811
    table = Path("results/tiny/metrics.csv")
    honest = TrainLog.on_train_batch_end

    def remove(self, trainer, *args) -> None:
        honest(self, trainer, *args)
        if trainer.global_step == 2:
            table.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(TrainLog, "on_train_batch_end", remove)
        assert fit(config) == 0, capsys.readouterr().err
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["step", "0", "1", "2", "3"]
    table.unlink()
    assert fit(config, "--ckpt_path=last", "--trainer.max_epochs=2") == 0, capsys.readouterr().err
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["step", "4", "5", "6", "7"]


def test_a_run_that_ends_worse_than_it_began_is_not_completed(config, capsys) -> None:  # noqa: F811
    long = ("--trainer.max_epochs=5", "--trainer.accumulate_grad_batches=2", "--trainer.check_val_every_n_epoch=5")
    assert fit(config, *long) == 0
    assert json.loads(SUMMARY.read_text())["status"] == "completed"
    with pytest.warns(UserWarning, match="Diverged: the loss ends at"):
        assert fit(config, *long, "--model.init_args.optimizer.lr=1") == 0
    found = json.loads(SUMMARY.read_text())
    assert found["status"] == "diverged"
    assert "so the network is worse than an untrained one; lower optimizer.lr" in found["notes"][0]
    assert "diverged at step 10" in Path("results/tiny/logs/train.log").read_text().splitlines()[-1]


def test_a_batch_norm_that_is_not_finite_ends_the_run_and_is_not_kept(config, capsys, monkeypatch) -> None:  # noqa: F811
    honest = HJEPALightningModule.after_optimizer_step

    def spoil(self, share) -> None:
        honest(self, share)
        if self.trainer.global_step == 6:  # in the second epoch
            self.projector.mlp[1].running_var[3] = float("nan")

    monkeypatch.setattr(HJEPALightningModule, "after_optimizer_step", spoil)
    assert fit(config, "--trainer.max_epochs=3") == 1
    said = capsys.readouterr().err
    assert "the model's projector.mlp.1.running_var is not finite; lower optimizer.lr, and resume from" in said
    assert json.loads(SUMMARY.read_text())["status"] == "failed"
    monkeypatch.undo()
    monkeypatch.chdir(config.parent)
    assert fit(config, "--ckpt_path=last", "--trainer.max_epochs=3") == 0, capsys.readouterr().err  # it is clean


def test_ctrl_c_at_the_start_is_no_traceback(config) -> None:  # noqa: F811
    command = [sys.executable, "-X", "importtime", "-m", "hjepa_pl", "fit", "--config", str(config)]
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    assert started.stderr is not None
    said = ""
    for line in started.stderr:
        said += line
        if "torch._C" in line:  # torch is on its way, Lightning is still to come
            started.send_signal(signal.SIGINT)
            break
    said += started.stderr.read()
    assert started.wait(60) == 130, said[-2000:]
    assert "Traceback" not in said
    assert said.endswith("hjepa: interrupted.\n")


def test_a_reader_who_has_enough_is_no_error(config) -> None:  # noqa: F811
    tool = subprocess.Popen(
        [sys.executable, "-m", "hjepa_pl", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert tool.stdout is not None
    tool.stdout.close()
    _, said = tool.communicate(timeout=60)
    assert (tool.returncode, said) == (1, "")


REFUSED = {
    "--trainer.devices=-1": "invalid `trainer.devices=-1`: a CPU has no number of devices",
    "--trainer.accelerator=tpu": "invalid `trainer.accelerator=tpu`: must be",
    "--trainer.callbacks=DeviceStatsMonitor": "install it, or remove the key that needs it",
    "--trainer.logger=wandb": "write --logging.wandb=true",
    "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: foo}}]": (
        "invalid `trainer.callbacks.EarlyStopping.monitor=foo`: must be train/loss, another train/... or"
    ),
    "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {monitor: probe/digits/knnn_val}}]": (
        "invalid `trainer.callbacks.ModelCheckpoint.monitor=probe/digits/knnn_val`: must be train/loss, another "
        "train/... or collapse/... metric, probe/digits/"
    ),
    "--trainer.callbacks=[{class_path: LambdaCallback, init_args: {on_fit_start: os.system}}]": (
        "LambdaCallback takes functions, which a config cannot hold"
    ),
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_trainer_that_cannot_be_is_refused(config, capsys, word) -> None:  # noqa: F811
    if "DeviceStats" in word and find_spec("psutil"):
        pytest.skip("psutil is there")
    assert fit(config, word) == 2
    said = capsys.readouterr().err
    assert any(line.startswith("hjepa: error: ") and REFUSED[word] in line for line in said.splitlines()), said
    assert not Path("results/tiny").exists()


def test_a_killed_worker_is_a_sentence(config, capsys, monkeypatch) -> None:  # noqa: F811
    def kill(self, share) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    folder = Path("images/class")
    folder.mkdir(parents=True)
    for i in range(40):
        Image.new("L", (20, 20 + i % 3), i).save(folder / f"{i}.png")  # of several sizes: they are not kept in memory
    monkeypatch.setattr(HJEPALightningModule, "after_optimizer_step", kill)
    words = ["datasets=[{name: folder, root: images}]", "num_workers=1", "probe=[]", "epoch_size=640", "batch_size=8"]
    status = fit(config, *(f"--data.init_args.{word}" for word in words))
    said = capsys.readouterr().err
    assert (status, "hjepa: error: a loader's worker was killed" in said) == (1, True), said
