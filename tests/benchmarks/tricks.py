#!/usr/bin/env python3
"""What each trick of the training step brings by itself: the step with all of them, and with one taken back.

    uv run python tests/benchmarks/tricks.py --bf16
    uv run python tests/benchmarks/tricks.py --bf16 --size tiny --img 32 --patch 4 --batch 64 \\
        --pred-dim 192 --pred-depth 4

The step with all and the one with one taken back take turns; a figure is the median over the rounds of (step without
the trick / step with all). `compile` and cross-attention are not in the usual step: theirs is (usual / with it).
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from step import add_sizes, make_batch, timed_step
from timm.models.vision_transformer import Block
from torch import nn

from hjepa_pl import HJEPALightningModule
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.utils.malloc import keep_freed_memory


def whole_last_block(module: HJEPALightningModule) -> None:
    """Let the predictor's last block compute all tokens."""
    block: Any = module.predictor.blocks[-1]
    block.forward = lambda x, first: Block.forward(block, x)[:, first:]


def loop_ema(module: HJEPALightningModule) -> None:
    """Move the target parameter by parameter."""

    @torch.no_grad()
    def update(context: nn.Module, target: nn.Module, momentum: float) -> None:
        for mine, theirs in zip(target.parameters(), context.parameters(), strict=True):
            mine.mul_(momentum).add_(theirs, alpha=1 - momentum)

    module.ema.update = update


def compiled(module: HJEPALightningModule) -> None:
    """Compile the blocks."""
    networks = (module.context_encoder, module.target_encoder, module.predictor)
    compile_blocks(networks, next(module.parameters()).device)


class Variant:
    """The step with one trick taken back, or one added."""

    def __init__(self, a: argparse.Namespace, *, change: Callable[[HJEPALightningModule], None] | None = None,
                 keep: bool = True, optimizer: dict[str, bool] | None = None, encoder: dict[str, Any] | None = None,
                 **predictor: Any) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.a, self.keep = a, keep
        base = {"size": a.size, "patch_size": a.patch, "img_size": a.img}
        width = {"embed_dim": a.pred_dim, "depth": a.pred_depth, "num_heads": a.pred_dim // 64}
        self.module = HJEPALightningModule(
            encoder=base | (encoder or {}), levels=[{"cell": 1}], predictor=width | predictor
        )
        self.module.train().to(a.device)
        if change is not None:
            change(self.module)
        self.optimizer = self.module.configure_optimizers()
        if optimizer is not None:
            self.optimizer = torch.optim.AdamW(self.optimizer.param_groups, **optimizer)
        self.images = torch.randn(a.batch, 3, a.img, a.img, device=a.device)

    def step(self) -> float:
        """Make a step, of one and the same shape each time; return its seconds."""
        if self.a.device == "cpu":
            keep_freed_memory(self.keep)
        return timed_step(self.module, self.optimizer, make_batch(self.images, 0), self.a.bf16)


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    a = parser.parse_args()
    without: dict[str, dict[str, Any]] = {
        "freed memory is kept (CPU)": {"keep": False},
        "last block of the predictor on queries only": {"change": whole_last_block},
        "plain attention where it is the faster (bf16 on a CPU)": {"encoder": {"attention": "flash"}},
        "context computed once for all targets": {"targets": "separate"},
        "fused AdamW": {"optimizer": {"foreach": False}},
        "EMA of all tensors at once": {"change": loop_ema},
    }
    added: dict[str, dict[str, Any]] = {"cross-attending predictor": {"attention": "cross"}}
    if not a.no_compile:
        added["compile: true"] = {"change": compiled}
    usual = Variant(a)
    print(
        f"ViT-{a.size}/{a.patch} at {a.img}, batch {a.batch}, predictor {a.pred_dim} x {a.pred_depth}, bf16={a.bf16}, "
        f"{a.device}, {torch.get_num_threads()} threads, {a.rounds} rounds"
    )
    for name, changes in (without | added).items():
        other, pairs = Variant(a, **changes), []
        for _ in range(a.rounds + 1):
            # The first of two steps settles what the other one left: memory, caches.
            pairs.append([(variant.step(), variant.step())[1] for variant in (other, usual)])
        ratios = [x / y if name in without else y / x for x, y in pairs[1:]]
        steps = [statistics.median(column) * 1e3 for column in zip(*pairs[1:], strict=True)]
        print(f"{name:56s} {statistics.median(ratios):.3f} x   ({steps[0]:.0f} and {steps[1]:.0f} ms)", flush=True)
        del other


if __name__ == "__main__":
    main()
