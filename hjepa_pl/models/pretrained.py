"""A start from weights that exist: timm's own for a name, or a file with the state dict of a timm ViT."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import load_state_dict
from torch import Tensor

from hjepa_pl.functional.tokens import sincos_positions
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.types import ConfigError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HEADS = ("head.", "head_dist.", "attn_pool.", "pre_logits.")
"""What sits on the pooled features: no encoder here has it, so it is left out without a word."""
_LONE_TOKENS = ("cls_token", "dist_token")
"""Tokens of a classifier, which the encoders here do without; they stand before the registers."""
_OTHER_NAME = "give the encoder.name of the model that it is of"
_weights_follow = ContextVar("weights_follow", default=False)

Grid = tuple[int, int]


@contextmanager
def weights_follow(they_do: bool = True) -> Iterator[None]:
    """Make encoders without reading what `pretrained` names: their weights follow, from a checkpoint.

    The setting stays in the checkpoint, as provenance; the file may be gone by then.
    """
    token = _weights_follow.set(they_do)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def load_pretrained(vit: Any, config: EncoderConfig) -> None:
    """Give a timm model the weights that `config.pretrained` names, to the bit.

    Heads are left out; so are a class token and its position, with a warning. Positions of another grid are resampled
    by timm's function; a final norm that the source keeps behind its pooling (`fc_norm`) becomes that of the tokens.
    The number of heads and `rope_theta` leave no trace in most files: they are the config's.

    Args:
        vit: The model, its fixed positions in place; changed in place.
        config: What it was made of. Without `pretrained`, and inside `weights_follow`, nothing is done.

    Raises:
        ConfigError: If there is no such file or download, or its weights are of another shape or kind.
    """
    if not config.pretrained or _weights_follow.get():
        return
    label, grid = f"encoder.pretrained {config.pretrained!r}", None
    if config.pretrained is True:
        label = "encoder.pretrained true"
        state, grid = _download(str(config.name))
    else:
        state = _read(config.pretrained)
    state = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
    remarks = _take_over_norm(state)
    lone = [k for k in _LONE_TOKENS if k in state and k not in vit.state_dict()]
    tokens = {k: state[k].shape[1] for k in (*_LONE_TOKENS, "reg_token") if k in state}
    for key in lone:
        del state[key]
    if lone:
        remarks.append(f"{' and '.join(lone)} left out with its position, for the encoder has none")
    _check_shapes(label, vit.state_dict(), state, config)
    if vit.pos_embed is not None:
        state["pos_embed"] = _positions(label, vit, state["pos_embed"], tokens, grid, config)
    vit.load_state_dict(state, strict=True)
    if remarks:
        warnings.warn(f"{label}: {'; '.join(remarks)}.", stacklevel=2)


def _download(name: str) -> tuple[dict[str, Tensor], Grid]:
    """Return timm's weights for a name, and the grid that their positions lie on."""
    native: Any
    try:
        native = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever hub, proxy or disk may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"encoder.pretrained true: timm's weights for '{name}' cannot be had ({reason}); connect to the network, "
            "or give the path of a file that holds them."
        ) from None
    return native.state_dict(), native.patch_embed.grid_size


def _read(path: str) -> dict[str, Tensor]:
    """Return the state dict in a file."""
    if not path.endswith(_SUFFIXES):
        raise ConfigError(
            f"encoder.pretrained {path!r} is no file of weights; give true (timm's own), false (none), or the path "
            f"of a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file."
        )
    if not Path(path).is_file():
        raise ConfigError(
            f"encoder.pretrained {path!r}: there is no such file; check the path, or go on from a checkpoint of the "
            "run, which needs no file."
        )
    try:
        state = load_state_dict(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"encoder.pretrained {path!r} cannot be read ({reason}); give the state dict of a timm model."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"encoder.pretrained {path!r} holds no state dict; give that of a timm model.")
    return state


def _take_over_norm(state: dict[str, Tensor]) -> list[str]:
    """Drop the norm behind the pooling, or make it the tokens' where they have none; return what was done."""
    moved = "norm.weight" not in state and "fc_norm.weight" in state
    for part in ("weight", "bias"):
        norm = state.pop(f"fc_norm.{part}", None)
        if moved and norm is not None:
            state[f"norm.{part}"] = norm
    return ["fc_norm, which normalised the pooled features, now normalises the tokens"] if moved else []


def _check_shapes(label: str, ours: dict[str, Tensor], theirs: dict[str, Tensor], config: EncoderConfig) -> None:
    """Refuse another kind of positions, and the first tensor that one side lacks or that has another shape."""
    if ("pos_embed" in ours) != ("pos_embed" in theirs):
        kind = ("a table of positions (pos_embed)", "none") if "pos_embed" in theirs else ("no pos_embed", "a table")
        set_to = "learned" if "pos_embed" in theirs else "rope_mixed" if "rope.freqs" in theirs else "rope"
        mend = _OTHER_NAME if config.name else f"set encoder.position {set_to}, if that is the model's"
        raise ConfigError(f"{label} holds {kind[0]} and the encoder has {kind[1]}; {mend}.")
    # The patch embedding first: it tells width, patch and channels apart.
    for key in sorted(ours, key=lambda k: k != "patch_embed.proj.weight"):
        if key not in theirs:
            raise ConfigError(f"{label} lacks {key}, which the encoder has; {_mend(key, theirs, config)}.")
        # Positions may be of another number, they are resampled.
        is_table, there, here = key == "pos_embed", tuple(theirs[key].shape), tuple(ours[key].shape)
        if (there[2:], len(there)) != (here[2:], 3) if is_table else there != here:
            raise ConfigError(
                f"{label} is of another shape: {key} is {there} there and {here} in the encoder; "
                f"{_mend(key, theirs, config)}."
            )
    extra = next((k for k in theirs if k not in ours), None)
    if extra is not None:
        raise ConfigError(f"{label} holds {extra}, which the encoder has no place for; {_mend(extra, theirs, config)}.")


