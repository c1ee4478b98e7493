"""The step that the benchmarks time: what the Trainer runs, without the Trainer."""

import argparse
import time

import torch

from hjepa_pl import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of encoder, predictor and batch, and where and in what precision they run."""
    parser.add_argument("--size", default="small")
    parser.add_argument("--img", type=int, default=224)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pred-depth", type=int, default=6)
    parser.add_argument("--pred-dim", type=int, default=384)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")


def make_batch(images: torch.Tensor, number: int, views: int = 1, crops: int = 0, crop_size: int = 96) -> ViewBatch:
    """Return a batch of step `number` whose views are the images, with local crops cut out of them."""
    device = images.device
    label = torch.zeros(len(images), dtype=torch.int64, device=device)
    counters = Counters(0, number, torch.arange(len(images), device=device))
    whole, part = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.4, 0.4])
    boxes = torch.stack([whole] * views + [part] * crops).to(device)[:, None].expand(-1, len(images), -1)
    local = (images[..., :crop_size, :crop_size].contiguous(),) * crops
    return ViewBatch((images,) * views, label, label, counters, local, boxes if crops else None)


def timed_step(module: HJEPALightningModule, optimizer: torch.optim.Optimizer, batch: ViewBatch, bf16: bool) -> float:
    """Make a step: masks, networks, loss, backward, optimizer, EMA; return its seconds."""
    began, device = time.perf_counter(), batch.label.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        loss, _ = module.compute(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if module.ema is not None:
        module.move_target(0.996)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
