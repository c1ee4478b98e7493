"""Training steps of ViT-S, -B and -L/16 at 224 in bfloat16: speed, utilization, memory, levels, options, kernels."""

import statistics
from typing import Any

import torch
from step import make_batch, timed_step
from torch.utils.flop_counter import FlopCounterMode
from tricks import compiled as compile_module

from gpu_parts.setup import NEEDS_CUDA, Figures, Rows, Setup, attempt, free, seconds_of
from hjepa_pl import HJEPALightningModule
from hjepa_pl.models.attention import check_kernel
from hjepa_pl.tools.bench.matrix_products import product_rate
from hjepa_pl.types import ConfigError

START = {"small": 1024, "base": 512, "large": 256}
"""The batch size to begin with; it is halved until a step fits."""
IMAGE = [{"cell": "image"}]
LEVELS: dict[str, tuple[Any, int]] = {
    "three": ("three", 2),
    "cell 1 and image": ([{"cell": 1}, *IMAGE], 2),
    "image alone": (IMAGE, 2),
    "flat": ("flat", 1),
}
"""Levels and views."""
RECOMPUTED = {"grad_checkpointing": True}


def build(setup: Setup, size: str, levels: str = "three", *, recompute: bool = False,
          **encoder: Any) -> HJEPALightningModule:  # fmt: skip
    """Return a module; in miniature of a width of 48."""
    shape: dict[str, Any] = {"size": size, "patch_size": 16, "img_size": 224}
    width = {"embed_dim": 384, "depth": 6, "num_heads": 6}
    rest: dict[str, Any] = {}
    if setup.miniature:
        shape = {"embed_dim": 48, "depth": 1, "num_heads": 3, "patch_size": 4, "img_size": 32}
        width = {"embed_dim": 24, "depth": 1, "num_heads": 2}
        rest = {"projector": {"hidden_dim": 32, "out_dim": 16}} if levels != "flat" else {}
    if levels != "image alone":
        rest["predictor"] = width | (RECOMPUTED if recompute else {})
    torch.manual_seed(0)
    return HJEPALightningModule(
        encoder=shape | encoder | (RECOMPUTED if recompute else {}), levels=LEVELS[levels][0], **rest
    )


class Steps:
    """Steps of a module on random images, of one shape of the masks."""

    def __init__(self, setup: Setup, module: HJEPALightningModule, images: int, views: int, half: bool = True) -> None:
        self.setup, self.half, self.views = setup, half, views
        self.module = module.train().to(setup.device)
        self.optimizer: Any = self.module.configure_optimizers()
        side = 32 if setup.miniature else 224
        self.images = torch.randn(images, 3, side, side, device=setup.device)

    def step(self) -> None:
        """Make one."""
        timed_step(self.module, self.optimizer, make_batch(self.images, 0, self.views), self.half)

    def measure(self) -> dict[str, Any]:
        """Return images per second, milliseconds and peak memory, after a warm-up."""
        device, small = self.setup.device, self.setup.miniature
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(1 if small else 4):
            self.step()
        took = statistics.median(seconds_of(self.step, device, 2 if small else 10, 0.0 if small else 3.0))
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        figures = {"images/s": len(self.images) / took, "ms": 1e3 * took}
        return figures if peak is None else figures | {"peak GiB": peak}


def fitting(setup: Setup, size: str, start: int) -> int:
    """Return a batch size of which a step of three levels fits."""
    images = 4 if setup.miniature else start
    while images > 4 and not _fits(setup, size, images):
        free(setup.device)
        images //= 2
    free(setup.device)
    return images


def _fits(setup: Setup, size: str, images: int) -> bool:
    try:
        Steps(setup, build(setup, size), images, 2).step()
    except torch.OutOfMemoryError:
        return False
    return True


