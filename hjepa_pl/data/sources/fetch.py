"""One file over HTTP: taken up where it broke off, and given its name only when its sum is right."""

import os
import urllib.request
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torchvision.datasets.utils import calculate_md5

from hjepa_pl.data.sources.progress_bar import waiting

_CHUNK, _SILENCE = 2**18, 60.0


def fetch(url: str, path: str, md5: str) -> None:
    """Bring a file here, unless it is here already.

    Bytes are kept in `<path>.part`, from where any later call goes on, so that `path` is the whole file or not there. A
    file of that name with another sum is taken for such a part (torchvision's own download writes under the name). One
    process at a time (see `locked`).

    Args:
        url: Of the file; over http, the server need not know ranges.
        path: Where it belongs.
        md5: Its sum, in hexadecimal digits.

    Raises:
        OSError: The server cannot be reached, breaks off without a new byte, or sends another file.
        HTTPException: It does not speak HTTP.
    """
    if os.path.exists(path):
        if calculate_md5(path) == md5:
            return
        os.replace(path, _part(path))
    resumed = _length(_part(path)) > 0
    _complete(url, path)
    found = calculate_md5(_part(path))
    if found == md5:
        os.replace(_part(path), path)
        return
    os.remove(_part(path))
    if not resumed:
        raise OSError(f"{url} sent another file, of md5 {found} where {md5} was expected, which has been removed")
    # The part was of another file, or damaged.
    fetch(url, path, md5)


def _part(path: str) -> str:
    return f"{path}.part"


def _length(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _complete(url: str, path: str) -> None:
    """Go on with the part until the server has no more, as long as every try brings something new."""
    while True:
        before = _length(_part(path))
        broken: Exception | None = None
        total = None
        try:
            total = _transfer(url, path)
        except HTTPError:  # an answer, and no file
            raise
        except (OSError, HTTPException) as error:
            if _length(_part(path)) <= before:
                raise
            broken = error
        have = _length(_part(path))
        if broken is None and (total is None or have >= total):
            return
        if have <= before:
            raise OSError(
                f"{url} broke off after {have:,} of {total:,} bytes; the next try goes on there if the server can"
            )


def _transfer(url: str, path: str) -> int | None:
    """Append to the part what one answer brings, and return the length of the file as the server tells it."""
    have = _length(_part(path))
    headers = {"User-Agent": "hjepa_pl"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SILENCE)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind the part: the sum will tell
            return have
        raise
    with answer:
        continued = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not continued and answer.status != 200:
            raise OSError(f"{url} answered with status {answer.status}")
        start = have if continued else 0
        total = None if answer.length is None else start + answer.length
        size = "" if total is None else f", {total / 1e6:,.1f} MB"
        rank_zero_info(f"fetching {url}{size}{f', from {start / 1e6:,.1f} MB on' if start else ''}.")
        _save(answer, path, start, total)
    return total


def _save(answer: HTTPResponse, path: str, start: int, total: int | None) -> None:
    bar = waiting(f"Fetching {os.path.basename(path)}", total, start=start, count_bytes=True)
    with open(_part(path), "ab" if start else "wb") as file, bar as advance:
        while chunk := answer.read1(_CHUNK):  # what has come, rather than wait for a whole chunk
            file.write(chunk)
            advance(len(chunk))
