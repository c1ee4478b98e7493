"""The step that the benchmarks time: what the Trainer runs, without the Trainer."""

import time

import torch

from hjepa_pl import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch


def timed_step(
    module: HJEPALightningModule, optimizer: torch.optim.Optimizer, images: torch.Tensor, number: int, bf16: bool
) -> float:
    """Make a token-level step: masks, networks, loss, backward, optimizer, EMA; return its seconds."""
    began, device = time.perf_counter(), images.device
    label = torch.zeros(len(images), dtype=torch.int64, device=device)
    batch = ViewBatch((images,), label, label, Counters(0, number, torch.arange(len(images), device=device)))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        loss, _ = module.compute(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    module.move_target(0.996)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
