"""Downloads from a real server on this machine: whole, cut, damaged, and by two processes at once."""

import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision import datasets as tv

from hjepa_pl.data.sources.registry import download_dataset, load_dataset
from hjepa_pl.types import ConfigError


class Server:
    """Serves one archive.

    Attributes:
        promised: More bytes are announced than there are.
        ranges: Whether it goes on from where it is asked to.
        most: Bytes after which each answer breaks off.
        pause: Seconds between every thousand bytes.
        asked: The first byte that each request asks for.
        sent: Bytes of all answers.
    """

    def __init__(self, content):
        self.content, self.promised, self.ranges, self.most, self.pause = content, 0, True, 2**40, 0.0
        self.asked, self.sent = [], 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.ranged() else 0
                outer.asked.append(first)
                if first >= len(outer.content) > 0:
                    return self.send_error(416)
                self.send_response(206 if self.ranged() else 200)
                if self.ranged():
                    last = len(outer.content) - 1
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(outer.content)}")
                self.send_header("Content-Length", str(len(outer.content) - first + outer.promised))
                self.end_headers()
                for at in range(first, min(first + outer.most, len(outer.content)), 1000):
                    piece = outer.content[at : min(at + 1000, first + outer.most)]
                    outer.sent += len(piece)  # before the client has it, which ends the test
                    self.wfile.write(piece)
                    time.sleep(outer.pause)
                return None

            def ranged(self):
                return outer.ranges and "Range" in self.headers

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-python.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    """A CIFAR-10 of four images a file, with sums of its own, and the server that torchvision fetches it from."""
    rng = np.random.default_rng(0)
    files = {}
    for i, (name, _) in enumerate(tv.CIFAR10.train_list + tv.CIFAR10.test_list):
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [i, 1, 2, 3]})
    files["batches.meta"] = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(tv.CIFAR10, part, [[name, sums[name]] for name, _ in getattr(tv.CIFAR10, part)])
    monkeypatch.setattr(tv.CIFAR10, "meta", tv.CIFAR10.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    served = Server(archive.getvalue())
    monkeypatch.setattr(tv.CIFAR10, "url", served.url)
    yield served
    served.http.shutdown()


def whole(root):
    assert len(load_dataset("cifar10", str(root))) == 20
    assert len(load_dataset("cifar10", str(root), "test")) == 4


def test_it_is_fetched_once(server, tmp_path):
    for _ in range(2):
        download_dataset("cifar10", str(tmp_path / "new/folder"))
        whole(tmp_path / "new/folder")
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-python.tar.gz.part"])
def test_only_what_a_part_lacks_is_fetched(server, tmp_path, ranges, share, name):
    """Under its own name a part is what torchvision's download leaves behind."""
    server.ranges, have = ranges, int(share * len(server.content))
    (tmp_path / name).write_bytes(server.content[:have])
    with pytest.raises(ConfigError, match="does not hold the complete official files of cifar10; get them with"):
        load_dataset("cifar10", str(tmp_path))
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    here_already = share == 1.0 and not name.endswith(".part")
    assert server.asked == ([] if here_already else [have if ranges else 0])
    assert server.sent == (len(server.content) - have if ranges or here_already else len(server.content))
    assert not list(tmp_path.glob("*.part"))


def test_a_server_that_breaks_off_is_asked_again_for_the_rest(server, tmp_path):
    server.most = len(server.content) // 3 + 1
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert server.asked == [0, server.most, 2 * server.most]
    assert server.sent == len(server.content)


@pytest.mark.parametrize("promised", [0, 5000])
def test_a_transfer_that_goes_no_further_is_refused_and_made_up_for(server, tmp_path, promised):
    """Without ranges the second try has no more than the first; the bytes are no use, and never taken for the file."""
    server.ranges, server.most, server.promised = False, len(server.content) // 2, promised
    said = r"lacks official files of cifar10 and their download failed \(http.* broke off after [0-9,]+ of"
    with pytest.raises(ConfigError, match=said) as caught:
        download_dataset("cifar10", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()
    with pytest.raises(ConfigError, match="does not hold the complete official files of cifar10; get them with"):
        load_dataset("cifar10", str(tmp_path))
    server.most, server.promised = 2**40, 0
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)


def test_a_file_that_is_another_is_refused_and_removed(server, tmp_path):
    right = server.content
    server.content = b"<html>404 Not Found</html>" * 100
    with pytest.raises(ConfigError, match=r"sent another file, of md5 \w{32} where \w{32} was expected"):
        download_dataset("cifar10", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [".cifar10.lock"]
    server.content, server.asked = right, []
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"junk" * 1000)  # a part of something else
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert server.asked == [4000, 0]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(right + b"more")  # longer than the file
    (tmp_path / "cifar-10-batches-py/data_batch_2").unlink()
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)


@pytest.mark.parametrize("others", [0, 2])
def test_a_killed_download_is_gone_on_with_by_the_next(server, tmp_path, others):
    """Others, if there are any, wait meanwhile; the system gives one of them the lock of the dead one."""
    context = multiprocessing.get_context("fork")  # so that they have the patched addresses
    part, server.pause = tmp_path / "cifar-10-python.tar.gz.part", 0.02
    first = context.Process(target=download_dataset, args=("cifar10", str(tmp_path)))
    first.start()
    deadline = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < 20000:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    waiting = [context.Process(target=download_dataset, args=("cifar10", str(tmp_path))) for _ in range(others)]
    for process in waiting:
        process.start()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()
    server.pause = 0.0
    for process in waiting:
        process.join(60)
        assert process.exitcode == 0
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert len(server.asked) == 2
    assert 20000 <= server.asked[1] < len(server.content)


def test_a_file_of_it_that_was_cut_or_lost_is_unpacked_again(server, tmp_path):
    download_dataset("cifar10", str(tmp_path))
    first = tmp_path / "cifar-10-batches-py/data_batch_1"
    first.write_bytes(first.read_bytes()[:100])
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(ConfigError, match="does not hold the complete official files of cifar10; get them with"):
        load_dataset("cifar10", str(tmp_path))
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert len(server.asked) == 1  # the archive was still whole


def test_a_list_of_class_names_that_was_lost_is_unpacked_again(server, tmp_path):
    download_dataset("cifar10", str(tmp_path))
    (tmp_path / "cifar-10-batches-py/batches.meta").unlink()
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert len(server.asked) == 1


def test_no_server_is_one_sentence(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(ConfigError, match="lacks official files of cifar10 and their download failed") as caught:
        download_dataset("cifar10", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_of_four_processes_one_fetches_and_the_others_wait(server, tmp_path):
    context = multiprocessing.get_context("fork")  # so that they have the patched addresses
    runs = [context.Process(target=download_dataset, args=("cifar10", str(tmp_path))) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0] * 4
    assert len(server.asked) == 1
    whole(tmp_path)
