"""The processes that torchrun started, one to a device: what they divide, sum up and share.

A batch means the same for any number of processes: the same images in the same order, of which each
process takes consecutive rows, and sums over all of them. Alone, nothing here communicates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(hours=2)  # for one process that downloads or saves while the others wait


@dataclass(frozen=True)
class Part:
    """What one of several processes takes of a batch: its ``rows``, and their ``share`` (0..1).

    ``weight`` (0..1) is that of its mean in the mean over the batch: of all processes it sums to 1.
    """

    rows: slice
    share: float
    weight: float


EVERYTHING = Part(slice(0, None), 1.0, 1.0)


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``: number ``rank``, number ``local`` on its machine.

    Number 0 is the one that writes and speaks.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    def own(self, count: int) -> Tensor:
        """Which of ``count`` images this process attacks: every N-th, so that all have alike."""
        return torch.arange(count) % self.size == self.rank

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gathered(self, number: int) -> list[int]:
        """One whole number of each process."""
        numbers = [number if rank == self.rank else 0 for rank in range(self.size)]
        return [round(found) for found in self.summed(numbers)]

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def text(self, text: str) -> str:
        """The first process's text, in every process."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        (length,) = self.largest(len(data) if self.rank == 0 else 0)
        data = data if self.rank == 0 else torch.empty(length, dtype=torch.uint8)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's tensors into every process's."""
        if self.size > 1:
            for tensor in tensors:
                sent = tensor.detach().cpu().contiguous()
                dist.broadcast(sent, 0)
                tensor.detach().copy_(sent)

    def merge(self, tensor: Tensor, ours: Tensor) -> None:
        """Put into ``tensor`` (..., N) what each process has where its own ``ours`` (N,) is true.

        Every one of the N belongs to one process.
        """
        if self.size > 1:
            sent = tensor.masked_fill(~ours, 0).cpu().contiguous()
            sent = sent.int() if sent.dtype == torch.bool else sent
            dist.all_reduce(sent)
            tensor.copy_(sent)

    def wait(self) -> None:
        """Until all processes are here, or one of them is no more."""
        if self.size > 1:
            with suppress(RuntimeError):
                dist.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """First one process of each machine, then the others, which find what it has stored."""
        if self.size > 1 and self.local > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.local == 0:
            dist.barrier()


ALONE = Ranks()


def current() -> Ranks:
    """This process among those that are ``joined``."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank())


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


@contextmanager
def joined() -> Iterator[Callable[[], bool]]:
    """The processes that torchrun started, connected for a while.

    Gives a function that tells, of the processes that end with an error, whether this is the first:
    the one that knows the cause.
    """
    # Its functions take the group there is at their import as a default. Imported later, by
    # torchvision, they would keep the group's threads into the end of the interpreter: an abort.
    from torch.distributed.nn import functional  # noqa: F401

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)

    def is_first() -> bool:
        with suppress(RuntimeError):  # who kept the store is no more, and has had its say
            return bool(store.compare_set("cartl: ended by", "", str(rank)) == str(rank).encode())
        return False

    try:
        yield is_first
    finally:
        dist.destroy_process_group()
