"""The device a run uses."""

import re

import torch
from torch import Tensor

from cartl_cli.core.errors import UsageError
from cartl_cli.core.ranks import ALONE, Ranks


def resolve_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` → a device that is there.

    Of many processes each gets a CUDA device of its own, ``auto`` and ``cuda`` alike. Raises
    UsageError rather than fall back to another device.
    """
    if not ranks.alone:
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


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, which this process does not wait for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
