"""Where a model is that is to be imported: a file, a folder, an address, or cartl itself.

What is published is fetched once and kept beside the downloaded data sets; nothing of it is run.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from torchvision.models import get_model_weights

import cartl_cli
from cartl_cli.core.config.values import ADDRESS, PACKAGED
from cartl_cli.core.data.downloads import Archive, Store, fetched
from cartl_cli.core.errors import UsageError
from cartl_cli.core.imports.told import CONFIG, WEIGHTS, Told, preprocessed, told_beside
from cartl_cli.core.imports.unwrapping import Normalization
from cartl_cli.core.registry.architectures import parse_architecture

SOURCES = Path(cartl_cli.__file__).parent / "sources"
HUB = "https://huggingface.co"  # or another that HF_ENDPOINT names


def obtained(checkpoint: str, store: Store, arch: str = "") -> tuple[Path, Told]:
    """The file of weights that a name means, and what is told of it; fetched if need be.

    Without an ``arch`` the network is that of the address.

    Raises UsageError for an address that names nothing, DataError for what cannot be had,
    StorageError where it cannot be kept, RunError for a damaged run.
    """
    if (address := ADDRESS.fullmatch(checkpoint)) is None:
        path = Path(checkpoint).expanduser()
        path = path / WEIGHTS if (path / WEIGHTS).is_file() else path
        return path, told_beside(path)
    if checkpoint == PACKAGED:
        path = SOURCES / PACKAGED / WEIGHTS
        return path, told_beside(path)
    place, name = address.groups()
    if place == "torchvision":
        return _torchvision(name, store, arch)
    return _hub(_of_timm(name, arch) if place == "timm" else name, store)


def _torchvision(name: str, store: Store, arch: str) -> tuple[Path, Told]:
    """The weights that torchvision has by default, and what it says of them.

    Raises UsageError where there are none, or the network cannot be a model here.
    """
    try:
        weights = get_model_weights(name).DEFAULT
    except ValueError:
        raise UsageError(f"torchvision has no weights of {name!r}") from None
    if not arch:
        parse_architecture(f"torchvision:{name}")  # before anything is downloaded
    file = weights.url.rpartition("/")[2]
    sha256 = file.rpartition("-")[2].partition(".")[0]  # its first digits
    found = weights.transforms()
    settings = {"arch": f"torchvision:{name}", "origin": weights.url}
    if hasattr(found, "crop_size"):  # those for detection have none
        size, shorter = found.crop_size[0], found.resize_size[0]
        settings |= preprocessed(size, shorter, found.interpolation.value)
    told = Told(
        settings,
        tuple(weights.meta["categories"]),
        Normalization(tuple(found.mean), tuple(found.std)) if hasattr(found, "mean") else None,
        sha256=sha256,
    )
    folder = fetched(f"torchvision-{name}", [Archive(file, 0, sha256, (weights.url,))], store)
    return folder / file, told


def _of_timm(name: str, arch: str) -> str:
    """The repository that timm names for a network.

    Raises UsageError where there is none, or the network cannot be a model here.
    """
    if not arch:
        parse_architecture(f"timm:{name.partition('.')[0]}").empty()
    import timm

    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None or not found.hf_hub_id:
        raise UsageError(f"timm has no published weights of {name!r}")
    return str(found.hf_hub_id)


def _hub(repository: str, store: Store) -> tuple[Path, Told]:
    """The weights in a repository of Hugging Face, with its ``config.json``."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise UsageError(f"hf-hub:{repository} must be hf-hub:OWNER/NAME")
    page = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{repository}"
    archives = [Archive(n, 0, "", (f"{page}/resolve/main/{n}",)) for n in (CONFIG, WEIGHTS)]
    path = fetched(f"hf-hub-{repository.replace('/', '-')}", archives, store) / WEIGHTS
    told = told_beside(path)
    return path, replace(told, settings=told.settings | {"origin": page})
