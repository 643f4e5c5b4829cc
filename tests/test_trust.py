import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.attacks.contract import Outcome
from cartl_cli.core.attacks.feature import feature_attack
from cartl_cli.core.attacks.judged_pgd import attack, correct, predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy, margin
from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import Check, Verdict, headline
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.devices import autocast_for
from cartl_cli.core.trust import gradients, invariants, rivals, strength
from cartl_cli.core.trust.ceilings import ceiling
from cartl_cli.core.trust.checks import limited
from cartl_cli.core.trust.invariants import CleanAccuracy, snapshot
from cartl_cli.core.trust.planted import planted_adversary
from cartl_cli.core.trust.probe import Probe, short
from cartl_cli.core.trust.tiers import CHECKS, from_source
from cartl_cli.core.trust.tiers import checks_of as run_checks
from tests.victims import (
    after,
    backward_gradient,
    blown_up,
    constant_output,
    detached_branch,
    detached_graph,
    dropout_left_on,
    jagged_output,
    large_logits,
    measured_split,
    quantised_input,
    sign_activation,
    softmax_output,
    straight_through,
)

CPU = torch.device("cpu")
EPS = 6 / 255
BUDGET = Budget(EPS, EPS / 4, 20)
BOTH: tuple[PerImageLoss, ...] = (cross_entropy, margin)


