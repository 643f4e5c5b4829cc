"""Large images go through a network in pieces: what comes out is what the batch gives."""

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.configure import at_own_batch_size, configure
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.method.losses import cross_entropy, kl_divergence
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.pgd import ascent
from cartl_cli.core.method.transfer_methods import OnImages
from cartl_cli.core.models import pieces
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.pieces import at_once, in_pieces
from cartl_cli.core.training.frozen_features import extracted
from cartl_cli.core.training.target_model import prepare
from tests.fitting import fitted

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels are large, and three go at once."""
    monkeypatch.setattr(pieces, "SMALL", 0)
    monkeypatch.setattr(pieces, "AT_ONCE", 3 * 32**2)


def test_small_images_and_those_of_a_gpu_stay_together() -> None:
    assert at_once(torch.empty(5000, 3, 64, 64, device="meta")) == 5000
    for side, count in ((32, 5000), (64, 5000), (96, 21), (224, 4), (512, 1)):
        images = torch.empty(1, 3, side, side).expand(5000, -1, -1, -1)
        assert at_once(images) == count
    assert at_once(torch.empty(64, 197, 384)) == 64  # tokens
    assert at_once(torch.empty(0, 3, 224, 224)) == 0


def test_every_image_is_taken_once_in_its_place(small: None) -> None:
    seen = []

    def passing(some: Tensor) -> Tensor:
        seen.append(len(some))
        return some.flatten(1).sum(1)

    images = torch.rand(8, 3, 32, 32)
    assert torch.equal(in_pieces(passing, images), images.flatten(1).sum(1))
    assert seen == [3, 3, 2]


def test_passes_and_gradients_are_those_of_the_batch(
    small: None, model: BlockModel, images: Tensor
) -> None:
    model.eval()
    labels, reference = torch.arange(len(images)) % 4, model(images.flip(0)).detach()
    assert at_once(images) < len(images)
    expected = model(images).detach()
    torch.testing.assert_close(predict(model, images), expected, rtol=1e-4, atol=1e-5)
    for loss, theirs in ((cross_entropy, labels), (kl_divergence, reference)):
        found = ascent(model, images, theirs, loss)
        with mock.patch.object(pieces, "AT_ONCE", 10**9):
            whole = ascent(model, images, theirs, loss)
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"keep_lambda": 1.0}, {"head_first": 1}, {"freeze_bn": "none"}]
)
def test_what_is_learned_is_what_whole_batches_teach(
    settings: dict[str, object], small: None, model: BlockModel, data: DataSet
) -> None:
    """The extractor sees pieces; what is trained sees the batch, whose statistics it may need."""
    given = {"lr": 0.05, "batch_size": 8, "epochs": 2, "augment": "flip", **settings}
    config, ends = configure(TransferConfig, given), []
    for pixels in (3 * 32**2, 10**9):
        target, seen = copy.deepcopy(model), list[int]()
        with mock.patch.object(pieces, "AT_ONCE", pixels):
            tuned = prepare(target, copy.deepcopy(model).eval(), config, 2, 3)
            target.stem.register_forward_hook(lambda *pass_, seen=seen: seen.append(len(pass_[2])))
            fitted(target, data.train, config, tuned.objective, lambda progress: None)
        cut = settings.get("freeze_bn") != "none" and pixels < 10**9
        assert (max(seen) == 3) == cut
        ends.append(target.state_dict())
    for name, tensor in ends[0].items():
        assert torch.allclose(ends[1][name], tensor, rtol=1e-3, atol=1e-4), name


def test_batch_norm_that_learns_sees_the_whole_batch(
    small: None, model: BlockModel, data: DataSet
) -> None:
    images = data.train.images[:8].float() / 255
    other, taken = copy.deepcopy(model).train(), list[Tensor]()
    with torch.no_grad():
        expected = other.features(images, len(other.blocks) - 2)

    def on_features(features: Tensor, *rest: object) -> StepLoss:
        taken.append(features)
        return StepLoss(features.sum(), {})

    OnImages(model.train(), 2, on_features)(images, data.train.labels[:8], 0)
    torch.testing.assert_close(taken[0], expected)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_features_are_taken_in_pieces(small: None, model: BlockModel, data: DataSet) -> None:
    model.eval()
    found = extracted(model, 2, data.train, 8, CPU)
    assert found is not None
    with torch.no_grad():
        expected = model.features(data.train.images.float() / 255, len(model.blocks) - 2)
    torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=1e-5)


def test_the_default_batch_of_large_images_is_smaller() -> None:
    default = configure(TransferConfig, {})
    sizes = [at_own_batch_size(default, side).batch_size for side in (32, 64, 96, 128, 224, 512)]
    assert sizes == [64, 64, 64, 32, 16, 2]
    given = configure(TransferConfig, {"batch_size": 64})
    assert at_own_batch_size(given, 224).batch_size == 64
