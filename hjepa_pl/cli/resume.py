"""Checks of the checkpoint that a run resumes from, or that is evaluated."""

import re
import traceback
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch

from hjepa_pl.cli.errors import first_line
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

_FREE = re.compile(
    r"time_budget|compile|encoder\.attention|(encoder|predictor)\.(grad_checkpointing|checkpoint_every)$"
)
"""Model settings that a resumed run may change: they affect time and memory, not what is computed."""
_SHAPES = re.compile(
    r"encoder\.(?!drop_path_rate)|levels(?!\[\d+\]\.(weight|masked_view|compare|keep))|predictor\.(?!targets)|projector"
    r"|pyramid(?!\.weight)|masks\.strategy|ema$"
)
"""Settings on which the shapes or the meaning of the weights depend: they cannot be overridden."""

HELD_OUT = ("holdout", "held_out", "seed", "datasets")
"""Settings of the data that decide which images are held out: with a holdout they cannot be overridden."""

COMPLETE = "the run is already complete"
"""Beginning of the message for a checkpoint at the end of its run."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint, its tensors memory-mapped.

    Raises:
        ConfigError: If it cannot be read, is damaged, or is not a checkpoint of this package.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigError(f"ckpt_path {path} cannot be read as a checkpoint: {first_line(error)}.") from None
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict", "loops"} <= checkpoint.keys():
        raise ConfigError(
            f"ckpt_path {path} is not a checkpoint of this package; use a .ckpt file that `hjepa fit` wrote."
        )
    defect = _defect(checkpoint)
    if defect is not None:
        raise ConfigError(f"ckpt_path {path} {defect}; use another checkpoint.")
    return checkpoint


def _defect(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the first defect in the parts of a checkpoint that every command reads."""
    for key in ("hyper_parameters", "state_dict", "loops", "hjepa_data", "hjepa_trainer", "callbacks"):
        if not isinstance(checkpoint.get(key, {}), Mapping):
            return f"is damaged: its '{key}' is not a mapping"
    version = str(checkpoint.get("pytorch-lightning_version", "0"))
    written, present = ([int(n) for n in re.findall(r"\d+", v)[:2]] for v in (version, installed("lightning")))
    if written > present:
        return f"was written by Lightning {version}, which is newer than the installed {'.'.join(map(str, present))}"
    for name, x in checkpoint["state_dict"].items():
        if not isinstance(x, torch.Tensor):
            return f"is damaged: '{name}' in its state_dict is not a tensor"
        if x.is_floating_point() and not torch.isfinite(x).all():
            return f"has weights that are not finite ({name})"
    return None


def check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the loop counters and the optimizer state that a resumed run needs.

    Raises:
        ConfigError: If one is missing or has another type.
    """
    epochs = _at(checkpoint, "loops", "fit_loop", "epoch_progress", "total", "processed")
    batches = _at(checkpoint, "loops", "fit_loop", "epoch_loop.batch_progress", "total", "processed")
    parts = {
        "global_step": isinstance(checkpoint.get("global_step"), int),
        "the counters of its loops": isinstance(epochs, int) and isinstance(batches, int),
        "an optimizer state in the shapes of its weights": _has_moments(checkpoint),
    }
    missing = [name for name, valid in parts.items() if not valid]
    if missing:
        raise ConfigError(
            f"ckpt_path: the checkpoint lacks {missing[0]}, so training cannot be resumed from it; use one that "
            "`hjepa fit` wrote (this one is enough for hjepa validate)."
        )


def _has_moments(checkpoint: Mapping[str, Any]) -> bool:
    """Return True if there is one optimizer and its moments have the shapes of weights, each used at most once."""
    states = checkpoint.get("optimizer_states")
    optimizer = states[0] if isinstance(states, list) and len(states) == 1 else None
    state = _at(optimizer, "state")
    if not isinstance(state, Mapping) or not state or not isinstance(_at(optimizer, "param_groups"), list):
        return False
    weights, shapes = Counter(x.shape for x in checkpoint["state_dict"].values()), Counter[torch.Size]()
    for of_weight in state.values():
        found = {x.shape if isinstance(x, torch.Tensor) else None for x in _moments(of_weight)}
        shape = found.pop()
        if shape is None or found:
            return False
        shapes[shape] += 1
    return shapes <= weights


def _moments(of_weight: Any) -> list[Any]:
    """Return AdamW's two moments of a weight, or Muon's one; None for one that is missing."""
    muon = _at(of_weight, "momentum_buffer")
    return [_at(of_weight, "exp_avg"), _at(of_weight, "exp_avg_sq")] if muon is None else [muon]


def restore_error(error: BaseException, path: Path) -> ConfigError | None:
    """Return an error of Lightning in restoring a checkpoint as a ConfigError; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.filename.endswith("checkpoint_connector.py") for frame in frames):
        return None
    text = " ".join(str(error).split())[:200].rstrip(".")
    return ConfigError(f"ckpt_path {path} is damaged ({type(error).__name__}: {text}); use another checkpoint.")


