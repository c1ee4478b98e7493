"""The runs of a sweep that were killed at the end of their time, with a program in the place of training."""

import shlex
import sys
from pathlib import Path

import pytest

from hjepa_pl.cli.resume import check_incomplete
from hjepa_pl.optim.budget import RunProgress
from hjepa_pl.tools.sweep.plan import Plan
from hjepa_pl.tools.sweep.runner import Runner
from hjepa_pl.types import ConfigError


def spent_budget() -> str:
    """Return the error of a run whose clock was stored at the end of its budget."""
    message = RunProgress(100, 10.0, spent=10.0).exhausted()
    assert message is not None
    return message


def complete() -> str:
    loops = {"fit_loop": {"epoch_progress": {"total": {"processed": 3}}}}
    with pytest.raises(ConfigError) as caught:
        check_incomplete({"loops": loops, "global_step": 9}, 3, None)
    return str(caught.value)


def trainer(path: Path, message: str, condition: str) -> str:
    """Write a program that fails with a message if a word of its command line is `condition`, and completes if not."""
    path.write_text(
        f"""#!/bin/sh
for word; do case $word in
{condition}) echo {shlex.quote(f"hjepa: error: {message}")}; exit 2;;
--results_dir=*) out=${{word#*=}};; --experiment_name=*) name=${{word#*=}};;
esac; done
mkdir -p $out/$name; echo '{{"status": "completed"}}' > $out/$name/summary.json
"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="runs a shell script")
@pytest.mark.parametrize("message", [spent_budget(), complete()], ids=["budget", "steps"])
def test_a_run_that_was_killed_at_its_end_is_started_afresh(message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "executable", trainer(tmp_path / "train", message, "--ckpt_path=last"))
    (run,) = Plan([{}], [], {}, 1).runs(tmp_path)
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "checkpoints" / "last.ckpt").touch()
    Runner(tmp_path, [], 1, None).run_all([run])
    assert run.finished
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "resuming 1 of 1", "running 1 of 1", "[1/1] seed 0"
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="runs a shell script")
def test_a_budget_that_is_too_short_for_a_fresh_run_is_a_failure(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "executable", trainer(tmp_path / "train", spent_budget(), "--experiment_name=*"))
    (run,) = Plan([{}], [], {}, 1).runs(tmp_path)
    Runner(tmp_path, [], 1, None).run_all([run])
    assert not run.finished
    assert "failed: invalid `time_budget=0:00:10`: leaves no time to train" in capsys.readouterr().out
