import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pkgutil import resolve_name
from unittest import mock

import pytest
import torch

from cartl_cli.core.attacks.contract import (
    STANDS,
    Attack,
    AttackSetting,
    Batch,
    Outcome,
    Targets,
    by_batches,
)
from cartl_cli.core.attacks.judged_pgd import correct, pgd_cross_entropy, predict, start
from cartl_cli.core.data.split import DataSet, Split, to_pixels
from cartl_cli.core.evaluation.summary import half_way, summary
from cartl_cli.core.evaluation.verdicts import UNTRIED, Plan, Verdicts, robustness, unattacked
from cartl_cli.core.method.pgd import Budget, pgd
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS, STRONG
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.devices import autocast_for
from tests.victims import measured_split

CPU = torch.device("cpu")
EPS = 8 / 255
OURS: tuple[str, ...] = tuple(name for name in EVALUATION_ATTACKS if name != "autoattack")


def plan(
    *attacks: str,
    eps: tuple[float, ...] = (EPS / 2,),
    steps: int = 4,
    restarts: int = 1,
    batch_size: int = 64,
    final_iterate: bool = False,
) -> Plan:
    budgets = tuple(Budget(e, e / 4, steps) for e in eps)
    return Plan(attacks, budgets, restarts, 10, 3, 0, batch_size, final_iterate=final_iterate)


def measure(model: BlockModel, split: Split, chosen: Plan) -> Verdicts:
    verdicts = unattacked(model, split, chosen)
    for _ in robustness(model, split, chosen, autocast_for(CPU, "fp32"), verdicts):
        pass
    return verdicts


@contextmanager
def running(name: str, attack: Attack) -> Iterator[None]:
    """Another attack under the name of one."""
    code = f"{__name__}:running.attack"
    with (
        mock.patch.object(running, "attack", attack, create=True),
        mock.patch.dict(EVALUATION_ATTACKS, {name: replace(EVALUATION_ATTACKS[name], code=code)}),
    ):
        yield


def test_eps_zero_gives_clean_accuracy(model: BlockModel, data: DataSet) -> None:
    chosen = plan("pgd", *OURS, eps=(0.0,), restarts=2, final_iterate=True)
    measured = measure(model, data.evaluation, chosen)
    assert torch.equal(measured.worst(0), measured.clean)
    assert torch.equal(measured.last[0], measured.clean)


def test_an_image_whose_logits_are_no_numbers_is_wrong_and_its_margin_can_be_kept(
    model: BlockModel, data: DataSet
) -> None:
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    found = unattacked(model, data.evaluation, plan("pgd"))
    assert not found.clean.any()
    assert found.margin.isfinite().all()


def test_the_last_iterate_is_pgds_and_asking_for_it_changes_no_verdict(source: Run) -> None:
    model, split = read_model(source), measured_split()
    without, asked = (
        measure(model, split, plan("pgd", "pgd-margin", steps=6, final_iterate=final_iterate))
        for final_iterate in (False, True)
    )
    assert torch.equal(asked.fell_at, without.fell_at)
    assert torch.equal(without.last[0], without.clean)
    images, budget = to_pixels(split.images), plan("pgd", steps=6).budgets[0]
    batch = Batch(images, split.labels, torch.arange(len(split)))
    begun = start(batch, budget, AttackSetting(0, 0, 1, 1, True))
    last = pgd(model, images, split.labels, begun, budget)
    right = without.clean & correct(predict(model, last), split.labels)
    assert int((asked.last[0] != right).sum()) <= 1  # gradients of the folded copy round otherwise
    assert 0 < int(right.sum()) < int(without.clean.sum())
    assert not (asked.stands(0, 0) & ~asked.last[0]).any()


@pytest.mark.parametrize("restarts", [1, 2])
def test_verdicts_do_not_depend_on_the_batch_size(source: Run, restarts: int) -> None:
    model, split = read_model(source), measured_split()
    found = [
        measure(model, split, plan(*OURS, restarts=restarts, batch_size=size))
        for size in (7, 64, 150)
    ]
    for other in found[1:]:
        assert torch.equal(other.clean, found[0].clean)
        assert torch.equal(other.fell_at, found[0].fell_at)
        assert torch.equal(other.last, found[0].last)
    assert (found[0].clean & ~found[0].worst(0)).any()


