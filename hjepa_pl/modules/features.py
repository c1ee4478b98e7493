"""How a trained module is used: features of whole images, of patches, and maps for dense tasks."""

import torch
from torch import Tensor

from hjepa_pl.models.base import Encoder
from hjepa_pl.models.pyramid import FeaturePyramid
from hjepa_pl.objectives.networks import Depths
from hjepa_pl.types import ConfigError


def refuse_raw(images: Tensor, channels: int) -> None:
    """Refuse images as they come from a file: bytes, without a batch, or with the channels last.

    Raises:
        ConfigError: Saying how images are prepared.
    """
    if not images.is_floating_point():
        raise ConfigError(
            f"images of {images.dtype} cannot be encoded: give floats, (x / 255 - mean) / std for each channel, with "
            "the mean and std of training (ImageNet's for color)."
        )
    if images.dim() != 4 or images.shape[1] != channels:
        raise ConfigError(f"images must be (B, {channels}, H, W), got the shape {tuple(images.shape)}.")


class Features:
    """The use of a module. Images are prepared as the data module prepares clean ones.

    That is: resized and centre-cropped to `encoder.img_size` (another size that the patch divides works too), then
    (x / 255 - mean) / std for each channel, with ImageNet's mean and std for colour and .5 and .25 for grey.
    `HJEPALightningModule.load_from_checkpoint(path).eval()` is all that is needed before.
    """

    context_encoder: Encoder
    target_encoder: Encoder | None
    target_pyramid: FeaturePyramid | None
    depths: Depths

    @property
    def judged_encoder(self) -> Encoder:
        """The target encoder, or the online one where there is no other."""
        return self.context_encoder if self.target_encoder is None else self.target_encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder to use after training: the judged one (`context_encoder` and `target_encoder` are both kept)."""
        return self.judged_encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return `encode(images)`, so that the module can be called."""
        return self.encode(images)

    @staticmethod
    def pooled(encoder: Encoder, images: Tensor) -> Tensor:
        """Return the mean of an encoder's final-norm patch tokens (B, D), float32."""
        return encoder(images)["last"].float().mean(dim=1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of the final-norm patch tokens of the judged encoder.

        Args:
            images: (B, C, H, W), normalised; H and W are any multiples of the patch size.

        Returns:
            (B, D), float32.

        Raises:
            ConfigError: If the images are not floats, or not (B, C, H, W).
        """
        refuse_raw(images, self.judged_encoder.config.in_chans)
        return self.pooled(self.judged_encoder, images)

    @torch.no_grad()
    def encode_tokens(self, images: Tensor) -> Tensor:
        """Return the final-norm patch tokens of the judged encoder.

        Args:
            images: (B, C, H, W), normalised; H and W are any multiples of the patch size p.

        Returns:
            (B, N, D), float32, N = H / p * W / p patches in raster order.
        """
        refuse_raw(images, self.judged_encoder.config.in_chans)
        return self.judged_encoder(images)["last"].float()

    @torch.no_grad()
    def encode_pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the judged pyramid's maps of full images, without gradient (see `pyramid_features` for training).

        Args:
            images: (B, C, H, W), normalised; H and W are any multiples of the patch size p.

        Returns:
            Three float32 maps (B, dim, ceil(H / s), ceil(W / s)) at strides s = p, 2p and 4p pixels, finest first.

        Raises:
            ConfigError: If the module has no pyramid.
        """
        return self.pyramid_features(images)

    def pyramid_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of `encode_pyramid` with a gradient, for a dense head that is trained on top.

        The target networks are frozen: call `requires_grad_()` on `target_encoder` and `target_pyramid` to fine-tune
        them too. For torchvision's detectors wrap this in a backbone that has `out_channels = module.pyramid.dim` and
        returns `OrderedDict(zip("012", module.pyramid_features(images)))`.
        """
        encoder, pyramid = self.target_encoder, self.target_pyramid
        if pyramid is None or encoder is None:
            raise ConfigError("encode_pyramid needs a pyramid and the model's pyramid is null; set pyramid: {}.")
        found = encoder(images, blocks=self.depths.pyramid)
        grid = (images.shape[-2] // encoder.patch_size[0], images.shape[-1] // encoder.patch_size[1])
        return tuple(x.float() for x in pyramid([found[b] for b in self.depths.pyramid], grid))
