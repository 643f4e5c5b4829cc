"""What every network here is made of: normalization, a stem, and L blocks in a row."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(images − mean) / std per channel, as the model's first layer and saved with it.

    ``takes``: the shape of the images that it takes, (C, H, W); None: any.
    """

    mean: Tensor
    std: Tensor
    takes: tuple[int, int, int] | None

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.takes = None
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def fix(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics, in pixel units on the 0..1 scale."""
        self.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
        self.std.copy_(torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → same shape.

        Raises TypeError for whole numbers, which are 0..255, and ValueError for other shapes than
        it ``takes``.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"images must be floating-point numbers in [0, 1], got {images.dtype}; divide them "
                "by 255"
            )
        if self.takes is not None and not _tracing() and images.shape[1:] != self.takes:
            wanted, given = ", ".join(map(str, self.takes)), tuple(images.shape)
            raise ValueError(
                f"images must be (B, {wanted}), got {given}; model.preprocess makes an image of "
                "that size"
            )
        return (images - spread(self.mean, images)) / spread(self.std, images)


def _tracing() -> bool:
    """Whether torch.jit.trace is at work, which warns where it cannot follow a number."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def spread(channels: Tensor, x: Tensor) -> Tensor:
    """One number per channel (C, 1, 1) → (1, C, H, W), in the precision and memory layout of ``x``.

    With few channels a CPU computes with it several times as fast: they do not fill its vectors.
    """
    return torch.empty_like(x[:1]).copy_(channels)


class Affine(nn.Module):
    """scale · x + shift per channel: what a batch norm does in evaluation mode."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        self.register_buffer("scale", scale.detach().view(-1, 1, 1))
        self.register_buffer("shift", shift.detach().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same shape and precision."""
        return torch.addcmul(spread(self.shift, x), x, spread(self.scale, x))


class Shift(nn.Module):
    """x + shift per channel: what is left of an ``Affine`` whose scale the next layers take."""

    shift: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.register_buffer("shift", affine.shift / affine.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same shape and precision."""
        return x + spread(self.shift, x)


class ResidualSum(nn.Module):
    """shortcut + branch; with ``convex``, the mean of both (CARTL Section 5.2, n = 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.convex = False

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Two tensors of one shape → their sum or mean."""
        total = shortcut + branch
        return total / 2 if self.convex else total


class BlockModel(nn.Module):
    """f = f^L ∘ … ∘ f^1 after normalization and stem. Pixels in [0, 1] in, logits out.

    ``blocks[-1]`` ends in the linear classifier, named ``linear``.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier, at the end of the last block."""
        return cast(nn.Linear, self.blocks[-1].linear)

    def features(self, images: Tensor, stop: int) -> Tensor:
        """(B, C, H, W) in [0, 1] → what leaves block ``stop`` (0: the stem), shape (B, …)."""
        activations = self.stem(self.normalize(images))
        for block in self.blocks[:stop]:
            activations = block(activations)
        return cast(Tensor, activations)

    def features_at(self, images: Tensor, stops: Sequence[int]) -> list[Tensor]:
        """What leaves each block of ``stops``, which rise, in one pass: see ``features``."""
        found = [self.features(images, stops[0])]
        for begin, stop in itertools.pairwise(stops):
            activations = found[-1]
            for block in self.blocks[begin:stop]:
                activations = block(activations)
            found.append(activations)
        return found

    def stages(self, features: Tensor, start: int) -> list[Tensor]:
        """What left block ``start`` → what leaves each block behind it; of the last block L what
        enters the classifier, (B, d), in the place of the logits.
        """
        found = []
        for block in self.blocks[start:-1]:
            features = block(features)
            found.append(features)
        last = cast(nn.Sequential, self.blocks[-1])
        return [*found, last[:-1](features)]

    def classify(self, features: Tensor, start: int) -> Tensor:
        """What left block ``start`` → logits (B, classes) in float32, or wider if it is so."""
        for block in self.blocks[start:]:
            features = block(features)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits (B, classes)."""
        return self.classify(self.features(images, 0), 0)


def sub_model(model: BlockModel, k: int) -> nn.ModuleList:
    """The last k blocks."""
    return model.blocks[len(model.blocks) - k :]


def extractor(model: BlockModel, k: int) -> nn.ModuleList:
    """The stem and the first L−k blocks: everything that transfer does not fine-tune."""
    return nn.ModuleList([model.stem, *model.blocks[: len(model.blocks) - k]])


def make_convex(model: BlockModel, k: int) -> None:
    """Residual additions inside the last k blocks become ½·shortcut + ½·branch."""
    for module in sub_model(model, k).modules():
        if isinstance(module, ResidualSum):
            module.convex = True


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, in which no parameter takes a gradient.

    Afterwards every sub-module and parameter has its own flag back: ``model.train(was_training)``
    would thaw frozen batch norm.
    """
    flags = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_()


@contextmanager
def classifier_alone(model: BlockModel) -> Iterator[None]:
    """For a while the classifier alone is in training mode and takes gradients."""
    with eval_mode(model):
        model.head.train().requires_grad_()
        yield


def initialize(model: nn.Module) -> None:
    """Kaiming-normal fan-out convolutions, unit batch norm, zero linear bias."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there torch compiles it
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
