"""Models that attacks are tried on, with what is known about them."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.choices import Norm
from cartl_cli.core.data.shapes import shapes
from cartl_cli.core.data.split import Split
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.models.blocks import BlockModel, initialize
from cartl_cli.core.runtime.randomness import seeded


class Linear(nn.Module):
    """z = Wx + b on flattened pixels: its worst case is known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias

    def worst(self, images: Tensor, labels: Tensor, eps: float, norm: Norm) -> Tensor:
        """max over j ≠ y of (w_j − w_y)·x + b_j − b_y + ε‖w_j − w_y‖_dual, (B,), no box."""
        with torch.no_grad():
            logits = self(images)
            apart = self.weight[None] - self.weight[labels][:, None]  # (B, classes, d)
            reach = torch.linalg.vector_norm(apart, ord=1 if norm == "linf" else 2, dim=2)
            margins = logits - logits.gather(1, labels[:, None]) + eps * reach
            found: Tensor = margins.scatter(1, labels[:, None], -torch.inf).amax(1)
            return found


def linear(classes: int, side: int = 8, count: int = 200) -> tuple[Linear, Tensor, Tensor]:
    """A drawn linear model, images (B, 3, side, side) far from 0 and 1, its predictions (B,).

    It is undecided about grey, so that small perturbations matter.
    """
    draws = torch.Generator().manual_seed(3)
    weight = torch.randn(classes, 3 * side * side, generator=draws)
    bias = 0.3 * torch.randn(classes, generator=draws) - 0.5 * weight.sum(1)
    model = Linear(weight, bias).eval()
    images = 0.3 + 0.4 * torch.rand(count, 3, side, side, generator=draws)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


def measured_split() -> Split:
    """The 150 test images of the classes that the tiny source run knows."""
    data = shapes()
    chosen = (data.evaluation.labels[:, None] == torch.tensor([0, 1, 3])).any(1)
    part = data.evaluation.take(chosen.nonzero().squeeze(1))
    labels = part.labels.clone()
    labels[labels == 3] = 2
    return Split(part.images, labels)


def trained_on_all_shapes() -> nn.Module:
    """A small network for all ten classes of the built-in images, trained for a few steps."""
    return copy.deepcopy(_trained())


@functools.cache
def _trained() -> nn.Module:
    train = shapes().train
    with seeded(0, "victim"):
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, int(train.labels.max()) + 1),
        )
        initialize(model)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(80):
            chosen = torch.randint(len(train), (64,))
            pixels = train.images[chosen].float() / 255
            optimizer.zero_grad()
            cross_entropy(model(pixels), train.labels[chosen]).mean().backward()
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """What happens inside leaves modes, weights, buffers, gradients and global randomness alone."""
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    yield
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, model.state_dict()[n]) for n, tensor in state.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


Change = Callable[[Tensor], Tensor]


def after(module: nn.Module, change: Change) -> None:
    """Change what leaves a module."""
    module.register_forward_hook(lambda _, arguments, output: change(output))


def sign_activation(model: BlockModel) -> None:
    after(model.blocks[0], torch.sign)


def quantised_input(model: BlockModel) -> None:
    model.normalize.register_forward_pre_hook(lambda _, images: (8 * images[0]).round() / 8)


def straight_through(model: BlockModel) -> None:
    def quantise(_: nn.Module, images: tuple[Tensor]) -> Tensor:
        return images[0] + ((8 * images[0]).round() / 8 - images[0]).detach()

    model.normalize.register_forward_pre_hook(quantise)


def large_logits(model: BlockModel) -> None:
    after(model.head, lambda logits: 1e3 * logits)


def dropout_left_on(model: BlockModel) -> None:
    after(model.blocks[-2], lambda features: F.dropout(features, 0.5, training=True))


def detached_branch(model: BlockModel) -> None:
    after(model.blocks[1].get_submodule("conv2"), torch.detach)


def detached_graph(model: BlockModel) -> None:
    after(model.stem, torch.detach)


def softmax_output(model: BlockModel) -> None:
    after(model.head, lambda logits: logits.softmax(1))


def constant_output(model: BlockModel) -> None:
    after(model.head, lambda logits: 0 * logits + torch.tensor([1.0, 0.0, 0.0]))


def jagged_output(model: BlockModel) -> None:
    after(model.head, lambda logits: logits + 2 * (1e5 * logits.roll(1, 1)).sin())


def blown_up(model: BlockModel) -> None:
    after(model.head, lambda logits: logits + torch.inf)


def backward_gradient(model: BlockModel) -> None:
    """The same logits, whose gradient points downhill."""
    after(model.blocks[-1], lambda logits: 2 * logits.detach() - logits)
