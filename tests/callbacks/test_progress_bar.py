"""The progress bar on a terminal and off it."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich
from rich.console import Console

from hjepa_pl.callbacks import ProgressBar
from hjepa_pl.types import ConfigError
from tests.callbacks.callback_toy import ToyModule, fit


def test_off_a_terminal_one_plain_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [ProgressBar()], enable_progress_bar=True)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2")
    for word in (" images/s, ", "loss ", "last_c1 "):
        assert word in lines[1]


@pytest.mark.parametrize(("limits", "place"), [({"max_epochs": 400}, "2/2"), ({"max_epochs": -1}, "2/2")])
def test_epochs_are_counted_to_where_max_steps_ends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: dict[str, int], place: str
) -> None:
    fit(tmp_path, [ProgressBar()], enable_progress_bar=True, max_steps=9, **limits)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert lines[-1].startswith(f"epoch {place}  ")


def test_epochs_have_no_number_where_the_clock_ends_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Budgeted(ToyModule):
        progress = SimpleNamespace(budget=60.0, seconds=59.9)

    fit(tmp_path, [ProgressBar()], Budgeted(), enable_progress_bar=True, max_epochs=100_000, max_time="00:00:00:01")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert lines[1].startswith("epoch 2  ")


def test_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws on a recording console of 100 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(rich, "_console", console)
    bar = ProgressBar()
    bar._console_kwargs = {"file": screen, "force_terminal": True, "width": 100}
    fit(tmp_path, [bar], enable_progress_bar=True)
    shown = screen.getvalue()
    Path("/tmp/progress_capture.txt").write_text(shown)
    for word in ("Epoch 1/2", "Epoch 2/2", "6/6", " images/s, ", "loss"):
        assert word in shown


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="refresh_rate=0"):
        ProgressBar(refresh_rate=0)
