"""Files that cannot be read as images: each is named once, and too many of them stop the run."""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import UnidentifiedImageError

from hjepa_pl.data.sources.locks import locked
from hjepa_pl.types import ConfigError

BAD_FILES = "bad_files.txt"
ATTEMPTS = 20
"""Files that are tried for one place of a batch."""
_JUDGED_FROM, _SHOWN, _WARNED = 100, 3, 10


class BadFile(NamedTuple):
    """A file that could not be decoded."""

    dataset: str
    path: str
    reason: str


def reason(error: OSError) -> str:
    """Return why a file could not be decoded, in a few words."""
    known = {
        FileNotFoundError: "it is gone",
        PermissionError: "it may not be read",
        IsADirectoryError: "it is a folder",
        UnidentifiedImageError: "it is no image",
    }
    text = next((t for kind, t in known.items() if isinstance(error, kind)), None)
    return text or " ".join(str(error).split())[:120] or type(error).__name__


class BadFiles:
    """Names the bad files of a run and judges whether there are too many.

    They are named by a warning (the first few of a dataset) and in `bad_files.txt` in the run's folder: a line for each
    file, with its path, the dataset and the reason, between tabs. Every rank appends to it, and so does a resumed run.

    Args:
        allowed: Share of a dataset's files that may be bad.
        folder: Tells the run's folder; None while there is none.
    """

    def __init__(self, allowed: float = 0.1, folder: Callable[[], str | None] | None = None) -> None:
        self.allowed = allowed
        self._folder = folder
        self._of: defaultdict[str, set[str]] = defaultdict(set)
        self._unwritten: dict[str, BadFile] = {}
        self._written: set[str] = set()

    def of(self, dataset: str) -> set[str]:
        """Return the paths of a dataset's bad files."""
        return self._of[dataset]

    def add(self, files: Iterable[BadFile], what_happens: str) -> None:
        """Name those that are new.

        Args:
            files: Bad files, known ones among them.
            what_happens: What is done instead, for the warning.
        """
        for file in files:
            paths = self._of[file.dataset]
            if file.path in paths:
                continue
            paths.add(file.path)
            if file.path not in self._written:
                self._unwritten[file.path] = file
            if len(paths) <= _WARNED:
                more = f"; {file.dataset}'s further ones are named in {BAD_FILES} only" if len(paths) == _WARNED else ""
                rank_zero_warn(
                    f"{file.dataset}: {file.path} cannot be decoded ({file.reason}) and {what_happens} "
                    f"({len(paths)} so far){more}."
                )
        self._write()

    def _write(self) -> str | None:
        """Append what the file does not name yet, and return its path; None if there is no folder to write to."""
        folder = self._folder() if self._folder is not None else None
        if folder is None:
            return None
        path = os.path.join(folder, BAD_FILES)
        if self._unwritten:
            os.makedirs(folder, exist_ok=True)
            # The other ranks meet the same files.
            with open(path, "a+", encoding="utf-8", errors="surrogateescape") as file, locked(path):
                file.seek(0)
                there = {line.split("\t", 1)[0] for line in file}
                lines = ["\t".join(map(_one_field, (f.path, f.dataset, f.reason))) for f in self._unwritten.values()]
                file.writelines(f"{line}\n" for line in lines if line.split("\t", 1)[0] not in there)
                file.flush()
            self._written |= self._unwritten.keys()
            self._unwritten.clear()
        return path

    def check(self, dataset: str, bad: Collection[str], tried: int, size: int) -> None:
        """Stop the run when more files are bad than allowed.

        Args:
            dataset: For the message.
            bad: Paths of its bad files.
            tried: How many of its files were tried.
            size: How many it has. A share of less than a hundred is not judged, but for a set as small as that.
        """
        judged = max(min(tried, size), min(_JUDGED_FROM, size))
        if len(bad) <= self.allowed * judged:
            return
        shown = ", ".join(sorted(bad)[:_SHOWN])
        path = self._write()
        where = f" (all in {path})" if path is not None else ""
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ConfigError(
            f"`{dataset}`: {len(bad)} of {judged} files cannot be decoded, more than "
            f"max_bad_fraction={self.allowed:g}: mend or remove {shown}{more}{where}, or raise it."
        )


def _one_field(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
