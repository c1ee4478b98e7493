"""`hjepa eval --compare`: its differences against those by hand, and what it refuses."""

import json

import numpy as np
import pytest

from hjepa_pl.__main__ import main
from hjepa_pl.evaluation.intervals import difference_interval
from hjepa_pl.tools.evaluate.compare import verdict
from tests.tools.evaluate.judged import blobs, write
from tests.tools.evaluate.test_html import Page

DATA = blobs(["a", "b", "<c>"], 20, 20)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two evaluations, of a run and in a folder, and which test images the k-NN gets right."""
    root = tmp_path_factory.mktemp("compare")
    return root, [write(root / "first" / "eval", 0, DATA, tasks=("knn", "quality")),
                  write(root / "second", 1, DATA, tasks=("quality", "knn", "retrieval"))]  # fmt: skip


def compare(*words: object) -> int:
    return main(["eval", "--compare", *map(str, words)])


def test_difference_equals_the_direct_one(pair, tmp_path, capsys) -> None:
    root, (first, second) = pair
    assert not first.equal(second)
    assert compare(root / "first", root / "second", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "compare.json").read_text())
    entry = result["sets"]["blobs"]
    value = 100 * (float(first.double().mean()) - float(second.double().mean()))
    found = entry["differences"]["knn"]["second"]
    assert found["value"] == pytest.approx(value)
    assert found["interval"] == pytest.approx(difference_interval(first, second, 0))
    assert list(entry["tasks"]) == ["knn", "quality"]  # what both did
    assert list(entry["tasks"]["knn"]) == ["first", "second", "untrained", "raw pixels"]  # equal ones once
    sentence = verdict("first", "second", found)
    assert sentence.rstrip(".") in " ".join(out.split())
    page = Page((tmp_path / "compare.html").read_text())
    assert sentence in page.text
    assert page.loads == []
    assert [row[0] for row in page.rows if row[0] == "accuracy, %"] == ["accuracy, %"]


def test_verdicts() -> None:
    assert verdict("A", "B", {"value": 1.2, "interval": [0.7, 1.7]}) == "A beats B by 1.2 ± 0.5 points."
    assert verdict("A", "B", {"value": -1.2, "interval": [-1.7, -0.7]}) == "B beats A by 1.2 ± 0.5 points."
    text = "no clear difference between A and B (−0.2 ± 0.5 points)."
    assert verdict("A", "B", {"value": -0.2, "interval": [-0.7, 0.3]}) == text


def edit(folder, **changes) -> None:
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | changes))


def test_refuses_what_is_not_comparable(pair, tmp_path, capsys) -> None:
    root, _ = pair
    first = root / "first"

    def refused(*words: object) -> str:
        assert compare(*words, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.startswith("hjepa eval: error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out" / "compare.json").exists()
        return error

    other = tmp_path / "other"
    write(other, 1, blobs(["a", "b", "<c>"], 20, 19), tasks=("knn",))
    assert "with other test images of blobs than first" in refused(first, other)
    fewer = DATA.train._replace(rows=DATA.train.rows[:-1])
    write(other, 1, DATA._replace(train=fewer), tasks=("knn",))
    assert "with other training images of blobs" in refused(first, other)
    write(other, 1, DATA._replace(name="elsewhere"), tasks=("knn",))
    assert "share no dataset (first: blobs; other: elsewhere)" in refused(first, other)
    write(other, 1, DATA, tasks=("knn",))
    report = json.loads((other / "report.json").read_text())
    edit(other, protocol=report["protocol"] | {"name": "dino"})
    assert "by the protocol dino and first by ours" in refused(first, other)
    edit(other, protocol=report["protocol"] | {"neighbors": 10})
    assert "(neighbors is 10 and 20)" in refused(first, other)
    edit(other, protocol=report["protocol"], schema=7)
    assert "has schema 7 and this version reads 1" in refused(first, other)
    write(other, 1, DATA, tasks=("retrieval", "knn"))
    write(tmp_path / "third", 0, DATA, tasks=("knn",))
    (other / "predictions.npz").write_bytes((tmp_path / "third" / "predictions.npz").read_bytes())
    assert "does not belong to report.json" in refused(first, other)
    (other / "predictions.npz").write_bytes(b"PK\x03\x04 cut")
    assert "predictions.npz is damaged" in refused(first, other)
    (other / "predictions.npz").unlink()
    assert "there is no" in refused(first, other)
    (other / "report.json").write_text('{"schema": 1')
    assert "report.json is damaged" in refused(first, other)
    (other / "report.json").unlink()
    assert "has no report.json" in refused(first, other)
    write(other, 1, DATA, tasks=("knn",))
    report = json.loads((other / "report.json").read_text())
    del report["sets"]["blobs"]["hash"]
    (other / "report.json").write_text(json.dumps(report))
    assert "a part of it is missing" in refused(first, other)


def test_refuses_words_that_do_nothing(pair, capsys) -> None:
    root, _ = pair
    for words, text in (
        ([root / "first"], "needs the folders of two evaluations"),
        ([root / "first", root / "first" / "eval"], "twice"),
        ([root / "first", root / "second", "--seed", "1"], "--seed has no effect with --compare"),
        ([root / "first", root / "second", "--out"], "--out needs one folder"),
        ([root / "first", "--out", root / "second", root / "third"], "--out needs one folder"),
    ):
        assert compare(*words) == 2
        assert text in capsys.readouterr().err


def test_predictions_of_a_file_are_those_that_are_compared(pair, tmp_path) -> None:
    """The labels in predictions.npz count: other labels are other test images, even with the same hash."""
    root, _ = pair
    write(tmp_path / "b", 1, DATA, tasks=("knn",))
    with np.load(tmp_path / "b" / "predictions.npz") as stored:
        arrays = dict(stored)
    arrays["blobs/labels"] = np.roll(arrays["blobs/labels"], 1)
    np.savez_compressed(tmp_path / "b" / "predictions.npz", **arrays)
    assert compare(root / "first", tmp_path / "b") == 2
