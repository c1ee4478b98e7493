import io

import pytest
from rich.console import Console

import hjepa_pl.data.sources.progress_bar as progress
from hjepa_pl.data.sources.progress_bar import waiting


@pytest.mark.parametrize(
    ("terminal", "patience", "seen"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_a_bar_is_shown_on_a_terminal_after_a_while(monkeypatch, terminal, patience, seen):
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    out = io.StringIO()
    with waiting("Reading folder", 30, Console(file=out, force_terminal=terminal, width=80)) as advance:
        for _ in range(3):
            advance(10)
    assert ("Reading folder" in out.getvalue() and "30/30" in out.getvalue()) == seen
    assert bool(out.getvalue()) == seen


def test_bytes_are_shown_with_their_unit_and_what_was_there_before(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with waiting("Fetching x.tar", 3_000_000, console, start=1_000_000, count_bytes=True) as advance:
        advance(500_000)
    assert "1.5/3.0 MB" in out.getvalue()


def test_other_ranks_are_silent(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress.rank_zero_only, "rank", 1)
    out = io.StringIO()
    with waiting("Reading", None, Console(file=out, force_terminal=True)) as advance:
        advance(1)
    assert not out.getvalue()


def test_an_error_takes_the_bar_away(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True)

    def fails():
        with waiting("Reading", None, console) as advance:
            advance(1)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fails()
    with waiting("Again", None, console) as advance:  # two live displays would be refused
        advance(1)