def _mend(key: str, theirs: dict[str, Tensor], config: EncoderConfig) -> str:
    """Return what to set so that a tensor fits."""
    depth = 1 + max((int(k.split(".")[1]) for k in theirs if k.startswith("blocks.")), default=-1)
    if key == "rope.freqs" and config.name is None:
        if key in theirs and config.position == "rope_mixed":
            return f"set encoder.num_heads {theirs[key].shape[2]} and depth {depth}"
        return f"set encoder.position {'rope_mixed' if key in theirs else 'rope'}"
    if key == "reg_token":
        return f"set encoder.reg_tokens {theirs[key].shape[1] if key in theirs else 0}"
    if ".ls1." in key or ".ls2." in key or ".gamma_" in key:
        return "set encoder.init_values, to any value" if key in theirs else "remove encoder.init_values"
    if ".q_norm." in key or ".k_norm." in key:
        return f"set encoder.qk_norm {str(key in theirs).lower()}"
    if key == "patch_embed.proj.weight" and key in theirs and theirs[key].ndim == 4:
        width, channels, patch, _ = theirs[key].shape
        found = {"in_chans": channels, "patch_size": patch}
        if config.name is None:
            found["embed_dim"] = width
        now = {
            "in_chans": config.in_chans,
            "patch_size": config.patch_size or (16 if config.name is None else patch),
            "embed_dim": config.architecture[0],
        }
        wrong = [f"encoder.{k} {v}" for k, v in found.items() if now[k] != v]
        return f"set {' and '.join(wrong)}" if wrong else _OTHER_NAME
    if config.name is None and key.startswith("blocks.") and depth and depth != config.architecture[1]:
        return f"set encoder.depth {depth}"
    return _OTHER_NAME


def _positions(
    label: str, vit: Any, table: Tensor, tokens: dict[str, int], grid: Grid | None, config: EncoderConfig
) -> Tensor:
    """Return the encoder's table from another of the same width: its patches resampled, its registers' rows kept.

    Args:
        label: The source, for messages.
        vit: The model that the table is for.
        table: (1, tokens before the patches + patches, D), or without the first where they have no position.
        tokens: How many tokens of each kind stand before the patches at the source.
        grid: The source's grid; None where only the number of positions is known.
        config: What the encoder was made of.
    """
    own: Grid = tuple(vit.patch_embed.grid_size)
    before = sum(tokens.values())
    for prefix in dict.fromkeys((before, 0)):
        found = _grids(table.shape[1] - prefix, own) if grid is None else [grid]
        found = [(h, w) for h, w in found if h * w == table.shape[1] - prefix]
        if found:
            break
    if len(found) != 1:
        what = "which may be " + " or ".join(f"{h} x {w}" for h, w in found) if found else "which form no square"
        raise ConfigError(
            f"{label} holds {table.shape[1]} positions, {what}; set an encoder.img_size that "
            f"{'has another number of patches' if found else 'has as many patches'}."
        )
    patches, registers = table[:, prefix:], tokens.get("reg_token", 0)
    if config.position == "sincos":
        _check_fixed(label, patches[0], found[0])
    patches = resample_abs_pos_embed(patches, list(own), list(found[0]), num_prefix_tokens=0)
    room = vit.pos_embed.shape[1] - own[0] * own[1]
    if room != (registers if prefix else 0):
        raise ConfigError(
            f"{label}: its register tokens have {'' if prefix else 'no '}positions and the encoder's have "
            f"{'' if room else 'none'}; {_OTHER_NAME}."
        )
    return torch.cat([table[:, prefix - room : prefix], patches], dim=1)


def _check_fixed(label: str, table: Tensor, grid: Grid) -> None:
    """Refuse a table of positions that is not the sine-cosine one, up to what the file's dtype rounds off."""
    gap = (table.float() - sincos_positions(grid, table.shape[1])).abs().max().item()
    if not gap <= max(1e-4, torch.finfo(table.dtype).eps):
        raise ConfigError(
            f"{label} holds positions that differ by up to {gap:.2g} from the fixed sine-cosine table, which "
            "encoder.position 'sincos' keeps; set encoder.position learned."
        )


def _grids(count: int, own: Grid) -> list[Grid]:
    """Return the grids that so many positions may lie on: the encoder's own, or a square."""
    side = math.isqrt(max(count, 0))
    found = [own] if own[0] * own[1] == count else []
    return list(dict.fromkeys([*found, *([(side, side)] if side and side * side == count else [])]))
