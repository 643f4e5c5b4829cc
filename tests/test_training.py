import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.batches import augmented, batches_per_epoch, crop, epoch_batches, rotate
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.errors import DivergedError
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import ramp
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs import checkpoints
from cartl_cli.core.runs.checkpoints import Keeper
from cartl_cli.core.runs.manifest import Position, Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runtime.randomness import generator, seeded
from cartl_cli.core.runtime.ranks import Part
from cartl_cli.core.runtime.stopping import Asked
from cartl_cli.core.training.loop import Progress, Tally, count_steps, learning_rate, one_cycle
from cartl_cli.core.training.remarks import remarks
from cartl_cli.core.training.source_model import adversarial_training, growing, plan_of
from cartl_cli.core.training.target_model import prepare
from cartl_cli.core.training.training_plan import TrainingPlan
from tests import tiny
from tests.conftest import TINY_PRETRAIN, Command
from tests.fitting import fitted


def test_step_schedule_is_the_papers() -> None:
    config = configure(
        PretrainConfig, {"schedule": "step", "epochs": 100, "lr": 0.1, "milestones": (40, 70, 90)}
    )

    def rate(epoch: float) -> float:
        return learning_rate(config, round(epoch * 50), 50)

    assert learning_rate(config, 0, 50) == pytest.approx(0.1 / 50)  # warm-up over epoch 1
    assert rate(0.5) == pytest.approx(0.1 * 26 / 50)
    assert [rate(e) for e in (1, 39.9, 40, 69, 70, 90, 99)] == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008]
    )


def test_one_cycle_rises_then_falls_to_nothing() -> None:
    factors = [one_cycle(step, 100) for step in range(100)]
    peak = factors.index(max(factors))
    assert peak == 29
    assert 0.97 < max(factors) <= 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < factors[-1] < 0.02


def test_eps_grows_over_the_warm_up() -> None:
    assert ramp(0, 100, 0.0) == 1
    assert [ramp(step, 100, 0.4) for step in (0, 19, 39, 99)] == [0.025, 0.5, 1.0, 1.0]


def test_the_training_attack_walks_as_far_as_eps_has_grown() -> None:
    growth = growing(PretrainConfig(pgd_steps=7, eps_warmup=0.5), 2000)
    full = growth.budget(999)
    assert (full.eps, full.steps) == (8 / 255, 7)
    assert full.step_size == pytest.approx(2 / 255)
    for step in (0, 99, 499, 899):
        budget, grown = growth.budget(step), (step + 1) / 1000
        assert budget.eps == pytest.approx(grown * 8 / 255)
        assert budget.step_size * budget.steps == pytest.approx(grown * 14 / 255)
        assert budget.step_size <= 2 / 255 + 1e-9
    assert [growth.steps(step) for step in (0, 499, 899, 1999)] == [1, 4, 7, 7]


def test_an_epoch_uses_every_image_once_in_an_order_of_its_own(data: DataSet) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(data.train, 8, (), seed, epoch)
        pixels = torch.cat([images for images, _ in batches])
        known = {
            tuple(image.flatten().tolist()): i for i, image in enumerate(data.train.images / 255)
        }
        return [known[tuple(image.flatten().tolist())] for image in pixels]

    assert sorted(order(0, 0)) == list(range(30))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert [batches_per_epoch(n, 8) for n in (8, 9, 10, 16)] == [1, 1, 2, 2]


def test_augmentation_moves_flips_and_turns(images: Tensor) -> None:
    draws = torch.rand(8, 4, generator=generator(0, "test"))
    cropped = augmented(images, ("crop",), draws)
    assert cropped.shape == images.shape
    # every crop is the image moved by at most 4 pixels: its centre is somewhere in the original
    for image, moved in zip(images, cropped, strict=True):
        places = [
            torch.equal(moved[:, 8:24, 8:24], image[:, y : y + 16, x : x + 16])
            for y in range(4, 13)
            for x in range(4, 13)
        ]
        assert sum(places) == 1
    flipped = augmented(images, ("flip",), draws)
    kinds = [
        (torch.equal(after, before), torch.equal(after, before.flip(2)))
        for before, after in zip(images, flipped, strict=True)
    ]
    assert set(kinds) == {(True, False), (False, True)}
    disk = torch.zeros(8, 3, 32, 32)
    disk[:, :, 12:20, 12:20] = 1.0
    turned = augmented(disk, ("rotate",), draws)
    assert not torch.allclose(turned, disk)
    assert set(turned.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(augmented(images, (), draws), images)


def test_a_rotation_is_that_of_pillow() -> None:
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "turn"))
    turn = torch.tensor([0.0, 0.27, 0.81, 0.95])
    for before, after, draw in zip(pixels, rotate(pixels / 255, turn), turn, strict=True):
        image = Image.fromarray(before.permute(1, 2, 0).numpy())
        turned = image.rotate(15 * (2 * draw.item() - 1), Image.Resampling.NEAREST)
        theirs = torch.from_numpy(numpy.array(turned)).permute(2, 0, 1)
        # a coordinate may lie between two pixels, as close to one as to the other
        assert (theirs == (after * 255).round()).float().mean() > 0.99


