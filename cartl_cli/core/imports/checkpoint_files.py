"""Files of weights as others save them: safetensors and both formats of PyTorch.

Nothing in such a file is ever run: ``torch.load`` reads with ``weights_only`` and nothing else
unpickles.
"""

import hashlib
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.imports.unwrapping import COUNTER, Normalization, tidy, unwrap

MAX_SIZE = 16 * 2**30
MAX_SHARING = 4  # tied weights stand in a file once; what claims more is made up
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's older format begins
FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
FOREIGN = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file; fetch it with git lfs pull"),
    (b"<", "is a web page; download it again"),
    (b"\x93NUMPY", "is a numpy array, not a checkpoint of PyTorch"),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras), not a checkpoint of PyTorch"),
)
CURE = "have its owner save the weights alone: torch.save(model.state_dict(), …) or safetensors"
CUT = "is cut off or damaged; download it again"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network, float32 and contiguous, by names without any wrapper's prefix.

    ``normalization`` is what the file had beside them. ``remarks`` say what was decided in reading.
    ``size`` in bytes and ``sha256`` are those of the file.
    """

    tensors: dict[str, Tensor]
    normalization: Normalization | None
    remarks: tuple[str, ...]
    size: int
    sha256: str


def read_checkpoint(path: Path, member: str | None = None, apart: bool = True) -> Checkpoint:
    """The weights in a file; ``member`` names the part to take where it holds several networks.

    Its normalization is taken ``apart`` from them, unless the network has one of its own.

    Raises UsageError for a file that is not there, and DataError for one that is no checkpoint,
    holds more than weights, or is damaged.
    """
    try:
        size, digest = _identify(path)
        state, taken = unwrap(_content(path), member)
        tensors, normalization, scaled = tidy(state, apart)
        checked = _checked(tensors, size)
    except DataError as error:
        raise DataError(f"{str(path)!r} {error}") from None
    except FileNotFoundError:
        raise UsageError(f"no such file: {str(path)!r}") from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return Checkpoint(checked, normalization, (*taken, *scaled), size, digest)


def _identify(path: Path) -> tuple[int, str]:
    """Size and sha256 of a regular file."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("is a folder; name the file of weights in it")
    if not stat.S_ISREG(status.st_mode):
        raise DataError("is not a regular file")
    if status.st_size == 0:
        raise DataError("is empty; download it again")
    if status.st_size > MAX_SIZE:
        raise DataError(f"has {status.st_size >> 30} GiB, too much for one network")
    with path.open("rb") as file:
        return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> Any:
    """What is in a file, nested as it was saved; its first bytes tell the format."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[5:9] == b"\0\0\0{":  # a number of eight bytes, the length of the JSON behind it
        return _safetensors_content(path)
    for start, trouble in FOREIGN:
        if head.lstrip().lower().startswith(start.lower()):
            raise DataError(trouble)
    if head[257:262] == b"ustar":
        raise DataError("is a tar archive; unpack it first")
    if not any(head):
        raise DataError("begins with nothing but zeros; download it again")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return _torch_content(path, mmap=True)
    if head.startswith(LEGACY):
        return _torch_content(path, mmap=False)
    if LEGACY.startswith(head):
        raise DataError(CUT)
    if head.startswith(b"\x80"):
        raise DataError(f"is a pickle of Python objects, which is not loaded; {CURE}")
    raise DataError("is neither safetensors nor a checkpoint of PyTorch")


def _check_zip(path: Path) -> None:
    """Refuse archives that PyTorch did not write as a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise DataError(CUT) from None
    inner = {entry.filename.partition("/")[2] for entry in entries}
    if all(entry.filename.endswith(".npy") for entry in entries):
        raise DataError("is a numpy archive, not a checkpoint of PyTorch")
    if "constants.pkl" in inner:
        raise DataError(f"is a TorchScript archive, which holds code; {CURE}")
    if "data.pkl" not in inner:
        raise DataError("is a zip archive, but not a checkpoint of PyTorch")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DataError("is a compressed zip archive, which PyTorch does not write")


def _torch_content(path: Path, mmap: bool) -> Any:
    """What ``torch.load`` reads of a file without running any of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever bytes make its reader stumble over
        if objects := sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error)))):
            what = f"holds Python objects ({', '.join(objects[:3])}), which are not loaded"
            raise DataError(f"{what}; {CURE}") from None
        raise DataError(CUT) from None


def _safetensors_content(path: Path) -> dict[str, Tensor]:
    """Names in the order in which people count, since such files keep none of their own."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys(), key=_counted)}
    except Exception:  # whatever bytes make its reader stumble over
        raise DataError(CUT) from None


def _counted(name: str) -> list[tuple[int, str]]:
    """A key to sort ``block10`` after ``block9``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _checked(tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The tensors as float32 or integers, finite, in memory of their own."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > MAX_SHARING * size:
        raise DataError(f"claims {claimed} bytes of weights, but has only {size}")
    return {
        name: _plain(name, tensor)
        for name, tensor in tensors.items()
        if not _averaged(name, tensor)
    }


def _averaged(name: str, tensor: Tensor) -> bool:
    """Whether it is a counter that was averaged or halved with the weights, and counts no more."""
    return name.endswith(COUNTER) and tensor.is_floating_point()


def _plain(name: str, tensor: Tensor) -> Tensor:
    """One tensor checked; where it was integer it stays, as counters and indices do."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise DataError(f"holds {name!r}, which is not a dense tensor with values")
    integer = tensor.dtype in INTEGERS
    known = integer or tensor.dtype in FLOATS
    if not known or (integer and name.rpartition(".")[2] in ("weight", "bias")):
        raise DataError(f"holds {name!r} as {kind}; save the weights as float32 or float16")
    if integer:
        return tensor.detach().clone(memory_format=torch.contiguous_format)
    plain = tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not plain.isfinite().all():
        raise DataError(f"holds NaN or infinite values in {name!r}; the model is broken")
    return plain
