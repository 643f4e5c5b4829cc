import math

import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.method.losses import cross_entropy, feature_distance, margin, targeted_dlr
from cartl_cli.core.models.blocks import BlockModel, eval_mode


def test_feature_distance_is_equation_10_by_hand() -> None:
    clean = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    adversarial = torch.tensor([[[3.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]])
    # ‖(3, 0, 4, 0)‖ = 5 and ‖(0, 0, 0, 2)‖ = 2, d = 4
    assert feature_distance(clean, adversarial).item() == pytest.approx((5 + 2) / math.sqrt(4))


def test_feature_distance_sums_over_the_batch() -> None:
    clean, adversarial = torch.zeros(1, 9), torch.ones(1, 9)
    one = feature_distance(clean, adversarial)
    four = feature_distance(clean.repeat(4, 1), adversarial.repeat(4, 1))
    assert one.item() == pytest.approx(1.0)
    assert four.item() == pytest.approx(4.0)


def test_feature_distance_has_a_finite_gradient_at_zero() -> None:
    features = torch.ones(2, 3, requires_grad=True)
    feature_distance(features, torch.ones(2, 3)).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_feature_distance_does_not_depend_on_the_callers_mode(
    model: BlockModel, images: Tensor
) -> None:
    def distance() -> Tensor:
        with eval_mode(model):
            return feature_distance(model.features(images, 2), model.features(1 - images, 2))

    values = []
    for training in (True, False):
        model.train(training)
        values.append(distance())
        with torch.no_grad():
            values.append(distance())
        assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, values[0]) for value in values)


def test_margin_is_positive_exactly_where_the_prediction_is_wrong() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 2.0, 5.0]])
    labels = torch.tensor([0, 1])
    assert margin(logits, labels).tolist() == [pytest.approx(-0.5), pytest.approx(3.0)]


def test_margin_gradient_does_not_fade_with_the_logits() -> None:
    def gradient(objective: nn.Module, scale: float) -> float:
        logits = (scale * torch.tensor([[1.0, 0.9, -1.0]])).requires_grad_()
        (found,) = torch.autograd.grad(objective(logits, torch.tensor([0])).sum(), logits)
        return float(found[0, 1] / found.abs().sum())

    # cross-entropy spreads its push over all classes when logits are small; the margin does not
    assert gradient(margin, 0.01) == pytest.approx(0.5)  # type: ignore[arg-type]
    assert gradient(cross_entropy, 0.01) < 0.3  # type: ignore[arg-type]


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5, 0.0], [0.0, 2.0, 5.0, 4.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 3])
    # (1 − 3) / (3 − (1 + 0)/2) and (4 − 2) / (5 − (2 + 0)/2)
    assert targeted_dlr(logits, labels, targets).tolist() == [
        pytest.approx(-0.8),
        pytest.approx(0.5),
    ]


def test_dlr_does_not_change_when_logits_are_shifted_or_scaled() -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(20) % 6
    targets = (labels + 1) % 6
    other = 0.01 * logits + 3
    assert torch.allclose(
        targeted_dlr(logits, labels, targets), targeted_dlr(other, labels, targets)
    )


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_dlr_of_tied_logits_and_of_few_classes_has_a_finite_gradient(classes: int) -> None:
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 0])
    logits = torch.zeros(2, classes)
    logits[1, 0] = 1
    logits.requires_grad_()
    losses = targeted_dlr(logits, labels, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[1, 1] <= 0 <= gradient[1, 0]
    assert gradient.any()
