"""Passes by torch.compile: fewer and larger kernels, for some seconds of compiling at first.

Only passes of full batches from which gradients are taken: other sizes would each be compiled
again, and a verdict is always that of the model as it is.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from cartl_cli.core.errors import CartlError

Model = TypeVar("Model", bound=nn.Module)
More = ParamSpec("More")
Pass = Callable[Concatenate[Model, Tensor, More], Tensor]
"""(model, a batch (B, …), …) → what leaves the model or one of its blocks, (B, …)."""

NEARLY_FULL = 3 / 4
"""In evaluation mode a batch at least so full is filled up: its images do not see each other."""

_full: ContextVar[int] = ContextVar("images of a batch whose passes are compiled", default=0)


@contextmanager
def compiled_passes(batch_size: int) -> Iterator[None]:
    """Compile the passes of batches of this size for a while; 0: none."""
    token = _full.set(batch_size)
    try:
        yield
    finally:
        _full.reset(token)


def compilable(take: Pass[Model, More]) -> Pass[Model, More]:
    """The same pass, compiled where ``compiled_passes`` asks for it.

    Its outputs and gradients are equal to rounding. Raises CartlError if it cannot be compiled.
    """

    @functools.cache
    def compiled() -> Pass[Model, More]:
        return torch.compile(take, dynamic=False)

    @functools.wraps(take)
    def run(model: Model, batch: Tensor, /, *more: More.args, **named: More.kwargs) -> Tensor:
        count, full = len(batch), _full.get()
        least = full if model.training else NEARLY_FULL * full
        if not 0 < least <= count <= full or not torch.is_grad_enabled():
            return take(model, batch, *more, **named)
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        filled = torch.cat([batch, batch[: full - count]]) if count < full else batch
        try:
            found = compiled()(model, filled, *more, **named)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise CartlError(f"--compile: torch.compile failed ({reason}); drop it") from error
        return found[:count] if count < full else found

    return run
