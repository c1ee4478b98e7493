"""Settings of the encoder, the predictor, the projector and the pyramid."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from hjepa_pl.models.attention import AttentionKind
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Hint, Pair, PathText, Positive, settings

SIZES: dict[str, tuple[int, int, int]] = {  # embed_dim, depth, num_heads, as timm's vit_{size}
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


Gains = Annotated[float, Gt(0), Lt(float("inf")), Hint("remove it to have no LayerScale, or use 1e-5")]
"""Start of LayerScale's gains."""
Theta = Annotated[float, Gt(1), Lt(float("inf"))]
"""Base of rotary frequencies."""


def _label(config: object) -> str:
    return type(config).__name__.removesuffix("Config").lower()


def _check_recompute(config: "EncoderConfig | PredictorConfig") -> None:
    if config.checkpoint_every != 1 and not config.grad_checkpointing:
        key = f"{_label(config)}.checkpoint_every"
        raise ConfigError(
            f"{key} {config.checkpoint_every} does nothing without {_label(config)}.grad_checkpointing; "
            "set that to true, or remove it."
        )


def _check_theta(config: "EncoderConfig | PredictorConfig") -> None:
    if config.rope_theta is None:
        return
    if isinstance(config, EncoderConfig) and config.name is not None:
        raise ConfigError(
            f"encoder.name '{config.name}' fixes the position code, so encoder.rope_theta must not be given too; "
            "remove it, or give encoder.size and position 'rope'."
        )
    if config.position not in ("rope", "rope_mixed"):
        raise ConfigError(
            f"{_label(config)}.rope_theta {config.rope_theta:g} does nothing with {_label(config)}.position "
            f"'{config.position}'; set position to 'rope', or remove it."
        )


@settings("encoder")
class EncoderConfig:
    """A timm vision transformer: by size, or by timm's name."""

    size: Literal["tiny", "small", "base", "large", "huge"] | None = None
    """Width, depth and heads as in timm's vit_{size} (small where neither size nor name is given)."""
    name: str | None = None
    """Name of any timm ViT instead of a size; its own width, depth, heads and patch size then hold."""
    img_size: Count | Pair[Count] = 224
    """Side of the training images, in pixels, or [height, width]."""
    pretrained: bool | PathText | None = None
    """Weights to start from: null or false for none, true for timm's own (with `name`), or the path of a file
    (.safetensors, .pth, .pt, .bin) with the state dict of a timm ViT of this shape: kept to the bit but for heads and a
    class token, which are left out, and positions of another `img_size`, which timm's function resamples. Read once: a
    run that goes on from a checkpoint needs no file."""
    patch_size: Count | None = None
    """Side of a patch, in pixels; null is 16 (or what `name` says)."""
    in_chans: Count = 3
    """Channels of the images."""
    embed_dim: Count | None = None
    """Width, where it departs from the size's."""
    depth: Count | None = None
    """Number of blocks, where it departs from the size's."""
    num_heads: Count | None = None
    """Number of attention heads, where it departs from the size's."""
    position: Literal["learned", "sincos", "rope", "rope_mixed"] = "learned"
    """Position code: a learned table, a fixed 2-D sine-cosine table, or rotary angles (RoPE-ViT, arXiv:2403.13298):
    axial, or mixed, whose frequencies are learned for each head."""
    rope_theta: Theta | None = None
    """Base of the rotary frequencies; null is timm's (100 for rope, 10 for rope_mixed)."""
    init_values: Gains | None = None
    """Start of LayerScale's gains (CaiT, arXiv:2103.17239); null is without LayerScale, for every `position` (with
    `name` it is what that model has)."""
    drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Stochastic depth of the last block, rising linearly from 0 in the first (context encoder, training only)."""
    reg_tokens: Annotated[int, Ge(0)] = 0
    """Register tokens (arXiv:2309.16588)."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    attention: AttentionKind = "auto"
    """Kernel of attention, of the predictor too: PyTorch's choice ('auto'; plain products where they are faster:
    bf16 on the CPU, and Apple's GPU without gradients), its flash, efficient (memory-efficient) or math kernel, or
    plain products always ('eager')."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of storing them: less memory, about a third more compute."""
    checkpoint_every: Count = 1
    """Blocks that are recomputed together (grad_checkpointing only)."""

    def __post_init__(self) -> None:
        """Refuse what no encoder can have."""
        _check_recompute(self)
        _check_theta(self)
        if self.name is not None:
            given = [k for k in ("size", "embed_dim", "depth", "num_heads") if getattr(self, k) is not None]
            if given:
                raise ConfigError(
                    f"encoder.name '{self.name}' fixes the architecture, so encoder.{given[0]} must not be given too; "
                    f"set it to null (--model.encoder.{given[0]}=null) where an earlier config gives it."
                )
            if self.position != "learned":
                raise ConfigError(
                    f"encoder.name '{self.name}' fixes the position code, so encoder.position '{self.position}' would "
                    "do nothing; give encoder.size instead, or the name alone."
                )
        if self.pretrained == "" or (self.pretrained is True and self.name is None):
            raise ConfigError(
                f"encoder.pretrained {'true' if self.pretrained else repr('')} has nothing to take weights from; give "
                "encoder.name, for timm's own, or the path of a file."
            )
        if self.size is not None and None not in (self.embed_dim, self.depth, self.num_heads):
            raise ConfigError(
                f"encoder.size '{self.size}' does nothing beside encoder.embed_dim, depth and num_heads; remove it, or "
                "set it to null (--model.encoder.size=null) where an earlier config gives it."
            )

    @property
    def architecture(self) -> tuple[int, int, int]:
        """Width, depth and heads of a sized encoder."""
        size = SIZES[self.size or "small"]
        given = (self.embed_dim, self.depth, self.num_heads)
        return tuple(g if g is not None else s for g, s in zip(given, size, strict=True))  # type: ignore[return-value]