def measured(setup: Setup, size: str, images: int, levels: str = "three", **changes: Any) -> dict[str, Any]:
    """Build, measure and delete."""
    try:
        return Steps(setup, build(setup, size, levels, **changes), images, LEVELS[levels][1]).measure()
    finally:
        free(setup.device)


def flops(setup: Setup, size: str, images: int, levels: str) -> float:
    """Count the operations of a step, on a few images: they grow in proportion."""
    few = min(images, 8)
    steps = Steps(setup, build(setup, size, levels), few, LEVELS[levels][1])
    with FlopCounterMode(display=False) as counter:
        steps.step()
    return counter.get_total_flops() * images / few


def sizes(size: str, setup: Setup) -> Rows:
    """Measure an encoder's step: two batch sizes, levels, gradient checkpointing."""
    images = fitting(setup, size, START[size])
    module = build(setup, size)
    tokens = images * module.context_encoder.grid[0] * module.context_encoder.grid[1]
    side = 128 if setup.miniature else None
    ceiling, product = product_rate(module, tokens, torch.device(setup.device), half=True, side=side)
    del module
    yield "matrix products", {"TFLOP/s": ceiling / 1e12, "of": product}
    plain: dict[str, Any] = {}

    def levels(name: str, batch: int) -> Figures:
        figures = measured(setup, size, batch, name)
        rate = flops(setup, size, batch, name) / figures["ms"] * 1e3
        figures |= {"TFLOP/s": rate / 1e12, "utilization": rate / ceiling}
        if name == "three" and batch == images:
            plain.update(figures)
        elif batch == images and plain:
            figures["three takes"] = plain["ms"] / figures["ms"]
        return figures

    yield attempt(f"three, batch {images}", lambda: levels("three", images))
    yield attempt(f"three, batch {images // 4}", lambda: levels("three", images // 4))
    # In miniature all three encoders are the same: one of them with all levels will do.
    for name in [*LEVELS][1:] if size == "small" or not setup.miniature else []:
        views = f"{LEVELS[name][1]} view{'s' if LEVELS[name][1] > 1 else ''}"
        yield attempt(f"{name}, {views}, batch {images}", lambda name=name: levels(name, images))

    def recomputing() -> Figures:
        figures = measured(setup, size, images, recompute=True)
        if plain:
            figures["step x"] = figures["ms"] / plain["ms"]
        if "peak GiB" in plain:
            figures["peak x"] = figures["peak GiB"] / plain["peak GiB"]
        return figures

    yield attempt(f"three, batch {images}, gradient checkpointing", recomputing)


def kernels(setup: Setup) -> Rows:
    """Measure ViT-S and ViT-B with each attention kernel."""
    for size in ("small",) if setup.miniature else ("small", "base"):
        images = fitting(setup, size, START[size] // 4)
        for kind in ("auto", "flash", "efficient", "math", "eager"):
            name = f"ViT-{size[0].upper()}, batch {images}, attention {kind}"
            try:
                check_kernel(kind, setup.device, half=True)  # type: ignore[arg-type]
            except ConfigError as error:
                yield name, str(error)
                continue
            yield attempt(name, lambda size=size, kind=kind, n=images: measured(setup, size, n, attention=kind))


def compiled(setup: Setup) -> Rows:
    """Measure `compile: true` against the plain step."""
    yield "CUDA graphs", "the package uses none (`models/blocks.py` says why)"
    if setup.device != "cuda":
        yield "compile", NEEDS_CUDA
        return
    for size, start in START.items():
        images = fitting(setup, size, start // 2)

        def pair(size: str = size, images: int = images) -> Figures:
            plain = measured(setup, size, images)
            module = build(setup, size).to(setup.device)
            compile_module(module)
            figures = Steps(setup, module, images, 2).measure()
            return figures | {"plain ms": plain["ms"], "plain / compiled": plain["ms"] / figures["ms"]}

        yield attempt(f"ViT-{size[0].upper()}, three, batch {images}", pair)
        free(setup.device)
