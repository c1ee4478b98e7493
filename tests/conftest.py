"""What several tests share: tiny models, batches by hand, settings for CPU Trainers."""

import os
import sys

# What is imported is compiled once, not in every process that a test starts (10 s each).
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from hjepa_pl.modules.hjepa import HJEPALightningModule  # noqa: E402
from hjepa_pl.types import Counters, ViewBatch  # noqa: E402

# The nets here are so small that a second thread costs more than it brings, and far more on a busy machine.
torch.set_num_threads(1)

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 16, "patch_size": 2}
SMALL_PREDICTOR = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_PROJECTOR = {"hidden_dim": 32, "out_dim": 16}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_module() -> Callable[..., HJEPALightningModule]:
    """A factory of small modules on a grid of 8 x 8; keyword arguments overrule."""

    def make(**settings: Any) -> HJEPALightningModule:
        given = settings.get("levels", [{"cell": 1}, {"cell": "image"}])
        levels = [] if isinstance(given, str | None) else [level.get("cell", 1) for level in given]
        defaults: dict[str, Any] = {"encoder": TINY}
        if set(levels) - {"image"}:
            defaults["predictor"] = SMALL_PREDICTOR
        if "image" in levels:
            defaults["projector"] = SMALL_PROJECTOR
        return HJEPALightningModule(**(defaults | settings))

    return make


def make_batch(images: int = 8, views: int = 2, size: int = 16, step: int = 0, first: int = 0) -> ViewBatch:
    """Return random views of the images from number `first` on, with counters, as the data module would."""
    generator = torch.Generator().manual_seed(100 + step)
    drawn = [torch.randn(16, 3, size, size, generator=generator) for _ in range(views)]
    position = torch.arange(first, first + images)
    zeros = torch.zeros(images, dtype=torch.int64)
    return ViewBatch(tuple(v[position] for v in drawn), zeros, zeros, Counters(0, step, position))


def with_crops(batch: ViewBatch, count: int = 4, size: int = 8) -> ViewBatch:
    """Add local crops, and boxes for all, to the whole of `make_batch`'s images."""
    generator = torch.Generator().manual_seed(7)
    crops = torch.randn(count, 16, 3, size, size, generator=generator)
    corners = torch.rand(len(batch.views) + count, 16, 2, generator=generator) * 0.5
    boxes = torch.cat([corners, corners + 0.1 + 0.4 * torch.rand(corners.shape, generator=generator)], dim=2)
    boxes[:, ::3] = boxes[:, ::3][..., [0, 3, 2, 1]]  # some are mirrored
    kept = batch.counters.position
    return batch._replace(local_views=tuple(c[kept] for c in crops), boxes=boxes[:, kept])
