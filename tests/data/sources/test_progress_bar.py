"""Progress bars before training."""

import io

import pytest
from rich.console import Console

import hjepa_pl.data.sources.progress_bar as module
from hjepa_pl.data.sources.progress_bar import progress_bar


@pytest.mark.parametrize(("terminal", "rank", "shown"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_shown_on_terminals_of_rank_zero(monkeypatch, terminal, rank, shown) -> None:
    monkeypatch.setattr(module.rank_zero_only, "rank", rank)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    with progress_bar("Reading folder", 30, console=console) as advance:
        for _ in range(3):
            advance(10)
    assert ("Reading folder" in out.getvalue() and "30/30" in out.getvalue()) == shown
    assert bool(out.getvalue()) == shown


def test_bytes_have_a_unit_and_a_start() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with progress_bar("Fetching x.tar", 3_000_000, completed=1_000_000, in_bytes=True, console=console) as advance:
        advance(500_000)
    assert "1.5/3.0 MB" in out.getvalue()


def test_removed_on_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)

    def fail() -> None:
        with progress_bar("Reading", console=console):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    with progress_bar("Again", console=console) as advance:  # a second live display would be an error
        advance(1)
