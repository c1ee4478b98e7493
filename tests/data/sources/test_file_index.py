"""Listings of folders: kept, refreshed, and never trusted when damaged."""

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image

import hjepa_pl.data.sources.file_index as index
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.image_folder import Reading
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.types import ConfigError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder that was left alone for a while, of empty files: a listing looks at names only."""
    monkeypatch.setattr(index, "_KEPT_FROM", 1)
    for path in ("cat/1.jpg", "cat/old/2.PNG", "dog/3.jpg", "dog/notes.txt", "4.jpg"):
        file = tmp_path / "tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    settle(tmp_path / "tree")
    return tmp_path / "tree"


def settle(top, seconds=60):
    for path, _, _ in os.walk(top):
        os.utime(path, (time.time() - seconds,) * 2)


def listed(tree, classes=None):
    listing = index.list_images(str(tree), classes, str(tree.parent / "kept"))
    return [p.decode() for p in listing.paths.tolist()], listing.labels.tolist()


@pytest.fixture
def walks(monkeypatch):
    """Counts the folders that are looked into."""
    seen, real = [], os.scandir

    def counted(path):
        seen.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    return seen


WHOLE = (["4.jpg", "cat/1.jpg", "cat/old/2.PNG", "dog/3.jpg"], [-1, 0, 0, 1])


def test_the_second_time_no_folder_is_listed(tree, walks):
    assert listed(tree) == WHOLE
    assert len(walks) == 4
    assert listed(tree) == WHOLE
    assert len(walks) == 4
    assert len(list((tree.parent / "kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "gives"),
    [
        (
            lambda t: (t / "cat/old/9.jpg").touch(),
            ["4.jpg", "cat/1.jpg", "cat/old/2.PNG", "cat/old/9.jpg", "dog/3.jpg"],
        ),
        (lambda t: (t / "dog/3.jpg").unlink(), ["4.jpg", "cat/1.jpg", "cat/old/2.PNG"]),
        (lambda t: (t / "dog/3.jpg").rename(t / "cat/3.jpg"), ["4.jpg", "cat/1.jpg", "cat/3.jpg", "cat/old/2.PNG"]),
        (lambda t: (t / "emu").mkdir(), WHOLE[0]),
        (lambda t: (t / "cat").rename(t / "ant"), ["4.jpg", "ant/1.jpg", "ant/old/2.PNG", "dog/3.jpg"]),
    ],
)
def test_a_changed_folder_is_listed_anew(tree, walks, change, gives):
    listed(tree)
    before = len(walks)
    change(tree)
    assert listed(tree)[0] == gives
    assert len(walks) > before


def test_an_edited_file_changes_no_listing(tree, walks):
    listed(tree)
    (tree / "cat/1.jpg").write_bytes(b"other")
    assert listed(tree) == WHOLE
    assert len(walks) == 4


def test_a_folder_that_has_just_changed_is_not_kept(tree):
    settle(tree, seconds=0)
    assert listed(tree) == WHOLE
    assert not (tree.parent / "kept").exists()


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: b"junk", "flip"])
def test_a_damaged_listing_is_made_anew(tree, walks, damage):
    listed(tree)
    file = next((tree.parent / "kept").iterdir())
    content = file.read_bytes()
    if damage == "flip":  # one byte of the paths
        at = content.index(b"cat/1.jpg")
        file.write_bytes(content[:at] + b"X" + content[at + 1 :])
    else:
        file.write_bytes(damage(content))
    assert listed(tree) == WHOLE
    assert len(walks) == 8
    assert file.read_bytes() == content
    listed(tree)
    assert len(walks) == 8


def test_each_choice_of_classes_has_its_own(tree):
    assert listed(tree, ["dog", "cat"]) == (["dog/3.jpg", "cat/1.jpg", "cat/old/2.PNG"], [0, 1, 1])
    assert listed(tree) == WHOLE
    assert listed(tree, ["dog"]) == (["dog/3.jpg"], [0])
    assert listed(tree, ["dog", "cat"])[1] == [0, 1, 1]


def test_small_folders_are_not_kept(tree, monkeypatch):
    monkeypatch.setattr(index, "_KEPT_FROM", 10_000)
    listed(tree)
    assert not (tree.parent / "kept").exists()


def test_where_nothing_can_be_written_it_works_all_the_same(tree):
    (tree.parent / "kept").write_text("a file in the way")
    assert listed(tree) == WHOLE


def test_several_processes_at_once(tree):
    with ProcessPoolExecutor(4) as pool:
        assert list(pool.map(listed, [tree] * 16)) == [WHOLE] * 16
    assert [f.suffix for f in (tree.parent / "kept").iterdir()] == [".npz"]


def test_images_are_the_same_with_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_KEPT_FROM", 1)
    for i, c in enumerate(["a", "b", "b"]):
        (tmp_path / "t" / c).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8 + i, 3), i, np.uint8)).save(tmp_path / "t" / c / f"{i}.png")
    settle(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    reading = Reading(BadFiles(), "kept")
    first = load_dataset("folder", "t", reading=reading)
    again = load_dataset("folder", str(tmp_path / "t"), reading=reading)
    assert len(list((tmp_path / "kept").iterdir())) == 1  # a relative and an absolute path name one folder
    assert (first.classes, first.labels.tolist()) == (again.classes, again.labels.tolist()) == (["a", "b"], [0, 1, 1])
    assert first.path(2) == "t/b/2.png"
    assert first.read(2, 3).shape == (3, 8, 10)


def test_a_folder_that_may_not_be_read_is_one_sentence():
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        os.mkdir(f"{top}/closed", 0o000)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"the folder .*/closed may not be read: change its permissions"):
                load_dataset("folder", top)
        finally:
            if root:
                os.seteuid(0)
