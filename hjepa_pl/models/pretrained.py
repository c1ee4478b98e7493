"""Pretrained weights: timm's own, or a file with the state dict of a timm ViT."""

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
from hjepa_pl.utils.settings import invalid

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HEADS = ("head.", "head_dist.", "attn_pool.", "pre_logits.")
"""Prefixes of layers on the pooled features, which are ignored."""
_CLASS_TOKENS = ("cls_token", "dist_token")
"""Tokens of a classifier, in front of the registers; ignored with a warning."""
_KEY = "encoder.pretrained"
_SET_NAME = "set encoder.name to the model of the weights"
_skipped = ContextVar("skipped", default=False)

Grid = tuple[int, int]


@contextmanager
def without_pretrained(skip: bool = True) -> Iterator[None]:
    """Make encoders without reading `pretrained`, for weights that a checkpoint will overwrite.

    The setting stays in the config, as provenance; the file may no longer exist.
    """
    token = _skipped.set(skip)
    try:
        yield
    finally:
        _skipped.reset(token)


def load_pretrained(vit: Any, config: EncoderConfig) -> None:
    """Load the weights that `config.pretrained` names into a timm model, in place and unchanged.

    Heads are ignored; so are a class token and its position, with a warning. Positions of another grid are resampled by
    timm's function. A norm of the pooled features (`fc_norm`) becomes the norm of the tokens if there is no other. The
    number of heads and `rope_theta` are not in most files: they are those of the config.

    Args:
        vit: The model; with `position: sincos`, its table is filled already.
        config: The config that it was made from. Without `pretrained`, and in `without_pretrained`, nothing is done.

    Raises:
        ConfigError: If the file or download does not exist, or its weights have another shape.
    """
    if not config.pretrained or _skipped.get():
        return
    grid = None
    if config.pretrained is True:
        state, grid = _download(str(config.name))
    else:
        state = _read(config.pretrained)
    state = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
    remarks = _move_pooled_norm(state)
    prefix_tokens = {k: state[k].shape[1] for k in (*_CLASS_TOKENS, "reg_token") if k in state}
    ignored = [k for k in _CLASS_TOKENS if k in state and k not in vit.state_dict()]
    for key in ignored:
        del state[key]
    if ignored:
        remarks.append(f"{' and '.join(ignored)} and its position are ignored, the encoder has none")
    _check_shapes(vit.state_dict(), state, config)
    if vit.pos_embed is not None:
        state["pos_embed"] = _positions(vit, state["pos_embed"], prefix_tokens, grid, config)
    vit.load_state_dict(state, strict=True)
    if remarks:
        warnings.warn(f"{_KEY}={_typed(config)}: {'; '.join(remarks)}.", stacklevel=2)


def _typed(config: EncoderConfig) -> str:
    return "true" if config.pretrained is True else str(config.pretrained)


def _invalid(config: EncoderConfig, problem: str) -> ConfigError:
    return invalid(_KEY, config.pretrained, problem)


def _reason(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _download(name: str) -> tuple[dict[str, Tensor], Grid]:
    """Return timm's weights for a name, and the grid of their positions."""
    native: Any
    try:
        native = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of the hub, a proxy or the disk
        raise invalid(
            _KEY,
            True,
            f"timm's weights for {name} cannot be downloaded ({_reason(error)}); connect to the network, or set the "
            "path of a file.",
        ) from None
    return native.state_dict(), native.patch_embed.grid_size


def _read(path: str) -> dict[str, Tensor]:
    """Return the state dict in a file."""
    if not path.endswith(_SUFFIXES):
        raise invalid(
            _KEY, path, f"must be true (timm's weights), false, or the path of a {', '.join(_SUFFIXES)} file."
        )
    if not Path(path).is_file():
        raise invalid(
            _KEY,
            path,
            "there is no such file; check the path, or resume from a checkpoint of the run, which does not need it.",
        )
    try:
        state = load_state_dict(path)
    except Exception as error:
        raise invalid(_KEY, path, f"cannot be read ({_reason(error)}); use the state dict of a timm model.") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise invalid(_KEY, path, "does not hold a state dict; use that of a timm model.")
    return state


def _move_pooled_norm(state: dict[str, Tensor]) -> list[str]:
    """Drop the norm of the pooled features, or rename it to the tokens' norm if there is none; return remarks."""
    moved = "norm.weight" not in state and "fc_norm.weight" in state
    for part in ("weight", "bias"):
        norm = state.pop(f"fc_norm.{part}", None)
        if moved and norm is not None:
            state[f"norm.{part}"] = norm
    return ["fc_norm, which normalized the pooled features, now normalizes the tokens"] if moved else []


def _check_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor], config: EncoderConfig) -> None:
    """Reject another kind of positions, and the first tensor that is missing, unexpected or of another shape."""
    if ("pos_embed" in ours) != ("pos_embed" in theirs):
        found = "a position table (pos_embed)" if "pos_embed" in theirs else "no position table (pos_embed)"
        needed = "none" if "pos_embed" in theirs else "one"
        position = "learned" if "pos_embed" in theirs else "rope_mixed" if "rope.freqs" in theirs else "rope"
        fix = _SET_NAME if config.name else f"set encoder.position to {position}, if the weights have it"
        raise _invalid(config, f"the weights have {found} and the encoder has {needed}; {fix}.")
    # The patch embedding first: it shows width, patch size and channels.
    for key in sorted(ours, key=lambda k: k != "patch_embed.proj.weight"):
        if key not in theirs:
            raise _invalid(config, f"the weights lack {key}; {_fix(key, theirs, config)}.")
        # Positions may differ in number: they are resampled.
        is_table, shape, needed_shape = key == "pos_embed", tuple(theirs[key].shape), tuple(ours[key].shape)
        if (shape[2:], len(shape)) != (needed_shape[2:], 3) if is_table else shape != needed_shape:
            raise _invalid(
                config,
                f"{key} of the weights is {shape} and of the encoder {needed_shape}; {_fix(key, theirs, config)}.",
            )
    extra = next((k for k in theirs if k not in ours), None)
    if extra is not None:
        raise _invalid(config, f"the weights have {extra} and the encoder has not; {_fix(extra, theirs, config)}.")


