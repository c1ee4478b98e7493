"""A trained encoder with what is needed to use it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from hjepa_pl.backbones.transform import CleanTransform
from hjepa_pl.models.base import Encoder
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.types import ConfigError

Branch = Literal["target", "online"]
"""Which of a module's encoders: the moving average, or the one that was trained by gradients."""


class Backbone(nn.Module):
    """An encoder, its image size and normalization, and where it comes from. `load_encoder` makes one.

    Args:
        encoder: The encoder.
        branch: Which of the module's encoders it is.
        mean: Mean of each channel that images were normalized with.
        std: Standard deviation of each channel.
        metadata: Plain values about the run, stored as they are.

    Attributes:
        encoder: The `Encoder`; of the built-in family, `encoder.vit` is the timm model.
        config: Its `EncoderConfig`.
        branch: "target" or "online".
        img_size: Height and width of a training image, in pixels.
        grid: Rows and columns of its patches.
        patch_size: Height and width of a patch, in pixels.
        in_chans: Channels of the images.
        embed_dim: Width D of the features.
        mean, std: Statistics of each channel.
        metadata: `hyper_parameters` of the module, settings of the `data` and the `trainer`, `epoch`, `global_step`,
            `versions`, and `summary`, the contents of the run's summary.json; None where it is unknown.
    """

    def __init__(
        self,
        encoder: Encoder,
        branch: Branch,
        mean: Sequence[float],
        std: Sequence[float],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.branch: Branch = branch
        (rows, columns), (height, width) = encoder.grid, encoder.patch_size
        self.grid, self.patch_size, self.img_size = (rows, columns), (height, width), (rows * height, columns * width)
        self.in_chans, self.embed_dim = encoder.config.in_chans, encoder.embed_dim
        self.mean, self.std = tuple(mean), tuple(std)
        self.metadata = dict(metadata or {})

    def transform(self) -> CleanTransform:
        """Return the transform from an image to what `forward` takes: that of the probes during training.

        Raises:
            ConfigError: If the encoder takes neither 1 nor 3 channels.
        """
        return CleanTransform(self.img_size, self.in_chans, self.mean, self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the final-norm patch tokens, (B, D) float32: the features that the probes evaluate.

        Args:
            images: (B, C, H, W) floats of `transform`; H and W may be any multiples of the patch size.

        Raises:
            ConfigError: If the images are not floats, or do not have this shape.
        """
        self._check(images)
        return self.encoder(images)["last"].float().mean(dim=1)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm, (B, prefix + N, D), as timm's `forward_features`.

        Register tokens come first; the patches follow in raster order. At another size than `img_size`, models with a
        table of positions take `forward` only.
        """
        self._check(images)
        if isinstance(self.encoder, VisionEncoder):
            return self.encoder.vit.forward_features(images)
        return self.encoder(images)["last"]

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ConfigError(
                f"images of {images.dtype} of shape {tuple(images.shape)} cannot be encoded: pass a batch of floats "
                f"(B, {self.in_chans}, H, W) made by transform()."
            )
