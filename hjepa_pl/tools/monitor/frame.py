"""One frame of `hjepa monitor`: a panel for each run."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hjepa_pl.tools.format import memory
from hjepa_pl.tools.monitor.marks import ago, bar, curve, fitted, short
from hjepa_pl.tools.monitor.run_files import RunFiles
from hjepa_pl.utils.run_length import clock

_NARROW = 60
"""Columns that a run needs to stand beside another."""
_ENTRY = 38
"""Columns of a metric: name, value and curve."""
_PROBE = 10
"""Columns of a probe's accuracy."""
_HIDDEN = ("/lr", "/weight_decay", "/momentum", "/grad_norm", "_weighted", "_n_ep", "_online", "/epoch")
"""Ends of the names of training and held-out metrics that have no curve."""
_STYLES = {"completed": "green", "failed": "red", "diverged": "red", "stopped": "yellow", "interrupted": "yellow"}
_DATE = re.compile(r"^\d{4}-\d\d-\d\d ")
_OLD = 600.0
"""Seconds without a write after which a run looks dead."""


def frame(runs: Sequence[RunFiles], width: int, height: int | None, *, ascii_only: bool = False) -> RenderableType:
    """Return the picture of some runs, side by side where they have room.

    Args:
        runs: The runs, read.
        width: Columns of the terminal.
        height: Rows of the terminal; None for as many as it takes.
        ascii_only: Draw without Unicode.
    """
    beside = max(1, min(len(runs), width // _NARROW))
    rows = -(-len(runs) // beside)
    each = None if height is None else (height - 1) // rows
    panels = [_panel(run, width // beside, each, ascii_only) for run in runs]
    if beside == 1:
        return Group(*panels)
    grid = Table.grid()
    for _ in range(beside):
        grid.add_column(width=width // beside)
    for i in range(0, len(panels), beside):
        grid.add_row(*panels[i : i + beside])
    return grid


def _panel(run: RunFiles, width: int, height: int | None, ascii_only: bool) -> Panel:
    inner = width - 4
    lines = list(_lines(run, inner, ascii_only))
    logged = [Text(_DATE.sub("", line)) for line in run.log]
    if height is None:
        lines += logged[-5:]
    elif (room := height - 2 - len(lines)) >= 2:
        lines += logged[-min(room, 8) :]
    else:
        kept = max(1, height - 2 - 2)
        missing = Text(f"({len(lines) - kept} hidden: enlarge the terminal)", style="dim")
        lines = [*lines[:kept], missing, *logged[-1:]]
    state, style = _state(run)
    text = Text("\n", no_wrap=True, overflow="crop" if ascii_only else "ellipsis").join(lines)
    age = run.age
    written = "" if age is None or run.ended else f"written {ago(age)} ago"
    return Panel(
        text,
        title=Text(f"{fitted(run.name, 40, ascii_only=ascii_only).rstrip()}: {state}", style=f"bold {style}"),
        title_align="left",
        subtitle=Text(written, style="bold yellow" if age is not None and age > _OLD else "dim"),
        subtitle_align="right",
        box=box.ASCII if ascii_only else box.ROUNDED,
        width=width,
        border_style="dim",
    )


def _state(run: RunFiles) -> tuple[str, str]:
    """Return what the run is doing, and a color."""
    if run.ended:
        status = str(run.summary.get("status", "ended"))
        return status, _STYLES.get(status, "default")
    return str(run.status.get("doing") or ("training" if run.metrics else "starting")), "cyan"


def _lines(run: RunFiles, width: int, ascii_only: bool) -> Iterator[Text]:
    """Yield the lines of a run but for its log."""
    yield _progress(run, width, ascii_only)
    yield from map(Text, _speed(run, width))
    for sentence in _warnings(run):
        for line in textwrap.wrap(f"! {sentence}", width, subsequent_indent="  "):
            yield Text(line, style="bold red")
    if not run.metrics:
        yield Text("waiting for the first logged step" if not run.ended else "no metrics were written", style="dim")
    entries = partial(_entries, run, width=width, ascii_only=ascii_only)
    names = [name for name in run.metrics if not name.endswith(_HIDDEN)]
    terms = sorted((n for n in names if n.startswith("train/")), key=lambda name: name != "train/loss")
    yield from entries("loss", {name.removeprefix("train/"): name for name in terms})
    yield from _probes(run, width, ascii_only)
    ranks = [name for name in names if name.startswith("collapse/") and name.endswith("/rank")]
    yield from entries("effective rank", {n.split("/")[1] if n.count("/") == 2 else "embedding": n for n in ranks})
    held_out = [name for name in names if name.startswith("val/")]
    yield from entries("held-out images", {name.removeprefix("val/"): name for name in held_out})
    if run.log:
        yield Text("log", style="bold")


def _progress(run: RunFiles, width: int, ascii_only: bool) -> Text:
    """Return the line of step, epoch, bar and time left."""
    status = run.status
    step = status.get("step", max((found[-1][0] for found in run.metrics.values()), default=0))
    steps, left, seconds = status.get("steps"), status.get("seconds_left"), status.get("seconds")
    if run.ended:
        step, seconds = run.summary.get("steps", step), run.summary.get("seconds")
        took = "" if seconds is None else f" in {clock(seconds)}"
        complete = run.summary.get("status") == "completed" or not steps
        return Text(f"step {step}" + ("" if complete else f" of {steps}") + took)
    text = f"epoch {status['epoch']}  " if "epoch" in status else ""
    text += f"step {step}" + (f"/{steps}" if steps else "")
    end = "" if left is None else f"{clock(left)} left"
    fraction = None
    if steps:
        fraction = step / steps
    elif left is not None and seconds:
        fraction = seconds / (seconds + left)  # a time budget
    if fraction is None:
        return Text(f"{text}  {end}".rstrip())
    text += f"  {100 * fraction:.0f} %  "
    return Text(text + bar(fraction, width - len(text) - len(end) - 2, ascii_only=ascii_only) + f"  {end}")


def _speed(run: RunFiles, width: int) -> list[str]:
    """Return speed, memory and the rates of the optimizer, in lines of at most `width`."""
    source = run.summary if run.ended else run.status
    parts = []
    if (rate := source.get("images_per_second")) is not None:
        parts.append(f"{rate:.1f} images/s")
    if (size := run.status.get("memory")) is not None:
        parts.append(f"peak {memory(size)}")
    for name, label in (("lr", "lr"), ("momentum", "momentum"), ("grad_norm", "grad norm")):
        if (value := run.last(f"train/{name}")) is not None:
            parts.append(f"{label} {value:.3g}")
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}   {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, part]
    return lines if parts else []


def _warnings(run: RunFiles) -> list[str]:
    """Return what is wrong with the run, in sentences."""
    if run.ended:
        collapse, notes = run.summary.get("collapse"), run.summary.get("notes")
        message = collapse.get("message") if isinstance(collapse, dict) else None
        found = [run.summary.get("error"), *(notes if isinstance(notes, list) else []), message]
    else:
        found = [run.status.get("warning")]
    return [str(text) for text in (run.problem, *found) if text]


def _entries(run: RunFiles, title: str, names: dict[str, str], *, width: int, ascii_only: bool) -> Iterator[Text]:
    """Yield a title and the metrics under it, as many beside each other as fit: name, last value, curve."""
    if not names:
        return
    yield Text(title, style="bold")
    beside = max(1, width // _ENTRY)
    each = width // beside
    labels = list(names)
    for i in range(0, len(labels), beside):
        line = Text()
        for label in labels[i : i + beside]:
            history = [value for _, value in run.metrics[names[label]]]
            room = each - 29
            line.append(f"{fitted(label, 17, ascii_only=ascii_only)} {short(history[-1]):>9} ")
            line.append(fitted(curve(history, room, ascii_only=ascii_only), room + 1), style="cyan")
        yield line


_TITLES = {"test": "{}", "online": "{}_online", "valid.": "{}_val", "untrained": "untrained_{}", "pixels": "pixels_{}"}
"""Columns of the probes, and the names of their metrics."""


def _probes(run: RunFiles, width: int, ascii_only: bool) -> Iterator[Text]:
    """Yield the accuracies beside those of the untrained encoder and of raw pixels (both on the test split)."""
    names = _probe_names(run)
    titles = [title for title in _TITLES if title != "online" or width >= 65]
    if names:
        yield Text(f"{'probes, %':<15}" + "".join(f"{title:>{_PROBE}}" for title in titles), style="bold")
    for name in names:
        head, probe = name.rsplit("/", 1)
        line = Text(fitted(f"{head.removeprefix('probe/')} {probe}", 15, ascii_only=ascii_only))
        for title in titles:
            metric = f"{head}/{_TITLES[title].format(probe)}"
            value = run.baselines.get(metric, run.last(metric))
            line.append(f"{'-' if value is None else f'{value:.1f}':>{_PROBE}}")
        history = [value for _, value in run.metrics.get(name, [])]
        room = width - 17 - _PROBE * len(titles)
        if room > 0:
            line.append("  " + curve(history, room, ascii_only=ascii_only), style="cyan")
        yield line


def _probe_names(run: RunFiles) -> list[str]:
    """Return the metrics of the test split, `probe/<set>/<probe>`: those with a baseline or a validation metric."""
    found = [name.replace("/untrained_", "/") for name in run.baselines if "/untrained_" in name]
    found += [name.removesuffix("_val") for name in run.metrics if name.startswith("probe/") and name.endswith("_val")]
    return sorted(dict.fromkeys(found))
