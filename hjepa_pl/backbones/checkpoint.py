"""What a checkpoint of a run holds of its encoders, read without Lightning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.backbones.backbone import Branch
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

ROOTS: dict[Branch, str] = {"target": "target_encoder.", "online": "context_encoder."}
"""Beginning of the names of a branch's weights."""


class Weights(NamedTuple):
    """An encoder as it is stored."""

    encoder: Mapping[str, Any]
    """Fields of its `EncoderConfig`."""
    state: dict[str, Tensor]
    """Its weights, by their names in the encoder."""
    branch: Branch
    mean: tuple[float, ...] | None
    """None for the default of the data."""
    std: tuple[float, ...] | None
    metadata: dict[str, Any]
    """See `Backbone.metadata`."""


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint of a path: the file itself, or last.ckpt of a run's folder or of its `checkpoints`.

    Raises:
        ConfigError: If there is none.
    """
    if not path.is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (folder / "last.ckpt").is_file():
        return folder / "last.ckpt"
    names = sorted(p.name for p in folder.glob("*.ckpt"))
    hint = f"name one of {', '.join(names)}" if names else "use the folder of a run, or a checkpoint"
    raise ConfigError(f"{path} has no checkpoints/last.ckpt; {hint}.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a Lightning checkpoint of this package, its tensors memory-mapped.

    Raises:
        ConfigError: If it cannot be read, is damaged, or is of another program.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise ConfigError(f"{path} cannot be read as a checkpoint ({reason}); use another.") from None
    content = content if isinstance(content, dict) else {}
    settings, state = content.get("hyper_parameters"), content.get("state_dict")
    if not isinstance(settings, Mapping) or "encoder" not in settings or not isinstance(state, Mapping):
        raise ConfigError(f"{path} is not a checkpoint of hjepa_pl; use a .ckpt file that `hjepa fit` wrote.")
    return content


def read_weights(path: Path, branch: Branch | None = None) -> Weights:
    """Return an encoder of a checkpoint.

    Args:
        path: The file.
        branch: Which encoder; None is the target encoder, or the online one where there is no other.

    Raises:
        ConfigError: As `read_checkpoint`, or if the model has no such branch.
    """
    content = read_checkpoint(path)
    state = content["state_dict"]
    present = [name for name, root in ROOTS.items() if any(str(key).startswith(root) for key in state)]
    if not present:
        raise ConfigError(f"{path} has no encoder among its weights; use a .ckpt file that `hjepa fit` wrote.")
    if branch is not None and branch not in present:
        raise ConfigError(
            f"invalid `branch={as_typed(branch)}`: the model of {path} has no {branch} encoder; use {present[0]}."
        )
    chosen = branch or present[0]
    root = ROOTS[chosen]
    own = {key.removeprefix(root): value for key, value in state.items() if key.startswith(root)}
    data = content.get("hjepa_data") or {}
    mean, std = (None if data.get(key) is None else tuple(data[key]) for key in ("mean", "std"))
    return Weights(content["hyper_parameters"]["encoder"], own, chosen, mean, std, _metadata(content, path))


def _metadata(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what is known of a checkpoint's run, as plain values."""
    summary = run_summary(path)
    versions = {"lightning": content.get("pytorch-lightning_version"), **((summary or {}).get("versions") or {})}
    return {
        "hyper_parameters": dict(content["hyper_parameters"]),
        "data": content.get("hjepa_data"),
        "trainer": content.get("hjepa_trainer"),
        "epoch": content.get("epoch"),
        "global_step": content.get("global_step"),
        "checkpoint": str(path),
        "versions": versions,
        "summary": summary,
    }


def run_summary(path: Path) -> dict[str, Any] | None:
    """Return summary.json of the run that a checkpoint lies in; None if there is none, or it cannot be read."""
    file = path.absolute().parent.parent / "summary.json"
    if path.absolute().parent.name != "checkpoints" or not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
