"""Which timm model an encoder is, and what it measures."""

from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.sizes import check_divides


class EncoderShape(NamedTuple):
    """What the rest of the model needs to know of an encoder before it has weights."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    depth: int
    embed_dim: int
    parameters: int


def timm_recipe(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Return the timm model name and the keyword arguments that make this encoder.

    `timm.create_model(name, **kwargs)` takes the encoder's state dict strictly. The pooled head is switched off in a
    way that leaves the final norm on the tokens (`fc_norm=False`), as timm's own I-JEPA weights do.
    """
    name, base = _base(config)
    kwargs: dict[str, Any] = base | {
        "img_size": config.img_size,
        "in_chans": config.in_chans,
        "num_classes": 0,
        "global_pool": "avg",
        "class_token": False,
        "drop_path_rate": config.drop_path_rate,
    }
    if config.name is None:
        embed_dim, depth, num_heads = config.architecture
        kwargs |= {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    if config.init_values is not None:
        kwargs["init_values"] = config.init_values
    if config.patch_size is not None:
        kwargs["patch_size"] = config.patch_size
    elif config.name is None:
        kwargs["patch_size"] = 16
    if config.qk_norm:
        kwargs["qk_norm"] = True
    is_eva = config.position in ("rope", "rope_mixed") or (config.name is not None and _is_eva(config.name))
    kwargs["use_fc_norm" if is_eva else "fc_norm"] = False
    if config.reg_tokens:
        kwargs["num_reg_tokens" if is_eva else "reg_tokens"] = config.reg_tokens
    if is_eva:
        kwargs["dynamic_img_size"] = True  # angles are then built for the grid at hand
    if config.rope_theta is not None:
        kwargs["rope_temperature"] = config.rope_theta
    return name, kwargs


def _base(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Return the timm model that an encoder is made of, and what gives it its kind of positions."""
    if config.name is not None or config.position not in ("rope", "rope_mixed"):
        return config.name or "vit_small_patch16_224", {}
    if config.init_values is not None:
        return f"vit_small_patch16_{config.position}_224", {}
    # timm's rotary ViTs cannot be told to have no LayerScale: `create_model` drops None, and they then set 1e-5. The
    # entry point of EVA-g sets nothing but a size, so that it makes their very model, without gains.
    mixed = config.position == "rope_mixed"
    return "eva_giant_patch14_224", {
        "mlp_ratio": 4.0,
        "attn_type": "rope",
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "mixed" if mixed else "cat",
        "rope_grid_indexing": "xy",
        "rope_temperature": 10.0 if mixed else 100.0,
    }


def _is_eva(name: str) -> bool:
    try:
        with torch.device("meta"):
            return isinstance(timm.create_model(name, num_classes=0), Eva)
    except Exception:
        return False


def build_timm(config: EncoderConfig) -> VisionTransformer | Eva:
    """Make the timm model of a config.

    Raises:
        ConfigError: If timm does not know the name, it is no ViT, or the ViT cannot hold the settings.
    """
    name, kwargs = timm_recipe(config)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*small*")[:3]) or "vit_small_patch16_224"
        raise ConfigError(f"encoder.name '{name}' is not a timm model; for example {near} would do.")
    if "vit" not in name and "eva" not in name and "deit" not in name:
        raise ConfigError(f"encoder.name '{name}' is no plain vision transformer; name a vit_* model of timm.")
    vit: Any
    try:
        vit = timm.create_model(name, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"encoder: timm's {name} cannot hold these settings: {error or 'they do not fit'}.") from None
    plain = isinstance(vit, VisionTransformer | Eva) and type(vit.patch_embed) is PatchEmbed
    plain = plain and all(hasattr(getattr(block, "attn", None), "fused_attn") for block in vit.blocks)
    if not plain:
        raise ConfigError(f"encoder.name '{name}' is no plain vision transformer; name a vit_* model of timm.")
    if config.init_values is not None and not any("gamma" in key for key in vit.state_dict()):
        raise ConfigError(
            f"invalid `encoder.init_values={config.init_values}`: timm's {name} has no LayerScale; remove it."
        )
    return vit


def measure(config: EncoderConfig) -> EncoderShape:
    """Return the geometry of an encoder from a model without storage.

    Raises:
        ConfigError: As `build_timm`, and if the patch does not divide the image or the heads the width.
    """
    if config.name is None:
        embed_dim, _, num_heads = config.architecture
        rope = config.position in ("rope", "rope_mixed")
        step = 4 * num_heads if rope else num_heads
        if embed_dim % step:
            why = "RoPE splits each head in four" if rope else "heads share the width evenly"
            raise ConfigError(
                f"encoder.embed_dim {embed_dim} does not divide by {step} ({why}, encoder.num_heads {num_heads}); "
                f"{max(step, round(embed_dim / step) * step)} would do."
            )
        if config.position == "sincos" and embed_dim % 4:
            raise ConfigError(f"encoder.embed_dim must be a multiple of 4 with position 'sincos', got {embed_dim}.")
    if patch := config.patch_size or (16 if config.name is None else None):
        check_divides(config.img_size, (patch, patch))
    with torch.device("meta"):
        vit = build_timm(config)
    check_divides(config.img_size, vit.patch_embed.patch_size)
    if config.checkpoint_every > len(vit.blocks):
        raise ConfigError(
            f"encoder.checkpoint_every {config.checkpoint_every} is more than the encoder's {len(vit.blocks)} blocks; "
            f"1 to {len(vit.blocks)} would do."
        )
    if config.drop_path_rate and len(vit.blocks) == 1:
        raise ConfigError(
            f"encoder.drop_path_rate {config.drop_path_rate} does nothing with one block, as it rises from 0 in the "
            "first; remove it, or take more blocks."
        )
    grid = vit.patch_embed.grid_size
    return EncoderShape(tuple(grid), len(vit.blocks), vit.embed_dim, sum(p.numel() for p in vit.parameters()))
