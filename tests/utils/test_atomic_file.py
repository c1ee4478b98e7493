"""Atomic writes: whole files or none."""

import os
from pathlib import Path

import pytest

from hjepa_pl.utils.atomic_file import atomic_write


@pytest.mark.parametrize(
    ("mode", "old", "new"), [("w", "old\n", "new\r\n\N{GREEK SMALL LETTER PI}"), ("wb", b"old", b"new")]
)
def test_replaces_the_file_when_the_block_ends(tmp_path: Path, mode: str, old: str | bytes, new: str | bytes) -> None:
    path = tmp_path / "made" / "file.txt"
    for content in (old, new):
        with atomic_write(path, mode) as file:
            file.write(content)
            assert path.exists() == (content is new)
    assert path.read_bytes() == (new.encode() if isinstance(new, str) else new)
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
