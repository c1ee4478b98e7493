#!/usr/bin/env python3
"""Images per second of this package's token-level training step, at sizes given on the command line.

    uv run python tests/benchmarks/training_step.py --bf16 --attention self

The step is what the Trainer runs, without the Trainer: masks, target encoder, context encoder, predictor, loss,
backward, fused AdamW, EMA; on a CPU freed memory is kept, as in a run.
Visible patches and target blocks are set to the counts of the code that it is compared with. Prints
the median step.
"""

import argparse
import statistics

import torch
from step import add_sizes, make_batch, timed_step

from hjepa_pl import HJEPALightningModule
from hjepa_pl.masks import MaskShape, build_masks
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.utils.malloc import keep_freed_memory


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--pred-heads", type=int, default=6)
    parser.add_argument("--attention", choices=("self", "cross"), default="self")
    parser.add_argument("--visible", type=int, default=67, help="visible patches an image")
    parser.add_argument("--block", type=int, nargs=2, default=(5, 6), help="rows and columns of the 4 target blocks")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    a = parse()
    torch.manual_seed(0)
    device = torch.device(a.device)
    predictor = {"embed_dim": a.pred_dim, "depth": a.pred_depth, "num_heads": a.pred_heads, "attention": a.attention}
    encoder = {"size": a.size, "patch_size": a.patch, "img_size": a.img}
    module = HJEPALightningModule(encoder=encoder, levels=[{"cell": 1}], predictor=predictor).train().to(device)
    # Whole blocks, repeats and all, so that the predictor has as many queries as the reference's.
    module.masks = build_masks(module.mask_config, module.context_encoder.grid, (1,), module.seed, joint=False)
    module.masks.shapes = (MaskShape(*a.block, 4, a.visible),)
    optimizer = module.configure_optimizers()
    if a.compile:
        networks = (module.context_encoder, module.target_encoder, module.predictor)
        compile_blocks(networks, device)
    if device.type == "cpu":
        keep_freed_memory()
    images = torch.randn(a.batch, 3, a.img, a.img, device=device)
    seconds = [timed_step(module, optimizer, make_batch(images, step), a.bf16) for step in range(a.steps + 3)]
    median = statistics.median(seconds[3:])
    print(
        f"hjepa_pl vit_{a.size} img {a.img} patch {a.patch} batch {a.batch} bf16={a.bf16} {device} {a.attention}: "
        f"{a.batch / median:.1f} images/s (step {median * 1e3:.0f} ms; visible {a.visible}, "
        f"targets 4x{a.block[0] * a.block[1]})"
    )


if __name__ == "__main__":
    main()
