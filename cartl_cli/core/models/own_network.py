"""A network of the user's own: a function in a Python file, which is run to get it.

A run names the file, and a run may be a stranger's. So a file is run only if the user has named it
in settings, as it is now: ``allow`` remembers that by its sha256, in the cache.
"""

import copy
import hashlib
import importlib.util
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.models.adopted import last_block, moved_names, names_of
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.whole import whole
from cartl_cli.core.registry.architectures import Renames
from cartl_cli.core.storage import cache_dir, make_cache, write_whole


def build(path: str, function: str, num_classes: int) -> BlockModel:
    """The network that a ``function`` of the file at ``path`` makes for so many classes.

    It has a ``stem``, ``blocks`` and a ``head``, or is a plain ``nn.Sequential``, of which each
    child with parameters begins a block, and the first is the stem. It ends in an ``nn.Linear``.
    Raises UsageError for a file or function that is not there or fails, and for another network.
    """
    network = _made(path, function, _factory(path, function, _DESCRIBE), num_classes)
    model = _cut(network, f"--arch: {path}:{function}", num_classes)
    return model.to(torch.get_default_device())  # meta, where only shapes are asked for


def build_whole(path: str, function: str, num_classes: int) -> BlockModel:
    """Any network of a ``function`` of the file at ``path``, as the only block: see ``Whole``.

    The function is told the number of classes if it asks for one argument. Raises UsageError for a
    file or function that is not there or fails.
    """
    factory = _factory(path, function, _ATTACK)
    told = (num_classes,) if _asks(factory) else ()
    return whole(_made(path, function, factory, *told)).to(torch.get_default_device())


def renames(path: str, function: str) -> Renames:
    """The rules from the names of the network's tensors to ours. Raises UsageError like above."""
    network = _made(path, function, _factory(path, function, _DESCRIBE), 2)
    names = names_of(network)
    return moved_names(names, _cut(network, f"--arch: {path}:{function}", 2))


def check_function(path: str, function: str) -> None:
    """Run the file, to see that it has the function. Raises UsageError like ``build_whole``."""
    _factory(path, function, _ATTACK)


def allow(path: str) -> None:
    """Let the file be run as it is now: the user has named it."""
    digest = digest_of(path)
    _ALLOWED.add(digest)
    if (kept := _kept(digest)) is not None:
        with suppress(OSError, CartlError):  # else it must be named again
            make_cache(kept.parent)
            write_whole(kept, b"")


_ALLOWED: set[str] = set()


def digest_of(path: str) -> str:
    """The sha256 of the file. Raises UsageError if it cannot be read."""
    return hashlib.sha256(_source(path)).hexdigest()


def _kept(digest: str) -> Path | None:
    cache = cache_dir()
    return cache and cache / f"own-network-{digest}"


def _source(path: str) -> bytes:
    try:
        return Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        raise UsageError(f"--arch: cannot read {path!r}: {error.strerror}") from None


_DESCRIBE = "cartl pretrain --describe --arch"
_ATTACK = "cartl attack --dataset D --model"


def _factory(path: str, function: str, naming: str) -> Callable[..., Any]:
    """A function of the file, which is run; ``naming`` is a command that names it, but for it."""
    factory: Any = getattr(_loaded(path, f"{naming} {path}:{function}"), function, None)
    if callable(factory):
        return cast(Callable[..., Any], factory)
    raise UsageError(f"--arch: {path} has no function {function!r}")


def _asks(factory: Callable[..., Any]) -> bool:
    """Whether it cannot be called without an argument."""
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        return True
    return False


def _made(path: str, function: str, factory: Callable[..., Any], *told: int) -> nn.Module:
    try:
        with torch.device("cpu"), redirect_stdout(sys.stderr):
            network = copy.deepcopy(factory(*told))  # and to give the same one again
    except Exception as error:
        shown = ", ".join(map(str, told))
        raise UsageError(f"--arch: {path}:{function}({shown}): {_told(error)}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"--arch: {path}:{function} gives a {type(network).__name__}, not an nn.Module"
        )
    return network


def _loaded(path: str, naming: str) -> ModuleType:
    """The file as a module by a name of its own, run once as long as it does not change."""
    digest = digest_of(path)
    kept = _kept(digest)
    if digest not in _ALLOWED and not (kept and kept.exists()):
        raise UsageError(
            f"--arch: nobody has named {path} here, as it is now; if it may be run, name it: "
            f"{naming}"
        )
    place = Path(os.path.expanduser(path)).absolute()
    name = f"cartl_own_network_{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it there
    try:
        # a file is free to compute, where only shapes are asked for too, and to print
        with torch.device("cpu"), redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name:
            wanted = place.with_name(error.name.partition(".")[0])
            if wanted.is_dir() or wanted.with_suffix(".py").is_file():
                hint = f"; it lies beside it: PYTHONPATH={shlex.quote(str(place.parent))} cartl …"
        raise UsageError(f"--arch: {path} cannot be run: {_told(error)}{hint}") from error
    return module


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cut(network: nn.Module, where: str, num_classes: int) -> BlockModel:
    stem, *blocks, head = _row(network, where)
    before, classifier = ([*head[:-1]], head[-1]) if type(head) is nn.Sequential else ([], head)
    if not isinstance(classifier, nn.Linear):
        raise UsageError(f"{where} must end in an nn.Linear, not in {type(classifier).__name__}")
    if (outputs := classifier.out_features) != num_classes:
        raise UsageError(f"{where} gives {outputs} outputs when asked for {num_classes} classes")
    return BlockModel(stem, [*blocks, last_block(before, classifier)])


def _row(network: nn.Module, where: str) -> list[nn.Module]:
    """The stem, the blocks, and what ends in the classifier."""
    if type(network) is nn.Sequential:
        row = _joined(list(network))
        if len(row) < 2:
            raise UsageError(f"{where} needs at least two layers with weights: stem and classifier")
        return row
    stem, blocks, head = (getattr(network, name, None) for name in ("stem", "blocks", "head"))
    parts: list[Any] = [stem, *(blocks if isinstance(blocks, Iterable) else [None]), head]
    if not all(isinstance(part, nn.Module) for part in parts):
        raise UsageError(
            f"{where} must give a network with the modules stem, blocks (a list of them) and head, "
            "or an nn.Sequential"
        )
    return parts


def _joined(layers: list[nn.Module]) -> list[nn.Module]:
    """Layers without parameters go with the one before them; the first of all with the second."""
    groups: list[list[nn.Module]] = [[]]
    for layer in layers:
        if _has_weights(layer) and any(map(_has_weights, groups[-1])):
            groups.append([])
        groups[-1].append(layer)
    return [part[0] if len(part) == 1 else nn.Sequential(*part) for part in groups]


def _has_weights(layer: nn.Module) -> bool:
    return next(layer.parameters(), None) is not None
