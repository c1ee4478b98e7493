"""Format `safetensors`: weights under the names of the checkpoint, with everything about them in the header."""

import json
from pathlib import Path

from safetensors.torch import load_file, save

from hjepa_pl.backbones.checkpoint import ROOTS
from hjepa_pl.backbones.exported import HEADER, header_of, read_exported
from hjepa_pl.backbones.load import make_backbone
from hjepa_pl.tools.export.base import ExportFormat, Run, Source
from hjepa_pl.tools.export.networks import Features, with_pyramid


class SafetensorsFile(ExportFormat):
    """A .safetensors file for `hjepa_pl.load_encoder`: the encoder, with the pyramid, or all weights."""

    name, suffix = "safetensors", ".safetensors"

    def write(self, source: Source, path: Path) -> None:
        """Write the weights."""
        header = header_of(source.backbone, names="checkpoint", what=source.what)
        path.write_bytes(save(source.state, metadata={"format": "pt", HEADER: json.dumps(header)}))

    def read(self, source: Source, path: Path) -> Run:
        """Load as `load_encoder` does."""
        backbone = make_backbone(read_exported(path), path)
        if source.features.pyramid is None:
            return Features(backbone.encoder).eval()
        state = {name: x.float() if x.is_floating_point() else x for name, x in load_file(path).items()}
        return with_pyramid(backbone, state, ROOTS[backbone.branch])

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return a call of `load_encoder`."""
        return [f'backbone = hjepa_pl.load_encoder("{path}")']
