"""The table of `hjepa check`: parameters, levels, masks, tokens, run, FLOPs and memory."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hjepa_pl.masks import MaskGenerator
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.dry_run import DryCLI
from hjepa_pl.tools.format import memory, row, scaled, span, table
from hjepa_pl.tools.step_cost import Encoded, StepCount, StepCounter, count_table, steps_by_shape
from hjepa_pl.tools.step_memory import memory_of, parameters_of
from hjepa_pl.types import Counters, Masks
from hjepa_pl.utils.run_length import images_per_step, steps_per_epoch

_NETWORKS = ("context_encoder", "predictor", "fusion", "projector", "inner_projectors", "pyramid", "pyramid_heads",
             "target_encoder", "target_pyramid")  # fmt: skip


def describe(cli: DryCLI) -> list[str]:
    """Return the lines of the table, from the objects of a config."""
    module = cli.model
    lines = _parameters(module)
    if not isinstance(module, HJEPALightningModule) or cli.views is None:
        return [
            *lines,
            row("step", f"counted for HJEPALightningModule with MultiDatasetDataModule only, not for {_kinds(cli)}."),
        ]
    lines += _levels(module) + _masks(module)
    steps = cli.steps()
    lines.append(row("run", _run(cli, steps)))
    lines.append(row("optimizer", _optimizer(module)))
    lines += _growth(cli.datamodule)
    lines += _cost(cli, module, steps)
    return lines


def _kinds(cli: DryCLI) -> str:
    return f"{type(cli.model).__name__} with {type(cli.datamodule).__name__}"


def _parameters(module: Any) -> list[str]:
    found = [(n, net) for n, net in module.named_children() if parameters_of(net)]
    found.sort(key=lambda pair: _NETWORKS.index(pair[0]) if pair[0] in _NETWORKS else 0)
    rows = []
    for name, net in found:
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        rows.append((name.replace("_", " "), trained, parameters_of(net)))
    rows.append(("total", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    return table(("parameters", "trained", "all"), [(name, f"{a:,}", f"{b:,}") for name, a, b in rows])


def _drawn(masks: MaskGenerator) -> list[Masks]:
    """Return masks of two images for each row of the table."""
    position = torch.arange(2)
    return [masks(Counters(0, step, position)) for step in steps_by_shape(masks).values()]


def _levels(module: HJEPALightningModule) -> list[str]:
    drawn = [] if module.masks is None else _drawn(module.masks)
    rows, grid = [], module.context_encoder.grid
    for number, level in enumerate(module.token_levels):
        high, wide = (side // int(level.cell) for side in grid)
        counts = [masks.targets[number][0].numel() for masks in drawn]
        cells = (f"{high} x {wide}", f"{span(counts)} of {high * wide}")
        rows.append((level.name, str(level.block), str(level.cell), *cells, f"{level.weight:g}"))
    images = [] if module.images is None else module.images.levels
    for level, name, _ in reversed(images):
        rows.append((name, str(level.block), "image", "1", "views", f"{level.weight:g}"))
    return ["", *table(("level", "block", "cell", "grid", "predicted", "weight"), rows), ""]


def _masks(module: HJEPALightningModule) -> list[str]:
    if module.masks is None:
        return []
    patches = module.masks.grid[0] * module.masks.grid[1]
    shapes = dict.fromkeys(module.masks.shapes)
    texts = [f"{s.blocks} of {s.height} x {s.width} ({s.visible} visible)" for s in shapes]
    kind = module.mask_config.kind
    count = f"; {number} masks per image" if (number := module.mask_config.per_image) > 1 else ""
    return [row("masks", f"{kind} on {patches} patches; blocks per step: {' or '.join(texts)}{count}")]


def _run(cli: DryCLI, steps: float | None) -> str:
    trainer, data = cli.trainer, cli.datamodule
    images = images_per_step(trainer, data.batch_size)
    epochs = trainer.max_epochs
    budget = cli.config["fit"]["time_budget"]
    end = f", at most {budget}" if budget is not None else ""
    if steps is None:
        length = f"{epochs} epochs" if epochs and epochs > 0 else "epochs"
        limit = f", at most {trainer.max_steps:,} steps" if trainer.max_steps > 0 else ""
        return (
            f"{length} of (images of the mixture) / {images:,} steps{limit}{end}; for the number of images add --data, "
            "or set data.epoch_size"
        )
    per_epoch = steps_per_epoch(trainer)
    if steps == math.inf:
        return f"epochs of {per_epoch:,.0f} steps of {images:,} images, until the time budget ends the run{end}"
    return f"{steps:,.0f} steps of {images:,} images, {per_epoch:,.0f} per epoch{end}"


def _optimizer(module: HJEPALightningModule) -> str:
    """Return the optimizer and the peak learning rate as scaled to the batch."""
    config, peak = module.optimizer_config, module.schedule.peak
    scaled = "" if config.lr_scale == "none" else f" ({config.lr:g} by {config.lr_scale} of the images per step / 256)"
    ends = "" if config.cooldown_fraction == 0 else f" to {config.floor(peak):.3g}"
    after = f"constant, then {config.cooldown:.0%} cool-down" if config.schedule == "wsd" else "cosine"
    return f"{config.kind}, peak learning rate {peak:.3g}{scaled}, {after}{ends}"


def _growth(data: Any) -> list[str]:
    """Return how the views grow over the run, if they do."""
    growth = getattr(data, "growth", None)
    if growth is None:
        return []
    sizes = " x ".join(map(str, growth.sizes[0])), " x ".join(map(str, growth.sizes[-1]))
    text = f"from {sizes[0]} to {sizes[1]} pixels in {len(growth.sizes) - 1} steps, by {growth.until:.0%} of the run"
    return [row("views", f"{text}; tokens, compute and memory below are those of the last size")]


def _cost(cli: DryCLI, module: HJEPALightningModule, steps: float | None) -> list[str]:
    """Return tokens, FLOPs and memory, counted for all sizes of the masks."""
    data, trainer, views = cli.datamodule, cli.trainer, cli.views
    assert views is not None
    batch_size, half = data.batch_size, str(trainer.precision) != "32-true"
    counted = count_table(StepCounter(module, views, trainer.strategy.root_device, half), batch_size)
    batches = trainer.world_size * trainer.accumulate_grad_batches
    step = _range([c.flops * batches for c in counted.counts], "FLOP")
    image = _range([c.flops / batch_size for c in counted.counts], "FLOP")
    whole = "" if steps in (None, math.inf) else f", about {scaled(counted.flops * batches * steps, 'FLOP')} in all"
    need = memory_of(module, views, batch_size, counted.peak)
    where = f" on each of {trainer.world_size} devices" if trainer.world_size > 1 else ""
    return [
        row("tokens/image", _tokens(counted.counts)),
        row(
            "compute", f"{image} per image, {step} per step{whole} (forward and backward; for seconds see hjepa bench)"
        ),
        row(
            "memory",
            f"about {memory(sum(need))}{where} at batch {batch_size}, an estimate: weights {memory(need.weights)}, "
            f"target {memory(need.target)}, Adam {memory(need.adam)}, views {memory(need.images)}, gradients and "
            f"activations {memory(need.step)} (peak, without the overhead of allocators and kernels)",
        ),
    ]


def _range(values: Sequence[float], unit: str) -> str:
    low, high = (scaled(v, unit) for v in (min(values), max(values)))
    same = low.split()[-1] == high.split()[-1]
    return low if low == high else f"{low.split()[0] if same else low} to {high}"


def _tokens(counts: Sequence[StepCount]) -> str:
    """Return the tokens of each network per image."""
    parts = [f"context encoder {_passes([c.context for c in counts])}"]
    if counts[0].target:
        parts.append(f"target encoder {_passes([c.target for c in counts])}")
    if counts[0].predictor:
        parts.append(f"predictor {span([c.predictor for c in counts])}")
    return f"{'; '.join(parts)}; both encoders {span([c.tokens for c in counts])}"


def _passes(counts: Sequence[Sequence[Encoded]]) -> str:
    texts = []
    for passes in zip(*counts, strict=True):
        images = passes[0].images
        texts.append(f"{f'{images} x ' if images > 1 else ''}{span([p.tokens for p in passes])}")
    return " + ".join(texts)
