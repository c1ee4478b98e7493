"""Listing of image folders."""

import os
import tempfile

import pytest

from hjepa_pl.data.sources.image_folder import list_images
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.types import ConfigError


@pytest.fixture
def tree(tmp_path):
    """A folder of empty files: a listing looks at names only."""
    for path in ("cat/1.jpg", "cat/old/2.PNG", "dog/3.jpg", "dog/notes.txt", "4.jpg", ".hid/5.jpg", "dog/.6.jpg"):
        file = tmp_path / "tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "tree"


def listed(tree, classes=None):
    paths, labels, names = list_images(str(tree), classes)
    return [os.path.relpath(p, tree) for p in paths], labels, names


def test_paths_labels_and_classes(tree) -> None:
    whole = (["4.jpg", "cat/1.jpg", "cat/old/2.PNG", "dog/3.jpg"], [-1, 0, 0, 1], ["cat", "dog"])
    assert listed(tree) == whole
    (tree / "dog/3.jpg").rename(tree / "cat/3.jpg")  # each listing reads the disk
    assert listed(tree)[0] == ["4.jpg", "cat/1.jpg", "cat/3.jpg", "cat/old/2.PNG"]


def test_given_classes_in_their_order(tree) -> None:
    paths = ["dog/3.jpg", "cat/1.jpg", "cat/old/2.PNG"]
    assert listed(tree, ["dog", "cat"]) == (paths, [0, 1, 1], ["dog", "cat"])
    assert listed(tree, ["dog"]) == (["dog/3.jpg"], [0], ["dog"])


def test_links_are_followed_once(tree) -> None:
    (tree / "ant").symlink_to(tree / "cat")
    (tree / "cat/loop").symlink_to(tree)
    paths = listed(tree)[0]
    assert "ant/old/2.PNG" in paths
    assert "cat/old/2.PNG" in paths  # also after the link to it
    assert len(paths) == 6
    (tree / "dog/gone.jpg").symlink_to(tree / "nowhere.jpg")
    assert "dog/gone.jpg" in listed(tree)[0]  # reported when it is read


def test_an_unreadable_folder_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        os.mkdir(f"{top}/closed", 0o000)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"the folder .*/closed cannot be read; change its permissions"):
                load_dataset("folder", top)
        finally:
            if root:
                os.seteuid(0)
