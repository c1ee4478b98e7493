"""The datasets by name.

A dataset is a function of (root, split) that returns its images; a new one is a file with such a function and a line in
`DATASETS`. One outside the package is given by its import path: `datasets=[{name: my_package.my_module.load}]`.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.class_folders import TREES, Tree, find_tree
from hjepa_pl.data.sources.embedded import digits, digits_canvas, fake
from hjepa_pl.data.sources.image_folder import load_folder
from hjepa_pl.data.sources.images import IndexedImages
from hjepa_pl.data.sources.torchvision_sets import OFFICIAL, download_official, load_official
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.wording import either

Load = Callable[[str, str], IndexedImages]
"""Contract of a dataset's function, called as `load(root, split)`.

Args: `root`, the key of that name with `~` expanded (`data` if it is not set), and `split` (`train` by default; probes
read `train` and `test`). Returns `ArrayImages` (a uint8 tensor in memory), `FileImages` (paths of files), or an object
with the members of `EncodedImages`. Raises `ConfigError` for a split that it does not have, or files that are missing.
The same arguments give the same images in the same order in every process, or a resumed run sees others.
"""


class Dataset(NamedTuple):
    """An entry of `DATASETS`."""

    load: Load | None = None
    """None for folders and shards, which `LoadedSets` opens itself."""
    download: Callable[[str], None] | None = None
    """Downloads the files to a folder unless they are there."""
    embedded: bool = False
    """Whether it needs no files, so that `root` has no effect."""
    root: str | None = None
    """What `root` must be, for datasets without a default."""


_OFFICIAL = {n: Dataset(partial(load_official, n), partial(download_official, n)) for n in OFFICIAL}
DATASETS: Registry[Dataset | Load] = Registry(
    "datasets.name",
    {
        "digits": Dataset(digits, embedded=True),
        "digits_canvas": Dataset(digits_canvas, embedded=True),
        "fake": Dataset(fake, embedded=True),
        **_OFFICIAL,
        "imagenet100": Dataset(),
        "imagenet": Dataset(),
        "folder": Dataset(root="the folder that holds the images"),
        "webdataset": Dataset(root="the tar shards, as SHARDS/train-{000..099}.tar"),
    },
)
"""All datasets. An entry is a `Dataset`, or a function alone."""


def find_dataset(name: str, key: str = "datasets") -> Dataset:
    """Return the dataset of a name or import path.

    Args:
        name: The name.
        key: `datasets` or `probe`, for messages.

    Raises:
        ConfigError: If there is none.
    """
    try:
        found = DATASETS.find(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("datasets.name", f"{key}.name", 1)) from None
    if isinstance(found, Dataset):
        return found
    if not callable(found):
        raise ConfigError(f"invalid `datasets.name={name}`: must be a function of (root, split) that returns images.")
    return Dataset(found)


def check_dataset(key: str, name: str, root: str | None, classes: str | None = None) -> None:
    """Reject an unknown name, a missing `root`, and settings without effect. Reads no file.

    Args:
        key: `datasets` or `probe`, for messages.
        name: The dataset.
        root: As configured.
        classes: As configured.
    """
    dataset = find_dataset(name, key)
    if dataset.embedded and root is not None:
        raise ConfigError(
            f"invalid `{key}.root={root}`: has no effect with name={name}, which needs no files; remove it."
        )
    if dataset.root is not None and root is None:
        raise ConfigError(f"invalid `{key}.root=null`: must be {dataset.root} (dataset {name}).")
    if classes is not None and name not in TREES:
        raise ConfigError(
            f"invalid `{key}.classes={classes}`: has an effect only with name={either(TREES)}; remove it "
            f"(dataset {name})."
        )


def tree_of(name: str, root: str | None = None, split: str = "train", classes: str | None = None) -> Tree | None:
    """Return the tree of a dataset that is one, None for other datasets."""
    return find_tree(name, _expanded(root), split, classes) if name in TREES else None


def load_dataset(
    name: str, root: str | None = None, split: str = "train", classes: str | None = None, bad: BadFiles | None = None
) -> IndexedImages:
    """Load a dataset by name.

    Args:
        name: A name of `DATASETS` (but for `webdataset`, see `open_shards`) or an import path.
        root: Folder of its files; `data` by default.
        split: Which part of it.
        classes: File with the class folders to read, for trees.
        bad: Takes the files that cannot be decoded.

    Raises:
        ConfigError: If the dataset cannot be loaded.
    """
    check_dataset("datasets", name, root, classes)
    return load_images(name, root, split, tree_of(name, root, split, classes), bad or BadFiles())


def load_images(name: str, root: str | None, split: str, tree: Tree | None, bad: BadFiles) -> IndexedImages:
    """Load a dataset whose tree (None without one) is known."""
    if tree is not None:
        return load_folder(name, tree, bad)
    load = find_dataset(name).load
    if load is None:
        raise ConfigError(
            f"invalid `datasets.name={name}`: its images have no index; unpack them and set name to folder."
        )
    images = load(_expanded(root), split)
    if not isinstance(images, IndexedImages) or images.streamed:
        raise ConfigError(
            f"invalid `datasets.name={name}`: returned {type(images).__name__}, must return ArrayImages, FileImages or "
            "an object with their members."
        )
    return images


def download_dataset(name: str, root: str | None = None) -> None:
    """Download and verify a dataset that can be downloaded, unless its files are there."""
    download = find_dataset(name).download
    if download is not None:
        download(_expanded(root))


def _expanded(root: str | None) -> str:
    return os.path.expanduser(root or "data")


def num_classes(labels: Tensor) -> int:
    """Return the number of classes of labels 0..n-1, 0 if there are none."""
    return int(labels.max()) + 1 if len(labels) else 0