@settings("predictor")
class PredictorConfig:
    """The narrow ViT that predicts target cells from the visible tokens."""

    embed_dim: Count = 192
    """Width, a multiple of 4 (positions) and of `num_heads`."""
    depth: Count = 4
    """Number of blocks."""
    num_heads: Count = 3
    """Number of attention heads."""
    mlp_ratio: Positive = 4.0
    """Width of the hidden layer over the width."""
    position: Literal["sincos", "rope"] = "sincos"
    """Where tokens and queries lie: a fixed sine-cosine table that is added, or axial rotary angles."""
    rope_theta: Theta | None = None
    """Base of the rotary frequencies; null is 100."""
    init_values: Gains | None = None
    """Start of LayerScale's gains (CaiT, arXiv:2103.17239); null is without LayerScale."""
    targets: Literal["joint", "separate"] = "joint"
    """All target blocks in one pass, which see one another's queries, or one pass a block as in I-JEPA."""
    attention: Literal["self", "cross"] = "self"
    """Queries and context in one sequence, or queries that attend to the context only (cheaper)."""
    context: Literal["last", "fused"] = "last"
    """Input: the encoder's last layer, or an MLP of all the levels' depths, each under its own norm (V-JEPA 2.1)."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of storing them."""
    checkpoint_every: Count = 1
    """Blocks that are recomputed together (grad_checkpointing only)."""

    def __post_init__(self) -> None:
        """Refuse widths that positions or heads cannot split."""
        _check_recompute(self)
        _check_theta(self)
        if self.checkpoint_every > self.depth:
            raise ConfigError(
                f"predictor.checkpoint_every {self.checkpoint_every} is more than predictor.depth {self.depth}; "
                f"1 to {self.depth} would do."
            )
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise ConfigError(
                f"predictor.embed_dim must be a multiple of 4 and of predictor.num_heads {self.num_heads}, "
                f"got {self.embed_dim}."
            )
        if self.position == "rope" and self.embed_dim % (4 * self.num_heads):
            raise ConfigError(
                f"predictor.embed_dim must be a multiple of {4 * self.num_heads} with predictor.position 'rope', which "
                f"splits each of predictor.num_heads {self.num_heads} in four, got {self.embed_dim}."
            )
        if self.targets == "separate" and self.attention == "cross":
            raise ConfigError(
                "predictor.targets 'separate' does nothing with predictor.attention 'cross', where no query sees "
                "another; remove one of them."
            )


@settings("projector")
class ProjectorConfig:
    """The MLP between the pooled embedding and the image level's objectives (LeJEPA, arXiv:2511.08544)."""

    hidden_dim: Count = 2048
    """Width of the hidden layers."""
    hidden_layers: Annotated[int, Ge(0)] = 2
    """Number of hidden layers; 0 is a linear projector."""
    out_dim: Count = 64
    """Width of the projection."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Norm of the hidden layers. Batch norm is what LeJEPA, VICReg and SimCLR were measured with, its statistics those
    of all ranks' views; layer norm and none make a projection a function of its image alone, for batches too small for
    statistics, and want a regulariser's weight of their own: no published number holds for them."""

    def __post_init__(self) -> None:
        """Refuse empty layers, an unknown norm, and what a linear projector has no place for."""
        for key in ("hidden_dim", "norm"):
            if self.hidden_layers == 0 and getattr(self, key) != getattr(ProjectorConfig, key):
                raise ConfigError(
                    f"projector.{key} {getattr(self, key)} does nothing with projector.hidden_layers 0, a linear map; "
                    "remove it."
                )


@settings("pyramid")
class PyramidConfig:
    """The feature pyramid over three depths of the encoder (FPN, arXiv:1612.03144)."""

    fusion: Literal["add", "concat"] = "add"
    """A finer map and the upsampled coarser one are summed, as in the paper, or joined and mixed by a linear layer."""
    dim: Count | None = None
    """Channels of the maps; null is the encoder's width."""
    weight: Annotated[float, Gt(0), Lt(float("inf")), Hint("set pyramid to null to turn it off")] = 1.0
    """Weight of the auxiliary loss that regresses the token levels' targets from the maps, scaled as the levels are."""
