"""Several processes that believe torchrun has started them, forked as in ``tests.processes``."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from cartl_cli.core.config import PretrainConfig, TrainingConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import Split
from cartl_cli.core.method.objective import Objective
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.runtime.ranks import ALONE, Ranks, current, joined
from cartl_cli.core.training import loop
from cartl_cli.core.training.gradient_averaging import averaged
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.source_model import adversarial_training, growing
from cartl_cli.core.training.target_model import prepare
from tests.fitting import fitted
from tests.processes import SERVER, Ended, Sabotage, _child, finish

STEPS = 20
HEAD_STEPS = 8
SETTINGS = {"batch_size": 10, "epochs": 5}  # an epoch: 10 + 10 + 10 + 5 images
METHODS = ("pretrain", "neft", "lwf")


@contextmanager
def together(size: int, target: Callable[..., None], *arguments: Any) -> Iterator[list[Any]]:
    """``target(*arguments)`` in ``size`` processes with torchrun's environment and store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(size):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        child = SERVER.Process(target=_ranked, args=(environment, target, arguments))
        child.start()
        children.append(child)
    yield children


def _ranked(environment: dict[str, str], target: Callable[..., None], arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)


def command(
    size: int, arguments: list[str], folder: Path, sabotage: dict[int, Any] | None = None
) -> list[Ended]:
    """How one command ended in each of ``size`` processes; ``sabotage`` by rank."""
    with together(size, _command, arguments, str(folder), sabotage or {}) as children:
        return [finish(child, folder) for child in children]


def _command(arguments: list[str], folder: str, sabotage: dict[int, Any]) -> None:
    mine = sabotage.get(int(os.environ["RANK"]), Sabotage())
    if isinstance(mine, Sabotage):
        _child(arguments, folder, mine)
    with mock.patch.object(loop, "learning_rate", side_effect=_fault(mine)):
        _child(arguments, folder, Sabotage())


def _fault(error: Exception | Literal["killed"]) -> Callable[..., float]:
    """Ends this process in step 3."""
    real = loop.learning_rate

    def learning_rate(config: Any, step: int, steps_per_epoch: int) -> float:
        if step == 2 and error == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and isinstance(error, Exception):
            raise error
        return real(config, step, steps_per_epoch)

    return learning_rate


def train_split() -> Split:
    """35 random images (3, 16, 16) of three classes."""
    draws = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (35, 3, 16, 16), generator=draws, dtype=torch.uint8)
    return Split(pixels, torch.arange(35) % 3)


def losses(method: str, ranks: Ranks = ALONE, frozen: bool = True) -> list[float]:
    """The loss of each of the first steps, of the whole batch; batch norm frozen or not."""
    split = train_split()
    with seeded(0, "source weights"):
        model = build_model("wrn-10-1", 3).to(memory_format=torch.channels_last).train()
    config, objective = _objective(method, model)
    for module in model.modules():
        if frozen and isinstance(module, _BatchNorm):
            module.eval()
    if ranks.size > 1:
        head_steps = HEAD_STEPS if method == "lwf" else 0
        objective = averaged(model, objective, ranks, torch.device("cpu"), head_steps)
    found: list[float] = []
    before = Position()

    def look(progress: Progress) -> None:
        nonlocal before
        now = progress.position
        begins = now.seen <= before.seen  # the sums are those of an epoch
        total = now.loss_sum - (0 if begins else before.loss_sum)
        found.append(total / (now.seen - (0 if begins else before.seen)))
        before = now

    with mock.patch("cartl_cli.core.data.batches.PADDING", 4):  # 4 of 16 pixels: large crops
        fitted(model, split, config, objective, look, ("crop", "flip", "rotate"), ranks=ranks)
    return found


def _objective(name: str, model: BlockModel) -> tuple[TrainingConfig, Objective]:
    if name == "pretrain":
        # larger steps: signs of gradients near zero flip, and rounding grows to more than 1e-5
        given = {"lr": 0.005, "arch": "wrn-10-1", "k": 3, "fdm_lambda": 0.05, "pgd_steps": 2}
        config = configure(PretrainConfig, SETTINGS | given)
        return config, adversarial_training(model, config, growing(config, STEPS))
    source = build_model("wrn-10-1", 3).eval()
    source.load_state_dict(model.state_dict())
    given = {"neft_beta": 0.4} if name == "neft" else {"lwf_lambda": 0.1, "head_first": 2}
    tuned = configure(TransferConfig, SETTINGS | given)
    k, head_steps = (3, 0) if name == "neft" else (5, HEAD_STEPS)
    return tuned, prepare(model, source, tuned, k, 3, head_steps).objective


def write_losses(folder: str) -> None:
    """The losses of all methods as this process has them, into a file."""
    with joined():
        ranks = current()
        found = {method: losses(method, ranks) for method in METHODS}
        (Path(folder) / f"losses-{ranks.rank}.json").write_text(json.dumps(found))
