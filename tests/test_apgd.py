import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.attacks import apgd as module
from cartl_cli.core.attacks.apgd import Climb, Round, apgd, apgd_t, apgd_targeted, checkpoints
from cartl_cli.core.attacks.contract import STANDS, AttackSetting, Batch, Outcome, Targets
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy, margin, targeted_dlr
from cartl_cli.core.method.norm_ball import scatter, sizes
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.randomness import counted_noise
from tests.victims import Linear, linear, measured_split, trained_on_all_shapes, untouched

NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
LINEAR_NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])


def budget(eps: float, norm: Norm, steps: int = 20) -> Budget:
    return Budget(eps, float("nan"), steps, norm)  # the step size has no say


def begun(images: Tensor, eps: float, norm: Norm, number: int = 0) -> Tensor:
    noise = counted_noise(images, 0, "start", number, torch.arange(len(images)))
    return scatter(images, noise.to(images), eps, norm)


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    given: Budget,
    objective: PerImageLoss = cross_entropy,
) -> Outcome:
    start = begun(images, given.eps, given.norm)
    return apgd(model, images, labels, start, given, objective)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (B,) (Croce & Hein 2020, Eq. 6); of two classes the margin."""
    if logits.shape[1] < 3:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def run_targeted(
    model: nn.Module, images: Tensor, labels: Tensor, given: Budget, targets: int = 9
) -> Outcome:
    def start_of(number: int, rows: Tensor) -> Tensor:
        return begun(images, given.eps, given.norm, number)[rows]

    return apgd_targeted(model, images, labels, start_of, given, targets)


def test_checkpoints_are_those_of_the_paper() -> None:
    # p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoints(10) == {3: 3, 5: 2, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1}
    assert checkpoints(0) == {}


@LINEAR_NORMS
@pytest.mark.parametrize("objective", [cross_entropy, margin, dlr])
def test_it_equals_the_closed_form_on_a_linear_model(
    norm: Norm, eps: float, objective: PerImageLoss
) -> None:
    model, images, labels = linear(classes=2)
    outcome = run(model, images, labels, budget(eps, norm), objective)
    worst = model.worst(images, labels, eps, norm)
    assert 20 < int((worst > 0).sum()) < 180
    assert torch.equal(outcome.fallen, worst > 0)
    standing = ~outcome.fallen
    reached = margin(predict(model, outcome.adversarial[standing]), labels[standing])
    assert torch.allclose(reached, worst[standing], atol=1e-3)


@LINEAR_NORMS
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_targeted_it_equals_the_closed_form_on_a_linear_model_of_some_classes(
    norm: Norm, eps: float, classes: int
) -> None:
    model, images, labels = linear(classes)
    outcome = run_targeted(model, images, labels, budget(eps, norm, 40))
    worst = model.worst(images, labels, eps, norm)
    assert 20 < int((worst > 0).sum()) < 195
    assert torch.equal(outcome.fallen, worst > 0)
    wrong = ~correct(predict(model, outcome.adversarial), labels)
    assert torch.equal(outcome.fallen, wrong)


def test_targets_are_taken_in_the_order_of_the_clean_logits() -> None:
    # Class 1 is second and out of reach; 2 is third and within reach.
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0])[:, None].expand(4, 48)
    model = Linear(weight.clone(), torch.tensor([0.0, -0.1, -24.3, -9.0])).eval()
    images, labels = torch.full((5, 3, 4, 4), 0.5), torch.zeros(5, dtype=torch.int64)
    for targets, fallen in ((1, False), (2, True), (3, True)):
        outcome = run_targeted(model, images, labels, budget(0.02, "linf"), targets)
        assert outcome.fallen.tolist() == [fallen] * 5


@NORMS
def test_it_stays_in_the_ball_and_in_the_pixel_range(
    model: BlockModel, images: Tensor, labels: Tensor, norm: Norm, eps: float
) -> None:
    images = torch.cat([images[:4].round(), images[4:]])  # pixels on both ends of the range
    labels = predict(model.eval(), images).argmax(1)
    for outcome in (
        run(model, images, labels, budget(eps, norm)),
        run_targeted(model, images, labels, budget(eps, norm)),
    ):
        used = sizes(outcome.adversarial - images, norm)
        assert used.max() <= eps + 1e-6
        assert used.min() > 0.5 * eps
        assert outcome.adversarial.min() >= 0
        assert outcome.adversarial.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_zero_changes_nothing(
    model: BlockModel, images: Tensor, labels: Tensor, norm: Norm
) -> None:
    clean = correct(predict(model.eval(), images), labels)
    for outcome in (
        run(model, images, labels, budget(0, norm, 5)),
        run_targeted(model, images, labels, budget(0, norm, 5)),
    ):
        assert torch.equal(outcome.adversarial, images)
        assert torch.equal(outcome.fallen, ~clean)
        assert (outcome.fell_at[~clean] == 0).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 6 / 255), ("l2", 1.0)])
def test_it_does_not_depend_on_the_batch(source: Run, norm: Norm, eps: float) -> None:
    model, split = read_model(source).double().eval(), measured_split()
    images, labels = split.images[::6].double() / 255, split.labels[::6]
    start, given = begun(images, eps, norm), budget(eps, norm, 15)
    whole = apgd(model, images, labels, start, given, cross_entropy)
    assert not whole.fallen.all()
    assert whole.fell_at.unique().numel() >= 3  # images leave at different times
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for rows in shuffled.split(7):
        part = apgd(model, images[rows], labels[rows], start[rows], given, cross_entropy)
        assert torch.equal(part.fell_at, whole.fell_at[rows])


def test_steps_never_grow_and_the_best_loss_never_falls(
    model: BlockModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbs: list[Climb] = []
    arrived = module._arrived

    def watched(climb: Climb, here: module.Place) -> Climb:
        climbs.append(arrived(climb, here))
        return climbs[-1]

    monkeypatch.setattr(module, "_arrived", watched)
    eps = 0.5 / 255
    labels = predict(model.eval(), images).argmax(1)
    outcome = run(model, images, labels, budget(eps, "linf", 50))
    standing = ~outcome.fallen
    assert int(standing.sum()) > 2
    steps = [dict(zip(c.rows.tolist(), c.step_size.flatten(), strict=True)) for c in climbs]
    best = [dict(zip(c.rows.tolist(), c.best.loss, strict=True)) for c in climbs]
    for row in standing.nonzero().flatten().tolist():
        sizes_ = torch.stack([step[row] for step in steps])
        assert sizes_[0] == pytest.approx(2 * eps)
        assert (sizes_.diff() <= 0).all()
        assert sizes_[-1] < sizes_[0]
        assert (torch.stack([loss[row] for loss in best]).diff() >= 0).all()
    # what stands is handed back at its best point
    reached = cross_entropy(predict(model, outcome.adversarial), labels)
    highest = climbs[-1].best.loss
    assert torch.allclose(reached[climbs[-1].rows], highest, atol=1e-5)


@dataclass(frozen=True)
class Halving:
    rises: int
    improved: bool
    halved_before: bool
    expected: bool


@pytest.mark.parametrize(
    "case",
    [
        Halving(rises=7, improved=True, halved_before=False, expected=True),  # condition 1
        Halving(rises=8, improved=True, halved_before=False, expected=False),
        Halving(rises=8, improved=False, halved_before=False, expected=True),  # condition 2
        Halving(rises=8, improved=False, halved_before=True, expected=False),
    ],
)
def test_steps_are_halved_under_the_two_conditions_of_the_paper(case: Halving) -> None:
    point = torch.zeros(1, 1, 1, 1)
    here = module.Place(point, torch.tensor([1.0]), point)
    best = module.Place(point + 9, torch.tensor([2.0]), point + 7)
    climb = Climb(
        rows=torch.zeros(1, dtype=torch.int64),
        images=point,
        here=here,
        previous=point,
        best=best,
        step_size=torch.ones(1, 1, 1, 1),
        rises=torch.tensor([case.rises]),
        best_then=torch.tensor([1.5 if case.improved else 2.0]),
        halved=torch.tensor([case.halved_before]),
    )
    checked = module._checked(climb, 10)
    assert checked.halved.item() == case.expected
    assert checked.step_size.item() == (0.5 if case.expected else 1.0)
    after = best if case.expected else here
    assert torch.equal(checked.here.points, after.points)
    assert torch.equal(checked.here.gradient, after.gradient)
    assert torch.equal(checked.here.loss, after.loss)
    assert checked.rises.item() == 0
    assert checked.best_then.item() == 2


def test_it_leaves_the_model_as_it_found_it(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    model.train()
    model.blocks[0].eval()
    with untouched(model):
        run(model, images, labels, budget(8 / 255, "linf", 3))
        run_targeted(model, images, labels, budget(8 / 255, "linf", 3))


class NotANumber(nn.Module):
    """No number at all for bright images, and right for the others."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1)
        hole = torch.where(level > 0.5, torch.nan, 0.0)
        return torch.stack([1 + hole, level, level, level], dim=1)


