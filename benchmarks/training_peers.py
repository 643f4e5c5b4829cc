"""Training as others do it: the steps of the official CARTL code, and ART's adversarial trainer.

Both are float32 on contiguous tensors. ART is taken where it can be imported (`cartl[bench]`).
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.method.batch_norm import freeze
from cartl_cli.core.method.neft import weight_modules
from cartl_cli.core.method.transfer_methods import replace_head
from cartl_cli.core.models.blocks import BlockModel, make_convex

WORKERS = 2
Step = Callable[[], object]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """One image (3, H, W) in [0, 1] after another, augmented by itself as torchvision does it."""

    def __init__(self, split: Split, augment: bool) -> None:
        self.split = split
        some = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15)]
        self.transform = v2.Compose(some) if augment else nn.Identity()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return to_pixels(self.transform(self.split.images[index])), self.split.labels[index]


def loaded(
    split: Split, batch_size: int, augment: bool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, made ahead by workers, who have begun."""
    data = Augmented(split, augment)
    endless = RandomSampler(data, replacement=True, num_samples=batch_size * 2**20)
    batches = iter(DataLoader(data, batch_size, sampler=endless, num_workers=WORKERS))
    next(batches)
    return ((images.to(device), labels.to(device)) for images, labels in batches)


def pretraining(
    model: BlockModel, split: Split, config: PretrainConfig, device: torch.device
) -> Step:
    """A step of adversarial training: parameters take no gradient while the attack is made.

    With FDM two whole passes follow in training mode, adversarial and clean.
    """
    optimizer = _sgd(model, config)
    batches = loaded(split, config.batch_size, True, device)
    cut = len(model.blocks) - config.k

    def step() -> None:
        images, labels = next(batches)
        model.requires_grad_(False).eval()
        adversarial = _pgd(model, images, labels, config)
        model.requires_grad_(True).train()
        features = model.features(adversarial, cut)
        logits = model.classify(features, cut)
        loss = F.cross_entropy(logits, labels)
        if config.fdm_lambda > 0:
            clean = model.features(images, cut)
            clean_logits = model.classify(clean, cut)
            moved = (features - clean).flatten(1)
            distance = moved.norm(dim=1).sum() / math.sqrt(moved.shape[1])
            loss = loss + config.fdm_lambda * distance
            (clean_logits.argmax(1) == labels).float().mean().item()
        _update(optimizer, loss)
        (logits.argmax(1) == labels).float().mean().item()

    return step


def transferring(
    model: BlockModel, split: Split, config: TransferConfig, classes: int, device: torch.device
) -> Step:
    """A step of transfer: every batch goes through the whole network, frozen or not.

    NEFT: β times torch's own spectral norm, of one power iteration a step.
    """
    assert isinstance(config.k, int)
    replace_head(model, classes)
    freeze(model, config.k, config.frozen_bn)
    if config.neft_beta is not None:
        make_convex(model, config.k)
        for _, module in weight_modules(model, config.k):
            spectral_norm(module, n_power_iterations=1)
            parametrize.register_parametrization(module, "weight", Scaled(config.neft_beta))
    optimizer = _sgd(model, config)
    batches = loaded(split, config.batch_size, False, device)

    def step() -> None:
        images, labels = next(batches)
        logits = model(images)
        _update(optimizer, F.cross_entropy(logits, labels))
        (logits.argmax(1) == labels).float().mean().item()

    return step


class Scaled(nn.Module):
    """β · W."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, weight: Tensor) -> Tensor:
        """W → β · W."""
        return self.beta * weight


def art(model: BlockModel, split: Split, config: PretrainConfig, device: torch.device) -> Step:
    """An epoch of `AdversarialTrainerMadryPGD`, without augmentation."""
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=_sgd(model, config),
        input_shape=tuple(split.images.shape[1:]),
        nb_classes=model.head.out_features,
        clip_values=(0, 1),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    trainer = AdversarialTrainerMadryPGD(
        classifier, 1, config.batch_size, config.eps, config.attack_step, config.pgd_steps
    )
    trainer.attack.set_params(batch_size=config.batch_size)  # 32 unless set
    images, labels = to_pixels(split.images).numpy(), split.labels.numpy()
    return lambda: trainer.fit(images, labels)


def _sgd(model: nn.Module, config: PretrainConfig | TransferConfig) -> torch.optim.SGD:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, config.lr, config.momentum, weight_decay=config.weight_decay)


def _update(optimizer: torch.optim.SGD, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


def _pgd(model: nn.Module, images: Tensor, labels: Tensor, config: PretrainConfig) -> Tensor:
    noise = torch.empty_like(images).uniform_(-config.eps, config.eps)
    found = (images + noise).clamp(0, 1)
    for _ in range(config.pgd_steps):
        found = found.detach().requires_grad_()
        F.cross_entropy(model(found), labels).backward()
        assert found.grad is not None
        moved = found.detach() + config.attack_step * found.grad.sign()
        delta = (moved - images).clamp(-config.eps, config.eps)
        found = (images + delta).clamp(0, 1)
    return found.detach()
