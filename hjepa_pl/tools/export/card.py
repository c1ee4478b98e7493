"""The model card: what an exported encoder is, from the settings and the summary of its run."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from hjepa_pl.backbones.backbone import Backbone
from hjepa_pl.utils.wording import as_typed

_ROWS = (("raw pixels", "pixels_{}"), ("untrained network", "untrained_{}"))
_TITLES = {"knn": "k-NN", "linear": "linear probe"}
_FRONT = {"library_name": "timm", "pipeline_tag": "image-feature-extraction", "tags": ["timm", "hjepa_pl", "jepa"]}


def model_card(backbone: Backbone, config: Mapping[str, Any]) -> str:
    """Return the card in Markdown, with the front matter of the Hugging Face hub.

    Args:
        backbone: The encoder, with the metadata of its run.
        config: config.json of the folder.
    """
    parts = [
        f"---\n{yaml.safe_dump(_FRONT, sort_keys=False)}---",
        _about(backbone, str(config["architecture"])),
        _use(backbone),
        _figures(backbone),
        _training(backbone),
        "## License\n\nNone is set. Add the `license` of your choice to the first lines of this file before you "
        "publish it; the terms of the training images may bind the weights too.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _about(backbone: Backbone, architecture: str) -> str:
    """Return what the network is."""
    parameters = sum(p.numel() for p in backbone.parameters())
    (height, width), (rows, columns) = backbone.img_size, backbone.grid
    return (
        "# Vision transformer, pretrained with hjepa_pl\n\n"
        f"The {backbone.branch} encoder of a run of hierarchical joint-embedding predictive pretraining, without "
        f"labels: a model of timm (`{architecture}`, its arguments are in config.json) with {parameters:,} parameters. "
        f"It takes images of {height} x {width} pixels and {backbone.in_chans} channel(s), in {rows} x {columns} "
        f"patches, normalized by mean {as_typed(backbone.mean)} and standard deviation {as_typed(backbone.std)}. Its "
        f"features are the mean of the patch tokens, {backbone.embed_dim} numbers."
    )


def _use(backbone: Backbone) -> str:
    """Return the code that loads it."""
    mode = "L" if backbone.in_chans == 1 else "RGB"
    return f"""## Use

```python
import timm, torch
from PIL import Image

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()   # or "hf-hub:USER/NAME"
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.no_grad():
    features = model(transform(Image.open("image.png").convert("{mode}"))[None])   # (1, {backbone.embed_dim})
```

With `pip install hjepa_pl`: `backbone = hjepa_pl.load_encoder("THIS_FOLDER")`, and `backbone.transform()` is exactly
the transform of the figures below."""


def _figures(backbone: Backbone) -> str:
    """Return the table of the probes of the run, next to their baselines."""
    summary = backbone.metadata.get("summary") or {}
    metrics = summary.get("metrics") or {}
    found = [re.fullmatch(r"probe/(.+)/(\w+)_val", name) for name in metrics]
    pairs = [(m[1], m[2]) for m in found if m and f"probe/{m[1]}/{m[2]}" in metrics]
    if not pairs:
        return "## Figures\n\nThe run measured none: it had no labelled probe set, or it has no summary.json."
    online = backbone.branch == "online" and summary.get("evaluated") == "target"
    rows = [*_ROWS, ("**this network**", "{}_online" if online else "{}")]
    head = " | ".join(f"{name}, {_TITLES.get(probe, probe)}" for name, probe in pairs)
    lines = [f"| features | {head} |", f"|---|{'---|' * len(pairs)}"]
    for label, pattern in rows:
        values = [metrics.get(f"probe/{name}/{pattern.format(probe)}") for name, probe in pairs]
        if any(value is not None for value in values):
            shown = " | ".join("" if value is None else f"{value:.1f}" for value in values)
            lines.append(f"| {label} | {shown} |")
    return "\n".join(["## Figures", "", _protocol(backbone, summary), "", *lines])


def _protocol(backbone: Backbone, summary: Mapping[str, Any]) -> str:
    """Return what the figures are, and of which step."""
    step, of = backbone.metadata.get("global_step"), summary.get("steps")
    when = f"They were measured at the end of the run, at step {of}"
    when += "." if step == of else f"; these weights are of step {step}, so theirs may differ."
    return (
        "Accuracy in % on the test split of each labelled set, of frozen features of clean images: k-NN with k = 20, "
        f"weighted as in DINO, and a linear probe whose penalty is chosen on a part of the training split. {when}"
    )


def _training(backbone: Backbone) -> str:
    """Return data and recipe of the run."""
    known, summary = backbone.metadata, backbone.metadata.get("summary") or {}
    data, settings = known.get("data") or {}, known.get("hyper_parameters") or {}
    rows = {
        "datasets": ", ".join(_dataset(d) for d in data.get("datasets") or []),
        "levels": "; ".join(_level(level) for level in settings.get("levels") or []),
        "regularizers": ", ".join(str(r.get("kind")) for r in settings.get("regularizers") or []),
        "batch size": data.get("batch_size"),
        "views": data.get("views"),
        "optimizer": _optimizer(settings.get("optimizer") or {}),
        "epochs": summary.get("epochs", known.get("epoch")),
        "steps": known.get("global_step"),
        "images seen": summary.get("images"),
        "hours of training": None if "train_seconds" not in summary else f"{summary['train_seconds'] / 3600:.2f}",
        "device": summary.get("device"),
        "precision": summary.get("precision"),
        "seed": summary.get("seed"),
        "versions": ", ".join(f"{k} {v}" for k, v in (known.get("versions") or {}).items() if v),
        "commit of hjepa_pl": summary.get("git"),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value not in (None, "")]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _dataset(entry: Mapping[str, Any]) -> str:
    """Return a dataset by its name; of a folder also the name of the folder."""
    root = entry.get("root")
    name = f"{entry.get('name')} ({entry.get('split')})"
    return f"{name} {PurePath(root).name}" if root and entry.get("name") in ("folder", "webdataset") else name


def _level(level: Mapping[str, Any]) -> str:
    return f"cell {level.get('cell')} after block {level.get('block')}, weight {level.get('weight')}"


def _optimizer(optimizer: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {optimizer[k]}" for k in ("kind", "lr", "weight_decay", "schedule") if optimizer.get(k))