def test_crops_reach_every_shift_and_no_other() -> None:
    image = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    corners = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    moved = crop(image, corners[:, 0], corners[:, 1])
    assert torch.equal(moved[0, :, 4:, 4:], image[0, :, :-4, :-4])
    assert torch.equal(moved[1, :, :-4, :-4], image[0, :, 4:, 4:])


def test_augmentation_belongs_to_the_image_not_to_its_batch(data: DataSet) -> None:
    def seen(batch_size: int, first: int = 0) -> list[Tensor]:
        batches = epoch_batches(data.train, batch_size, ("crop", "flip"), 0, 1, first)
        return [image for images, _ in batches for image in images]

    for one, other in zip(seen(15), seen(6), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(seen(6)[12:], seen(6, first=2), strict=True):
        assert torch.equal(one, other)


def test_the_same_seed_gives_the_same_weights_byte_for_byte(data: DataSet) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        config = configure(
            PretrainConfig,
            {"arch": "wrn-10-1", "k": 3, "fdm_lambda": 0.01, "epochs": 2, "batch_size": 8}
            | {"pgd_steps": 2, "seed": seed},
        )
        with seeded(seed, "source weights"):
            model: BlockModel = build_model(config.arch, 3).train()
        steps = count_steps(config, len(data.train))
        objective = adversarial_training(model, config, growing(config, steps))
        fitted(model, data.train, config, objective, augment=("crop",))
        return model.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.conv1.weight"], other["blocks.0.conv1.weight"])


def test_fdm_adds_lambda_times_the_distance_of_two_separate_passes(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    """The loss of a step is recomputed here from its definition, Eq. 4 + Eq. 10."""
    from cartl_cli.core.method.losses import feature_distance
    from cartl_cli.core.method.norm_ball import uniform_start
    from cartl_cli.core.method.pgd import pgd

    config = configure(
        PretrainConfig,
        {"arch": "wrn-10-1", "k": 3, "fdm_lambda": 0.5, "pgd_steps": 2, "eps_warmup": 0},
    )
    model.train()
    twin = copy.deepcopy(model)  # batch-norm statistics move with every pass
    objective = adversarial_training(twin, config, growing(config, 10))
    loss = objective(images, labels, 4).loss.item()
    start = uniform_start(images, config.eps, generator(config.seed, "training attack", 4))
    adversarial = pgd(model, images, labels, start, Budget(config.eps, config.eps / 4, 2))
    distance = feature_distance(model.features(images, 2), model.features(adversarial, 2))
    natural = torch.nn.functional.cross_entropy(model(adversarial), labels)
    assert loss == pytest.approx((natural + 0.5 * distance).item(), rel=1e-4)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_loss_that_is_not_finite_is_found_before_anybody_looks(
    every: int, model: BlockModel, data: DataSet
) -> None:
    looks: list[Progress] = []

    def broken(images: Tensor, labels: Tensor, step: int, part: Part) -> StepLoss:
        return StepLoss(model(images).mean() * (float("nan") if step == 2 else 1), {})

    def wanted(step: int) -> bool:
        return step % every == 0

    with pytest.raises(DivergedError, match="not finite at step 3"):
        fitted(model, data.train, TransferConfig(batch_size=8), broken, looks.append, wanted=wanted)
    assert [look.position.step for look in looks] == {1: [1, 2], 2: [2], 100: []}[every]


def test_how_often_somebody_looks_changes_nothing(model: BlockModel, data: DataSet) -> None:
    config = TransferConfig(epochs=2, batch_size=8)
    ends, looks = [], []
    for every in (1, 3, 100):
        twin, seen = copy.deepcopy(model), list[Progress]()

        def wanted(step: int, every: int = every) -> bool:
            return step % every == 0

        fitted(twin, data.train, config, NaturalTraining(twin), seen.append, wanted=wanted)
        ends.append((seen[-1].position.model_copy(update={"seconds": 0}), twin.state_dict()))
        looks.append([progress.position.step for progress in seen])
    assert looks == [[1, 2, 3, 4, 5, 6, 7, 8], [3, 4, 6, 8], [4, 8]]
    for position, state in ends[1:]:
        assert position == ends[0][0]
        assert all(torch.equal(tensor, ends[0][1][name]) for name, tensor in state.items())


def test_no_gradient_is_left_while_the_next_images_are_made(
    model: BlockModel, data: DataSet
) -> None:
    """They would take memory, and a graph that is run again overwrites them."""
    objective = NaturalTraining(model)
    left: list[str] = []

    def seen(images: Tensor, labels: Tensor, step: int, part: Part) -> StepLoss:
        left.extend(name for name, p in model.named_parameters() if p.grad is not None)
        return objective(images, labels, step, part)

    looks: list[Progress] = []
    fitted(model, data.train, TransferConfig(epochs=1, batch_size=8), seen, looks.append)
    assert looks[-1].position.step > 1
    assert left == []


class Sent(TorchDispatchMode):
    """Counts what goes from the host to a device, or back, while the host waits for it."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        device = (kwargs or {}).get("device")
        copied = func is torch.ops.aten._to_copy.default and device is not None
        self.count += copied and args[0].device != device
        return func(*args, **(kwargs or {}))


NOWHERE = torch.device("meta")
"""A device whose tensors hold no numbers: to ask for one is an error, as waiting would be."""


def check_no_waiting(
    model: BlockModel,
    config: PretrainConfig | TransferConfig,
    plan: TrainingPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs of three batches on a device that cannot be waited for, but at an epoch's ends."""
    split = Split(
        torch.zeros(24, 3, 16, 16, dtype=torch.uint8, device=NOWHERE),
        torch.zeros(24, dtype=torch.int64, device=NOWHERE),
    )
    reads: list[int] = []

    def read(tally: Tally) -> Position:
        reads.append(len(tally.steps))
        tally.steps = []
        tally.position = Position(step=tally.position.step + reads[-1], seen=1)
        return tally.position

    def wanted(step: int) -> bool:
        plan.step_done(step)
        return False

    def on_its_way(noise: Tensor, device: torch.device) -> Tensor:
        return torch.empty_like(noise, device=device)  # a GPU takes it from pinned memory

    monkeypatch.setattr(Tally, "read", read)
    monkeypatch.setattr("cartl_cli.core.runtime.randomness.sent", on_its_way)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown to it
    with Sent() as sent:  # type: ignore[no-untyped-call]
        fitted(
            model, split, config, plan.objective, augment=("crop", "flip", "rotate"), wanted=wanted
        )
    steps = 3 * (config.steps_per_batch if isinstance(config, PretrainConfig) else 1)
    assert reads == [steps, steps]
    assert sent.count == 2 * 2  # of each epoch the order, and the draws of its augmentation


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"fdm_lambda": 0.0},
        {"method": "trades"},
        {"method": "free"},
        {"method": "natural", "fdm_lambda": 0.0},
        {"awp_gamma": 0.01},
        {"ema": 0.9},
    ],
    ids=str,
)
def test_pretraining_waits_for_the_device_at_the_end_of_an_epoch_alone(
    given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        PretrainConfig,
        {"arch": "wrn-10-1", "k": 3, "image_size": 16, "batch_size": 8, "epochs": 2},
        {"fdm_lambda": 0.005},
        given,
    )
    model = build_model("wrn-10-1", 3).to(NOWHERE).to(memory_format=torch.channels_last).train()
    setup = mock.Mock(config=config, device=NOWHERE, total_steps=6 * config.steps_per_batch)
    check_no_waiting(model, config, plan_of(model, config, setup, pytest.fail), monkeypatch)


