"""The JSON and the table of the GPU benchmark, written anew after every part."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hjepa_pl.callbacks.provenance import git_hash, versions
from hjepa_pl.utils.atomic_file import atomic_write


def now() -> str:
    """Return the date and time."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the machine: GPUs, driver, CPU cores, versions. Uses the GPU."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {"gpus": gpus, "driver": _driver() if gpus else None, "cuda": torch.version.cuda if gpus else None}
    return found | {"cores": os.cpu_count(), "system": platform.platform(), "versions": versions()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


class Record:
    """The results so far.

    Args:
        path: The JSON; what it holds is kept.
        table: The Markdown file.
        names: All parts, in the order of the table.
    """

    def __init__(self, path: Path, table: Path, names: list[str]) -> None:
        self.path, self.table, self.names = path, table, names
        self.found: dict[str, Any] = {"machine": None, "miniature": None, "starts": [], "parts": {}}
        if path.exists():
            self.found = json.loads(path.read_text())

    @property
    def parts(self) -> dict[str, Any]:
        """The finished parts."""
        return self.found["parts"]

    def begin(self, machine: dict[str, Any], miniature: bool, minutes: float) -> str | None:
        """Note a start; return in one sentence why the file cannot be continued, or None."""
        old = self.found["machine"]
        if old is not None and (old["gpus"], self.found["miniature"]) != (machine["gpus"], miniature):
            return f"{self.path} was measured on other GPUs, or in miniature; choose another --out."
        self.found |= {"machine": machine, "miniature": miniature}
        command = " ".join(["python", *sys.argv])
        self.found["starts"].append({"date": now(), "command": command, "commit": git_hash(), "minutes": minutes})
        self.write()
        return None

    def add(self, name: str, rows: dict[str, Any], error: str | None, seconds: float) -> None:
        """Add a finished part."""
        start = self.found["starts"][-1]
        about = {"date": now(), "commit": start["commit"], "seconds": round(seconds, 1)}
        self.parts[name] = {"rows": rows, "error": error, **about}
        self.write()

    def write(self) -> None:
        """Write both files."""
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.found, indent=1) + "\n")
        with atomic_write(self.table) as file:
            file.write("\n".join(self.lines()) + "\n")

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        found, start = self.found["machine"], self.found["starts"][-1]
        where = ", ".join(found["gpus"]) + f", driver {found['driver']}" if found["gpus"] else "no GPU"
        lines = [
            f"{where}, {found['cores']} CPU cores, torch {found['versions']['torch']}, commit {start['commit']}, "
            f"{start['date'][:10]}{', in miniature' if self.found['miniature'] else ''}: `{start['command']}`",
            "", "| part | measured | figures | seconds |", "|---|---|---|---|",
        ]  # fmt: skip
        for name in self.names:
            part = self.parts.get(name)
            if part is None:
                lines.append(f"| {name} | | left for the next start | |")
                continue
            rows = list(part["rows"].items())
            if part["error"] is not None:
                rows.append(("", f"failed: {part['error']}"))
            for i, (row, figures) in enumerate(rows):
                lines.append(f"| {'' if i else name} | {row} | {_text(figures)} | {'' if i else part['seconds']} |")
        return lines


def _text(figures: Any) -> str:
    if isinstance(figures, str):
        return figures.replace("|", "/")
    return ", ".join(f"{name} {_number(value)}" for name, value in figures.items()).replace("|", "/")


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
