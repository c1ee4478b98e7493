"""Parameter groups."""

from collections.abc import Iterable
from typing import Any

from torch import nn

# Tables, tokens and rotary frequencies have several axes but are not matrices: decay would only shrink them.
_NOT_MATRICES = ("pos_embed", "cls_token", "reg_token", "mask_token", "level_embed", "freqs")


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
