"""Format `timm`: the state dict of a timm model."""

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file, save
from torch import Tensor

from hjepa_pl.backbones.checkpoint import ROOTS
from hjepa_pl.backbones.exported import HEADER, TIMM_ROOT, header_of
from hjepa_pl.tools.export.base import ExportFormat, Run, Source, timm_model


class TimmFile(ExportFormat):
    """A .safetensors file that loads strictly into `timm.create_model(NAME, **kwargs)`, both in its header."""

    name, suffix = "timm", ".safetensors"

    def check(self, source: Source) -> None:
        """Reject other encoders than timm's."""
        timm_model(source, self.name)

    def write(self, source: Source, path: Path) -> None:
        """Write the weights under timm's names."""
        write_timm_weights(source, path)

    def read(self, source: Source, path: Path) -> Run:
        """Load by timm, strictly."""
        name, arguments = timm_model(source, self.name)
        model = timm.create_model(name, **arguments).eval()
        model.load_state_dict(load_file(path), strict=True)
        return run_timm(model)

    def reference(self, source: Source) -> Run:
        """Return pooled features, and all tokens, prefix included."""
        return lambda images: (source.backbone(images), source.backbone.forward_features(images))

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return a call of timm."""
        name, arguments = timm_model(source, self.name)
        return [f'model = timm.create_model("{name}", checkpoint_path="{path}", **{arguments})']


def run_timm(model: Any) -> Run:
    """Return a timm model as a network of pooled features and all tokens."""
    return lambda images: (model(images), model.forward_features(images))


def write_timm_weights(source: Source, path: Path) -> None:
    """Write the encoder's weights under timm's names, with the name and arguments of the model in the header."""
    architecture, arguments = timm_model(source, "timm")
    root = ROOTS[source.backbone.branch] + TIMM_ROOT
    state: dict[str, Tensor] = {name.removeprefix(root): x for name, x in source.state.items() if name.startswith(root)}
    header = header_of(source.backbone, names="timm", timm={"architecture": architecture, "model_args": arguments})
    path.write_bytes(save(state, metadata={"format": "pt", HEADER: json.dumps(header)}))