def probe_of(
    model: BlockModel,
    count: int = 36,
    budget: Budget = BUDGET,
    losses: tuple[PerImageLoss, ...] = BOTH,
) -> Probe:
    """A probe of the tiny source run's classes, and what a plain attack finds on it."""
    split = measured_split()
    chosen = torch.arange(0, len(split), len(split) // count)[:count]
    images, labels = split.images[chosen].float() / 255, split.labels[chosen]
    fallen = ~correct(predict(model, images), labels)
    adversarial = images.clone()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    start = scatter(images, noise, budget.eps, budget.norm)
    for loss in losses:
        rows = (~fallen).nonzero().squeeze(1)
        if len(rows) > 0:
            outcome = attack(model, images[rows], labels[rows], start[rows], budget, loss, False)
            adversarial[rows], fallen[rows] = outcome.adversarial, outcome.fallen
    autocast = autocast_for(CPU, "fp32")
    return Probe(model, images, labels, budget, losses, 0, 3, autocast, adversarial, fallen)


@pytest.fixture(scope="module")
def probe(runs_dir: Path) -> Probe:
    """The tiny source run's model, healthy if not clever."""
    return probe_of(read_model(read_run(runs_dir / "source")))


def invariants_of(probe: Probe) -> list[Check]:
    same, clean = snapshot(probe.model), CleanAccuracy(0.5, 0.5, True)
    found = invariants.invariants(probe, same, same, probe.model, 3)
    return [*found, invariants.provenance(same, probe.model), invariants.clean_accuracy(clean)]


def test_a_healthy_model_and_a_healthy_attack_pass_every_check(probe: Probe) -> None:
    assert 0 < int(probe.fallen.sum()) < probe.count
    before = snapshot(probe.model)
    checks = run_checks(replace(probe, source=probe.model), "default") + invariants_of(probe)
    checks.append(rivals.adaptive(probe))
    assert [check.text for check in checks if check.verdict != "pass"] == []
    assert headline(checks) == "ok"
    k, v = set(range(1, 20)), set(range(1, 13)) - {7}
    assert {check.id for check in checks} == {f"K{i}" for i in k} | {f"V{i}" for i in v}
    assert len(checks) == len(k) + len(v)
    assert snapshot(probe.model) == before  # the checks leave the model alone, too
    restored = [Check.model_validate_json(check.model_dump_json()) for check in checks]
    assert restored == checks


def test_a_healthy_l2_attack_passes_the_fast_checks(source: Run) -> None:
    probe = probe_of(read_model(source), budget=Budget(1.0, 0.25, 10, "l2"))
    assert probe.fallen.any()
    checks = run_checks(probe, "fast") + invariants_of(probe)
    assert [check.id for check in checks if check.verdict == "fail"] == []
    assert rivals.black_box(probe, 20).verdict == "pass"


def test_checks_give_the_same_verdict_twice(probe: Probe) -> None:
    assert planted_adversary(probe) == planted_adversary(probe)
    assert rivals.random_noise(probe, 5) == rivals.random_noise(probe, 5)


@pytest.mark.parametrize(
    ("broken", "check", "name", "verdict"),
    [
        (sign_activation, gradients.vanishing_gradient, "K4", "fail"),
        (sign_activation, planted_adversary, "K1", "fail"),
        (sign_activation, strength.unbounded, "K2", "fail"),
        (quantised_input, gradients.vanishing_gradient, "K4", "fail"),
        (quantised_input, planted_adversary, "K1", "fail"),
        (straight_through, gradients.finite_differences, "K13", "fail"),
        (large_logits, gradients.vanishing_gradient, "K4", "fail"),
        (dropout_left_on, gradients.determinism, "K14", "fail"),
        (detached_branch, gradients.finite_differences, "K13", "fail"),
        (detached_graph, gradients.finite_differences, "K13", "fail"),
        (softmax_output, gradients.output_shape, "K15", "warn"),
        (constant_output, gradients.output_shape, "K15", "fail"),
        (constant_output, gradients.vanishing_gradient, "K4", "fail"),
        (jagged_output, gradients.unstable_neighbours, "K16", "warn"),
        (blown_up, invariants.finite_outputs, "V4", "fail"),
    ],
)
def test_a19_a20_a21_a22_a_broken_model_trips_the_check_that_is_meant_for_it(
    probe: Probe,
    broken: Callable[[BlockModel], None],
    check: Callable[[Probe], Check],
    name: str,
    verdict: Verdict,
) -> None:
    model = copy.deepcopy(probe.model)
    broken(model)
    found = check(replace(probe, model=model))
    assert (found.id, found.verdict) == (name, verdict), found.text


def test_cross_entropy_alone_depends_on_the_scale_of_large_logits(probe: Probe) -> None:
    model = copy.deepcopy(probe.model)
    large_logits(model)
    alone = replace(probe, model=model, losses=(cross_entropy,))
    assert strength.logit_scale(alone).verdict == "warn"


def test_a23_an_attack_that_found_nothing_is_beaten(probe: Probe) -> None:
    clean = correct(predict(probe.model, probe.images), probe.labels)
    idle = replace(probe, fallen=~clean, adversarial=probe.images, source=probe.model)
    assert rivals.single_step(idle).verdict == "fail"
    assert rivals.transfer(idle, probe.model).verdict == "fail"
    assert invariants.budget_kept(idle).verdict == "fail"
    missed = replace(probe, fallen=torch.zeros_like(probe.fallen))  # not even what is wrong clean
    assert rivals.random_noise(missed, 2).verdict == "fail"
    assert invariants.accounting(missed).verdict == "fail"
    assert strength.plausible(missed).verdict == "fail"


def test_masked_gradients_do_not_stop_a_search_a_transfer_or_the_way_through_the_features(
    source: Run,
) -> None:
    model, honest = read_model(source), read_model(source)
    backward_gradient(model)
    far = Budget(1.5 * EPS, EPS / 4, 20)  # and many images: what is found there is no luck
    masked = replace(probe_of(model, 75, far, (margin,)), k=1)
    healthy = replace(probe_of(honest, losses=(margin,)), k=1)
    assert len(masked.standing) / 75 > len(healthy.standing) / 36 + 0.05
    for check, name in (
        (partial(rivals.black_box, queries=100), "K6"),
        (partial(rivals.transfer, source=honest), "K10"),
        (rivals.adaptive, "K17"),
    ):
        found = check(masked)
        assert (found.id, found.verdict) == (name, "fail"), found.text
        assert check(healthy).verdict != "fail"  # one image of so few may be luck


def test_one_image_is_luck_and_two_are_not(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = []
    for count in range(3):
        broken = torch.arange(probe.count) < count
        monkeypatch.setattr(rivals, "_broken", lambda *_, broken=broken: broken)
        found = (rivals.black_box(probe, 1), rivals.transfer(probe, probe.model))
        verdicts.append({check.verdict for check in (*found, rivals.adaptive(probe))})
    assert verdicts == [{"pass"}, {"warn"}, {"fail"}]


def test_the_adaptive_attack_begins_at_the_frozen_boundary(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*arguments: Any) -> Outcome:
        seen.append(arguments[-1])
        return feature_attack(*arguments)

    monkeypatch.setattr(rivals, "feature_attack", watched)
    for k in (1, 3):
        rivals.adaptive(replace(probe, k=k, budget=replace(BUDGET, steps=3)))
    assert seen == [4, 2]  # of 5 blocks


def test_images_that_fall_only_close_by_are_not_monotone(probe: Probe) -> None:
    flat, model = probe.images.flatten(1), copy.deepcopy(probe.model)

    def turned(_: nn.Module, points: tuple[Tensor], logits: Tensor) -> Tensor:
        near = torch.cdist(points[0].flatten(1), flat, p=torch.inf).amin(1) < 0.6 * EPS
        other = F.one_hot((logits.argmax(1) + 1) % 3, 3)
        return torch.where(near[:, None], logits.detach().abs().max() * 2 * other, logits)

    model.register_forward_hook(turned)
    assert strength.monotone(replace(probe, model=model)).verdict == "fail"


def test_too_few_steps_show_in_more_steps_and_in_the_loss(source: Run) -> None:
    model = read_model(source)
    probe = probe_of(model, 75, Budget(EPS, EPS / 40, 4), (margin,))
    assert strength.plateau(probe).verdict == "warn"
    hasty = probe_of(model, 75, Budget(2 * EPS, EPS / 4, 2), (margin,))
    found = strength.more_steps(replace(hasty, budget=replace(hasty.budget, steps=20)))
    assert found.verdict == "warn", found.text
    assert strength.more_steps(replace(hasty, fallen=torch.ones_like(hasty.fallen))).value == 0


def test_a_robust_accuracy_above_the_ceiling_is_not_plausible(probe: Probe) -> None:
    assert strength.plausible(replace(probe, ceiling=0.0)).verdict == "warn"


def test_a_ceiling_is_that_of_a_whole_data_set_at_no_larger_eps() -> None:
    def found(data: str, classes: int, eps: float, norm: Norm = "linf") -> float | None:
        return ceiling(data, classes, Budget(eps, 0, 1, norm))

    assert found("cifar10", 10, 8 / 255) == found("cifar10", 10, 16 / 255)
    assert found("cifar10", 10, 0.5, "l2") != found("cifar10", 10, 0.5)
    assert found("cifar10", 10, 4 / 255) is None
    assert found("cifar10", 2, 8 / 255) is None
    assert found("shapes", 10, 8 / 255) is None


def test_without_a_source_there_is_no_transfer(probe: Probe) -> None:
    assert from_source(probe) is None
    assert from_source(replace(probe, source=probe.model)) is not None


def test_a_short_attack_goes_as_far_as_the_long_one() -> None:
    assert short(Budget(EPS, EPS / 4, 10)) == Budget(EPS, EPS / 4, 10)
    assert short(Budget(EPS, EPS / 4, 100)) == Budget(EPS, EPS / 4, 20)
    assert short(Budget(EPS, EPS / 40, 100)).step_size == pytest.approx(EPS / 8)
    assert short(Budget(EPS, EPS, 100)) == Budget(EPS, EPS, 20)
    assert short(Budget(EPS, EPS / 4000, 100)).step_size < EPS / 100  # a weak attack stays weak


def passes(probe: Probe, check: Callable[[Probe], object]) -> float:
    """How often each image goes through the network, on average."""
    seen: list[int] = []
    model = copy.deepcopy(probe.model)
    model.normalize.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    check(replace(probe, model=model))
    return sum(seen) / probe.count


def test_the_fast_checks_cost_at_most_15_percent_of_an_attack(probe: Probe) -> None:
    """Of a PGD-100 on 1000 images, with a probe of 128; even of a model that nothing breaks."""
    unbroken = copy.deepcopy(probe.model)
    constant_output(unbroken)
    hard = replace(
        probe,
        model=unbroken,
        labels=torch.zeros_like(probe.labels),
        fallen=torch.zeros_like(probe.fallen),
    )
    for most, measured in ((0.1, probe), (0.15, hard)):
        costs = [passes(measured, check) for check in CHECKS["fast"]]
        assert 128 * sum(costs) <= most * 1000 * 100


def test_more_steps_are_made_only_with_images_that_stand(probe: Probe) -> None:
    most = len(BOTH) * (BUDGET.steps + 2) * len(probe.standing)
    assert 0 < passes(probe, strength.more_steps) * probe.count <= most


def test_an_attack_may_change_nothing_of_the_model(probe: Probe) -> None:
    before = snapshot(probe.model)
    model = copy.deepcopy(probe.model)
    assert invariants.purity(before, snapshot(model)).verdict == "pass"
    model.blocks[0].train()
    assert invariants.purity(before, snapshot(model)).verdict == "fail"
    model.eval()
    next(buffer for name, buffer in model.named_buffers() if "running_mean" in name).add_(1e-6)
    assert invariants.purity(before, snapshot(model)).verdict == "fail"


def test_a25_adversarial_images_stay_in_the_box_and_in_the_ball(probe: Probe) -> None:
    moved = probe.adversarial.clone()
    moved[0, 0, 0, 0] = 1.001
    assert invariants.box(replace(probe, adversarial=moved)).verdict == "fail"
    moved[0, 0, 0, 0] = torch.nan
    assert invariants.box(replace(probe, adversarial=moved)).verdict == "fail"
    smaller = replace(probe, budget=replace(BUDGET, eps=0.9 * EPS))
    assert invariants.budget_kept(smaller).verdict == "fail"
    larger = replace(probe, budget=replace(BUDGET, eps=1.1 * EPS))
    assert invariants.budget_kept(larger).verdict == "fail"
    blocked = replace(larger, budget=replace(larger.budget, norm="l2", eps=1e3))
    assert invariants.budget_kept(blocked).verdict == "warn"


def test_an_image_that_fell_at_a_smaller_eps_need_not_go_farther(probe: Probe) -> None:
    wide = replace(probe, budget=replace(BUDGET, eps=4 * EPS))
    assert invariants.budget_kept(wide).verdict == "fail"
    fell = torch.full((probe.count,), EPS)
    assert invariants.budget_kept(replace(wide, allowed=fell)).verdict == "pass"
    assert invariants.budget_kept(replace(wide, allowed=fell / 2)).verdict == "fail"


def test_a_success_at_any_iterate_counts() -> None:
    alone = torch.tensor([[True, True, False, False], [True, False, False, False]])
    last = torch.tensor([[True, True, False, False], [True, True, True, False]])
    found = invariants.best_iterate(alone, last)
    assert (found.verdict, found.value) == ("pass", 0.5)
    assert invariants.best_iterate(last, alone).verdict == "fail"


def test_the_weights_that_were_attacked_are_those_of_the_run(probe: Probe) -> None:
    before, other = snapshot(probe.model), copy.deepcopy(probe.model)
    assert invariants.provenance(before, other).verdict == "pass"
    other.normalize.mean.add_(1e-6)
    assert invariants.provenance(before, other).verdict == "fail"
    assert invariants.provenance(before, None).verdict == "fail"


def test_verdicts_must_be_those_of_the_adversarial_images(probe: Probe) -> None:
    assert (
        invariants.verified_again(replace(probe, adversarial=probe.images), probe.model).verdict
        == "warn"
    )
    other = copy.deepcopy(probe.model)
    constant_output(other)
    assert invariants.verified_again(probe, other).value
    none = torch.zeros_like(probe.fallen)
    assert invariants.verified_again(replace(probe, fallen=none), probe.model).verdict == "fail"


def test_eps_zero_must_give_clean_predictions(probe: Probe) -> None:
    model = copy.deepcopy(probe.model)
    dropout_left_on(model)
    torch.manual_seed(0)
    assert invariants.eps_zero(replace(probe, model=model)).verdict == "fail"


@pytest.mark.parametrize(
    ("clean", "verdict"),
    [
        (CleanAccuracy(0.9, 0.9, True), "pass"),
        (CleanAccuracy(0.9, 0.901, True), "warn"),
        (CleanAccuracy(0.9, 0.901, False), "pass"),
        (CleanAccuracy(0.9, 0.903, False), "fail"),
        (CleanAccuracy(0.3, 0.9, True), "fail"),
    ],
)
def test_clean_accuracy_must_be_the_recorded_one(clean: CleanAccuracy, verdict: Verdict) -> None:
    assert invariants.clean_accuracy(clean).verdict == verdict


def test_gradients_in_bfloat16_find_as_much(probe: Probe) -> None:
    small = replace(probe, autocast=autocast_for(CPU, "bf16"), budget=replace(BUDGET, steps=4))
    assert invariants.precision(small).verdict == "pass"


def test_gradients_that_bfloat16_loses_are_noticed(probe: Probe) -> None:
    model = copy.deepcopy(probe.model)
    after(model.stem, lambda x: 0 * x + x.detach() if x.dtype == torch.bfloat16 else x)
    labels = predict(model, probe.images).argmax(1)
    few = replace(BUDGET, steps=4)
    lost = replace(
        probe, model=model, labels=labels, autocast=autocast_for(CPU, "bf16"), budget=few
    )
    found = invariants.precision(lost)
    assert found.verdict == "fail", found.text


def test_logits_and_labels_must_be_those_of_the_classes(probe: Probe) -> None:
    assert invariants.shapes(probe, 4).verdict == "fail"
    outside = replace(probe, labels=probe.labels + 1)
    assert invariants.shapes(outside, 3).verdict == "fail"


def test_a_failed_invariant_voids_the_number() -> None:
    fine = limited("K3", 0.02, "", warn=0.01, fail=0.05)
    weak = limited("K4", 0.06, "", warn=0, fail=0.05)
    void = limited("V8", float("nan"), "", fail=0)
    assert (fine.verdict, weak.verdict, void.verdict) == ("warn", "fail", "fail")
    assert void.value is None
    assert headline([fine]) == "ok"
    assert headline([fine, weak]) == "upper bound, attack incomplete"
    assert headline([fine, weak, void]) == "invalid"
