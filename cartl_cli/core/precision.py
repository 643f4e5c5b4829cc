"""bfloat16 where it is native, float32 where a verdict is spoken."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What ``auto`` means on this device."""
    if precision == "auto":
        return "bf16" if native_bfloat16(device) else "fp32"
    return precision


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Plain float32: no autocast, no TF32, no matrix products in bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast_for(device: torch.device, precision: Literal["fp32", "bf16"]) -> torch.autocast:
    """Automatic casting for training and for gradient steps of attacks."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
