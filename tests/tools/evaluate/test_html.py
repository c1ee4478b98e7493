"""report.html: whole, self-contained, its figures those of report.json; any number of classes, any shape of images."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchmetrics.functional.classification import multiclass_calibration_error

from hjepa_pl.__main__ import main
from hjepa_pl.evaluation.linear import fit_linear
from hjepa_pl.tools.evaluate.html.calibration import calibration_error
from hjepa_pl.tools.evaluate.html.classes import class_accuracy
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import metric_names, metric_text
from hjepa_pl.tools.evaluate.html.embedding import CLASSES, embedding_card
from hjepa_pl.tools.evaluate.html.maps import pca_colors
from hjepa_pl.tools.evaluate.html.neighbors import nearest
from hjepa_pl.tools.evaluate.html.page import write_html
from hjepa_pl.tools.evaluate.html.spectrum import variance_shares
from hjepa_pl.tools.evaluate.networks import TimmModel
from hjepa_pl.tools.evaluate.subjects import _spec_of
from tests.tools.evaluate.judged import HOW, OURS, blobs, judged, networks

VOID = {"meta", "img", "br", "col"}
CARDS = (
    "k-NN", "Linear probe", "Quality, without labels", "Accuracy by class", "Confusion matrix",
    "Reliability, Linear probe", "Reliability, k-NN",
    "PCA maps of patch tokens", "Nearest neighbors", "Features in the plane", "Spectrum of the features",
    "Level by level", "Similarity to the baselines", "Protocol", "Model and run", "Versions", "Cost",
)  # fmt: skip


class Page(HTMLParser):
    """A page that is parsed: headings, rows of tables, text, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cards: list[str] = []
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.text = ""
        self.tags: dict[str, int] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[name] = self.tags.get(name, 0) + 1
        self.loads += [v for k, v in attrs if k in ("src", "srcset", "href", "data") and v and not v.startswith("#")]
        if name not in VOID:
            self.open.append(name)
        if name == "h3":
            self.cards.append("")
        elif name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h3" in self.open:
            self.cards[-1] += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def page(folder: Path) -> tuple[Page, str]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 3e6
    found = Page(text)
    assert all(load.startswith("data:image/") for load in found.loads)
    assert "http" not in re.sub(r"(?<=>)[^<]*", "", text)  # none in tags
    assert "@import" not in text
    assert "url(" not in text
    assert "script" not in found.tags
    return found, text


@pytest.fixture(scope="module")
def evaluated():
    nets = networks()
    return nets, *judged(nets, blobs([f"class {c}" for c in "abcde"], 12, 6))


def test_page_has_every_section_and_the_figures_of_the_report(evaluated, tmp_path) -> None:
    nets, report, found = evaluated
    write_html(report, found, nets, HOW, tmp_path)
    seen, _ = page(tmp_path)
    assert sorted(seen.cards) == sorted(CARDS)
    result = report["sets"]["blobs"]
    for task in ("knn", "linear"):
        by_network = result["tasks"][task]
        cells = ["accuracy, %"]
        for metrics in by_network.values():
            low, high = metrics["interval"]
            cells.append(f"{metrics['accuracy']:.1f} ± {(high - low) / 2:.1f}")
        assert cells in seen.rows
        lead = [result["differences"][task][label] for label in list(by_network)[1:]]
        texts = [f"{d['value']:+.1f} ± {(d['interval'][1] - d['interval'][0]) / 2:.1f}".replace("-", "−") for d in lead]
        assert ["lead over it, points", "", *texts] in seen.rows
    quality = result["tasks"]["quality"].values()
    assert ["RankMe", *(f"{metrics['rankme']:.3g}" for metrics in quality)] in seen.rows
    accuracy = result["tasks"]["linear"][OURS]["accuracy"]
    assert f"{accuracy:.1f} ±" in seen.text.split("whiskers")[0]
    per_class = class_accuracy(found[0].predictions["linear", OURS].label, found[0].data.test_y, 5)
    assert all(f"{value:.1f} %" in seen.text for value in per_class.tolist())


@pytest.mark.parametrize(
    ("classes", "size", "channels"),
    [
        (["<b>&\"'", "</script>"], (16, 16), 1),
        (["x" * 200, "y"], (16, 32), 3),
        (list(map(str, range(200))), (16, 16), 1),
    ],
)  # fmt: skip
def test_any_classes_and_images(classes, size, channels, tmp_path) -> None:
    nets = networks(size=size, channels=channels)
    report, found = judged(
        nets,
        blobs(classes, 11 if len(classes) < 3 else 1, 5 if len(classes) < 3 else 2, size, channels),
        ("knn", "quality"),
    )
    write_html(report, found, nets, HOW, tmp_path)
    seen, text = page(tmp_path)
    assert set(CARDS) - {"Linear probe", "Reliability, Linear probe"} == set(seen.cards)
    assert not any(name in text for name in ('<b>&"', "</script>"))
    if "<b>&\"'" in classes:
        assert "<b>&\"'" in seen.text
        assert "results/<toy>" in seen.text
    if len(classes) == 200:
        assert "15 lowest and the 15 highest of 200 classes" in seen.text
        assert "The 20 of 200 classes with most errors" in seen.text
        assert f"{CLASSES} of 200 classes have marks" in seen.text


