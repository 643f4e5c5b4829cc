import copy

import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.judged_pgd import attack, correct, predict, walk
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy, margin
from cartl_cli.core.method.norm_ball import project, scatter, sizes, uniform_start, uphill
from cartl_cli.core.method.pgd import Budget, pgd
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.randomness import counted_noise
from tests.victims import linear, untouched

CPU = torch.device("cpu")
EPS = 8 / 255
BUDGET = Budget(EPS, EPS / 4, 10)


def start(images: Tensor, eps: float = EPS) -> Tensor:
    return uniform_start(images, eps, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize("to_the_end", [True, False])
def test_attack_stays_in_the_ball_and_in_the_pixel_range(
    model: BlockModel, images: Tensor, labels: Tensor, objective: PerImageLoss, to_the_end: bool
) -> None:
    images = torch.cat([images[:4].round(), images[4:]])  # pixels on both ends of the range
    outcome = attack(model, images, labels, start(images), BUDGET, objective, to_the_end)
    delta = outcome.adversarial - images
    assert delta.abs().max() <= EPS + 1e-6
    assert delta.abs().flatten(1).amax(1).min() > 0.9 * EPS  # the budget is used
    assert outcome.adversarial.min() >= 0
    assert outcome.adversarial.max() <= 1


@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0, 5.0])
def test_rounding_leads_no_large_image_out_of_the_ball(eps: float) -> None:
    images = torch.full((4, 3, 224, 224), 0.5)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    points = project(images + (2 * noise - 1) / 10, images, eps, "l2")
    moved = sizes(points - images, "l2")
    assert moved.max() <= eps
    assert moved.min() > 0.99999 * eps


def test_training_attack_stays_in_the_ball_and_raises_the_loss(
    model: BlockModel, images: Tensor
) -> None:
    model.eval()
    labels = predict(model, images).argmax(1)
    adversarial = pgd(model, images, labels, start(images), BUDGET)
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    before = cross_entropy(predict(model, start(images)), labels)
    after = cross_entropy(predict(model, adversarial), labels)
    assert (after > before).all()


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize(("norm", "eps", "steps"), [("linf", 0.01, 12), ("l2", 0.1, 40)])
def test_attack_equals_the_closed_form_on_a_linear_model(
    objective: PerImageLoss, norm: Norm, eps: float, steps: int
) -> None:
    model, images, labels = linear(classes=2)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    begun = scatter(images, noise, eps, norm)
    budget = Budget(eps, eps / 4, steps, norm)
    outcome = attack(model, images, labels, begun, budget, objective, True)
    worst = model.worst(images, labels, eps, norm)
    assert 20 < int((worst > 0).sum()) < 180
    assert torch.equal(outcome.fallen, worst > 0)
    assert torch.equal(outcome.fallen_last, worst > 0)
    standing = ~outcome.fallen
    reached = margin(predict(model, outcome.adversarial[standing]), labels[standing])
    assert torch.allclose(reached, worst[standing], atol=1e-3)