def test_each_attack_is_run_on_what_the_others_left(source: Run) -> None:
    model, split = read_model(source), measured_split()
    chosen = plan("pgd", "pgd-margin", "apgd-ce", "fgsm", eps=(EPS / 4, EPS / 2))
    found = measure(model, split, chosen)
    for eps, attack in itertools.product(range(2), range(4)):
        tried = found.fell_at[eps, attack] != UNTRIED
        if attack < 2:  # each for a number of its own
            assert tried.any()
            assert not (tried & ~found.clean).any()
        else:
            assert torch.equal(tried, found.stands(eps, attack - 1))
    # fallen at a smaller eps is fallen at a larger one
    assert not (found.worst(1) & ~found.worst(0)).any()
    assert not (found.stands_alone(1, 0) & ~found.stands_alone(0, 0)).any()
    # the worst of all is the image by image worst, and no more than each alone
    assert torch.equal(found.worst(1), found.clean & ~(found.fell_at >= 0).flatten(0, 1).any(0))


def test_what_is_kept_of_a_fallen_image_is_what_it_fell_to(source: Run) -> None:
    model, split = read_model(source), measured_split()
    found = measure(model, split, plan("pgd", "pgd-margin", "fgsm", eps=(EPS / 4, EPS / 2)))
    labels = split.labels[found.kept]
    wrong = ~correct(predict(model, found.adversarial), labels)
    assert found.fallen.any()
    assert torch.equal(wrong, ~found.worst(1)[found.kept])
    moved = (found.adversarial - split.images[found.kept].float() / 255).abs().amax()
    assert moved <= EPS / 2 + 1e-6


def test_the_summary_counts_what_the_verdicts_say() -> None:
    clean = torch.tensor([True, True, True, True, False])
    fell_at = torch.tensor(
        [
            [[STANDS, 3, STANDS, STANDS, UNTRIED], [STANDS, UNTRIED, STANDS, STANDS, UNTRIED]],
            [[STANDS, STANDS, 0, STANDS, UNTRIED], [STANDS, UNTRIED, UNTRIED, 7, UNTRIED]],
        ]
    )
    last = torch.tensor([[True, True, True, True, False], [True, False, True, True, False]])
    nothing = torch.empty(0)
    verdicts = Verdicts(clean, torch.ones(5), fell_at, last, nothing, nothing, nothing)
    chosen = plan("pgd", "apgd-t", eps=(0.01, 0.02))
    assert summary(chosen, verdicts, [], 1.0).by_eps[1].final_iterate_accuracy is None
    results = summary(replace(chosen, final_iterate=True), verdicts, [], 1.0)
    assert results.clean_accuracy == 0.8
    small, large = results.by_eps
    assert (small.robust_accuracy, large.robust_accuracy) == (0.6, 0.2)
    assert [(a.attacked, a.fell, a.alone, a.robust_accuracy) for a in large.added] == [
        (4, 1, 0.4, 0.4),  # one more had fallen at the smaller eps
        (2, 1, None, 0.2),
    ]
    assert large.final_iterate_accuracy == 0.6
    assert results.half_eps == pytest.approx(0.015)


def test_half_of_the_right_ones_fall_between_two_eps() -> None:
    assert half_way([(0.0, 0.8), (0.1, 0.6), (0.2, 0.2)]) == pytest.approx(0.15)
    assert half_way([(0.0, 0.8), (0.1, 0.6)]) is None
    assert half_way([(0.0, 0.0), (0.1, 0.0)]) is None