def test_a_logit_that_is_not_a_number_counts_as_wrong() -> None:
    images = torch.tensor([0.3, 0.7])[:, None, None, None].expand(2, 3, 4, 4).contiguous()
    labels = torch.zeros(2, dtype=torch.int64)
    for outcome in (
        run(NotANumber(), images, labels, budget(0.1, "linf", 5)),
        run_targeted(NotANumber(), images, labels, budget(0.1, "linf", 5)),
    ):
        assert outcome.fell_at.tolist() == [-1, 0]
        assert outcome.adversarial.isfinite().all()


def test_verdicts_are_float32_where_gradients_are_not() -> None:
    model = trained_on_all_shapes()
    images = measured_split().images[::10].float() / 255
    labels = predict(model, images).argmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for outcome in (
            run(model, images, labels, budget(2 / 255, "linf")),
            run_targeted(model, images, labels, budget(2 / 255, "linf", 10)),
        ):
            wrong = ~correct(predict(model, outcome.adversarial), labels)
            assert torch.equal(outcome.fallen, wrong)
            assert outcome.fallen.any()
            assert not outcome.fallen.all()


def in_rounds(model: BlockModel, images: Tensor, labels: Tensor, steps: int) -> Outcome:
    """``apgd_t`` on the images as one batch."""
    targets = Targets(
        lambda rows: Batch(images[rows], labels[rows], rows), torch.arange(len(labels)), len(labels)
    )
    given, setting = budget(3 / 255, "linf", steps), AttackSetting(0, 0, 1, 1, False)
    found = Outcome(images.clone(), torch.full_like(labels, STANDS), labels < 0)
    left = 0
    for rows, part in apgd_t(model, targets, given, setting):
        found.adversarial[rows], found.fell_at[rows] = part.adversarial, part.fell_at
        left += len(rows)
    assert left == len(labels)  # each once
    return found


