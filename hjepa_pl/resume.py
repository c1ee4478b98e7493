"""What a checkpoint must be for a run to go on from it, or to be judged."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hjepa_pl.refusals import first_line
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
    return checkpoint


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
