"""Format `hf`: a folder that timm loads, from the disk or from the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

import timm

from hjepa_pl.tools.export.base import Run, Source, timm_model
from hjepa_pl.tools.export.card import model_card
from hjepa_pl.tools.export.timm_file import TimmFile, run_timm, write_timm_weights
from hjepa_pl.utils.settings import to_plain

FILES = ("config.json", "model.safetensors", "README.md")


class HfFolder(TimmFile):
    """A folder with config.json, model.safetensors and a model card, in the layout of timm's models on the hub."""

    name, suffix = "hf", ""

    def write(self, source: Source, path: Path) -> None:
        """Write the three files."""
        write_timm_weights(source, path / "model.safetensors")
        config = hub_config(source)
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (path / "README.md").write_text(model_card(source.backbone, config), encoding="utf-8")

    def read(self, source: Source, path: Path) -> Run:
        """Load by timm, as from the hub."""
        model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        return run_timm(model)

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return a call of timm."""
        return [f'model = timm.create_model("local-dir:{path}", pretrained=True)']


def hub_config(source: Source) -> dict[str, Any]:
    """Return the contents of config.json: what `timm.create_model` and timm's transforms read."""
    backbone = source.backbone
    architecture, arguments = timm_model(source, HfFolder.name)
    pretrained: dict[str, Any] = {
        "tag": "hjepa",
        "custom_load": False,
        "input_size": [backbone.in_chans, *backbone.img_size],
        "fixed_input_size": not arguments.get("dynamic_img_size", False),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "num_classes": 0,
        "pool_size": None,
        "classifier": None,
    }
    if backbone.in_chans == 3:
        pretrained["first_conv"] = "patch_embed.proj"
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "global_pool": "avg",
        "model_args": to_plain(arguments),
        "pretrained_cfg": pretrained,
    }
