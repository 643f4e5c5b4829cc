"""The device a run uses."""

import re

import torch

from cartl_cli.core.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` → a device that is there.

    Raises UsageError rather than fall back to another device.
    """
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
