"""Download of one file over HTTP, resumed where it broke off and renamed into place when its checksum is right.

torchvision's own download starts again from zero, which for STL-10 is 2.6 GB.
"""

import os
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torchvision.datasets.utils import calculate_md5

from hjepa_pl.data.sources.progress_bar import progress_bar

_CHUNK, _TIMEOUT = 2**18, 60.0


def fetch(url: str, path: str, md5: str) -> None:
    """Download a file unless it exists with the right checksum.

    The bytes are kept in `<path>.part`, which a later call appends to. Call it from one process at a time.

    Args:
        url: Of the file. The server may lack support for ranges; then each attempt starts from the first byte.
        path: Where to put it.
        md5: Its checksum, in hexadecimal digits.

    Raises:
        OSError: If the server cannot be reached, stops before the end, or sends another file.
        HTTPException: If the server does not speak HTTP.
    """
    part = f"{path}.part"
    if os.path.exists(path):
        if calculate_md5(path) == md5:
            return
        os.replace(path, part)  # torchvision's download leaves an incomplete file under the final name
    resumed = _size(part) > 0
    _download(url, part)
    checksum = calculate_md5(part)
    if checksum == md5:
        os.replace(part, path)
        return
    os.remove(part)
    if not resumed:
        raise OSError(f"{url} sent another file, of md5 {checksum} where {md5} was expected, which has been removed")
    fetch(url, path, md5)  # the part was of another file, or damaged


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _download(url: str, part: str) -> None:
    """Append to the part until it is complete, as long as each request adds bytes."""
    while True:
        before = _size(part)
        total, broke = _append(url, part)
        size = _size(part)
        if (not broke and total is None) or (total is not None and size >= total):
            return
        if size <= before:
            of = "" if total is None else f" of {total:,}"
            raise OSError(f"{url} broke off after {size:,}{of} bytes; the next attempt resumes there")


def _append(url: str, part: str) -> tuple[int | None, bool]:
    """Append the answer to one request; return the file's whole size, if known, and whether the connection broke."""
    size = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "hjepa_pl", "Range": f"bytes={size}-"})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and size:  # no byte after the part: the checksum decides
            return size, False
        raise
    with answer:
        ranged = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {size}-")
        start = size if ranged else 0
        total = None if answer.length is None else start + answer.length
        rank_zero_info(f"fetching {url}{f', from byte {start:,}' if start else ''}.")
        bar = progress_bar(f"Fetching {os.path.basename(url)}", total, completed=start, in_bytes=True)
        with open(part, "ab" if start else "wb") as file, bar as advance:
            try:
                while chunk := answer.read1(_CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
            except (OSError, HTTPException):  # the bytes before are kept
                return total, True
    return total, False
