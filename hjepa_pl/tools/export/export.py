"""An export: read, write, check, and only then keep."""

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from hjepa_pl.backbones.backbone import Backbone, Branch
from hjepa_pl.backbones.checkpoint import ROOTS, find_checkpoint, read_checkpoint, read_weights
from hjepa_pl.backbones.load import make_backbone
from hjepa_pl.tools.export.base import DTYPES, ExportFormat, Source, What
from hjepa_pl.tools.export.formats import find_format
from hjepa_pl.tools.export.hf_folder import FILES
from hjepa_pl.tools.export.networks import PYRAMIDS, Features, with_pyramid
from hjepa_pl.tools.export.parity import measure
from hjepa_pl.types import ConfigError


class Request(NamedTuple):
    """The words of the command line."""

    ckpt: str
    format: str
    out: str
    branch: Branch | None
    what: What
    dtype: str
    force: bool


def export(request: Request) -> int:
    """Write a format, check it and keep it; return 0, or 1 if it computes something else than the checkpoint.

    Raises:
        ConfigError: If the checkpoint cannot be read, the format cannot hold it, or the output exists.
    """
    kind, out = find_format(request.format), Path(request.out)
    check_output(out, kind, force=request.force)
    source = read_source(request)
    kind.check(source)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part{kind.suffix}")
    try:
        _remove(part)
        if not kind.suffix:
            part.mkdir()
        kind.write(source, part)
        parity = measure(kind.reference(source), kind.read(source, part), source.backbone)
        limit = kind.largest_difference(source.dtype)
        measured = f"largest difference from the checkpoint: {parity.difference:.2g} on {parity.images}"
        if not parity.relative <= limit:
            print(f"hjepa export: error: {measured}, above {limit:.2g}; nothing was kept.", file=sys.stderr)
            return 1
        _put(part, out)
    finally:
        _remove(part)
    print(f"{_size(out)}{out}: {_describe(source)}")
    print(f"{measured} (tolerance {limit:.2g})")
    for line in (*kind.usage(source, out), *_remarks(source.backbone)):
        print(f"  {line}" if line.isascii() and "=" in line else line)
    return 0


def check_output(out: Path, kind: ExportFormat, *, force: bool) -> None:
    """Check where the export goes, before anything is read.

    Raises:
        ConfigError: If it exists and `force` is not given, is of another kind, or its suffix is of another format.
    """
    if kind.suffix and out.suffix != kind.suffix:
        raise ConfigError(f"invalid `--out={out}`: must end in {kind.suffix} with --format {kind.name}.")
    if not os.path.lexists(out):
        return
    if out.is_dir() == bool(kind.suffix):
        other = "a folder" if out.is_dir() else "a file"
        raise ConfigError(f"invalid `--out={out}`: is {other}; choose another name for --format {kind.name}.")
    strangers = [p.name for p in out.iterdir() if p.name not in FILES] if out.is_dir() else []
    if strangers:
        raise ConfigError(f"invalid `--out={out}`: has other files ({strangers[0]}); choose another name.")
    if not force:
        raise ConfigError(f"invalid `--out={out}`: exists; choose another name, or replace it with --force.")


def read_source(request: Request) -> Source:
    """Return what is exported.

    Raises:
        ConfigError: If the checkpoint cannot be read, or lacks what is asked for.
    """
    given = Path(request.ckpt)
    if not given.exists():
        raise ConfigError(f"invalid `--ckpt={given}`: there is no such file or folder.")
    path, dtype = find_checkpoint(given), DTYPES[request.dtype]
    backbone = make_backbone(read_weights(path, request.branch), path)
    state = read_checkpoint(path)["state_dict"]
    root = ROOTS[backbone.branch]
    if request.what == "encoder+pyramid":
        features = with_pyramid(backbone, state, root)
        roots: tuple[str, ...] = (root, PYRAMIDS[backbone.branch])
    else:
        features = Features(make_backbone(read_weights(path, backbone.branch), path).encoder).eval()
        roots = (root,) if request.what == "encoder" else ("",)
    inner = f"{root}inner_norms." if request.what == "encoder" else "\0"  # read by levels and the pyramid only
    kept = {name: x for name, x in state.items() if name.startswith(roots) and not name.startswith(inner)}
    cast = {name: (x.to(dtype) if x.is_floating_point() else x).clone().contiguous() for name, x in kept.items()}
    return Source(backbone, features, cast, request.what, dtype)


def _describe(source: Source) -> str:
    """Return what was exported, in words."""
    backbone = source.backbone
    count = sum(x.numel() for x in source.state.values())
    (height, width), more = backbone.img_size, {"encoder": "", "encoder+pyramid": " and pyramid"}
    what = "all weights" if source.what == "all" else f"{backbone.branch} encoder{more[source.what]}"
    return f"{what}, {count:,} weights in {source.dtype_name}, for images {backbone.in_chans} x {height} x {width}"


def _remarks(backbone: Backbone) -> list[str]:
    """Return what the run's summary says of its networks: that the online encoder is the better one."""
    notes = (backbone.metadata.get("summary") or {}).get("notes") or []
    return [f"note of the run: {note}" for note in notes]


def _size(path: Path) -> str:
    """Return the size of a file, or of the files in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB "


def _put(part: Path, out: Path) -> None:
    """Move what was written into place; of a folder the old one is removed when the new one is complete."""
    if out.is_dir():
        old = out.with_name(f".{out.name}.old")
        _remove(old)
        out.rename(old)
        part.rename(out)
        _remove(old)
    else:
        part.replace(out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
