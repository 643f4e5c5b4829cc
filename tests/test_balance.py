"""``--balance``: each class counts alike in the loss, however many images it has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.method.losses import class_weights, classification_loss
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.source_model import adversarial_training, growing, pretrain
from cartl_cli.core.training.target_model import prepare, transfer
from tests import tiny
from tests.conftest import Command

# The loss

UNEVEN = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_weights_are_inverse_to_the_counts_and_1_in_the_mean() -> None:
    weights = class_weights(UNEVEN, 4)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3, 0])  # no image of class 3
    assert weights[UNEVEN].mean().item() == pytest.approx(1)
    counts = torch.tensor([6, 3, 1])
    torch.testing.assert_close(weights[:3] * counts, torch.full((3,), 10 / 3))
    assert class_weights(torch.tensor([1, 0, 0, 1]), 2).tolist() == [1, 1]


def test_the_loss_of_all_images_is_the_mean_of_the_classes() -> None:
    logits = torch.randn(10, 3, dtype=torch.float64)
    each = F.cross_entropy(logits, UNEVEN, reduction="none")
    by_class = torch.stack([each[label == UNEVEN].mean() for label in range(3)])
    found = classification_loss(logits, UNEVEN, class_weights(UNEVEN, 3))
    assert found.item() == pytest.approx(by_class.mean().item(), rel=1e-6)


def test_the_loss_of_a_batch_does_not_depend_on_what_classes_it_happens_to_have() -> None:
    """Unlike torch's own mean, which divides by the weights that a batch happens to have."""
    weights, logits = class_weights(UNEVEN, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 2, 2, 1])
    theirs = F.cross_entropy(logits, labels, weights, reduction="sum") / 4
    torch.testing.assert_close(classification_loss(logits, labels, weights), theirs)
    halves = [classification_loss(logits[i : i + 2], labels[i : i + 2], weights) for i in (0, 2)]
    torch.testing.assert_close(torch.stack(halves).mean(), theirs)


# Every method

REPEATED = torch.tensor([0, 1, 2, 3, 4, 4, 5, 5])  # with labels 0 0 0 0 1 1 1 1
FEW = torch.tensor([0, 0, 0, 0, 1, 1])

TRANSFERS: dict[str, dict[str, Any]] = {
    "natural": {},
    "neft": {"neft_beta": 0.8},
    "head first": {"head_first": 1},
    **{name: {"method": name} for name in ("latent", "fast", "at", "trades")},
    "latent, awp": {"method": "latent", "awp_gamma": 0.01},
}
PRETRAININGS = ("at", "fast", "trades")


@pytest.mark.parametrize("name", TRANSFERS)
def test_in_transfer_weights_do_what_repeated_images_would(name: str) -> None:
    config = configure(TransferConfig, TRANSFERS[name])
    found = []
    for rows in (range(6), REPEATED.tolist()):
        model, weights = network(), class_weights(FEW, 3) if len(rows) == 6 else None
        tuned = prepare(
            *(model, network(), config, 4, 3, config.head_phase), radius=0.1, class_weights=weights
        )
        found.append(gradients(model, tuned.objective, rows))
    agree(*found)


@pytest.mark.parametrize("method", PRETRAININGS)
def test_in_pretraining_weights_do_what_repeated_images_would(method: str) -> None:
    config = configure(PretrainConfig, {"arch": "wrn-10-1", "k": 3, "method": method})
    found = []
    for rows in (range(6), REPEATED.tolist()):
        model, weights = network(), class_weights(FEW, 3) if len(rows) == 6 else None
        objective = adversarial_training(model, config, growing(config, 10), None, weights)
        found.append(gradients(model, objective, rows))
    agree(*found)


def test_what_keeps_features_is_not_weighed() -> None:
    images, labels = batch(range(6))
    losses = {}
    for weight, weights in ((0.0, None), (0.7, None), (0.0, 1), (0.7, 1)):
        config = configure(TransferConfig, {"keep_lambda": weight, "keep_at": "all"})
        model = network()
        given = class_weights(FEW, 3) if weights else None
        tuned: Any = prepare(model, network(), config, 4, 3, class_weights=given)
        model.eval()
        with torch.no_grad():
            model.get_parameter("blocks.2.conv1.weight").mul_(1.5)
            losses[weight, weights] = tuned.objective(images, labels, 0).loss
    added, weighed = (losses[0.7, one] - losses[0.0, one] for one in (None, 1))
    assert added > 0
    torch.testing.assert_close(weighed, added)
    assert losses[0.0, 1] != losses[0.0, None]


def network() -> BlockModel:
    torch.manual_seed(3)
    model: BlockModel = build_model("wrn-10-1", 3).eval()
    return model


def batch(rows: Any) -> tuple[Tensor, Tensor]:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images[list(rows)], FEW[list(rows)]


def gradients(model: BlockModel, objective: Any, rows: Any) -> list[Tensor]:
    """The gradients of a batch, whose images batch norm does not mix.

    The attack makes the same of the same images.
    """
    model.eval()
    for part in walk(objective):
        if hasattr(part, "attack"):
            object.__setattr__(part, "attack", lambda images, *rest: 0.9 * images.flip(-1))
    images, labels = batch(rows)
    found = objective(images, labels, 0)
    found.loss.backward()
    if found.backward_done is not None:
        found.backward_done()
    return [one.grad for one in model.parameters() if one.grad is not None]


