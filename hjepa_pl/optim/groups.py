"""Parameter groups."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from hjepa_pl.types import ConfigError

# Tables, tokens and rotary frequencies have several axes but are not matrices: decay would only shrink them.
_NOT_MATRICES = ("pos_embed", "cls_token", "reg_token", "mask_token", "level_embed", "freqs")
_PARTS = {"qkv": 3, "key_value": 2, "kv": 2}
"""Matrices in one: names of layers, and the number of their outputs that are matrices of their own."""


def weight_decay_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those with decay and those without (1-D ones, positions, tokens)."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                exempt = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in _NOT_MATRICES
                (plain if exempt else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay, "decays": True},
        {"params": plain, "weight_decay": 0.0, "decays": False},
    ]


def muon_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of `weight_decay_groups`, with the matrices of transformer blocks in groups of their own.

    These are the hidden matrices. The patch embedding, the predictor's first and last layers and the projector (a head,
    whose widest matrix costs more than a small model's whole step) are left to AdamW, as in Jordan et al. 2024.

    Returns:
        Groups with `parts`, see `MuonAdamW`.

    Raises:
        ConfigError: If no network has transformer blocks.
    """
    modules = list(modules)
    hidden: dict[nn.Parameter, int] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            path = name.split(".")
            if parameter.ndim == 2 and "blocks" in path[:-1] and path[-1] not in _NOT_MATRICES:
                hidden[parameter] = _PARTS.get(path[-2], 1)
    decay, plain = weight_decay_groups(modules, weight_decay)
    own = [[p for p in decay["params"] if hidden.get(p) == parts] for parts in sorted(set(hidden.values()))]
    if not any(parameter in hidden for parameter in modules[0].parameters()):
        raise ConfigError(
            "invalid `optimizer.kind=muon`: has no effect on the encoder: it has no matrices in a module named "
            "blocks; name the encoder's stack of blocks so, or set kind to adamw."
        )
    others = [{**decay, "params": [p for p in decay["params"] if p not in hidden]}, plain]
    return [
        *({**group, "parts": 0} for group in others),
        *({**decay, "params": ps, "parts": hidden[ps[0]]} for ps in own if ps),
    ]