def test_only_what_nearly_fell_climbs_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round is given what those before it left and came near to, by an independent count."""
    model = cast(BlockModel, trained_on_all_shapes())
    images = measured_split().images[::2].float() / 255
    clean = predict(model, images)
    labels = clean.argmax(1)
    climbs: list[tuple[Tensor, Tensor, int, bool, Outcome, Tensor]] = []
    towards_each = module._towards_each

    def watched(
        model: nn.Module,
        some: Tensor,
        ours: Tensor,
        start_of: Callable[[int, Tensor], Tensor],
        given: Budget,
        classes: Tensor,
    ) -> tuple[Outcome, Tensor]:
        found = towards_each(model, some, ours, start_of, given, classes)
        reduced = torch.is_autocast_enabled("cpu")
        climbs.append((some, classes, given.steps, reduced, *found))
        return found

    monkeypatch.setattr(module, "_towards_each", watched)
    monkeypatch.setattr(
        module, "ROUNDS", (Round(-math.inf, 9, 1 / 5), Round(-0.5, 2, 1 / 2), Round(-0.4, 2, 1))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = in_rounds(model, images, labels, 10)
    assert [(steps, reduced) for _, _, steps, reduced, _, _ in climbs] == [
        (2, True),
        (5, False),
        (10, False),
    ]
    near = torch.full_like(clean, -torch.inf)
    for to in range(10):
        wanted = torch.full_like(labels, to)
        near[:, to] = targeted_dlr(clean, labels, wanted).where(labels != to, -torch.inf)
    stands = torch.ones_like(labels, dtype=torch.bool)
    counts = []
    for least, (some, classes, _, _, found, reached) in zip(
        (-math.inf, -0.5, -0.4), climbs, strict=True
    ):
        rows = (stands & (near.amax(1) >= least)).nonzero().squeeze(1)
        assert torch.equal(some, images[rows])
        assert torch.equal(
            classes.sort().values, near[rows].topk(classes.shape[1]).indices.sort()[0]
        )
        stands[rows[found.fallen]] = False
        near[rows] = near[rows].scatter_reduce(1, classes, reached, "amax")
        counts.append(len(rows))
    assert len(labels) == counts[0] > counts[1] > counts[2] > 0
    assert torch.equal(outcome.fallen, ~stands)  # what fell to one of them has fallen
    assert torch.equal(outcome.fallen, ~correct(predict(model, outcome.adversarial), labels))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "eps", "loss"), [("Linf", 4 / 255, "ce"), ("L2", 1, "dlr")])
def test_agrees_with_autoattack_on_a_trained_model(
    source: Run, norm: str, eps: float, loss: str
) -> None:
    from pyautoattack.autopgd_base import APGDAttack

    model, split = read_model(source).eval(), measured_split()
    images, labels = split.images[::2].float() / 255, split.labels[::2]
    theirs = APGDAttack(model, 10, norm, eps=eps, seed=0, loss=loss, device="cpu")
    broken = ~correct(predict(model, theirs.perturb(images, labels)), labels)
    ours = run(
        model,
        images,
        labels,
        budget(eps, "linf" if norm == "Linf" else "l2", 10),
        {"ce": cross_entropy, "dlr": dlr}[loss],
    )
    clean = correct(predict(model, images), labels)
    assert int((clean & ours.fallen).sum()) > 5
    assert int((~ours.fallen).sum()) > 5
    assert abs(int(broken.sum()) - int(ours.fallen.sum())) <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 2 / 255), ("L2", 0.3)])
def test_targeted_it_agrees_with_autoattack(norm: str, eps: float) -> None:
    from pyautoattack.autopgd_base import APGDAttack_targeted

    model = trained_on_all_shapes()
    images = measured_split().images[::2].float() / 255
    labels = predict(model, images).argmax(1)
    theirs = APGDAttack_targeted(model, 20, norm, eps=eps, seed=0, n_target_classes=3, device="cpu")
    broken = ~correct(predict(model, theirs.perturb(images, labels)), labels)
    given = budget(eps, "linf" if norm == "Linf" else "l2")
    ours = run_targeted(model, images, labels, given, 3)
    assert 10 < int(ours.fallen.sum()) < 65
    assert abs(int(broken.sum()) - int(ours.fallen.sum())) <= 1
