"""What a checkpoint must be for a run to go on from it, or to be judged."""

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

_FREE = re.compile(
    r"time_budget|compile|encoder\.attention|(encoder|predictor)\.(grad_checkpointing|checkpoint_every)$"
)
"""Model settings that a resumed run may change: they say how long and in how much memory, not what is computed."""
_SHAPES = re.compile(
    r"encoder\.(?!drop_path_rate)|levels(?!\[\d+\]\.(weight|masked_view|compare))|predictor\.(?!targets)|projector"
    r"|pyramid(?!\.weight)|masks\.strategy|ema$"
)
"""Settings that the weights' shapes or meaning hang on: no override helps there."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's contents, its tensors mapped and not read.

    Raises:
        ConfigError: If it cannot be read, or is none of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigError(f"ckpt_path '{path}' cannot be read as a checkpoint: {first_line(error)}.") from None
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict", "loops"} <= checkpoint.keys():
        raise ConfigError(f"ckpt_path '{path}' is not a checkpoint of this package; give a .ckpt that it wrote.")
    wrong = _first_wrong(checkpoint)
    if wrong is not None:
        raise ConfigError(f"ckpt_path '{path}' {wrong}; give another checkpoint.")
    return checkpoint


def _first_wrong(checkpoint: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parts of a checkpoint that every command reads."""
    for key in ("hyper_parameters", "state_dict", "loops", "hjepa_data", "hjepa_trainer", "callbacks"):
        if not isinstance(checkpoint.get(key, {}), Mapping):
            return f"is damaged: its '{key}' is no mapping"
    version = str(checkpoint.get("pytorch-lightning_version", "0"))
    made, here = ([int(n) for n in re.findall(r"\d+", v)[:2]] for v in (version, installed("lightning")))
    if made > here:
        return f"was written by Lightning {version}, which is newer than the installed {'.'.join(map(str, here))}"
    for name, x in checkpoint["state_dict"].items():
        if not isinstance(x, torch.Tensor):
            return f"is damaged: '{name}' in its state_dict is no tensor"
        if x.is_floating_point() and not torch.isfinite(x).all():
            return f"holds weights that are not finite ({name})"
    return None


def refuse_unfit(checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume from a checkpoint without what a run goes on with, or whose parts have other types.

    Raises:
        ConfigError: Naming the first such part.
    """
    epochs = _at(checkpoint, "loops", "fit_loop", "epoch_progress", "total", "processed")
    batches = _at(checkpoint, "loops", "fit_loop", "epoch_loop.batch_progress", "total", "processed")
    parts = {
        "global_step": isinstance(checkpoint.get("global_step"), int),
        "the counters of its loops": isinstance(epochs, int) and isinstance(batches, int),
        "the optimizer's state in the shapes of its weights": _has_adam(checkpoint),
    }
    lacking = [name for name, there in parts.items() if not there]
    if lacking:
        raise ConfigError(
            f"ckpt_path: the checkpoint lacks {lacking[0]}, without which a run would start anew half-way; give one "
            "that `hjepa fit` wrote (validate, test and predict take this one)."
        )


def _has_adam(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether there is one optimizer whose moments have the shapes of weights, each weight's at most once."""
    states = checkpoint.get("optimizer_states")
    optimizer = states[0] if isinstance(states, list) and len(states) == 1 else None
    state = _at(optimizer, "state")
    if not isinstance(state, Mapping) or not state or not isinstance(_at(optimizer, "param_groups"), list):
        return False
    weights = Counter(x.shape for x in checkpoint["state_dict"].values())
    moments = [[_at(of_weight, key) for of_weight in state.values()] for key in ("exp_avg", "exp_avg_sq")]
    return all(isinstance(x, torch.Tensor) for xs in moments for x in xs) and all(
        Counter(x.shape for x in xs) <= weights for xs in moments
    )


def misfit(error: BaseException, path: Path) -> ConfigError | None:
    """Return the refusal of a checkpoint that Lightning failed to restore; None for an error from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.filename.endswith("checkpoint_connector.py") for frame in frames):
        return None
    said = " ".join(str(error).split())[:200].rstrip(".")
    return ConfigError(f"ckpt_path '{path}' is damaged ({type(error).__name__}: {said}); give another checkpoint.")


def _at(tree: Any, *keys: str) -> Any:
    """Return what lies at the end of a path of keys; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def refuse_complete(checkpoint: Mapping[str, Any], max_epochs: int | None, max_steps: int | None) -> None:
    """Refuse to resume a run that is over: Lightning would return at once, as if it had trained."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"]
    limits = {"max_epochs": (max_epochs, epochs), "max_steps": (max_steps, checkpoint["global_step"])}
    for key, (limit, done) in limits.items():
        if limit is not None and 0 < limit <= done:
            raise ConfigError(f"the run is already complete at trainer.{key} {limit}; raise it to train on.")


def refuse_other_settings(old: Mapping[str, Any], new: Mapping[str, Any], *, override: bool) -> None:
    """Refuse to go on with settings other than a checkpoint's.

    Args:
        old: Nested settings that the checkpoint was made with.
        new: Those of this run.
        override: Whether to go on all the same, where the weights fit.
    """
    was, now = dict(_flatten(old)), dict(_flatten(new))
    keys = [k for k in (was | now) if was.get(k) != now.get(k) and not _FREE.match(k)]
    shapes = [k for k in keys if _SHAPES.match(k)]
    if not keys or (override and not shapes):
        return
    keys = shapes or keys
    listed = "; ".join(f"{k} was {was.get(k)!r}, is {now.get(k)!r}" for k in keys[:6])
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    way = "" if shapes else ", or --override=true to go on with the new ones"
    raise ConfigError(
        f"the checkpoint was made with other settings: {listed}{more}; give the same config (it is config.yaml beside "
        f"the checkpoint's folder){way}."
    )


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dicts and lists with dotted keys."""
    if isinstance(tree, dict) and tree:
        return [x for k, v in tree.items() for x in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        return [x for i, v in enumerate(tree) for x in _flatten(v, f"{prefix}[{i}]")]
    return [(prefix, tree)]


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
