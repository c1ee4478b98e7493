"""`hjepa shards`: tar shards in the WebDataset layout from a folder of images."""

import argparse
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hjepa_pl.cli.errors import one_sentence
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.atomic_file import atomic_write

if TYPE_CHECKING:
    from hjepa_pl.data.sources.images import FileImages

_DESCRIPTION = """Make tar shards, for the dataset name webdataset, from a folder of images.

Each file is copied byte by byte as KEY.<its extension>. The index of its class (the first folder below FOLDER, in
alphabetical order) is stored as KEY.cls, unless the file is directly in FOLDER. The images are shuffled by the seed:
the same folder gives the same shards, byte for byte. A .json file in the folder of the shards lists the names of the
classes and the number of samples of each shard. Nothing is overwritten; a shard is renamed into place when it is
complete."""

_EXAMPLE = """example:
  hjepa shards photographs shards/train-%06d.tar --per-shard 1000
  hjepa fit ... --data.init_args.datasets='[{name: webdataset, root: "shards/train-{000000..000012}.tar"}]'

Make at least as many shards as there will be processes x workers. A folder with train/ and val/ is read by --split."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hjepa shards",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="any tree of images that Pillow reads")
    parser.add_argument("pattern", metavar="OUT_PATTERN", help="paths of the shards, as out/train-%%06d.tar")
    parser.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images per shard (default 1000)")
    parser.add_argument("--split", default="train", help="split of FOLDER to read, if it has any (default train)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the images (default 0)")
    return parser


def run(args: Sequence[str]) -> int:
    """Make the shards; return 0, or 2 on an error."""
    options = _parser().parse_args(list(args))
    try:
        root = make_shards(options.folder, options.pattern, options.per_shard, split=options.split, seed=options.seed)
    except (ConfigError, OSError) as error:
        print(f"hjepa: error: {one_sentence(error) or error}", file=sys.stderr)
        return 2
    print(f'done: {{name: webdataset, root: "{root}"}}')
    return 0


def make_shards(folder: str, pattern: str, per_shard: int = 1000, *, split: str = "train", seed: int = 0) -> str:
    """Write the images of a folder as shards.

    Args:
        folder: A tree of images, as for the dataset `folder`.
        pattern: Path of the shards with one number, as `train-%06d.tar`.
        per_shard: Images per shard; the last may have fewer.
        split: Split to read, if the folder has any.
        seed: Of the order of the images.

    Returns:
        The brace pattern of all shards.

    Raises:
        ConfigError: If an argument is invalid, a shard exists, or an image cannot be read.
    """
    # Imported here, so that --help does not wait for Lightning.
    import numpy as np

    from hjepa_pl.data.sources.class_folders import find_tree
    from hjepa_pl.data.sources.image_folder import scan_folder
    from hjepa_pl.data.sources.shards import info_path

    _check(pattern, per_shard, seed)
    images = scan_folder("folder", find_tree("folder", folder, split))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(images)).tolist()
    parts = [order[i : i + per_shard] for i in range(0, len(order), per_shard)]
    paths = [pattern % i for i in range(len(parts))]
    info = info_path(paths[0])
    for path in (*paths, info):
        if os.path.exists(path):
            raise ConfigError(f"{path} exists; remove it, or set another OUT_PATTERN.")
    os.makedirs(os.path.dirname(pattern) or ".", exist_ok=True)
    listed = {}
    for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
        _write_shard(path, images, part, first=number * per_shard)
        listed[os.path.basename(path)] = {"samples": len(part), "bytes": os.path.getsize(path)}
        _progress(number + 1, len(paths), min((number + 1) * per_shard, len(order)))
    with atomic_write(info) as file:
        file.write(json.dumps({"classes": images.classes, "shards": listed}, indent=1) + "\n")
    return _braces(pattern, len(paths))


def _check(pattern: str, per_shard: int, seed: int) -> None:
    if len(re.findall(r"%0?\d*d", os.path.basename(pattern))) != 1 or pattern.count("%") != 1:
        raise ConfigError(f"OUT_PATTERN {pattern} has no number; name the shards as train-%06d.tar.")
    if not pattern.endswith(".tar"):
        raise ConfigError(f"OUT_PATTERN {pattern} does not end in .tar; shards are not compressed, as images are.")
    for key, value, minimum in (("--per-shard", per_shard, 1), ("--seed", seed, 0)):
        if value < minimum:
            raise ConfigError(f"{key} {value} is invalid: must be a whole number >= {minimum}.")


def _write_shard(path: str, images: "FileImages", part: Sequence[int], *, first: int) -> None:
    """Write one shard; `first` is the key of its first image."""
    with atomic_write(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        # Neither times nor owners are written, so that the same images give the same bytes.
        for i, index in enumerate(part):
            source, key = images.path(index), f"{first + i:09d}"
            _add(tar, key + os.path.splitext(source)[1].lower(), _read(source))
            if int(images.labels[index]) >= 0:
                _add(tar, key + ".cls", str(int(images.labels[index])).encode())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); fix or remove it.") from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _progress(shards: int, of: int, images: int) -> None:
    live = sys.stderr.isatty()
    if live or shards == of:
        end = "\n" if shards == of or not live else ""
        print(
            f"{chr(13) if live else ''}{shards} of {of} shards, {images} images", end=end, file=sys.stderr, flush=True
        )


def _braces(pattern: str, number: int) -> str:
    """Return the pattern with {first..last} in place of the number."""
    if number == 1:
        return pattern % 0
    field = re.search(r"%0?\d*d", pattern)
    assert field is not None
    braces = f"{{{field[0] % 0}..{field[0] % (number - 1)}}}"
    return pattern[: field.start()] + braces + pattern[field.end() :]