def _fix(key: str, theirs: dict[str, Tensor], config: EncoderConfig) -> str:
    """Return the setting that makes a tensor fit."""
    depth = 1 + max((int(k.split(".")[1]) for k in theirs if k.startswith("blocks.")), default=-1)
    if key == "rope.freqs" and config.name is None:
        if key in theirs and config.position == "rope_mixed":
            return f"set encoder.num_heads to {theirs[key].shape[2]} and depth to {depth}"
        return f"set encoder.position to {'rope_mixed' if key in theirs else 'rope'}"
    if key == "reg_token":
        return f"set encoder.reg_tokens to {theirs[key].shape[1] if key in theirs else 0}"
    if ".ls1." in key or ".ls2." in key or ".gamma_" in key:
        return "set encoder.init_values, to any value" if key in theirs else "remove encoder.init_values"
    if ".q_norm." in key or ".k_norm." in key:
        return f"set encoder.qk_norm to {str(key in theirs).lower()}"
    if key == "patch_embed.proj.weight" and key in theirs and theirs[key].ndim == 4:
        width, channels, patch, _ = theirs[key].shape
        needed = {"in_chans": channels, "patch_size": patch}
        if config.name is None:
            needed["embed_dim"] = width
        current = {
            "in_chans": config.in_chans,
            "patch_size": config.patch_size or (16 if config.name is None else patch),
            "embed_dim": config.architecture[0],
        }
        wrong = [f"encoder.{k} to {v}" for k, v in needed.items() if current[k] != v]
        return f"set {' and '.join(wrong)}" if wrong else _SET_NAME
    if config.name is None and key.startswith("blocks.") and depth and depth != config.architecture[1]:
        return f"set encoder.depth to {depth}"
    return _SET_NAME


def _positions(
    vit: Any, table: Tensor, prefix_tokens: dict[str, int], grid: Grid | None, config: EncoderConfig
) -> Tensor:
    """Return a position table for the encoder: patches resampled to its grid, positions of registers kept.

    Args:
        vit: The model that the table is for.
        table: (1, prefix tokens + patches, D), or (1, patches, D) where prefix tokens have no position.
        prefix_tokens: Number of prefix tokens of each kind in the weights.
        grid: The grid of the weights; None where only the number of positions is known.
        config: The config of the encoder.
    """
    own: Grid = tuple(vit.patch_embed.grid_size)
    for prefix in dict.fromkeys((sum(prefix_tokens.values()), 0)):
        grids = _grids(table.shape[1] - prefix, own, grid)
        if grids:
            break
    if len(grids) != 1:
        shape = "which may be " + " or ".join(f"{h} x {w}" for h, w in grids) if grids else "which form no square"
        number = "another number of patches" if grids else "as many patches"
        raise _invalid(
            config, f"the weights have {table.shape[1]} positions, {shape}; set an encoder.img_size with {number}."
        )
    patches, registers = table[:, prefix:], prefix_tokens.get("reg_token", 0)
    if config.position == "sincos":
        _check_fixed(patches[0], grids[0], config)
    patches = resample_abs_pos_embed(patches, list(own), list(grids[0]), num_prefix_tokens=0)
    count = vit.pos_embed.shape[1] - own[0] * own[1]
    if count != (registers if prefix else 0):
        raise _invalid(
            config,
            f"the register tokens of the weights have {'' if prefix else 'no '}positions and the encoder's have "
            f"{'' if count else 'none'}; {_SET_NAME}.",
        )
    return torch.cat([table[:, prefix - count : prefix], patches], dim=1)


def _grids(count: int, own: Grid, known: Grid | None) -> list[Grid]:
    """Return the grids of `count` positions: the known one; else the encoder's own or a square."""
    side = math.isqrt(max(count, 0))
    candidates = [own, (side, side)] if known is None else [known]
    return [(h, w) for h, w in dict.fromkeys(candidates) if h * w == count > 0]


def _check_fixed(table: Tensor, grid: Grid, config: EncoderConfig) -> None:
    """Check that a position table is the sine-cosine one, within the precision of its dtype."""
    gap = (table.float() - sincos_positions(grid, table.shape[1])).abs().max().item()
    if not gap <= max(1e-4, torch.finfo(table.dtype).eps):
        raise _invalid(
            config,
            f"the positions of the weights differ by up to {gap:.2g} from the fixed sine-cosine table of "
            "encoder.position=sincos; set encoder.position to learned.",
        )
