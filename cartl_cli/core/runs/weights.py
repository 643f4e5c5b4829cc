"""The tensors of a run as safetensors bytes; nothing is believed about bytes from a file."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as format_
from torch import Tensor

from cartl_cli.core.errors import CartlError, RunError, UsageError
from cartl_cli.core.models.blocks import BlockModel, make_convex
from cartl_cli.core.models.whole import laid_out
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.parsing import parse_json
from cartl_cli.core.runs.reader import MANIFEST, finished_weights, source_beside
from cartl_cli.core.runs.recorded import read_recorded

MAX_HEADER = 1_000_000
MAX_TENSORS = 5_000
DTYPES = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}


def read_model(run: Run) -> BlockModel:
    """The trained network of a finished run, in evaluation mode. Raises RunError.

    Every byte is checked against the manifest before it is used, and every tensor against the
    architecture before memory is given to it.
    """
    manifest = run.manifest
    if manifest.kind == "attack":
        raise RunError(f"run {run.name!r} is an attack; its model is that of {run.source.run!r}")
    record = finished_weights(run)
    where, arch = run.folder / MANIFEST, manifest.model.arch
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            empty: BlockModel = build_model(arch, len(manifest.model.classes)).float()
    except UsageError as error:
        raise RunError(f"manifest: {error}: {where}") from None
    expected, blocks = empty.state_dict(), len(empty.blocks)
    if max(manifest.k, manifest.model.convex_blocks) > blocks:
        raise RunError(f"manifest: {arch} has only {blocks} blocks: {where}")
    path = run.folder / record.name
    data = read_recorded(run.folder, record)
    found = from_bytes(data, expected, path)
    for name, tensor in found.items():
        if is_empty_weight(name, tensor):
            raise RunError(f"checkpoint: {name} is all zero: {path}")
    with torch.random.fork_rng(devices=[]):
        model: BlockModel = build_model(arch, len(manifest.model.classes)).float()
    make_convex(model, manifest.model.convex_blocks)
    model.load_state_dict(found)
    return laid_out(model.eval())


def read_source(run: Run) -> BlockModel | None:
    """The model that a target model started from, if its run is still beside it, byte for byte."""
    if run.manifest.source and (source := source_beside(run)):
        with suppress(CartlError):
            return read_model(source)
    return None


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors, of any memory layout and device, as one safetensors file.

    What two of them share, such as tied weights, is written for each.
    """
    written, seen = {}, set[int]()
    for name, tensor in tensors.items():
        place = tensor.detach().cpu().contiguous()
        shared = place.untyped_storage().data_ptr() in seen
        seen.add(place.untyped_storage().data_ptr())
        written[name] = place.clone() if shared else place
    return format_(written)


def from_bytes(
    data: bytes,
    expected: Mapping[str, Tensor],
    path: Path,
    later: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Exactly the ``expected`` tensors, each of its shape and dtype, and finite.

    ``expected`` may hold meta tensors: the header is compared before any memory is given to what
    it claims. Those that came ``later`` are all there, or none in an older file. Raises RunError
    naming the first tensors that do not fit.
    """
    header = _header(data, path)
    if later and later.keys() & header.keys():
        expected = {**expected, **later}
    missing, surplus = expected.keys() - header.keys(), header.keys() - expected.keys()
    if missing or surplus:
        raise RunError(
            f"checkpoint does not fit the model: {_some(missing)} missing, "
            f"{_some(surplus)} unexpected: {path}"
        )
    for name, like in expected.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        shape, dtype = entry.get("shape"), entry.get("dtype")
        if shape != list(like.shape):
            raise RunError(
                f"checkpoint: {name} is {_shape(shape)}, this model needs "
                f"{_shape(list(like.shape))}: {path}"
            )
        if dtype != DTYPES[like.dtype]:
            raise RunError(f"checkpoint: {name} is {dtype}, expected {DTYPES[like.dtype]}: {path}")
    try:
        found: dict[str, Tensor] = parse(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"checkpoint has a damaged header ({error}): {path}") from None
    for name, tensor in found.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise RunError(f"checkpoint: {count} non-finite values in {name}: {path}")
        if is_negative_variance(name, tensor):
            raise RunError(f"checkpoint: running_var < 0 in {name}: {path}")
    return found


def is_negative_variance(name: str, tensor: Tensor) -> bool:
    """Whether it is one of batch norm's, of a damaged network; 0 is that of a channel that is 0."""
    return name.endswith("running_var") and bool((tensor < 0).any())


def is_empty_weight(name: str, tensor: Tensor) -> bool:
    """Whether it is a layer's that lets nothing through."""
    return name.endswith("weight") and tensor.dim() > 1 and not bool(tensor.any())


def _header(data: bytes, path: Path) -> dict[str, dict[str, object]]:
    """Name → dtype, shape and place of every tensor, read by ourselves before anything else."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise RunError(f"checkpoint header too large: {path}")
    try:
        header = parse_json(data[8 : 8 + length], "checkpoint header", path)
    except RunError as error:
        raise RunError(f"checkpoint has a damaged header ({error})") from None
    if not isinstance(header, dict):
        raise RunError(f"checkpoint has a damaged header: {path}")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise RunError(f"checkpoint has too many tensors ({len(header)}): {path}")
    return header


def _shape(shape: object) -> str:
    if not isinstance(shape, list):
        return json.dumps(shape)
    return "x".join(map(str, shape)) or "scalar"


def _some(names: set[str]) -> str:
    if not names:
        return "0 tensors"
    listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensors ({listed})"
