"""Which file a ckpt_path means: a checkpoint, a run's folder, or `last` or `best` of the run."""

from pathlib import Path
from typing import Any

from hjepa_pl.resume import read_checkpoint
from hjepa_pl.types import ConfigError


def find_checkpoint(path: str, run: Path) -> Path:
    """Return the checkpoint that a ckpt_path names.

    Args:
        path: As it was given.
        run: Folder of the run that the config names.

    Raises:
        ConfigError: If there is none; the sentence names those that there are.
    """
    if path in ("last", "best"):
        folder = run / "checkpoints"
        found = folder / "last.ckpt"
        if path == "best" and found.is_file():
            found = folder / _best(read_checkpoint(found), path)
    else:
        folder = Path(path) / "checkpoints" if (Path(path) / "checkpoints").is_dir() else Path(path)
        found = folder / "last.ckpt" if folder.is_dir() else Path(path)
    if found.is_file():
        return found
    near = folder if folder.is_dir() else run / "checkpoints"
    there = sorted(p.name for p in near.glob("*.ckpt"))
    if path in ("last", "best") and not there:
        hint = "nothing was saved yet; start without --ckpt_path"
    else:
        hint = f"in {near} there are {', '.join(there)}" if there else "check the path"
    raise ConfigError(f"ckpt_path '{path}': there is no file {found}; {hint}.")


def _best(checkpoint: dict[str, Any], path: str) -> str:
    """Return the name of the checkpoint that ranked first when the last one was written."""
    for key, state in checkpoint.get("callbacks", {}).items():
        if "[best-" in key and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    raise ConfigError(f"ckpt_path '{path}': the run ranked no checkpoint (it has no probe); take last.")