@pytest.mark.parametrize(
    "given",
    [{}, {"freeze_bn": "none"}, {"neft_beta": 0.4, "freeze_bn": "affine"}, {"lwf_lambda": 0.1}],
    ids=str,
)
def test_transfer_waits_for_the_device_at_the_end_of_an_epoch_alone(
    given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(TransferConfig, {"batch_size": 8, "epochs": 2}, given)
    original = build_model("wrn-10-1", 3).train()
    model = copy.deepcopy(original)
    tuned = prepare(model, original, config, 3, 3, head_steps=3)
    model.to(NOWHERE)
    original.to(NOWHERE).eval()
    check_no_waiting(model, config, TrainingPlan(tuned.objective), monkeypatch)


def test_a_long_training_is_looked_at_every_half_second(
    source: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = mock.Mock(return_value=100.0)
    monkeypatch.setattr("cartl_cli.core.runs.checkpoints.time.monotonic", clock)
    keeper = Keeper(source, Position(), Asked())
    wanted = []
    for step, seconds in enumerate((100.2, 100.4, 100.6, 100.8, 101.2), start=1):
        clock.return_value = seconds
        wanted.append(keeper.step_done(step))
        if wanted[-1]:
            assert not keeper.is_due(Position(step=step), 10)
    assert wanted == [False, False, True, False, True]
    assert keeper.saved == 0


def test_no_checkpoint_is_removed_once_a_training_is_completed(
    cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were that to fail, a run that has its weights would be marked as failed."""
    standing = []

    def watched(run: Run, newest_step: int) -> None:
        standing.append(read_run(run.folder).manifest.status)

    monkeypatch.setattr(checkpoints, "prune", watched)
    assert cartl("pretrain", *TINY_PRETRAIN.split(), "--name", "kept").code == 0
    assert set(standing) == {"running"}
    assert read_run(Path("runs") / "kept").manifest.status == "completed"


def test_progress_counts_steps_and_means_over_the_epoch(model: BlockModel, data: DataSet) -> None:
    seen: list[Progress] = []
    config = TransferConfig(epochs=2, batch_size=8)
    fitted(model, data.train, config, NaturalTraining(model), seen.append)
    assert [p.position.step for p in seen] == list(range(1, 9))
    assert [p.epoch_ended for p in seen] == [False, False, False, True] * 2
    assert seen[-1].total_steps == 8
    assert 0 <= seen[-1].accuracy["clean"] <= 1


IMAGES = "--dataset ../images --epochs 3 --lr 0.05 --save-every 1 --device cpu"
SMALL = f"pretrain {IMAGES} --image-size 8 --arch wrn-10-1 --k 3 --pgd-steps 2"


@pytest.mark.parametrize(
    "command",
    [
        *(f"{SMALL} --method {method}" for method in ("at", "fast", "free", "trades", "natural")),
        f"transfer {IMAGES} --neft-beta 0.4",
        f"transfer {IMAGES} --head-first 1 --lwf-lambda 0.1",
        *(f"transfer {IMAGES} --method {method}" for method in ("latent", "fast", "at", "trades")),
    ],
    ids=lambda command: " ".join([command.split()[0], *command.split()[-2:]]),
)
def test_a_batch_is_no_larger_than_the_images(
    cartl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The run is that of a batch of all images, byte for byte, says so, and goes on."""
    tiny.make_images(tmp_path / "images")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kind, *words = command.split()
    if kind == "transfer":
        assert cartl(*SMALL.split(), "--batch-size", 4, "--name", "source").code == 0
        words += ["--source", "source"]
    said = "note: --batch-size 64 is more than the 12 training images; batches have 12\n"
    for size, name in ((12, "fits"), (64, "larger")):
        done = cartl(kind, *words, "--batch-size", size, "--name", name)
        assert done.code == 0, done.err
        assert done.err.count(said) == (size == 64)
    fits, larger = Path("runs/fits"), Path("runs/larger")
    assert tiny.left(fits) == tiny.left(larger)
    assert read_run(larger).manifest.config == read_run(fits).manifest.config
    assert read_run(larger).training.batch_size == 12
    longer = ("--resume", "larger", "--extend", "--epochs", 4)
    again = cartl(kind, *longer, "--batch-size", 64)
    assert again.code == 0, again.err
    assert "going on after step" in again.err
    assert read_run(larger).training.batch_size == 12
    other = cartl(kind, "--resume", "larger", "--batch-size", 6)
    assert (other.code, "--batch-size 12 -> 6" in other.err) == (2, True)


def test_seeded_leaves_the_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with seeded(0, "anything"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "anything"):
        assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(("clean", "told"), [(0.118, True), (0.2, False)])
def test_a_source_at_chance_is_told(clean: float, told: bool) -> None:
    source = mock.Mock(seen=TrainingResults(clean_accuracy=clean, n=500, seconds=1.0))
    source.name = "weak"
    source.manifest.config = PretrainConfig()
    source.manifest.model.classes = tuple("abcdefghij")
    found = remarks(TransferConfig(), source, 4, 8)
    said = f"warning: source weak is itself at chance: it has {100 * clean:.1f} % clean accuracy"
    assert any(line.startswith(said) for line in found) == told
