"""Format `onnx`: a graph for ONNX Runtime and others."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from hjepa_pl.backbones.exported import HEADER, header_of
from hjepa_pl.tools.export.base import ExportFormat, Run, Source
from hjepa_pl.tools.export.networks import to_trace
from hjepa_pl.tools.export.torch_export import example, reject_all, tracing
from hjepa_pl.types import ConfigError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2**31 - 2**20
"""Bytes of one file of protobuf, and some room for the graph."""


class OnnxFile(ExportFormat):
    """An .onnx graph from float32 `images` to float32 outputs, for any batch size, at the size of training."""

    name, suffix = "onnx", ".onnx"
    tolerance = 1e-4

    def check(self, source: Source) -> None:
        """Reject what the format cannot hold, and missing packages."""
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"--format onnx needs {' and '.join(missing)}; install with: pip install 'hjepa_pl[export]'."
            )
        reject_all(source, self.name)
        if source.dtype == torch.bfloat16:
            raise ConfigError(
                "--format onnx cannot hold --dtype bfloat16, which ONNX Runtime does not compute on a CPU; use float32 "
                "or float16."
            )
        size = sum(x.numel() for x in source.features.parameters()) * source.dtype.itemsize
        if size > _LARGEST:
            raise ConfigError(
                f"--format onnx cannot hold {size / 2**30:.1f} GiB of weights in one file; use --dtype float16, or "
                "--format torch-export."
            )

    def write(self, source: Source, path: Path) -> None:
        """Trace the network, and write the graph."""
        images, names = example(source), source.features.names
        network = to_trace(source.features, source.dtype, images)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        logging.getLogger("onnx_ir").setLevel(logging.ERROR)
        with tracing(source, self.name):
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=list(names),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props[HEADER] = json.dumps(header_of(source.backbone, what=source.what))
        program.save(path, external_data=False)

    def read(self, source: Source, path: Path) -> Run:
        """Load by ONNX Runtime."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> list[Tensor]:
            return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]

        return run

    def usage(self, source: Source, path: Path) -> list[str]:
        """Return a call of ONNX Runtime."""
        names = ", ".join(source.features.names)
        return [f'{names} = onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})']
