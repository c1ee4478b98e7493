"""The check that what was written computes what the checkpoint computes."""

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.backbones.backbone import Backbone
from hjepa_pl.tools.export.base import Run


class Parity(NamedTuple):
    """Result of the check."""

    difference: float
    """Largest absolute difference of two outputs."""
    relative: float
    """The same, divided by the largest absolute output of the checkpoint, or by 1 if that is smaller."""
    images: str
    """What it was measured on."""


def measure(reference: Run, exported: Run, backbone: Backbone) -> Parity:
    """Return the largest difference between the outputs of two networks on real images, in a batch and one by one."""
    images, kind = check_images(backbone)
    difference = relative = 0.0
    with torch.no_grad():
        for batch in (images, images[:1]):
            for ours, theirs in zip(reference(batch), exported(batch), strict=True):
                if ours.shape != theirs.shape:
                    return Parity(float("inf"), float("inf"), f"{kind}, of shapes {ours.shape} and {theirs.shape}")
                gap = float((ours.double() - theirs.double()).abs().nan_to_num(nan=float("inf")).max())
                difference = max(difference, gap)
                relative = max(relative, gap / max(1.0, float(ours.abs().max())))
    return Parity(difference, relative, f"{len(images)} {kind}")


def check_images(backbone: Backbone) -> tuple[Tensor, str]:
    """Return images for a backbone as its transform makes them, and what they are.

    Gray encoders get digits, color ones pieces of two photographs, both of scikit-learn; others noise.
    """
    if backbone.in_chans == 1:
        from sklearn.datasets import load_digits

        scans = torch.from_numpy(load_digits().images[:8])
        return backbone.transform()((scans * (255 / 16)).round().to(torch.uint8)[:, None]), "digits"
    if backbone.in_chans == 3:
        from sklearn.datasets import load_sample_images

        transform = backbone.transform()
        photographs = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in load_sample_images().images]
        pieces = [piece for x in photographs for half in x.chunk(2, 1) for piece in half.chunk(2, 2)]
        return torch.stack([transform(piece) for piece in pieces]), "pieces of photographs"
    noise = torch.Generator().manual_seed(0)
    return torch.randn(8, backbone.in_chans, *backbone.img_size, generator=noise), "random images"