def test_without_predictions_and_with_many_sets(tmp_path) -> None:
    nets = networks()
    report, found = judged(nets, blobs(["a", "b"], 4, 4), ("quality",))
    several = [found[0]._replace(data=found[0].data._replace(name=f"set {i}")) for i in range(9)]
    report["sets"] = {s.data.name: s.result for s in several}
    write_html(report, several, nets, HOW, tmp_path)
    seen, _ = page(tmp_path)
    assert "None of the tasks classified the test images" in seen.text
    assert seen.cards.count("Nearest neighbors") == 8
    assert "Only the first 8 datasets have pictures" in seen.text


def test_command_writes_the_page_of_a_timm_model(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    words = ["--sets", "[{name: digits, max_train: 40, max_test: 12}]", "--tasks", "knn", "--cache", "none"]
    model = ["--timm", "test_vit", "--weights", str(tmp_path / "vit.safetensors"), "--out", str(tmp_path / "out")]
    assert main(["eval", *model, *words]) == 0
    assert "report.html" in capsys.readouterr().out
    seen, _ = page(tmp_path / "out")
    assert "10 × 10 tokens of test_vit" in seen.text
    assert seen.tags["img"] == 12 * 3 + 8 * 9


def test_feature_maps_of_timm_models() -> None:
    images = torch.randn(2, 3, 160, 160)
    for name in ("test_vit", "test_convnext"):
        model = timm.create_model(name, num_classes=0)
        network = TimmModel(name, _spec_of(model, None), model)
        network.prepare([network.kind(None)], torch.device("cpu"))
        found = network.feature_map(images)
        expected = model.forward_features(images)
        if name == "test_vit":
            expected = expected[:, model.num_prefix_tokens :].unflatten(1, (10, 10)).movedim(3, 1)
        torch.testing.assert_close(found.movedim(3, 1), expected)


def test_maps_show_what_differs() -> None:
    tokens = torch.zeros(2, 2, 4, 8)
    tokens[:, :, 2:, 0] = 3.0  # two halves
    colors = pca_colors(tokens + 1e-4 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)))
    assert sorted({*colors[:, :, :2, 0].flatten().tolist(), *colors[:, :, 2:, 0].flatten().tolist()})[-1] == 255
    left, right = colors[:, :, :2, 0].float(), colors[:, :, 2:, 0].float()
    assert (left.mean() - right.mean()).abs() > 250
    assert pca_colors(torch.randn(1, 2, 2, 2)).shape == (1, 2, 2, 3)


def test_pieces_equal_the_definitions(evaluated) -> None:
    data, features = evaluated[2][0].data, evaluated[2][0].features[OURS]
    logits, _, _ = fit_linear(features[0], data.train_y, features[1], 5)
    expected = multiclass_calibration_error(logits.softmax(dim=1).float(), data.test_y, 5, n_bins=15)
    found = calibration_error(evaluated[2][0].predictions["linear", OURS], data.test_y)
    assert found == pytest.approx(100 * float(expected), abs=1e-3)
    distance = torch.cdist(*(torch.nn.functional.normalize(x, dim=1) for x in reversed(features)))
    assert torch.equal(nearest(*features, 4), distance.topk(4, largest=False).indices)
    shares = torch.linalg.svdvals((features[1] - features[1].mean(0)).double()).square()
    torch.testing.assert_close(variance_shares(features[1])[:16], (shares / shares.sum())[:16])


def test_plane_has_a_mark_for_each_image_and_separates_classes() -> None:
    y = torch.arange(3).repeat(20)
    x = 10.0 * torch.eye(8)[y] + torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    card = embedding_card(x, y, ["a", "b", "c"], seed=0)
    paths = re.findall(r'<path d="(M[^"]*)"', card.split("legend")[0])
    points = [torch.tensor([list(map(float, p)) for p in re.findall(r"M([\d.]+),([\d.]+)", path)]) for path in paths]
    assert [len(p) for p in points] == [20, 20, 20]
    spread = max(float((p - p.mean(0)).norm(dim=1).max()) for p in points)
    centers = torch.stack([p.mean(0) for p in points])
    assert float(torch.pdist(centers).min()) > spread
    assert "needs five" in embedding_card(x[:3], y[:3], ["a", "b", "c"], seed=0)
    assert embedding_card(torch.ones(6, 4), torch.arange(6) % 2, ["a", "b"], seed=0)  # all features equal


def test_numbers_as_text() -> None:
    assert metric_text("accuracy", {"accuracy": 98.25, "interval": [97.0, 99.0]}) == "98.2 ± 1.0"
    assert metric_text("shot1", {"shot1": 5.0, "shot1_interval": 0.25}) == "5.0 ± 0.2"
    assert [metric_text("rankme", {"rankme": v}) for v in (-0.1234, 1234.5, float("nan"), None)] == [
        "−0.123", "1,234", "–", "–"
    ]  # fmt: skip
    assert metric_names({"accuracy": 1.0, "interval": [0, 2], "k10": None, "seconds": 3, "note": "x"}) == [
        "accuracy", "k10"
    ]  # fmt: skip


def test_text_is_escaped_unless_it_is_markup() -> None:
    assert join("<i>", Markup("<i>")) == "&lt;i&gt;<i>"
    assert tag("p", "a & b", title='"<') == '<p title="&quot;&lt;">a &amp; b</p>'
