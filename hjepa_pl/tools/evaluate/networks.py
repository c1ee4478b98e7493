"""Networks that can be judged: encoders of this package, timm models, and raw pixels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.evaluation.pixels import raw_pixels
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.tools.evaluate.kinds import Kind, read_kind
from hjepa_pl.types import ConfigError

UNTRAINED = "untrained"
"""Label of the network with the architecture of the judged one and the weights that its seed draws."""


class Network(ABC):
    """A network, or another function of images, whose features are judged.

    Args:
        label: Its row in tables.
        spec: Images that it takes.
        depth: Number of blocks.
        default: Name of the kind of features that stands for it.
    """

    def __init__(self, label: str, spec: ImageSpec, depth: int, default: str) -> None:
        self.label, self.spec, self.depth, self.default = label, spec, depth, default

    def kind(self, name: str | None) -> Kind:
        """Return a kind of features by name; None is the default."""
        return read_kind(name or self.default, self.depth)

    @abstractmethod
    def prepare(self, kinds: Sequence[Kind], device: torch.device) -> None:
        """Make ready to compute some kinds on a device."""

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the prepared kinds of features, each (B, D) float32, of normalized images (B, C, H, W)."""

    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the patch tokens after the last block, (B, h, w, D) float32; None for a network without any.

        Args:
            images: (B, C, H, W), normalized; `prepare` comes first.
        """
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """What the features depend on, as text: equal only if all weights are."""


class Pixels(Network):
    """Images themselves, averaged to at most 32 x 32, as features."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__("raw pixels", spec, 0, "pooled")

    def prepare(self, kinds: Sequence[Kind], device: torch.device) -> None:
        """Do nothing."""

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the pixels, (B, C * h * w)."""
        return [raw_pixels(images)]

    @property
    def identity(self) -> str:
        """The name: there are no weights."""
        return "pixels"


class OwnEncoder(Network):
    """An encoder of this package.

    Args:
        label: Its row in tables.
        spec: Images that it takes.
        config: Its architecture.
        state: Its weights, `vit.` in front for a vision transformer; None for those that `seed` draws.
        depth: Number of blocks.
        seed: Of the weights of an untrained encoder.
        metadata: What is known of its run, see `Backbone`.
    """

    def __init__(
        self,
        label: str,
        spec: ImageSpec,
        config: EncoderConfig,
        state: dict[str, Tensor] | None,
        depth: int,
        seed: int,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(label, spec, depth, "last.mean")
        self.config, self.state, self.seed, self.metadata = config, state, seed, metadata or {}

    def kind(self, name: str | None) -> Kind:
        """Return a kind of features by name; raises `ConfigError` for other than means of tokens."""
        kind = super().kind(name)
        if kind.pool != "mean":
            raise ConfigError(
                f"invalid `eval.features={kind.name}`: encoders of hjepa_pl have no {kind.pool} features; use "
                f"{kind.name.replace('cls', 'mean') if kind.pool == 'cls' else 'last.mean'}."
            )
        return kind

    def prepare(self, kinds: Sequence[Kind], device: torch.device) -> None:
        """Build the encoder with a parameter-free norm after each inner block that is read."""
        self._blocks: list[list[Block]] = [
            ["last" if b == -1 else self.depth + 1 + b for b in kind.blocks] for kind in kinds
        ]
        inner = sorted({int(b) for blocks in self._blocks for b in blocks if b != "last"})
        self._encoder = self.build(inner).eval().to(device)

    def build(self, inner: Sequence[int] = ()) -> Encoder:
        """Return the encoder, with a parameter-free norm after each of some blocks."""
        with torch.random.fork_rng(devices=[]), without_pretrained():
            torch.manual_seed(self.seed)
            encoder = build_encoder(self.config, inner)
        if self.state is not None:
            encoder.load_state_dict(self.state)
        return encoder

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the mean over the patch tokens, (B, D), of each kind."""
        wanted = list(dict.fromkeys(b for blocks in self._blocks for b in blocks))
        tokens = self._encoder(images, blocks=wanted)
        means = {b: tokens[b].float().mean(dim=1) for b in wanted}
        return [torch.cat([means[b] for b in blocks], dim=1) for blocks in self._blocks]

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the patch tokens after the final norm, (B, h, w, D)."""
        return self._encoder(images)["last"].float().unflatten(1, self._encoder.grid_of(images))

    @property
    def identity(self) -> str:
        """Hash of the weights, or their seed, and of the architecture."""
        weights = f"seed {self.seed}" if self.state is None else hash_tensors(self.state)
        return f"{self.config} {weights}"


class TimmModel(Network):
    """A model of timm, with its own weights.

    Args:
        label: Its row in tables.
        spec: Images that it takes.
        model: The model, without classifier.
    """

    def __init__(self, label: str, spec: ImageSpec, model: nn.Module) -> None:
        has_tokens = hasattr(model, "forward_intermediates") and hasattr(model, "blocks")
        depth = len(model.blocks) if has_tokens else 0  # type: ignore[arg-type]
        super().__init__(label, spec, depth, "pooled")
        self.model = model

    def kind(self, name: str | None) -> Kind:
        """Return a kind of features by name; raises `ConfigError` for `cls` of a model without class token."""
        kind = super().kind(name)
        prefix, registers = (getattr(self.model, f"num_{which}_tokens", 0) for which in ("prefix", "reg"))
        if kind.pool == "cls" and prefix <= registers:
            raise ConfigError(
                f"invalid `eval.features={kind.name}`: {self.label} has no class token; use "
                f"{kind.name.replace('cls', 'mean')}."
            )
        return kind

    def prepare(self, kinds: Sequence[Kind], device: torch.device) -> None:
        """Move the model to the device."""
        self._kinds = list(kinds)
        self.model = self.model.eval().to(device)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the features of each kind; blocks before the last are normed as timm's `forward_intermediates`."""
        blocks = sorted({b for kind in self._kinds for b in kind.blocks})
        pooled: dict[tuple[int, str], Tensor] = {}
        if blocks:
            found = self.model.forward_intermediates(  # type: ignore[operator]
                images, indices=[self.depth + b for b in blocks], return_prefix_tokens=True, norm=True,
                output_fmt="NLC", intermediates_only=True,
            )  # fmt: skip
            for block, (tokens, prefix) in zip(blocks, found, strict=True):
                pooled[block, "mean"] = tokens.float().mean(dim=1)
                if prefix is not None and prefix.shape[1]:
                    pooled[block, "cls"] = prefix[:, 0].float()
        return [
            torch.cat([pooled[b, kind.pool] for b in kind.blocks], dim=1) if kind.blocks else self._own(images)
            for kind in self._kinds
        ]

    def _own(self, images: Tensor) -> Tensor:
        """Return the features that the model pools itself, (B, D)."""
        return self.model(images).float()

    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the patch tokens of the last block, or the last map of a convolutional model; None without either."""
        if not hasattr(self.model, "forward_intermediates"):
            return None
        found = self.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)  # type: ignore[operator]
        return found[-1].float().permute(0, 2, 3, 1)

    @property
    def identity(self) -> str:
        """Hash of the weights, and the architecture as text."""
        return f"{self.model} {hash_tensors(self.model.state_dict())}"


def hash_tensors(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
