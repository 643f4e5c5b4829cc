"""Passes by torch.compile: fewer and larger kernels, for some seconds of compiling at first.

Only passes of full batches from which gradients are taken: other sizes would each be compiled
again, and a verdict is always that of the model as it is.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from cartl_cli.core.errors import CartlError
from cartl_cli.core.models.blocks import BlockModel

Model = TypeVar("Model", bound=nn.Module)
More = ParamSpec("More")
Pass = Callable[Concatenate[Model, Tensor, More], Tensor]
"""(model, a batch (B, …), …) → what leaves the model or one of its blocks, (B, …)."""

NEARLY_FULL = 3 / 4
"""In evaluation mode a batch at least so full is filled up: its images do not see each other."""


@dataclass
class _Wish:
    """Whose passes are compiled: batches of ``full`` images. ``failed`` is told why they aren't.

    ``graphs``: on CUDA each pass is replayed as a graph of its own.
    """

    full: int
    failed: Callable[[str], None] | None
    graphs: bool


_wish: ContextVar[_Wish | None] = ContextVar("which passes are compiled", default=None)


@contextmanager
def compiled_passes(
    batch_size: int, failed: Callable[[str], None] | None = None, graphs: bool = True
) -> Iterator[None]:
    """Compile the passes of batches of this size for a while; 0: none.

    If they cannot be compiled, ``failed`` is told and they go on as they are; without it, the pass
    raises CartlError. On CUDA each pass becomes a graph; without ``graphs`` it does not, for those
    who make one of more than a pass.
    """
    if batch_size == 0:
        yield
        return
    token = _wish.set(_Wish(batch_size, failed, graphs))
    plain = {name: getattr(BlockModel, name) for name in COMPILED}
    try:
        for name, passing in COMPILED.items():
            setattr(BlockModel, name, passing)
        yield
    finally:
        for name, passing in plain.items():
            setattr(BlockModel, name, passing)
        _wish.reset(token)


def on_cuda(model: nn.Module) -> bool:
    """Whether passes of a model on CUDA are compiled just now."""
    wish = _wish.get()
    return wish is not None and wish.full > 0 and next(model.parameters()).is_cuda


def compilable(take: Pass[Model, More]) -> Pass[Model, More]:
    """The same pass, compiled where ``compiled_passes`` asks for it.

    Its outputs and gradients are equal to rounding. Raises CartlError if it cannot be compiled.
    """

    @functools.cache
    def compiled(mode: str | None) -> Pass[Model, More]:
        return torch.compile(take, dynamic=False, mode=mode)

    @functools.wraps(take)
    def run(model: Model, batch: Tensor, /, *more: More.args, **named: More.kwargs) -> Tensor:
        wish = _wish.get()
        if wish is None or not torch.is_grad_enabled():
            return take(model, batch, *more, **named)
        count, full = len(batch), wish.full
        least = full if model.training else NEARLY_FULL * full
        if not 0 < least <= count <= full:
            return take(model, batch, *more, **named)
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        filled = torch.cat([batch, batch[: full - count]]) if count < full else batch
        mode = graph_mode(batch.device) if wish.graphs else None
        try:
            found = compiled(mode)(model, filled, *more, **named)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            if wish.failed is None:
                raise CartlError(f"--compile: torch.compile failed ({reason}); drop it") from error
            wish.failed(f"note: torch.compile failed ({reason}); going on without it")
            wish.full = 0
            return take(model, batch, *more, **named)
        if mode is not None:
            found = found.clone()
        return found[:count] if count < full else found

    return run


def graph_mode(device: torch.device) -> str | None:
    """The mode of torch.compile; on CUDA a pass is replayed as one graph, not kernel by kernel.

    The next replay overwrites what a graph gave: outputs are copied, gradients used at once.
    """
    return "reduce-overhead" if device.type == "cuda" else None


COMPILED = {name: compilable(getattr(BlockModel, name)) for name in ("features", "classify")}
"""The passes of a network that take the place of its own while ``compiled_passes`` asks."""