class Blinking(nn.Module):
    """Wrong only while the mean pixel lies in a narrow band that the attack passes through."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1)
        other = 1 + level + 10 * ((level - 0.52).abs() < 0.004).float()
        return torch.stack([torch.full_like(level, 5.0), other], dim=1)


def test_any_wrong_iterate_counts_and_the_last_is_reported_beside_it() -> None:
    images, labels = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    outcome = attack(
        Blinking(), images, labels, images.clone(), Budget(0.05, 0.005, 10), margin, True
    )
    assert outcome.fallen.all()
    assert not outcome.fallen_last.any()
    assert not correct(predict(Blinking(), outcome.adversarial), labels).any()


def test_a_fallen_image_is_not_attacked_again(images: Tensor) -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            if batch.requires_grad:
                seen.append(len(batch))
            level = batch.flatten(1).mean(1) - images.flatten(1).mean(1)[:1]
            return torch.stack([-level, level], dim=1)

    same = images[:1].repeat(4, 1, 1, 1)
    same[1:] -= torch.tensor([0.01, 0.02, 0.03])[:, None, None, None]
    labels = torch.zeros(4, dtype=torch.int64)
    outcome = attack(Counting(), same, labels, same.clone(), Budget(0.05, 0.005, 10), margin, False)
    assert outcome.fallen.all()
    assert seen[0] == 4
    assert sorted(seen, reverse=True) == seen
    assert seen[-1] < 4


@pytest.mark.parametrize("to_the_end", [True, False])
def test_the_next_image_takes_the_place_of_one_that_leaves(to_the_end: bool) -> None:
    model, images, labels = linear(classes=2)
    budget = Budget(0.01, 0.002, 12)
    passes = []

    class Counting(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            if batch.requires_grad:
                passes.append(len(batch))
            logits: Tensor = model(batch)
            return logits

    def begin(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return images[rows], labels[rows], images[rows]

    whole = attack(model, images, labels, images, budget, cross_entropy, to_the_end)
    queue = torch.arange(len(labels)).flip(0)
    left = []
    for rows, part in walk(Counting(), queue, 16, begin, budget, cross_entropy, to_the_end):
        left += rows.tolist()
        assert torch.equal(part.fell_at, whole.fell_at[rows])
        assert torch.equal(part.fallen_last, whole.fallen_last[rows])
        assert torch.equal(part.adversarial, whole.adversarial[rows])
    assert sorted(left) == list(range(len(labels)))
    assert len({int(at) for at in whole.fell_at}) > 3
    # each image is in as many passes as it makes steps, and passes are full as long as any waits
    stood = torch.where(whole.fallen & (not to_the_end), whole.fell_at + 1, budget.steps)
    assert sum(passes) == int(stood.clamp_max(budget.steps).sum())
    assert max(passes) == 16
    assert min(passes[: -2 * budget.steps]) >= 14


def test_a_verdict_is_float32_whatever_the_caller_does(careless: None) -> None:
    model, images, _ = linear(4)
    expected = predict(copy.deepcopy(model).double(), images.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(model, images)
    assert (found - expected).abs().max() < 1e-4
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_logit_that_is_not_finite_counts_as_wrong() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0]])
    assert correct(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [False, False, True]


def test_attacks_leave_the_model_as_they_found_it(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    model.train()
    model.blocks[0].eval()
    with untouched(model):
        pgd(model, images, labels, start(images), BUDGET)
        attack(model, images, labels, start(images), BUDGET, cross_entropy, False)


def test_random_starts_are_drawn_per_image(images: Tensor) -> None:
    whole = counted_noise(images, 0, "start", 0, torch.arange(8))
    parts = [
        counted_noise(images[i : i + 3], 0, "start", 0, torch.arange(8)[i : i + 3])
        for i in (0, 3, 6)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, counted_noise(images, 0, "start", 1, torch.arange(8)))
    assert not torch.equal(whole, counted_noise(images, 1, "start", 0, torch.arange(8)))
    assert not torch.equal(whole, counted_noise(images, 0, "other", 0, torch.arange(8)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_lie_in_the_ball_and_in_the_pixel_range(images: Tensor, norm: Norm) -> None:
    noise = counted_noise(images, 0, "start", 0, torch.arange(8))
    noise[0, 0, 0] = torch.linspace(0, 1, 32)  # both ends, where erfinv has no value
    drawn = uniform_start(images, 0.1, torch.Generator().manual_seed(0), norm)
    for points in (scatter(images, noise, 0.1, norm), drawn):
        assert points.isfinite().all()
        assert points.min() >= 0
        assert points.max() <= 1
        assert sizes(points - images, norm).max() <= 0.1 + 1e-6
    inner = scatter(torch.full_like(images, 0.5), noise, 0.1, "l2") - 0.5
    assert torch.allclose(sizes(inner, "l2"), torch.tensor(0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_is_not_a_number_leads_nowhere(norm: Norm) -> None:
    gradient = torch.ones(3, 1, 2, 2)
    gradient[1, 0, 0, 0], gradient[2] = float("nan"), 0
    direction = uphill(gradient, norm)
    assert direction.isfinite().all()
    assert sizes(direction, norm).flatten()[[0, 2]].tolist() == [1, 0]
