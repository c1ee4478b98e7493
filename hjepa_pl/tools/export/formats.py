"""The formats of `hjepa export` by name; importing this imports none of them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hjepa_pl.tools.export.base import ExportFormat

FORMATS: dict[str, tuple[str, str]] = {
    "timm": ("timm_file.TimmFile", ".safetensors file of a timm model, under timm's names"),
    "hf": ("hf_folder.HfFolder", "folder that timm.create_model loads, also from the Hugging Face hub, with a card"),
    "safetensors": ("safetensors_file.SafetensorsFile", ".safetensors file under the checkpoint's names"),
    "torch-export": ("torch_export.TorchExport", ".pt2 program of torch.export, which needs torch alone"),
    "onnx": ("onnx_file.OnnxFile", ".onnx graph for ONNX Runtime and others"),
}
"""Class in this folder, and a description, of each format."""


def find_format(name: str) -> "ExportFormat":
    """Return a format."""
    module, _, kind = FORMATS[name][0].rpartition(".")
    return getattr(import_module(f"hjepa_pl.tools.export.{module}"), kind)()
