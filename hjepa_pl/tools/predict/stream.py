"""A .safetensors file that is written a batch of rows at a time."""

import json
from collections.abc import Mapping
from typing import IO, NamedTuple

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL"}


class Column(NamedTuple):
    """A tensor of the file, before it is known."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorStream:
    """Writes the tensors of a .safetensors file in pieces; those of large types first keep the others aligned.

    Args:
        file: Opened for writing bytes.
        columns: The tensors, by name.
        metadata: Texts of the header.
    """

    def __init__(self, file: IO[bytes], columns: Mapping[str, Column], metadata: Mapping[str, str]) -> None:
        self.file = file
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        ordered = sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize)
        self._ends: dict[str, int] = {}
        offset = 0
        for name, column in ordered:
            span = [offset, offset + column.bytes]
            header[name] = {"dtype": _NAMES[column.dtype], "shape": list(column.shape), "data_offsets": span}
            self._ends[name] = offset
            offset = span[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = 8 + len(text)
        file.truncate(self._start + offset)

    def append(self, name: str, rows: Tensor) -> None:
        """Write the next rows of a tensor, which have its dtype."""
        content = rows.contiguous().numpy().tobytes()
        self.file.seek(self._start + self._ends[name])
        self.file.write(content)
        self._ends[name] += len(content)
