"""The precision of forward passes outside of training, and of float32 products on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def bf16_is_native() -> bool:
    """Whether the GPU supports bf16 in hardware. Older GPUs emulate it, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether to compute in bf16. `auto`: on GPUs that support it, as in training."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and bf16_is_native())


def autocast(precision: Precision, device: torch.device) -> Any:
    """Return a context in which forward passes are computed in a precision. Weights stay as they are, in float32."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(precision, device) else nullcontext()


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """In the block, compute float32 matrix products and convolutions on GPUs in TF32, or exactly.

    PyTorch's default is TF32 for convolutions alone. CPUs are left as they are.
    """
    if not torch.cuda.is_available():
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
