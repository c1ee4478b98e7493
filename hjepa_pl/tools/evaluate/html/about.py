"""The last section: how it was measured."""

from typing import Any

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag
from hjepa_pl.tools.evaluate.html.elements.parts import card, cards, facts, note, table
from hjepa_pl.utils.wording import as_typed


def about(report: dict[str, Any]) -> Markup:
    """Return protocol, departures, origin, versions and cost of report.json."""
    return tag(
        "section",
        tag("h2", "How it was measured", id="about"),
        card("Protocol", facts(_protocol(report))),
        card("Model and run", facts(_origin(report))),
        cards(card("Versions", facts(report["versions"].items())), card("Cost", *_cost(report)), columns=2),
    )


def _protocol(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rules by name."""
    protocol = report["protocol"]
    linear = "logistic regression to convergence; the validation split chooses the penalty"
    if protocol["linear"] == "sgd":
        rates = ", ".join(f"{rate:g}" for rate in protocol["rates"])
        decays = ", ".join(f"{decay:g}" for decay in protocol["decays"])
        linear = f"SGD for {protocol['epochs']} epochs, learning rate {rates}, weight decay {decays}"
    rules = [
        ("name", protocol["name"]),
        ("source", protocol["source"]),
        ("features", report["model"]["features"]),
        ("k-NN", f"{protocol['neighbors']} neighbors by cosine, temperature {protocol['temperature']:g}"),
        ("linear probe", linear),
        ("departures", protocol["departures"] or "none"),
    ]
    if report.get("finetune") is not None:
        rules.append(("fine-tuning", tag("code", as_typed(report["finetune"]))))
    return rules


def _origin(report: dict[str, Any]) -> list[tuple[str, str | Markup]]:
    model, images = report["model"], report["model"]["images"]
    found = [
        ("model", f"{model['label']}, {model['source']}"),
        ("weights file", model["weights"]),
        ("hash of the weights", tag("code", model["identity"])),
        ("images", f"{images['height']} × {images['width']} pixels, {_color(images)}"),
        ("normalization", f"mean {_numbers(images['mean'])}; standard deviation {_numbers(images['std'])}"),
        ("precision, device", f"{report['precision']}, {report['device']}"),
        ("seed", str(report["seed"])),
        ("command", None if report["command"] is None else tag("code", report["command"])),
        ("commit", report["commit"]),
        ("time", report["created"]),
        ("files that cannot be decoded", str(report["bad_files"])),
    ]  # fmt: skip
    hashes = [
        (f"hash of {name}", join(*(join(f"{part} ", tag("code", r["hash"][part]), " ") for part in ("test", "train"))))
        for name, r in report["sets"].items()
    ]
    return [(name, text) for name, text in [*found, *hashes] if text is not None]


def _cost(report: dict[str, Any]) -> list[Markup]:
    rows = [
        [f"{name}, {label}", f"{cost['encoded']:,}", f"{cost['passes']:.2f}", f"{cost['seconds']:.1f}"]
        for name, result in report["sets"].items()
        for label, cost in result["cost"].items()
    ]
    remark = (
        f"{report['seconds']:.1f} s in all, without this page. A pass is each image of the dataset once through the "
        "network; images whose features were in the cache are not counted."
    )
    return [table(["", "images", "passes", "seconds"], rows), note(remark)]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _color(images: dict[str, Any]) -> str:
    return "gray" if images["channels"] == 1 else "color"