def _at(tree: Any, *keys: str) -> Any:
    """Return the value at a path of keys in nested mappings, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def check_incomplete(checkpoint: Mapping[str, Any], max_epochs: int | None, max_steps: int | None) -> None:
    """Check that a resumed run has steps left: Lightning would return at once, as if it had trained.

    Raises:
        ConfigError: If the checkpoint is at `max_epochs` or `max_steps`.
    """
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"]
    limits = {"max_epochs": (max_epochs, epochs), "max_steps": (max_steps, checkpoint["global_step"])}
    for key, (limit, done) in limits.items():
        if limit is not None and 0 < limit <= done:
            raise ConfigError(f"invalid `trainer.{key}={limit}`: {COMPLETE}; raise it to train longer.")


def check_same_settings(old: Mapping[str, Any], new: Mapping[str, Any], *, override: bool) -> None:
    """Check that the settings are those of a checkpoint.

    Args:
        old: Nested settings of the checkpoint.
        new: Nested settings of this run.
        override: Accept other settings, unless the weights or the held-out images depend on them.

    Raises:
        ConfigError: If they differ; the message lists the first six differences.
    """
    was, now = dict(_flatten(old)), dict(_flatten(new))
    keys = [k for k in (was | now) if was.get(k) != now.get(k) and not _FREE.match(k)]
    held = [f"data.{key}" for key in HELD_OUT] if now.get("data.holdout") else []
    fixed = [k for k in keys if _SHAPES.match(k) or k.startswith(tuple(held))]
    if not keys or (override and not fixed):
        return
    keys = fixed or keys
    listed = "; ".join(f"{k} was {as_typed(was.get(k))}, is {as_typed(now.get(k))}" for k in keys[:6])
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    way = "" if fixed else ", or --override=true to resume with the new ones"
    raise ConfigError(
        f"the checkpoint was made with other settings: {listed}{more}; use the run's own config (config.yaml in the "
        f"folder above the checkpoints){way}."
    )


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dicts and lists with dotted keys."""
    if isinstance(tree, dict) and tree:
        return [x for k, v in tree.items() for x in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        return [x for i, v in enumerate(tree) for x in _flatten(v, f"{prefix}[{i}]")]
    return [(prefix, tree)]


def find_checkpoint(path: str, run: Path) -> Path:
    """Return the path of a checkpoint.

    Args:
        path: `ckpt_path`: last, best, a file or the folder of a run.
        run: Folder of the run that the config names.

    Raises:
        ConfigError: If there is no such file; the message lists the checkpoints nearby.
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
    names = sorted(p.name for p in near.glob("*.ckpt"))
    if path in ("last", "best") and not names:
        hint = "nothing has been saved yet; start without --ckpt_path"
    else:
        hint = f"{near} has {', '.join(names)}" if names else "check the path"
    raise ConfigError(f"ckpt_path {path}: there is no file {found}; {hint}.")


def _best(checkpoint: dict[str, Any], path: str) -> str:
    """Return the name of the best checkpoint when the last one was written."""
    for key, state in checkpoint.get("callbacks", {}).items():
        if "[best-" in key and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    raise ConfigError(
        f"ckpt_path {path}: the run has no best checkpoint, since it has no probe set and no data.holdout; use last."
    )
