"""What a format of `hjepa export` is, and what it is given."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.backbones.backbone import Backbone
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.timm_vit import timm_recipe
from hjepa_pl.tools.export.networks import Features
from hjepa_pl.types import ConfigError

What = Literal["encoder", "encoder+pyramid", "all"]
"""What is exported: the encoder, with its pyramid, or every weight of the checkpoint."""
Run = Callable[[Tensor], Sequence[Tensor]]
"""A network: outputs of normalized images (B, C, H, W)."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Source(NamedTuple):
    """What a format writes."""

    backbone: Backbone
    """The encoder of the checkpoint, in 32 bits, and what is known of its run."""
    features: Features
    """The same encoder, and the pyramid if it is exported, as a network of images."""
    state: dict[str, Tensor]
    """The weights to export, by their names in the checkpoint."""
    what: What
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """Name of `dtype`, as it is typed."""
        return str(self.dtype).removeprefix("torch.")


class ExportFormat:
    """A format; a subclass is registered in `FORMATS`.

    Attributes:
        name: As it is typed.
        suffix: Of the file; empty for a folder.
        tolerance: Largest difference in 32 bits, relative to the largest output, or to 1 if that is smaller.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-5

    def check(self, source: Source) -> None:
        """Reject what the format cannot hold, and missing packages; raises `ConfigError`."""

    def write(self, source: Source, path: Path) -> None:
        """Write the file, or the files into the folder, which exists."""
        raise NotImplementedError

    def read(self, source: Source, path: Path) -> Run:
        """Load what was written, as its user will; the network returns the outputs of `reference` in 32 bits."""
        raise NotImplementedError

    def reference(self, source: Source) -> Run:
        """Return the network of the checkpoint that the loaded one is compared with."""
        return source.features

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return the lines of code that load it."""
        raise NotImplementedError

    def largest_difference(self, dtype: torch.dtype) -> float:
        """Return the tolerance of a dtype: in 16 bits it is 32 steps of the dtype."""
        return self.tolerance if dtype == torch.float32 else 32 * torch.finfo(dtype).eps


def timm_model(source: Source, name: str) -> tuple[str, dict[str, Any]]:
    """Return the timm name and arguments of the encoder, for formats that are timm models.

    Args:
        source: What is exported.
        name: Of the format.

    Raises:
        ConfigError: If it is not a timm model, or more than the encoder is exported.
    """
    if source.what != "encoder":
        raise ConfigError(
            f"--format {name} cannot hold --what {source.what}, only the encoder; use --format safetensors for it."
        )
    if not isinstance(source.backbone.encoder, VisionEncoder):
        raise ConfigError(
            f"--format {name} cannot hold encoder.family={source.backbone.config.family}, which is no timm model; use "
            "--format safetensors, torch-export or onnx."
        )
    architecture, arguments = timm_recipe(source.backbone.config)
    arguments.pop("drop_path_rate")  # of training; whoever fine-tunes sets it
    return architecture, arguments
