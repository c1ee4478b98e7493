"""Checks of all cells of a sweep before its first run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hjepa_pl.tools.arguments import sentence
from hjepa_pl.tools.dry_run import DryCLI, prepare, scratch_folder
from hjepa_pl.tools.sweep.grid import RESUME, Cell
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed


class Checked(NamedTuple):
    """What the checks have found out."""

    out: Path
    """Where the sweep goes if --out does not say it."""
    budgets: list[float | None]
    """Time budget of a run of each cell, in seconds."""


def check_cells(words: Sequence[str], cells: Sequence[Cell]) -> Checked:
    """Check every cell as `hjepa check` does.

    Args:
        words: The arguments of fit, without those of the cells.
        cells: All cells.

    Raises:
        ConfigError: If a cell is invalid or fixes the seed, if two are the same run, or if a file resumes one.
    """
    _check_files([word.removeprefix("--config=") for word in words if word.startswith("--config=")])
    seen: dict[str, Cell] = {}
    budgets: list[float | None] = []
    with scratch_folder() as scratch:
        for cell in cells:
            where = f"{cell.label}: " if cell.values else ""
            try:
                cli: DryCLI = prepare([*words, *cell.words], DryCLI, scratch)
                _check_config(cli)
                cli.load_embedded()
                cli.steps()
            except Exception as error:
                raise ConfigError(f"{where}{sentence(error)}") from None
            whole = cli._parser("fit").dump(cli.to_save)
            if whole in seen:
                raise ConfigError(
                    f"the cells {seen[whole].label} and {cell.label} are the same run; remove a value of the grid."
                )
            seen[whole] = cell
            budgets.append(getattr(cli.model, "budget", None))
    return Checked(Path(cli.results_dir) / f"{cli.to_save['experiment_name']}-sweep", budgets)


def _check_config(cli: Any) -> None:
    """Reject settings that make the seeds, or the results of the runs, void."""
    for part in ("model", "data"):
        seed = cli.to_save[part]["init_args"].get("seed")
        if seed is not None:
            raise ConfigError(f"invalid `{part}.seed={seed}`: all runs would have this seed; remove it.")
    if cli.to_save["trainer"]["fast_dev_run"]:
        raise ConfigError("invalid `trainer.fast_dev_run=true`: such a run has no results; set trainer.max_steps.")


def _check_files(paths: Sequence[str]) -> None:
    """Reject config files that resume a run: each run of the sweep would start from its checkpoint."""
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            merged |= yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError:
            return  # the parser names the line
    for key, free in (("ckpt_path", None), ("override", False)):
        if (value := merged.get(key, free)) != free:
            raise ConfigError(f"invalid `{key}={as_typed(value)}` in the config: {RESUME}")
