"""Whether the installed torch and torchvision will do; importing this loads neither."""

import importlib.util
import re
from contextlib import suppress
from importlib import metadata

from cartl_cli.core.errors import CartlError, UsageError

OLDEST_TORCH = "2.10"


def check_torch() -> None:
    """Refuse a torch that is too old or not the one that torchvision was built for.

    Raises CartlError. What is installed without metadata is not judged.
    """
    with suppress(metadata.PackageNotFoundError):
        torch = metadata.version("torch")
        if _release(torch) < _release(OLDEST_TORCH):
            raise CartlError(
                f"needs torch >= {OLDEST_TORCH}, found {torch}; "
                "pip install --upgrade torch torchvision"
            )
        for requirement in metadata.requires("torchvision") or []:
            if not _allows(requirement, torch):
                raise CartlError(
                    f"torch and torchvision do not match: torchvision "
                    f"{metadata.version('torchvision')} needs {requirement}, found torch {torch}; "
                    "pip install --upgrade torch torchvision"
                )


def check_matplotlib() -> None:
    """Refuse to plot without matplotlib. Raises UsageError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot: needs matplotlib; pip install 'cartl[plot]'") from None


def check_ray() -> None:
    """Refuse a cluster without Ray. Raises UsageError."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--executor: ray needs the package ray; pip install 'cartl[ray]'")


def check_onnx() -> None:
    """Refuse to export to ONNX without its packages. Raises UsageError."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--format: onnx needs the package {package}; pip install 'cartl[onnx]'"
            )


def _allows(requirement: str, torch: str) -> bool:
    """Whether ``torch==X`` or ``torch (>=X)`` allows a version; any other requirement does."""
    match = re.match(r"torch\s*\(?\s*(==|>=)\s*(\d[^\s,;)]*)", requirement)
    if match is None:
        return True
    found, wanted = _release(torch), _release(match[2])
    return found == wanted if match[1] == "==" else found >= wanted


def _release(version: str) -> tuple[int, ...]:
    """``"2.10.1+cu128"`` → (2, 10, 1); three numbers always."""
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
