"""Features of a frozen extractor, taken once: what is learned is what images would have taught."""

import copy
import json
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest
import torch
from torch import Tensor

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.method.batch_norm import freeze, settled
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runtime.devices import autocast_for
from cartl_cli.core.training import frozen_features
from cartl_cli.core.training.frozen_features import extracted
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.target_model import prepare
from tests.conftest import Command, ImageFolder
from tests.fitting import fitted

CPU = torch.device("cpu")
CASES = get_args(FreezeBatchNorm)


def passed_on(model: BlockModel, k: int, split: Split) -> list[Tensor]:
    """Features of single images at block L−k, as each of two steps has them."""
    cut, pixels = len(model.blocks) - k, split.images.float() / 255
    return [model.features(pixels, cut)[:4], model.features(pixels[:4], cut)]


@pytest.mark.parametrize("freeze_bn", CASES)
@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_an_extractor_is_settled_where_its_features_never_change(
    arch: str, freeze_bn: FreezeBatchNorm, data: DataSet
) -> None:
    """A wide ResNet's stem has no batch norm: at k = L nothing can move."""
    torch.manual_seed(0)
    model, split = build_model(arch, 3), data.train.take(torch.arange(8))
    for k in (1, 2, len(model.blocks)):
        freeze(model, k, freeze_bn)
        once, again = passed_on(model, k, split)
        frozen = freeze_bn in ("stats", "all", "everything") or (arch == "wrn-10-1" and k == 5)
        assert settled(model, k) == torch.allclose(once, again, atol=1e-4) == frozen


@pytest.mark.parametrize("freeze_bn", CASES)
def test_no_graph_is_made_of_a_frozen_extractor(
    freeze_bn: FreezeBatchNorm, model: BlockModel, images: Tensor
) -> None:
    for k in (1, 3, 5):
        freeze(model, k, freeze_bn)
        assert not model.features(images, 5 - k).requires_grad
        assert model(images).requires_grad


@pytest.mark.parametrize("neft_beta", [None, 0.4])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_features_teach_what_images_teach(
    k: int, neft_beta: float | None, model: BlockModel, data: DataSet
) -> None:
    given = {"neft_beta": neft_beta, "freeze_bn": "all", "lr": 0.05, "batch_size": 8, "epochs": 2}
    config = configure(TransferConfig, given)
    ends, losses = [], []
    for once in (False, True):
        target, sums = copy.deepcopy(model), list[float]()
        tuned = prepare(target, model, config, k, 3)
        split, objective = data.train, tuned.objective
        if once:
            features = extracted(target, k, data.train, 8, CPU)
            assert features is not None
            assert not features.images.requires_grad
            assert tuned.on_features is not None
            split, objective = features, tuned.on_features

        def look(progress: Progress, sums: list[float] = sums) -> None:
            sums.append(progress.position.loss_sum)

        fitted(target, split, config, objective, look)
        ends.append(target.state_dict())
        losses.append(sums)
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, tensor in ends[0].items():
        assert torch.allclose(ends[1][name], tensor, rtol=1e-4, atol=1e-5), name


def test_features_are_those_of_each_image_in_the_forward_passs_own_precision(
    model: BlockModel, data: DataSet
) -> None:
    freeze(model, 2, "all")
    with autocast_for(CPU, "bf16"):
        found = extracted(model, 2, data.train, 7, CPU)
        expected = model.features(data.train.images[7:14].float() / 255, 3)
    assert found is not None
    assert found.images.dtype == expected.dtype == torch.bfloat16
    assert found.images.shape == (30, 64, 8, 8)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.images[7:14], expected, rtol=0.05, atol=0.05)
    assert torch.equal(found.labels, data.train.labels)


def test_features_without_room_are_not_taken(model: BlockModel, data: DataSet) -> None:
    freeze(model, 2, "all")
    size = 30 * 64 * 8 * 8 * 4  # bytes
    with mock.patch.object(frozen_features, "ROOM", size):
        assert extracted(model, 2, data.train, 8, CPU) is not None
    with mock.patch.object(frozen_features, "ROOM", size - 1):
        assert extracted(model, 2, data.train, 8, CPU) is None
    with mock.patch.object(model, "features", side_effect=torch.OutOfMemoryError("x")):
        assert extracted(model, 2, data.train, 8, CPU) is None


def test_a_transfer_takes_features_once_where_it_can(
    cartl: Command, image_folder: ImageFolder, runs_dir: Path
) -> None:
    """The extractor sees each image once in training, and the metrics are those of images."""
    images = image_folder(mode="RGB", train=6, test=2)
    metrics = {}
    for name, flags, at_once in (
        ("taken", "--augment none --freeze-bn all", True),
        ("images", "--augment none --freeze-bn all", False),
        ("moving", "--augment none --freeze-bn affine", True),
        ("crop", "--freeze-bn all", True),
        ("attacked", "--augment none --method at --k 3 --freeze-bn all", True),
    ):
        with mock.patch.object(frozen_features, "ROOM", frozen_features.ROOM if at_once else 0):
            done = cartl(
                *f"transfer --source {runs_dir / 'source'} --dataset {images} --epochs 2".split(),
                *f"--batch-size 4 --precision fp32 --device cpu {flags} --name {name}".split(),
            )
        assert done.code == 0, done.err
        assert ("features of the frozen extractor are taken once" in done.err) == (name == "taken")
        lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
        metrics[name] = [json.loads(line)["loss"] for line in lines]
    assert metrics["taken"] == pytest.approx(metrics["images"], rel=1e-5)
    assert metrics["crop"] != pytest.approx(metrics["images"], rel=1e-3)