def test_a_plan_that_was_interrupted_goes_on_to_the_same_verdicts(
    model: BlockModel, data: DataSet
) -> None:
    chosen = plan("pgd", "pgd-margin", "square", restarts=2, batch_size=5)
    whole = measure(model, data.evaluation, chosen)
    fp32 = autocast_for(CPU, "fp32")
    begun = unattacked(model, data.evaluation, chosen)
    left = list(robustness(model, data.evaluation, chosen, fp32, begun))
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0

    for stop in (left[0], left[len(left) // 2], left[-2]):
        begun = unattacked(model, data.evaluation, chosen)
        # as far as there, and no further
        assert stop in robustness(model, data.evaluation, chosen, fp32, begun)
        for _ in robustness(model, data.evaluation, chosen, fp32, begun):
            pass
        assert torch.equal(begun.fell_at, whole.fell_at)
        assert torch.equal(begun.last, whole.last)


def test_a_restart_is_run_on_what_still_stands_and_takes_nothing_back(
    model: BlockModel, data: DataSet
) -> None:
    seen: list[list[int]] = []

    def every_other(
        model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting
    ) -> Outcome:
        seen.append(batch.indices.tolist())
        falls = batch.indices % 2 == 0 if setting.restart == 0 else batch.indices < 0
        fell_at = torch.where(falls, 1, STANDS)
        return Outcome(batch.images, fell_at, falls)

    images = data.evaluation.images
    split = Split(images, predict(model.eval(), to_pixels(images)).argmax(1))
    with running("square", by_batches(every_other)):
        measured = measure(model, split, plan("square", restarts=2))
    assert seen == [list(range(12)), list(range(1, 12, 2))]
    assert measured.fell_at[0, 0].tolist() == [1, STANDS] * 6


def test_no_image_stands_that_one_of_the_attacks_broke(source: Run) -> None:
    broken = torch.zeros(150, dtype=torch.bool)

    def watched(name: str) -> Attack:
        attack: Attack = resolve_name(EVALUATION_ATTACKS[name].code)

        def run(
            model: BlockModel, targets: Targets, budget: Budget, setting: AttackSetting
        ) -> Iterator[tuple[torch.Tensor, Outcome]]:
            for some, outcome in attack(model, targets, budget, setting):
                images = targets.batch(some)
                wrong = ~correct(predict(model, outcome.adversarial), images.labels)
                broken[some[wrong]] = True
                yield some, outcome

        return run

    model, chosen = read_model(source), plan(*STRONG, steps=10)
    with running(STRONG[0], watched(STRONG[0])):
        first = measure(model, measured_split(), replace(chosen, attacks=STRONG[:1]))
    with running(STRONG[1], watched(STRONG[1])):
        verdicts = measure(model, measured_split(), chosen)
    assert 0 < int(broken.sum()) < 150
    assert torch.equal(verdicts.worst(0), verdicts.clean & ~broken)
    assert not (verdicts.worst(0) & ~first.worst(0)).any()


def test_a38_a_batch_too_large_is_halved_with_the_same_verdicts(
    model: BlockModel, data: DataSet
) -> None:
    def small(
        model: BlockModel, targets: Targets, budget: Budget, setting: AttackSetting
    ) -> Iterator[tuple[torch.Tensor, Outcome]]:
        for some, outcome in pgd_cross_entropy(model, targets, budget, setting):
            yield some, outcome
            if targets.size > 2:  # what is known by then is kept
                raise torch.OutOfMemoryError("x")

    chosen = plan("pgd", eps=(EPS,), batch_size=12)
    whole = measure(model, data.evaluation, chosen)
    with running("pgd", small):
        halved = measure(model, data.evaluation, chosen)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, halved.tensors()[name])


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_foolbox_on_a_trained_model(source: Run) -> None:
    from foolbox.attacks import LinfPGD
    from foolbox.models.pytorch import PyTorchModel

    model, split = read_model(source), measured_split()
    images = split.images.float() / 255
    eps, steps = 3 / 255, 20
    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = LinfPGD(abs_stepsize=eps / 4, steps=steps, random_start=True)
    torch.manual_seed(0)
    _, clipped, _ = theirs(wrapped, images, split.labels, epsilons=eps)
    foolbox_accuracy = correct(predict(model, clipped), split.labels).float().mean().item()
    chosen = replace(plan("pgd", final_iterate=True), budgets=(Budget(eps, eps / 4, steps),))
    ours = measure(model, split, chosen)
    clean = ours.clean.float().mean().item()
    last = ours.last[0].float().mean().item()
    assert last < clean - 0.05  # the attack did something
    assert abs(last - foolbox_accuracy) <= 0.0101