def walk(objective: Any) -> Iterator[Any]:
    """An objective and those that it is made of."""
    yield objective
    for name in ("on_features", "first", "second", "then"):
        if not isinstance(part := getattr(objective, name, None), bool) and part is not None:
            yield from walk(part)


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of two classes, ten and two, and a finished source run of them."""
    root = tmp_path_factory.mktemp("balance")
    tiny.make_images(root / "images")
    folder = root / "images" / "train"
    for index in range(6, 10):
        Image.open(folder / "dark" / "0.png").rotate(90 * index).save(
            folder / "dark" / f"{index}.png"
        )
    for index in range(2, 6):
        (folder / "light" / f"{index}.png").unlink()
    assert pretrain(source_config(root), session(root, "source"), unseen) is not None
    return root


def source_config(root: Path, **settings: Any) -> PretrainConfig:
    return configure(
        PretrainConfig,
        {"dataset": str(root / "images"), "arch": "wrn-10-1", "k": 3, "image_size": 8},
        {"batch_size": 4, "epochs": 2, "pgd_steps": 1, "device": "cpu", "save_every": "1"},
        settings,
    )


def session(root: Path, name: str | None, resume: Run | None = None) -> Session:
    return Session(root / "runs", name, NOWHERE, lambda line: None, resume)


def unseen(progress: Progress) -> None:
    """Look at nothing."""


class StopError(Exception):
    pass


def stop(progress: Progress) -> None:
    if progress.position.step == 5:
        raise StopError


METHODS: dict[str, dict[str, Any] | None] = {
    "pretrain": None,
    "natural": {"freeze_bn": "all", "augment": ()},
    "fast": {"method": "fast"},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_balanced_run_goes_on_to_the_same_bytes(place: Path, name: str) -> None:
    """And its weights are others than those of a run that is not balanced."""

    def made(balance: bool, look: Any, named: str, resume: Run | None = None) -> Run | None:
        given = METHODS[name]
        if given is None:
            config = source_config(place, balance=balance)
            return pretrain(config, session(place, named, resume), look)
        tuning = configure(
            TransferConfig,
            {"dataset": str(place / "images"), "source": "source", "batch_size": 4, "epochs": 2},
            {"save_every": "1", "device": "cpu", "k": 4, "balance": balance},
            given,
        )
        source = read_run(place / "runs" / "source")
        return transfer(tuning, source, session(place, named, resume), look)

    whole, plain = (made(one, unseen, f"{name}-{one}") for one in (True, False))
    assert whole is not None
    assert plain is not None
    with pytest.raises(StopError):
        made(True, stop, f"{name}-stopped")
    stopped = read_run(place / "runs" / f"{name}-stopped")
    went_on = made(True, unseen, "", stopped)
    assert went_on is not None
    assert tiny.left(went_on.folder) == tiny.left(whole.folder)
    assert whole.manifest.weights != plain.manifest.weights
    assert (whole.training.balance, plain.training.balance) == (True, False)


TRAINED = "--image-size 8 --arch wrn-10-1 --k 3 --epochs 1 --pgd-steps 1 --batch-size 4"
FLAG = "warning: class 'dark' has 5 times as many training images as 'light'; a model that neglects"


def test_what_the_flag_does_is_said(place: Path, cartl: Command) -> None:
    given = ("--dataset", place / "images", *TRAINED.split())
    plain = cartl("pretrain", *given, "--name", "plain")
    assert plain.code == 0, plain.err
    assert FLAG in plain.err
    assert "pretrain and transfer let each class count alike with --balance" in plain.err
    done = cartl("pretrain", *given, "--balance", "--name", "balanced")
    assert done.code == 0, done.err
    assert "warning: class" not in done.err
    assert (
        "each class counts alike in the loss: an image of 'light' counts 3 (2), one of 'dark' "
        "counts 0.6 (10)"
    ) in done.err
    assert "each class counted alike in training" in " ".join(done.out.split())
    assert json.loads(Path("runs/balanced/manifest.json").read_text())["config"]["balance"] is True

    tuned = cartl(
        *("transfer", "--source", "balanced", "--dataset", place / "images", "--epochs", 1),
        *("--batch-size", 4, "--balance", "--json"),
    )
    assert tuned.code == 0, tuned.err
    assert json.loads(tuned.out)["balance"] is True
    assert "an image of 'light' counts 3 (2)" in tuned.err


@pytest.mark.parametrize(("left", "told"), [(6, False), (3, False), (2, True)])
def test_three_times_as_many_images_are_told(
    cartl: Command, tmp_path: Path, left: int, told: bool
) -> None:
    tiny.make_images(tmp_path / "images")
    for index in range(left, 6):
        (tmp_path / "images" / "train" / "light" / f"{index}.png").unlink()
    done = cartl("pretrain", "--dataset", "images", *TRAINED.split())
    assert done.code == 0, done.err
    assert ("class 'dark' has 3 times as many training images as 'light'" in done.err) == told
    assert ("--balance" in done.err) == told


def test_natural_training_by_hand() -> None:
    """Rare classes that a plain mean gives up are learnt: a constant answer is torn both ways."""
    answer = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    labels = torch.tensor([0] * 9 + [1])

    def answers(images: Tensor) -> Tensor:
        return answer.expand(len(images), 2)

    slopes = {}
    for weights in (None, class_weights(labels, 2)):
        objective = NaturalTraining(answers, weights)
        loss = objective(torch.zeros(10, 1), labels, 0).loss
        (slope,) = torch.autograd.grad(loss, [answer])
        slopes[weights is None] = slope
    torch.testing.assert_close(slopes[True], torch.tensor([-0.4, 0.4], dtype=torch.float64))
    torch.testing.assert_close(
        slopes[False], torch.zeros(2, dtype=torch.float64), atol=1e-7, rtol=0
    )
