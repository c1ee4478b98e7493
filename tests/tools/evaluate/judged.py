"""Real evaluations of tiny encoders with random weights, on small sets in memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import ArrayImages
from hjepa_pl.evaluation.protocols import PROTOCOLS
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.families import build_encoder
from hjepa_pl.tools.evaluate.extract import Pass, Split
from hjepa_pl.tools.evaluate.networks import UNTRAINED, Network, OwnEncoder, Pixels
from hjepa_pl.tools.evaluate.report import SCHEMA, write_report
from hjepa_pl.tools.evaluate.sets import LabeledSet
from hjepa_pl.tools.evaluate.suite import JudgedSet, Plan, judge

HOW = Pass(torch.device("cpu"), torch.float32, 64, None)
OURS = "trained (target)"


def networks(seed: int = 0, size: tuple[int, int] = (16, 16), channels: int = 1) -> list[Network]:
    """Return an encoder with random weights, the untrained one of another seed, and raw pixels."""
    config = EncoderConfig(embed_dim=16, depth=1, num_heads=2, img_size=size, patch_size=8, in_chans=channels)
    torch.manual_seed(100 + seed)
    state = build_encoder(config).state_dict()
    spec = ImageSpec(size, channels, (0.5,) * channels, (0.25,) * channels)
    return [OwnEncoder(OURS, spec, config, state, 1, 0), OwnEncoder(UNTRAINED, spec, config, None, 1, 0), Pixels(spec)]


def blobs(
    classes: list[str], train: int, test: int, size: tuple[int, int] = (16, 16), channels: int = 1, name: str = "blobs"
) -> LabeledSet:
    """Return a set of noisy images of each class's pattern."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.rand(len(classes), channels, *size, generator=generator)

    def split(each: int, part: str) -> Split:
        labels = torch.arange(len(classes)).repeat(each)
        noise = torch.rand(len(labels), channels, *size, generator=generator)
        images = (255 * (0.4 * patterns[labels] + 0.6 * noise)).to(torch.uint8)
        return Split(f"{name} ({part})", ArrayImages(images, labels, classes), torch.arange(len(labels)))

    return LabeledSet(name, classes, split(train, "train"), split(test, "test"))


def judged(
    nets: list[Network], data: LabeledSet, tasks: tuple[str, ...] = ("knn", "linear", "quality"), protocol: str = "ours"
) -> tuple[dict[str, Any], list[JudgedSet]]:
    """Return the content of report.json, and what was found."""
    plan = Plan(tasks, PROTOCOLS.find(protocol), (), 0, HOW)
    found = judge(nets, data, plan, BadFiles(), lambda count: None)
    spec = nets[0].spec
    height, width = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    report = {
        "schema": SCHEMA, "created": "2026-11-22T00:00:00+00:00", "command": None, "commit": None,
        "versions": {"python": "3.11"}, "device": "cpu", "precision": "float32", "seed": 0,
        "protocol": {"name": protocol, **plan.protocol._asdict()},
        "model": {
            "label": nets[0].label, "source": "results/<toy>", "weights": None, "features": "last.mean",
            "images": {"height": height, "width": width, "channels": spec.channels, "mean": list(spec.mean),
                       "std": list(spec.std)},
            "identity": nets[0].identity[-64:],
        },
        "networks": [network.label for network in nets], "sets": {data.name: found.result}, "bad_files": 0,
        "seconds": 1.0,
    }  # fmt: skip
    return report, [found]


def write(folder: Path, seed: int, data: LabeledSet, **settings: Any) -> Tensor:
    """Write an evaluation to a folder; return which test images the linear probe or the k-NN gets right."""
    report, found = judged(networks(seed), data, **settings)
    write_report(report, found, folder)
    return found[0].predictions["knn", OURS].label == data.test_y
