"""Advice for 32-bit runs on NVIDIA's tensor cores."""

import torch

_AMPERE = (8, 0)
"""The first generation with TF32, by compute capability."""


def tensor_core_advice(precision: str, capability: tuple[int, int]) -> str | None:
    """Return what makes a 32-bit run on an NVIDIA GPU faster, if its matrix products use no tensor cores.

    `hjepa fit` does not allow TF32 by itself: its products have 10 bits of mantissa instead of 23, in SIGReg and in the
    probes too, which the step of a bf16-mixed run computes in 32 bits.

    Args:
        precision: `trainer.precision`.
        capability: Compute capability of the GPU.

    Returns:
        One sentence; None if the run is not in 32 bits, the GPU has no TF32, or TF32 is allowed.
    """
    if precision != "32-true" or capability < _AMPERE or torch.get_float32_matmul_precision() != "highest":
        return None
    return (
        "trainer.precision=32-true uses no tensor cores on this GPU; set trainer.precision=bf16-mixed, or the "
        "environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 for TF32 products (hjepa bench measures the gain)."
    )
