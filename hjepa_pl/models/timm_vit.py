"""The timm model of an encoder config."""

from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import invalid
from hjepa_pl.utils.sizes import check_divides


def timm_recipe(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Return the timm model name and keyword arguments of an encoder.

    `timm.create_model(name, **kwargs)` loads the encoder's state dict strictly. The pooled head is left out such that
    the final norm acts on the tokens (`fc_norm=False`), as in timm's own I-JEPA weights.
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
    is_eva = is_model_in_modules(name, "eva")
    kwargs["use_fc_norm" if is_eva else "fc_norm"] = False
    if config.reg_tokens:
        kwargs["num_reg_tokens" if is_eva else "reg_tokens"] = config.reg_tokens
    if is_eva:
        kwargs["dynamic_img_size"] = True  # angles are computed for the grid of each batch
    if config.rope_theta is not None:
        kwargs["rope_temperature"] = config.rope_theta
    return name, kwargs


def _base(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Return the name of the timm model to start from, and the arguments that set its position code."""
    if config.name is not None or config.position not in ("rope", "rope_mixed"):
        return config.name or "vit_small_patch16_224", {}
    if config.init_values is not None:
        return f"vit_small_patch16_{config.position}_224", {}
    # timm's rotary ViTs always have LayerScale: `create_model` drops None, and they default to 1e-5. The entry point
    # of EVA-g sets sizes only, so it can make the same model without LayerScale.
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


def build_timm(config: EncoderConfig) -> VisionTransformer | Eva:
    """Make the timm model of a config, with timm's initialization.

    Raises:
        ConfigError: If timm does not know the name, the model is not a plain ViT, the patch does not divide the image,
            or the model does not take a setting.
    """
    name, kwargs = timm_recipe(config)
    _check_name(name)
    _check_widths(config)
    if config.patch_size is not None or config.name is None:
        check_divides(config.img_size, (kwargs["patch_size"],) * 2)
    vit: Any
    try:
        vit = timm.create_model(name, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"invalid `encoder`: timm's {name} does not take these settings: {error or 'no reason given'}."
        ) from None
    plain = isinstance(vit, VisionTransformer | Eva) and type(vit.patch_embed) is PatchEmbed
    if not plain or not all(hasattr(getattr(block, "attn", None), "fused_attn") for block in vit.blocks):
        raise _not_plain(name)
    if config.init_values is not None and not any("gamma" in key for key in vit.state_dict()):
        raise invalid(
            "encoder.init_values", config.init_values, f"has no effect, timm's {name} has no LayerScale; remove it."
        )
    check_divides(config.img_size, vit.patch_embed.patch_size)
    _check_depth(config, len(vit.blocks))
    return vit


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*small*")[:3]) or "vit_small_patch16_224"
        raise invalid("encoder.name", name, f"is not a timm model; use for example {near}.")
    if "vit" not in name and "eva" not in name and "deit" not in name:
        raise _not_plain(name)


def _not_plain(name: str) -> ConfigError:
    return invalid("encoder.name", name, "is not a plain vision transformer; use a vit_* model of timm.")


def _check_widths(config: EncoderConfig) -> None:
    """Reject a width that heads or positions cannot split."""
    if config.name is not None:
        return
    embed_dim, _, num_heads = config.architecture
    rope = config.position in ("rope", "rope_mixed")
    step = 4 * num_heads if rope else num_heads
    if embed_dim % step:
        why = f"4 x encoder.num_heads={num_heads} with RoPE" if rope else f"encoder.num_heads={num_heads}"
        near = max(step, round(embed_dim / step) * step)
        raise invalid("encoder.embed_dim", embed_dim, f"must be a multiple of {step} ({why}); use {near}.")
    if config.position == "sincos" and embed_dim % 4:
        raise invalid("encoder.embed_dim", embed_dim, "must be a multiple of 4 with encoder.position=sincos.")


def _check_depth(config: EncoderConfig, depth: int) -> None:
    """Reject settings that the number of blocks leaves without effect."""
    if config.checkpoint_every > depth:
        raise invalid(
            "encoder.checkpoint_every", config.checkpoint_every, f"must be at most {depth}, the encoder's blocks."
        )
    if config.drop_path_rate and depth == 1:
        raise invalid(
            "encoder.drop_path_rate",
            config.drop_path_rate,
            "has no effect with one block, the rate rises from 0 in the first; remove it, or set encoder.depth >= 2.",
        )
