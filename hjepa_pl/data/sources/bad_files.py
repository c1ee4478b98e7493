"""Files that cannot be decoded: each is reported once, and too many of them stop the run."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import UnidentifiedImageError

from hjepa_pl.types import ConfigError

BAD_FILES = "bad_files.txt"
ATTEMPTS = 20
"""Files tried for one position of a batch."""
_MIN_TRIED = 100
"""Files tried before their bad fraction counts."""
_NAMED, _WARNED = 3, 10


class BadFile(NamedTuple):
    """A file that could not be decoded, a row of `bad_files.txt`."""

    path: str
    dataset: str
    reason: str


def reason(error: OSError) -> str:
    """Return why a file could not be decoded, in a few words."""
    known = {
        FileNotFoundError: "not found",
        PermissionError: "permission denied",
        IsADirectoryError: "is a folder",
        UnidentifiedImageError: "not an image",
    }
    text = next((t for kind, t in known.items() if isinstance(error, kind)), None)
    return text or " ".join(str(error).split())[:120] or type(error).__name__


def read_bad_files(folder: str) -> list[BadFile]:
    """Return the rows of a run folder's `bad_files.txt`, but for one that a kill cut off; none without the file."""
    path = os.path.join(folder, BAD_FILES)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [BadFile(*row) for row in csv.reader(file, dialect="excel-tab") if len(row) == len(BadFile._fields)]


class BadFiles:
    """Reports the bad files of a run, and stops it when there are too many.

    The first few of a dataset are warned of. All are written to `bad_files.txt` in the run's folder, a tab-separated
    row each (path, dataset, reason); other ranks and a resumed run append to the same file.

    Args:
        allowed: Fraction of a dataset's files that may be bad.
        folder: Returns the run's folder, None while there is none.
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

    @property
    def count(self) -> int:
        """Number of bad files so far."""
        return len(set().union(*self._of.values()))

    def add(self, files: Iterable[BadFile], action: str) -> None:
        """Report the files that are new.

        Args:
            files: Bad files, which may include known ones.
            action: What happens instead, for the warning ("is replaced by another draw").
        """
        for file in files:
            paths = self._of[file.dataset]
            if file.path in paths:
                continue
            paths.add(file.path)
            if file.path not in self._written:
                self._unwritten[file.path] = file
            if len(paths) <= _WARNED:
                more = f"; more of {file.dataset} are listed in {BAD_FILES} only" if len(paths) == _WARNED else ""
                rank_zero_warn(
                    f"{file.dataset}: {file.path} cannot be decoded ({file.reason}) and {action} "
                    f"({len(paths)} so far){more}."
                )
        self._write()

    def _write(self) -> str | None:
        """Append the new files to `bad_files.txt`, and return its path; None without a folder."""
        folder = self._folder() if self._folder is not None else None
        if folder is None:
            return None
        path = os.path.join(folder, BAD_FILES)
        if self._unwritten:
            os.makedirs(folder, exist_ok=True)
            with FileLock(os.path.join(folder, f".{BAD_FILES}.lock")):  # other ranks find the same files
                listed = {file.path for file in read_bad_files(folder)}
                with open(path, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                    rows = csv.writer(file, dialect="excel-tab", lineterminator="\n")
                    rows.writerows(f for f in self._unwritten.values() if f.path not in listed)
            self._written |= self._unwritten.keys()
            self._unwritten.clear()
        return path

    def check(self, dataset: str, bad: Collection[str], tried: int, size: int) -> None:
        """Stop the run if more files are bad than allowed.

        Args:
            dataset: Name, for the message.
            bad: Paths of its bad files.
            tried: Number of its files that were read. Fewer than 100 count as 100, or as `size` if that is smaller.
            size: Number of its files.

        Raises:
            ConfigError: If `len(bad)` is above `allowed` of the files that were read.
        """
        read = max(min(tried, size), min(_MIN_TRIED, size))
        if len(bad) <= self.allowed * read:
            return
        named = ", ".join(sorted(bad)[:_NAMED])
        path = self._write()
        listed = f" (all are listed in {path})" if path is not None else ""
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ConfigError(
            f"{dataset}: {len(bad)} of {read} files cannot be decoded, more than max_bad_fraction={self.allowed:g}; "
            f"fix or remove {named}{more}{listed}, or raise max_bad_fraction."
        )
