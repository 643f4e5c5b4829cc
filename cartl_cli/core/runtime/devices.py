"""The device of a run, its number formats and its versions.

bfloat16 is used where it is native, float32 where a verdict is spoken.
"""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Literal

import torch

from cartl_cli import __version__
from cartl_cli.core.choices import Precision
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runtime.ranks import ALONE, Ranks

WORTHWHILE = 1_000
"""Steps of a training on CUDA in which compiling makes up for the minute that it takes."""

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>


def resolve_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` → a device that is there.

    Of many processes each gets a CUDA device of its own, ``auto`` and ``cuda`` alike. Raises
    UsageError rather than fall back to another device.
    """
    if ranks.size > 1:
        return _own_device(name, ranks)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device: unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(f"--device: {name!r}, but there is no CUDA device here; use cpu")
        if (device.index or 0) >= count:
            raise UsageError(f"--device: {name!r} is not present ({count} CUDA devices)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device: 'mps', but there is no MPS device here; use cpu")
    return device


def _own_device(name: str, ranks: Ranks) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device: {name!r} is one device for many processes; use cuda or cpu")
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if ranks.local >= count:
        raise UsageError(
            f"--device: more processes than the {count} CUDA devices here; give torchrun "
            f"--nproc-per-node {count}, or --device cpu"
        )
    device = torch.device("cuda", ranks.local)
    torch.cuda.set_device(device)  # or what names no device would all use the first
    return device


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


def resolve_compile(asked: bool | None, device: torch.device, steps: int, processes: int) -> bool:
    """Whether a training of so many steps is to compile its passes; None: where it is worthwhile.

    Of many processes none does.
    """
    if asked is None:
        return device.type == "cuda" and steps >= WORTHWHILE and processes == 1
    return asked


def autocast_for(device: torch.device, precision: Literal["fp32", "bf16"]) -> torch.autocast:
    """Automatic casting for training and for gradient steps of attacks."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Let glibc keep what one pass frees for the next; without glibc nothing happens.

    By default it gives large blocks back to the system, which hands out every page anew and zeroed:
    thousands of page faults in each pass of a network, up to a third of its time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def versions(
    device: torch.device, precision: str, processes: int = 1, compiling: bool = False
) -> dict[str, str]:
    """Software and hardware of a measurement; processes, if many; compiling, if asked for."""
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return {
        "cartl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "device": str(device),
        "hardware": hardware,
        "precision": precision,
        "threads": str(torch.get_num_threads()),
        **({"processes": str(processes)} if processes > 1 else {}),
        **({"compile": "yes"} if compiling else {}),
    }
