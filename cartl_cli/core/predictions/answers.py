"""A model's answers for images that come one after another; no more than a batch is in memory."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pkgutil import resolve_name

import torch
from torch import Tensor

from cartl_cli.core.attacks.contract import AttackSetting, Batch, Targets
from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.config import PredictConfig, own_eps
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.layout import UNREAD, ending
from cartl_cli.core.data.split import to_pixels
from cartl_cli.core.errors import CartlError, DataError, UsageError
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.predictions.images import Bad, Found
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.manifest import ModelSpec, Run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.devices import keep_freed_memory, resolve_device


@dataclass(frozen=True)
class Answer:
    """What the model says of an image: the likeliest classes with their probabilities, best first.

    ``label`` is the class that its folder names, if it does. ``survives``: an attack did not change
    the first class; None without an attack.
    """

    name: str
    label: str | None
    top: tuple[tuple[str, float], ...]
    survives: bool | None

    @property
    def answer(self) -> str:
        """The likeliest class."""
        return self.top[0][0]

    @property
    def is_mistake(self) -> bool:
        """Whether the answer is known to be wrong."""
        return self.label not in (None, self.answer)


@dataclass(frozen=True)
class Asking:
    """The model that is asked, on its device, and what is asked of each image.

    The answer itself is what is attacked, within ``budget``, if there is one.
    """

    model: BlockModel
    spec: ModelSpec
    config: PredictConfig
    budget: Budget | None
    device: torch.device


def asking(run: Run, config: PredictConfig) -> Asking:
    """The model of a finished run, ready to be asked. Raises UsageError, RunError."""
    classes = len(run.manifest.model.classes)
    if config.top > classes:
        raise UsageError(f"--top: run {run.name!r} has {classes} classes, got {config.top}")
    device = resolve_device(config.device)
    model = read_model(run).to(device)
    keep_freed_memory()
    budget = None
    if config.attack is not None:
        eps = own_eps(run.making.dataset) if config.eps is None else config.eps
        budget = Budget(eps, eps / 4, config.pgd_steps)
    return Asking(model, run.manifest.model, config, budget, device)


def answers(asked: Asking, images: Iterable[Found | Bad]) -> Iterator[list[Answer | Bad]]:
    """What is said of the images in their order, a batch at a time; files that are bad are told.

    Verdicts are float32. No image's answer depends on the others but for rounding.
    """
    stream = iter(images)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while part := list(itertools.islice(stream, asked.config.batch_size)):
            decoded = [*pool.map(lambda one: _decoded(asked.spec, one), part)]
            good = [pixels for pixels in decoded if isinstance(pixels, Tensor)]
            told = iter(_told(asked, torch.stack(good)) if good else ())
            yield [
                pixels if isinstance(pixels, Bad) else _answer(asked.spec, one, *next(told))
                for one, pixels in zip(part, decoded, strict=True)
            ]


def _decoded(spec: ModelSpec, image: Found | Bad) -> Tensor | Bad:
    """The pixels of an image, uint8 (3, S, S)."""
    if isinstance(image, Bad):
        return image
    try:
        if (kind := ending(image.name)) in UNREAD:
            raise DataError(f"{kind[1:]} is not read: {image.name!r}; convert it to PNG or JPEG")
        pixels, _ = decode_image(image.read(), image.name, spec.preprocessing)
    except CartlError as error:
        return Bad(image.name, str(error))
    return pixels


def _told(asked: Asking, pixels: Tensor) -> Iterator[tuple[list[int], list[float], bool | None]]:
    """Of each image (B, 3, S, S) the likeliest classes, their probabilities, and if it survives."""
    images = to_pixels(pixels.to(asked.device)).to(memory_format=torch.channels_last)
    logits = predict(asked.model, images)
    order = logits.argsort(dim=1, descending=True, stable=True)
    likeliest = order[:, : asked.config.top]
    probabilities = logits.cpu().double().softmax(1).gather(1, likeliest.cpu())  # not on MPS
    survives: Sequence[bool | None] = [None] * len(pixels)
    if asked.budget is not None:
        survives = _survives(asked, asked.budget, pixels, images, order[:, 0]).tolist()
    return zip(likeliest.tolist(), probabilities.tolist(), survives, strict=True)


def _survives(
    asked: Asking, budget: Budget, pixels: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    """Whether the attack leaves each image its label (B,).

    Where it starts is drawn by the seed and the pixels: the same wherever the image is found.
    """
    config = asked.config
    assert config.attack is not None
    digests = [hashlib.sha256(one.numpy()).digest() for one in pixels.contiguous()]
    numbers = torch.tensor([int.from_bytes(digest[:7]) for digest in digests])

    def batch(rows: Tensor) -> Batch:
        return Batch(images[rows], labels[rows], numbers[rows.cpu()])

    rows = torch.arange(len(labels), device=labels.device)
    attack = resolve_name(EVALUATION_ATTACKS[config.attack].code)
    setting = AttackSetting(config.seed, restart=0, queries=0, k=1, to_the_end=False)
    stands = torch.ones_like(rows, dtype=torch.bool)
    for some, outcome in attack(asked.model, Targets(batch, rows, len(rows)), budget, setting):
        stands[some] = ~outcome.fallen
    return stands


def _answer(
    spec: ModelSpec,
    image: Found | Bad,
    likeliest: list[int],
    probabilities: list[float],
    survives: bool | None,
) -> Answer | Bad:
    if isinstance(image, Bad):
        return image
    if not all(map(math.isfinite, probabilities)):
        return Bad(image.name, f"the model's logits are no finite numbers: {image.name!r}")
    names = [spec.classes[number] for number in likeliest]
    label = next((name for name in image.folders if name in spec.classes), None)
    return Answer(image.name, label, tuple(zip(names, probabilities, strict=True)), survives)
