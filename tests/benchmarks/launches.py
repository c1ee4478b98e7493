#!/usr/bin/env python3
"""Kernels that a training step launches, part by part: what a GPU waits for where its steps are short.

    uv run python tests/benchmarks/launches.py [--levels three] [--position rope] [--most 12]

Every operation that reaches the dispatcher and is no view counts once, a foreach operation once for each of its
tensors (fused kernels, which CUDA has for some, would be fewer), on a CPU; blocks are not compiled. The number hangs on
the model and on the views, not on the size of the batch. About 5 us of host time go with each.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hjepa_pl import HJEPALightningModule
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import Augmenters, ViewPlan
from hjepa_pl.data.loading.batches import RawBatch, RawGroup
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.types import Counters, ViewBatch

_NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Counts operations by name, see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        name = func._schema.name.removeprefix("aten::")
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not (is_view or name in _NO_KERNEL or name.startswith("profiler::")):
            self.by_name[name] += len(args[0]) if name.startswith("_foreach") else 1
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], Any]) -> Counter[str]:
    """Return what a call launches, by name; it runs once before, so that what is kept is there."""
    run()
    with Launches() as counted:
        run()
    return counted.by_name


def augmentation(views: int = 2, size: int = 32, batch: int = 8) -> Counter[str]:
    """Return what the default augmentation of CIFAR's views launches."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    rows, label = torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
    plan = ViewPlan((Augmenters(Augmenter(AugmentationConfig(), size, (0.5,) * 3, (0.25,) * 3, seed=0)),), views)
    raw = RawBatch((RawGroup(rows, (images,), None),), label, label, Counters(0, 0, rows))
    return launches(lambda: make_views(raw, plan, 3))


def step(module: HJEPALightningModule, img_size: int = 32, batch: int = 4) -> dict[str, Counter[str]]:
    """Return what the parts of a step in bfloat16 launch: masks, forward, backward, optimizer, moving average."""
    optimizer = module.train().configure_optimizers()
    images, label = torch.randn(2, batch, 3, img_size, img_size), torch.zeros(batch, dtype=torch.int64)
    given = ViewBatch(tuple(images), label, label, Counters(0, 0, torch.arange(batch)))
    found: dict[str, Counter[str]] = {}
    if module.masks is not None:
        found["masks"] = launches(lambda: module.masks(given.counters))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module.compute(given)[0]

    found["forward"] = launches(forward)
    found["forward"].subtract(found.get("masks", {}))
    loss = [forward(), forward()]
    found["backward"] = launches(lambda: loss.pop().backward())
    found["optimizer"] = launches(optimizer.step)
    if module.ema is not None:
        found["moving average"] = launches(lambda: module.move_target(0.5))
    return found


def main() -> None:
    """Read the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", default="three")
    parser.add_argument("--position", default="learned")
    parser.add_argument("--most", type=int, default=0, help="names to print of each part, the most frequent")
    a = parser.parse_args()
    encoder = {"size": "tiny", "patch_size": 4, "img_size": 32, "position": a.position}
    parts = {"augmentation of two views": augmentation()}
    parts |= step(HJEPALightningModule(encoder=encoder, levels=a.levels))
    for name, counted in parts.items():
        print(f"{name:28s} {counted.total():6d}  {dict(counted.most_common(a.most)) if a.most else ''}")
    print(f"{'together':28s} {sum(c.total() for c in parts.values()):6d}")


if __name__ == "__main__":
    main()
