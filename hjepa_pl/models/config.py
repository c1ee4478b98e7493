"""Configs of the encoder, the predictor, the projector and the pyramid."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from hjepa_pl.models.attention import AttentionKind
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Hint, Pair, PathText, Positive, invalid, settings

SIZES: dict[str, tuple[int, int, int]] = {  # embed_dim, depth, num_heads, as timm's vit_{size}
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


Gains = Annotated[float, Gt(0), Lt(float("inf")), Hint("remove it to have no LayerScale, or use 1e-5")]
"""Initial gain of LayerScale."""
Theta = Annotated[float, Gt(1), Lt(float("inf"))]
"""Base of the rotary frequencies."""


@settings("encoder")
class EncoderConfig:
    """The encoder: a timm vision transformer, by size or by timm's name, or an encoder of another family."""

    size: Literal["tiny", "small", "base", "large", "huge"] | None = None
    """Width, depth and heads of timm's vit_{size}; null is small, if `name` is null too."""
    name: str | None = None
    """Name of any timm ViT instead of a size. It sets width, depth, heads and patch size."""
    img_size: Count | Pair[Count] = 224
    """Height and width of the training images in pixels: one number, or [height, width]."""
    pretrained: bool | PathText | None = None
    """Initial weights: null or false for random ones, true for timm's own (with `name`), or the path of a state dict
    of a timm ViT of this shape (.safetensors, .pth, .pt, .bin). Heads and a class token are left out; positions of
    another `img_size` are resampled. The file is read once: resuming from a checkpoint does not need it."""
    patch_size: Count | None = None
    """Height and width of a patch in pixels; null is 16 (or that of `name`)."""
    in_chans: Count = 3
    """Channels of the images."""
    embed_dim: Count | None = None
    """Width; null is that of the size."""
    depth: Count | None = None
    """Number of blocks; null is that of the size."""
    num_heads: Count | None = None
    """Number of attention heads; null is that of the size."""
    position: Literal["learned", "sincos", "rope", "rope_mixed"] = "learned"
    """Position embedding: a learned table, a fixed 2-D sine-cosine table, or rotary angles (RoPE-ViT,
    arXiv:2403.13298): axial, or mixed, with learned frequencies for each head."""
    rope_theta: Theta | None = None
    """Base of the rotary frequencies; null is timm's (100 for rope, 10 for rope_mixed)."""
    init_values: Gains | None = None
    """Initial gain of LayerScale (CaiT, arXiv:2103.17239); null is without LayerScale (or as `name` has it)."""
    drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Stochastic depth of the last block, rising linearly from 0 in the first (context encoder, training only)."""
    reg_tokens: Annotated[int, Ge(0)] = 0
    """Number of register tokens (arXiv:2309.16588)."""
    qk_norm: bool = False
    """Normalize queries and keys."""
    attention: AttentionKind = "auto"
    """Attention kernel, of the predictor too: PyTorch's choice (auto; eager where that is faster: bf16 on a CPU, and
    Apple's GPU without gradients), its flash, efficient (memory-efficient) or math kernel, or eager."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of storing them: less memory, about a third more compute."""
    checkpoint_every: Count = 1
    """Number of blocks that are recomputed together (with grad_checkpointing)."""
    family: str = "vit"
    """`vit`, or the import path of an encoder class of your own (`my_package.my_module.MyEncoder`), a subclass of
    `hjepa_pl.models.Encoder`. It is made from these keys; keys that it does not read are rejected."""
    options: dict[str, Any] | None = None
    """Keyword arguments of an encoder class of your own; null is none."""

    def __post_init__(self) -> None:
        """Reject combinations that no encoder can have."""
        _check_recompute("encoder", self.checkpoint_every, self.grad_checkpointing)
        if self.name is not None:
            self._check_name(self.name)
        elif self.pretrained is True:
            raise invalid(
                "encoder.pretrained", True, "needs encoder.name, the model of timm; set it, or pretrained to a file."
            )
        elif self.rope_theta is not None and self.position not in ("rope", "rope_mixed"):
            raise _theta_without_rope("encoder", self.rope_theta, self.position)
        if self.pretrained == "":
            raise ConfigError("invalid `encoder.pretrained=''`: must be true, false or the path of a file.")
        if self.size is not None and None not in (self.embed_dim, self.depth, self.num_heads):
            raise invalid(
                "encoder.size",
                self.size,
                "has no effect with encoder.embed_dim, depth and num_heads all set; remove it, or set it to null.",
            )

    def _check_name(self, name: str) -> None:
        """Reject keys that a timm name decides."""
        for key in ("size", "embed_dim", "depth", "num_heads", "rope_theta"):
            if getattr(self, key) is not None:
                raise invalid(
                    f"encoder.{key}",
                    getattr(self, key),
                    f"has no effect with encoder.name={name}; remove it, or set it to null.",
                )
        if self.position != "learned":
            raise invalid(
                "encoder.position",
                self.position,
                f"has no effect with encoder.name={name}; remove it, or set encoder.size instead of the name.",
            )

    @property
    def architecture(self) -> tuple[int, int, int]:
        """Width, depth and heads of an encoder without `name`."""
        embed_dim, depth, num_heads = SIZES[self.size or "small"]
        return self.embed_dim or embed_dim, self.depth or depth, self.num_heads or num_heads


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
    """Width of the MLP's hidden layer, in multiples of `embed_dim`."""
    position: Literal["sincos", "rope"] = "sincos"
    """Position embedding of tokens and queries: a fixed sine-cosine table, or axial rotary angles."""
    rope_theta: Theta | None = None
    """Base of the rotary frequencies; null is 100."""
    init_values: Gains | None = None
    """Initial gain of LayerScale (CaiT, arXiv:2103.17239); null is without LayerScale."""
    targets: Literal["joint", "separate"] = "joint"
    """All target blocks in one pass, with attention between their queries, or one pass a block as in I-JEPA."""
    attention: Literal["self", "cross"] = "self"
    """Self-attention over context and queries, or cross-attention from each query to the context only (cheaper)."""
    context: Literal["last", "fused"] = "last"
    """Input: the encoder's last layer, or an MLP of all the levels' depths, each after its own norm (V-JEPA 2.1)."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of storing them."""
    checkpoint_every: Count = 1
    """Number of blocks that are recomputed together (with grad_checkpointing)."""

    def __post_init__(self) -> None:
        """Reject combinations that no predictor can have."""
        _check_recompute("predictor", self.checkpoint_every, self.grad_checkpointing)
        if self.rope_theta is not None and self.position != "rope":
            raise _theta_without_rope("predictor", self.rope_theta, self.position)
        if self.checkpoint_every > self.depth:
            raise invalid(
                "predictor.checkpoint_every", self.checkpoint_every, f"must be at most predictor.depth={self.depth}."
            )
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise invalid(
                "predictor.embed_dim",
                self.embed_dim,
                f"must be a multiple of 4 and of predictor.num_heads={self.num_heads}.",
            )
        if self.position == "rope" and self.embed_dim % (4 * self.num_heads):
            raise invalid(
                "predictor.embed_dim",
                self.embed_dim,
                f"must be a multiple of {4 * self.num_heads} (4 x predictor.num_heads={self.num_heads}) with "
                "predictor.position=rope.",
            )
        if self.targets == "separate" and self.attention == "cross":
            raise invalid(
                "predictor.targets",
                self.targets,
                "has no effect with predictor.attention=cross, where queries never attend to one another; remove one "
                "of them.",
            )


