"""Rate of matrix products on this machine: the ceiling of a training step."""

import statistics
from typing import Any

import torch
from torch import nn

from hjepa_pl.tools.bench.step_parts import now


def product_rate(
    module: Any, rows: int, device: torch.device, half: bool, side: int | None = None
) -> tuple[float, str]:
    """Measure the rate of matrix products: the encoder's largest linear layer or large squares, whichever is faster.

    Args:
        module: With a `context_encoder`.
        rows: Tokens of a batch in one forward pass.
        device: The device.
        half: bfloat16 instead of float32.
        side: Rows and columns of the squares; None is 8,192 on CUDA and 2,048 elsewhere.

    Returns:
        FLOP per second, the median of nine measurements, and the shapes of the products.
    """
    layers = [m for m in module.context_encoder.modules() if isinstance(m, nn.Linear)]
    largest = max(layers, key=lambda m: m.weight.numel(), default=None)  # the MLP's of a transformer
    kind = torch.bfloat16 if half else torch.float32
    side = side or (8192 if device.type == "cuda" else 2048)
    shapes = [(side, side, side)]
    if largest is not None:
        shapes.insert(0, (rows, largest.in_features, largest.out_features))
    rates = [statistics.median(_rate_of(shape, device, kind) for _ in range(9)) for shape in shapes]
    m, k, n = shapes[rates.index(max(rates))]
    return max(rates), f"{m:,} x {k:,} by {k:,} x {n:,} and back, {str(kind).removeprefix('torch.')}"


def _rate_of(shape: tuple[int, int, int], device: torch.device, kind: torch.dtype) -> float:
    """Return the FLOP/s of a product and its reverse, repeated for 50 ms to amortize timer resolution and launches."""
    m, k, n = shape
    x, up, down = (torch.randn(size, device=device, dtype=kind) for size in ((m, k), (k, n), (n, k)))
    many = 4 if device.type == "cuda" else 1  # reading the clock waits for the device
    (x @ up) @ down
    done, began = 0, now(device)
    while done == 0 or now(device) - began < 0.05:
        for _ in range(many):
            (x @ up) @ down
        done += many
    return done * 4 * m * k * n / (now(device) - began)
