"""The networks of a checkpoint as one module from images to features."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_pl.backbones.backbone import Backbone
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.config import PyramidConfig
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.models.pyramid import STRIDES, FeaturePyramid, pyramid_blocks
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain

PYRAMIDS = {"target": "target_pyramid.", "online": "pyramid."}
"""Beginning of the names of a branch's pyramid in a checkpoint."""


class Features(nn.Module):
    """An encoder, and a pyramid if there is one, in the dtype of its weights; images and outputs have 32 bits.

    Args:
        encoder: The encoder.
        pyramid: Reads three of its depths.

    Attributes:
        names: Names of the outputs: `features` (B, D), the mean of the `tokens` (B, N, D), which are the patches after
            the final norm in raster order; with a pyramid maps (B, dim, H, W) by their stride in pixels (`map_4`).
    """

    def __init__(self, encoder: Encoder, pyramid: FeaturePyramid | None = None) -> None:
        super().__init__()
        self.encoder, self.pyramid = encoder, pyramid
        # Kernels are chosen where the program runs.
        encoder.config = dataclasses.replace(encoder.config, attention="auto")
        self.blocks: tuple[Block, ...] = ("last",) if pyramid is None else pyramid_blocks(encoder.depth)
        strides = [] if pyramid is None else [f"map_{stride * encoder.patch_size[0]}" for stride in STRIDES]
        self.names = ("features", "tokens", *strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of `names` for normalized images (B, C, H, W)."""
        outputs = self.encoder(images.to(next(self.encoder.parameters()).dtype), blocks=self.blocks)
        tokens = outputs["last"].float()
        maps: tuple[Tensor, ...] = ()
        if self.pyramid is not None:
            maps = self.pyramid([outputs[b] for b in self.blocks], self.encoder.grid_of(images))
        return tokens.mean(dim=1), tokens, *(x.float() for x in maps)


def to_trace(features: Features, dtype: torch.dtype, images: Tensor) -> Features:
    """Return a copy with weights of a dtype, to trace with these images."""
    network = copy.deepcopy(features).to(dtype).eval()
    with torch.no_grad():
        network(images)  # fixed rotary angles are cached by this, and become constants of the program
    return network


def with_pyramid(backbone: Backbone, state: Mapping[str, Tensor], root: str) -> Features:
    """Return a backbone's encoder with the norms of its inner blocks, and the pyramid on them.

    Args:
        backbone: The encoder, without these norms.
        state: The weights of the checkpoint.
        root: Beginning of the names of the encoder's weights.

    Raises:
        ConfigError: If the model has no pyramid.
    """
    settings: Any = backbone.metadata["hyper_parameters"].get("pyramid")
    own = PYRAMIDS[backbone.branch]
    weights = {name.removeprefix(own): x for name, x in state.items() if name.startswith(own)}
    if settings is None or not weights:
        raise ConfigError(
            f"invalid `--what=encoder+pyramid`: the {backbone.branch} encoder has no pyramid; train with pyramid: {{}}."
        )
    inner = [b for b in pyramid_blocks(backbone.encoder.depth) if b != "last"]
    stored = {name.removeprefix(root): x for name, x in state.items() if name.startswith(root)}
    with without_pretrained():
        affine = [b for b in inner if f"inner_norms.{b}.weight" in stored]
        encoder = build_encoder(backbone.config, inner, affine)
    encoder.load_state_dict({name: stored[name] for name in encoder.state_dict()})
    pyramid = FeaturePyramid(from_plain(PyramidConfig, settings, "pyramid"), encoder.embed_dim)
    pyramid.load_state_dict(weights)
    return Features(encoder, pyramid).eval()
