"""Downloads from a real server on this machine: whole, cut, damaged, and by two processes at once."""

import hashlib
import io
import multiprocessing
import pickle
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision import datasets as tv

from hjepa_pl.data.datasets import download_dataset, load_dataset
from hjepa_pl.types import ConfigError


class Server:
    """Serves one archive; `promised` more bytes are announced than sent."""

    def __init__(self, content):
        self.content, self.promised, self.asked = content, 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content) + outer.promised))
                self.end_headers()

            def do_GET(self):
                if self.headers["Method"] != "HEAD":  # torchvision looks for a redirection first, in this odd way
                    outer.asked.append(self.path)
                self.do_HEAD()
                for at in range(0, len(outer.content), 1000):
                    self.wfile.write(outer.content[at : at + 1000])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-python.tar.gz"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


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


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_archive_that_was_cut_is_fetched_again(server, tmp_path, share):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.content[: int(share * len(server.content))])
    with pytest.raises(ConfigError, match="does not hold the complete official files"):
        load_dataset("cifar10", str(tmp_path))
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("promised", [0, 5000])
def test_a_transfer_that_breaks_off_is_refused_and_made_up_for(server, tmp_path, promised):
    content = server.content
    server.content, server.promised = content[: len(content) // 2], promised
    with pytest.raises(ConfigError, match=r"`root=.*` \(of cifar10\) lacks official files and fetching them failed"):
        download_dataset("cifar10", str(tmp_path))
    with pytest.raises(ConfigError, match="does not hold the complete official files"):
        load_dataset("cifar10", str(tmp_path))
    server.content, server.promised = content, 0
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)


def test_a_file_of_it_that_was_cut_or_lost_is_unpacked_again(server, tmp_path):
    download_dataset("cifar10", str(tmp_path))
    first = tmp_path / "cifar-10-batches-py/data_batch_1"
    first.write_bytes(first.read_bytes()[:100])
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(ConfigError, match="does not hold the complete official files"):
        load_dataset("cifar10", str(tmp_path))
    download_dataset("cifar10", str(tmp_path))
    whole(tmp_path)
    assert len(server.asked) == 1  # the archive was still whole


def test_no_server_is_one_sentence(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(ConfigError, match="fetching them failed") as caught:
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
