"""What a sweep consists of, stored in its folder as `sweep.json`."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hjepa_pl.tools.sweep.grid import Cell, cells_of
from hjepa_pl.types import ConfigError

STORE = "sweep.json"


class Run(NamedTuple):
    """One run of a sweep."""

    cell: Cell
    seed: int
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """The run's `summary.json`, empty without one."""
        try:
            return dict(json.loads((self.folder / "summary.json").read_text()))
        except FileNotFoundError:
            return {}

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, also by early stopping or the collapse monitor."""
        return self.summary.get("status") in ("completed", "diverged", "stopped")

    @property
    def log(self) -> Path:
        """The file with what the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.cell.label}, seed {self.seed}" if self.cell.values else f"seed {self.seed}"


class Plan(NamedTuple):
    """A sweep; all but the number of seeds is fixed once it has begun."""

    config: list[Any]
    """Contents of the config files, in their order."""
    keys: list[str]
    """The other words of fit."""
    grid: dict[str, list[str]]
    seeds: int

    @property
    def cells(self) -> list[Cell]:
        """The cells of the grid."""
        return cells_of(self.grid)

    @property
    def size(self) -> str:
        """The numbers of cells and seeds in words."""
        cells = len(self.cells)
        return f"{cells} cell{'s' * (cells > 1)} x {self.seeds} seed{'s' * (self.seeds > 1)}"

    def runs(self, out: Path) -> list[Run]:
        """Return all runs: every cell with seed 0, then with seed 1, so that the first comparison comes early."""
        return [Run(cell, seed, out / cell.run_name(seed)) for seed in range(self.seeds) for cell in self.cells]


def make_plan(words: list[str], grid: dict[str, list[str]], seeds: int) -> Plan:
    """Return the plan of a sweep.

    Args:
        words: The arguments of fit, as `read_words` returns them.
        grid: Values by key.
        seeds: Number of seeds.
    """
    configs = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    trees = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in configs]
    # As JSON stores it, to be compared with what has been stored.
    trees = json.loads(json.dumps(trees, default=str))
    return Plan(trees, [word for word in words if not word.startswith("--config=")], grid, seeds)


def load_plan(out: Path) -> Plan | None:
    """Return the plan that is stored in a folder; None if it has none.

    Raises:
        ConfigError: If the file is not that of a sweep.
    """
    try:
        stored = json.loads((out / STORE).read_text())["sweep"]
        return Plan(*(stored[field] for field in Plan._fields))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{out / STORE} is not the file of a sweep; choose another --out.") from None


def check_same(out: Path, plan: Plan) -> None:
    """Check that a folder is empty, or holds this sweep.

    Raises:
        ConfigError: If it holds another sweep, or something else.
    """
    earlier = load_plan(out) if out.is_dir() else None
    if earlier is None:
        if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
            raise ConfigError(f"invalid `--out={out}`: it holds something else than a sweep; choose another folder.")
        return
    differ = [name for name in ("config", "keys", "grid") if getattr(earlier, name) != getattr(plan, name)]
    if list(earlier.grid.items()) != list(plan.grid.items()) and not differ:
        differ = ["order of the grid"]
    if differ:
        raise ConfigError(
            f"invalid `--out={out}`: it holds another sweep (its {' and '.join(differ)} differ); choose another folder."
        )


LOCK = ".lock"
"""A file that is locked while a sweep works in its folder."""
