"""The state of a training between two steps: in memory, and as the files of a checkpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.errors import RunError
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.records.checkpoints import Contents
from cartl_cli.core.records.manifest import Position, Run
from cartl_cli.core.records.tensors import from_bytes, to_bytes
from cartl_cli.core.training.recipe import Recipe

MODEL = "model.safetensors"
TRAIN = "train.safetensors"  # the optimizer's momentum, the recipe's state
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class State:
    """What a step changes: the model, the optimizer's momentum, the recipe's own tensors."""

    model: BlockModel
    optimizer: torch.optim.SGD
    recipe: Recipe

    @property
    def momentum(self) -> dict[str, Tensor]:
        """The momentum of each parameter that is trained, by its name; none if there is none."""
        if self.optimizer.defaults["momentum"] == 0:
            return {}
        return {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in trained(self.model).items()
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        model = self.model.state_dict()
        return [*model.values(), *self.momentum.values(), *self.recipe.state.values()]

    def files(self, metrics: bytes) -> Contents:
        """All of it as files, beside the ``metrics`` so far."""
        return {
            MODEL: to_bytes(self.model.state_dict()),
            TRAIN: to_bytes(self.momentum | self.recipe.state),
            METRICS: metrics,
        }

    def restore(self, run: Run, position: Position, files: Contents) -> bytes:
        """Take over a checkpoint of a run; give back its metrics. Raises RunError."""
        where = run.folder / f"ckpt-{position.step:06d}"
        if files.keys() != {MODEL, TRAIN, METRICS}:
            raise RunError(f"checkpoint is not that of a training: {where}")
        model, updated = self.model.state_dict(), self.momentum | self.recipe.state
        stored = from_bytes(files[TRAIN], updated, where)
        self.model.load_state_dict(from_bytes(files[MODEL], model, where))
        for name, tensor in updated.items():
            tensor.copy_(stored[name])
        return files[METRICS]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_size(model: BlockModel, recipe: Recipe) -> int:
    """Bytes of one checkpoint: the model's state, the momentum of what is trained, the recipe's."""
    tensors = [*model.state_dict().values(), *trained(model).values(), *recipe.state.values()]
    return sum(t.numel() * t.element_size() for t in tensors)
