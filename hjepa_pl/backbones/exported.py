"""Files of `hjepa export` that hold weights: their header says which encoder they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hjepa_pl.backbones.backbone import Backbone, Branch
from hjepa_pl.backbones.checkpoint import ROOTS, Weights, reason
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import to_plain
from hjepa_pl.utils.wording import as_typed

HEADER = "hjepa_pl"
"""Key of the header in a file's metadata; its value is JSON."""
TIMM_ROOT = "vit."
"""Beginning, in the encoder, of the names of weights that are stored under timm's names."""


def header_of(backbone: Backbone, **more: Any) -> dict[str, Any]:
    """Return what a file says of its encoder: architecture, geometry, normalization, and the run without paths.

    Args:
        backbone: The encoder.
        more: Further entries.
    """
    geometry = {key: getattr(backbone, key) for key in ("img_size", "grid", "patch_size", "in_chans", "embed_dim")}
    plain = to_plain(
        {
            "encoder": backbone.config,
            "branch": backbone.branch,
            **geometry,
            "mean": backbone.mean,
            "std": backbone.std,
            **more,
            "metadata": backbone.metadata,
        }
    )
    return _without_paths(plain)


def _without_paths(tree: Any) -> Any:
    """Return plain values with the last part of each absolute path: a file is published, a home folder is not."""
    if isinstance(tree, Mapping):
        return {str(key): _without_paths(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_paths(value) for value in tree]
    is_path = isinstance(tree, str) and len(tree) < 4096 and Path(tree).is_absolute()
    return Path(tree).name if is_path else tree


def read_exported(path: Path, branch: Branch | None = None) -> Weights:
    """Return the encoder in a .safetensors file of `hjepa export`.

    Args:
        path: The file.
        branch: Which encoder; None is the one that was exported.

    Raises:
        ConfigError: If the file cannot be read, is of another program, or does not hold the branch.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get(HEADER, "null"))
            state = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as a safetensors file ({reason(error)}); export it again.") from None
    needed = ("encoder", "branch", "names", "mean", "std", "metadata")
    if not isinstance(header, dict) or not all(key in header for key in needed):
        raise ConfigError(
            f"{path} was not written by `hjepa export`, so its architecture is unknown; use it as the initial weights "
            "of a run (encoder.pretrained)."
        )
    chosen = branch or header["branch"]
    own = _of_branch(state, chosen, header["names"])
    if not own or (header["names"] == "timm" and chosen != header["branch"]):
        raise ConfigError(
            f"invalid `branch={as_typed(chosen)}`: {path} holds the {header['branch']} encoder only; use that, or the "
            "checkpoint."
        )
    mean, std = tuple(header["mean"]), tuple(header["std"])
    return Weights(header["encoder"], own, chosen, mean, std, header["metadata"])


def _of_branch(state: Mapping[str, Tensor], branch: Branch, names: str) -> dict[str, Tensor]:
    """Return the weights of an encoder by their names in it; they are stored under timm's names or a checkpoint's."""
    if names == "timm":
        return {TIMM_ROOT + name: x for name, x in state.items()}
    root = ROOTS[branch]
    return {name.removeprefix(root): x for name, x in state.items() if name.startswith(root)}