@settings("projector")
class ProjectorConfig:
    """The MLP from the pooled embedding to the image level's projection (LeJEPA, arXiv:2511.08544)."""

    hidden_dim: Count = 2048
    """Width of the hidden layers."""
    hidden_layers: Annotated[int, Ge(0)] = 2
    """Number of hidden layers; 0 is a linear projector."""
    out_dim: Count = 64
    """Width of the projection."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Norm of the hidden layers. LeJEPA, VICReg and SimCLR use batch norm; its statistics are over all ranks. Layer
    norm and none suit small batches, but need a regularizer weight of their own."""

    def __post_init__(self) -> None:
        """Reject settings of hidden layers without hidden layers."""
        for key in ("hidden_dim", "norm"):
            if self.hidden_layers == 0 and getattr(self, key) != getattr(ProjectorConfig, key):
                raise invalid(
                    f"projector.{key}",
                    getattr(self, key),
                    "has no effect with projector.hidden_layers=0, a linear projector; remove it.",
                )


@settings("pyramid")
class PyramidConfig:
    """The feature pyramid over three depths of the encoder (FPN, arXiv:1612.03144)."""

    fusion: Literal["add", "concat"] = "add"
    """A finer map and the upsampled coarser one are summed, as in the paper, or concatenated and mixed linearly."""
    dim: Count | None = None
    """Channels of the maps; null is the encoder's width."""
    weight: Annotated[float, Gt(0), Lt(float("inf")), Hint("set pyramid to null to turn it off")] = 1.0
    """Weight of the auxiliary loss: regression of the token levels' targets from the maps, scaled as the levels are."""


def _check_recompute(part: str, checkpoint_every: int, grad_checkpointing: bool) -> None:
    if checkpoint_every != 1 and not grad_checkpointing:
        raise invalid(
            f"{part}.checkpoint_every",
            checkpoint_every,
            f"has no effect with {part}.grad_checkpointing=false; set that to true, or remove it.",
        )


def _theta_without_rope(part: str, theta: float, position: str) -> ConfigError:
    return invalid(
        f"{part}.rope_theta",
        theta,
        f"has no effect with {part}.position={position}; set position to rope, or remove it.",
    )
