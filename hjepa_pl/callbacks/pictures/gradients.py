"""Gradient norms of the parts of a model, over the steps of a run."""

from typing import Any

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor, nn

from hjepa_pl.evaluation.pictures.chart import Line, chart

_MAX_POINTS = 400
"""From this many on, every second point is dropped."""


class GradientNorms:
    """Records the norm of the gradient of each part: the module's children, of an encoder with many blocks its thirds.

    Attributes:
        history: Optimizer step, names of the parts and their norms, which stay on the device until they are drawn.
    """

    def __init__(self) -> None:
        self.history: list[tuple[int, list[str], Tensor]] = []

    def record(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Record the gradients of the step that is about to be taken, without waiting for the device."""
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)  # of 16-mixed: gradients are multiplied
        # Lightning has divided them already, except for optimizers that do so in their step.
        divided = scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = 1.0 if divided else float(scaler.get_scale())
        named: dict[str, Tensor] = {}
        for name, parameters in _parts(module).items():
            found = [p.grad for p in parameters if p.grad is not None]
            if found:
                named[name] = torch.stack(torch._foreach_norm(found)).float().norm()
        if named:
            self.history.append((trainer.global_step, list(named), torch.stack(list(named.values())) / scale))
        if len(self.history) > _MAX_POINTS:
            self.history = self.history[::2]

    def picture(self) -> Image.Image | None:
        """Return the curves; None before the first record."""
        if not self.history:
            return None
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in self.history[-1][1]}
        for step, names, norms in self.history:
            for name, norm in zip(names, norms.tolist(), strict=True):
                points.setdefault(name, []).append((step, norm))
        lines = [Line(name, found) for name, found in points.items()]
        return chart("Gradient norm of each part", lines, "optimizer step", "norm before clipping (log scale)")


def _parts(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of a module by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, child in module.named_children():
        stack = next((m for n, m in child.named_modules() if n.rpartition(".")[2] == "blocks"), None)
        blocks = list(stack.children()) if stack is not None and "encoder" in name else []
        own = {id(p): p for p in child.parameters() if p.requires_grad}
        if len(blocks) >= 3:
            for i in range(3):
                first, end = len(blocks) * i // 3, len(blocks) * (i + 1) // 3
                title = f"block {first + 1}" if end == first + 1 else f"blocks {first + 1} to {end}"
                inside = [p for block in blocks[first:end] for p in block.parameters() if id(p) in own]
                parts[f"{name}, {title}"] = inside
                own = {key: p for key, p in own.items() if all(p is not q for q in inside)}
            name = f"{name}, the rest"
        if own:
            parts[name] = list(own.values())
    return parts
