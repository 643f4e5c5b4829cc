"""What must hold on a GPU as well; skipped where there is none."""

import json
from unittest import mock

import pytest
import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import attack, predict
from cartl_cli.core.data.batches import epoch_batches
from cartl_cli.core.data.split import Split
from cartl_cli.core.method.losses import margin
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.weights import read_model
from tests.conftest import TINY_PRETRAIN, TINY_TRANSFER, Command
from tests.victims import linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_verdict_is_float32_whatever_the_caller_does(
    source: Run, images: Tensor, careless: None
) -> None:
    model = read_model(source)
    with eval_mode(model):
        expected = predict(model.double(), images.double())
    model = model.float().cuda()
    with eval_mode(model), torch.autocast("cuda", dtype=torch.bfloat16):
        found = predict(model, images.cuda())
    assert found.dtype == torch.float32
    assert (found.cpu() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_attack_equals_the_closed_form_on_a_linear_model() -> None:
    model, images, labels = linear(2)
    expected = model.worst(images, labels, 0.01, "linf") > 0
    assert 0 < expected.sum() < len(images)
    model, images, labels = model.cuda(), images.cuda(), labels.cuda()
    outcome = attack(model, images, labels, images, Budget(0.01, 0.0025, 12), margin, False)
    assert outcome.fallen.cpu().equal(expected)


def test_trained_attacked_and_gone_on_with(cartl: Command) -> None:
    for command in (
        f"pretrain --fdm-lambda 0.005 {TINY_PRETRAIN}",
        f"transfer --neft-beta 0.4 {TINY_TRANSFER}",
        f"transfer --source 1 {TINY_TRANSFER} --save-every 1",
        "attack 2 --pgd-steps 5 --checks default --limit 60 --name gpu",
        "attack 2 --pgd-steps 5 --limit 60 --device cpu --precision fp32 --name cpu",
    ):
        finished = cartl(*command.split(), "--json")
        assert finished.code == 0, finished.err
    gone_on = cartl("transfer", "--resume", 3, "--extend", "--epochs", 3, "--json")
    assert gone_on.code == 0, gone_on.err
    results = [
        json.loads(cartl("attack", "--resume", name, "--json").out) for name in ("gpu", "cpu")
    ]
    on_gpu, on_cpu = results
    assert on_gpu["clean_accuracy"] == pytest.approx(on_cpu["clean_accuracy"], abs=1 / 60 + 1e-9)
    assert on_gpu["robust_accuracy"] == pytest.approx(on_cpu["robust_accuracy"], abs=2 / 60 + 1e-9)
    failed = [c for c in on_gpu["trust"] if c["verdict"] == "fail" and c["id"].startswith("V")]
    assert not failed


def test_images_that_do_not_fit_come_batch_by_batch() -> None:
    """The same batches as of resident images, from pinned memory; parts share the pixels."""
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(12)).part(torch.arange(2, 12))
    cuda = torch.device("cuda")
    resident = split.to(cuda)
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(0, 0)):
        mapped = split.to(cuda)
    assert mapped.images is pixels
    assert (resident.images.is_cuda, mapped.labels.is_cuda) == (True, True)
    augment = ("crop", "flip")
    pairs = zip(
        epoch_batches(resident, 4, augment, 0, 0),
        epoch_batches(mapped, 4, augment, 0, 0),
        strict=True,
    )
    for (images, labels), (theirs, their_labels) in pairs:
        assert torch.equal(images, theirs)
        assert torch.equal(labels, their_labels)
        assert theirs.is_cuda
