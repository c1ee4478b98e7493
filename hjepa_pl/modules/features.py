"""Features of a trained encoder: of images, of patches, and maps at several strides for dense tasks."""

from collections.abc import Sequence

from torch import Tensor

from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.pyramid import FeaturePyramid
from hjepa_pl.types import ConfigError


def check_images(images: Tensor, channels: int) -> None:
    """Check that images are a normalized batch.

    Raises:
        ConfigError: If they are not floats, or not (B, `channels`, H, W).
    """
    if not images.is_floating_point():
        raise ConfigError(
            f"images of {images.dtype} cannot be encoded: pass floats, (x / 255 - mean) / std for each channel, with "
            "the mean and std of training (ImageNet's for color)."
        )
    if images.dim() != 4 or images.shape[1] != channels:
        raise ConfigError(f"images must have shape (B, {channels}, H, W), got {tuple(images.shape)}.")


def patch_tokens(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the final-norm patch tokens (B, N, D), float32, in raster order."""
    return encoder(images)["last"].float()


def pooled(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the mean of the final-norm patch tokens (B, D), float32."""
    return patch_tokens(encoder, images).mean(dim=1)


def pyramid_maps(
    encoder: Encoder, pyramid: FeaturePyramid, blocks: Sequence[Block], images: Tensor
) -> tuple[Tensor, ...]:
    """Return the maps of a pyramid over the outputs of `blocks`.

    Returns:
        Three float32 maps (B, dim, ceil(H / s), ceil(W / s)) at strides s = p, 2p and 4p pixels, finest first.
    """
    tokens = encoder(images, blocks=blocks)
    return tuple(x.float() for x in pyramid([tokens[b] for b in blocks], encoder.grid_of(images)))
