"""Format `torch-export`: a program of torch.export, which runs without this package and timm."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hjepa_pl.backbones.checkpoint import reason
from hjepa_pl.backbones.exported import HEADER, header_of
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.tools.export.base import ExportFormat, Run, Source
from hjepa_pl.tools.export.networks import to_trace
from hjepa_pl.types import ConfigError


class TorchExport(ExportFormat):
    """A .pt2 program from float32 images to float32 outputs, for any batch size, at the size of training."""

    name, suffix = "torch-export", ".pt2"

    def check(self, source: Source) -> None:
        """Reject weights that compute no features."""
        reject_all(source, self.name)

    def write(self, source: Source, path: Path) -> None:
        """Trace the network, and write the program."""
        images = example(source)
        network = to_trace(source.features, source.dtype, images)
        shapes = {"images": {0: torch.export.Dim("batch")}}
        header = json.dumps(header_of(source.backbone, what=source.what, outputs=source.features.names))
        with tracing(source, self.name):
            program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={f"{HEADER}.json": header})

    def read(self, source: Source, path: Path) -> Run:
        """Load by torch."""
        with path.open("rb") as file:
            return torch.export.load(file).module()

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return a call of torch."""
        names = ", ".join(source.features.names)
        return [f'{names} = torch.export.load("{path}").module()(images)']


@contextmanager
def tracing(source: Source, name: str) -> Iterator[None]:
    """Trace without gradients and warnings; an encoder of one's own may be one that cannot be traced.

    Raises:
        ConfigError: If it is.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(source.backbone.encoder, VisionEncoder):
            raise
        raise ConfigError(
            f"--format {name} cannot hold encoder.family={source.backbone.config.family}, torch.export cannot trace it "
            f"({reason(error)}); use --format safetensors."
        ) from None


def reject_all(source: Source, name: str) -> None:
    """Reject `--what all` for formats that are programs."""
    if source.what == "all":
        raise ConfigError(
            f"--format {name} cannot hold --what all: it is a program from images to features; use --what encoder, or "
            "--format safetensors."
        )


def example(source: Source) -> Tensor:
    """Return images to trace a network with."""
    backbone = source.backbone
    return torch.zeros(2, backbone.in_chans, *backbone.img_size)
