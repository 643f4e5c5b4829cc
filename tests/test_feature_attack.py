import pytest
import torch
from torch import Tensor

from cartl_cli.core.attacks import feature as module
from cartl_cli.core.attacks.contract import Outcome
from cartl_cli.core.attacks.feature import feature_attack
from cartl_cli.core.attacks.judged_pgd import attack, correct, predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import cross_entropy, distances
from cartl_cli.core.method.norm_ball import scatter, sizes
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.randomness import counted_noise
from tests.victims import linear, measured_split, untouched

NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
BOUNDARY = 2


def begun(images: Tensor, eps: float, norm: Norm = "linf") -> Tensor:
    noise = counted_noise(images, 0, "start", 0, torch.arange(len(images)))
    return scatter(images, noise.to(images), eps, norm)


def run(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm = "linf",
    steps: int = 12,
) -> Outcome:
    budget = Budget(eps, eps / 4, steps, norm)
    return feature_attack(model, images, labels, begun(images, eps, norm), budget, BOUNDARY)


class AsBlocks(BlockModel):
    """A linear model as two blocks, the first of which flattens."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        last = torch.nn.Linear(*weight.T.shape)
        super().__init__(torch.nn.Identity(), [torch.nn.Flatten(), last])
        last.weight, last.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
def test_it_equals_the_closed_form_on_a_linear_model(norm: Norm, eps: float) -> None:
    flat, images, labels = linear(classes=2)
    model = AsBlocks(flat.weight, flat.bias)
    budget = Budget(eps, eps / 4, 60, norm)
    outcome = feature_attack(model, images, labels, begun(images, eps, norm), budget, 1)
    worst = flat.worst(images, labels, eps, norm)
    assert 20 < int((worst > 0).sum()) < 180
    assert torch.equal(outcome.fallen, worst > 0)


@NORMS
def test_it_stays_in_the_ball_and_in_the_pixel_range(
    model: BlockModel, images: Tensor, norm: Norm, eps: float
) -> None:
    images = torch.cat([images[:4].round(), images[4:]])  # pixels on both ends of the range
    labels = predict(model.eval(), images).argmax(1)
    outcome = run(model, images, labels, eps, norm)
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
    outcome = run(model, images, labels, 0, norm)
    assert torch.equal(outcome.adversarial, images)
    assert torch.equal(outcome.fell_at, torch.where(clean, -1, 0))


def test_pgd_goes_on_from_where_the_features_are_farthest_away(
    model: BlockModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = 0.5 / 255
    labels = predict(model.eval(), images).argmax(1)
    handed: list[tuple[Tensor, Tensor, Budget]] = []

    def watched(
        model: BlockModel,
        images: Tensor,
        labels: Tensor,
        start: Tensor,
        budget: Budget,
        *rest: object,
    ) -> Outcome:
        handed.append((images, start, budget))
        return attack(model, images, labels, start, budget, cross_entropy, False)

    monkeypatch.setattr(module, "attack", watched)
    outcome = run(model, images, labels, eps, steps=30)
    ((seen, start, budget),) = handed
    assert budget.steps == 20
    assert len(seen) > 4
    with torch.no_grad():
        clean = model.features(seen, BOUNDARY)
        away = distances(model.features(start, BOUNDARY), clean)
        kept = (images[:, None] == seen[None]).flatten(2).all(2).any(1)
        noise = distances(model.features(begun(images, eps)[kept], BOUNDARY), clean)
        last = distances(model.features(outcome.adversarial[kept], BOUNDARY), clean)
    assert (away > 1.5 * noise).all()
    assert (away > last).all()  # farther than cross-entropy leads


def test_iterates_are_counted_through_both_parts(model: BlockModel, images: Tensor) -> None:
    labels = predict(model.eval(), images).argmax(1)
    fell_at = torch.cat(
        [run(model, images, labels, eps / 255, steps=30).fell_at for eps in (0.5, 1, 2, 4)]
    )
    assert (fell_at <= 30).all()
    assert ((fell_at > 0) & (fell_at <= 10)).any()  # wrong while features are led away
    assert (fell_at > 10).any()


@NORMS
def test_it_does_not_depend_on_the_batch(model: BlockModel, norm: Norm, eps: float) -> None:
    model = model.double().eval()
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(4)).double()
    labels = predict(model, images).argmax(1)
    start, budget = begun(images, eps / 4, norm), Budget(eps / 4, eps / 16, 12, norm)
    whole = feature_attack(model, images, labels, start, budget, BOUNDARY)
    assert whole.fallen.any()
    assert not whole.fallen.all()
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for rows in shuffled.split(7):
        part = feature_attack(model, images[rows], labels[rows], start[rows], budget, BOUNDARY)
        assert torch.equal(part.fell_at, whole.fell_at[rows])


def test_it_leaves_the_model_as_it_found_it(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    model.train()
    model.blocks[0].eval()
    with untouched(model):
        run(model, images, labels, 8 / 255, steps=6)


def test_a_logit_that_is_not_a_number_counts_as_wrong(model: BlockModel, images: Tensor) -> None:
    labels = predict(model.eval(), images).argmax(1)
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    outcome = run(model, images, labels, 8 / 255)
    assert (outcome.fell_at == 0).all()
    assert outcome.adversarial.isfinite().all()


def test_it_breaks_about_as_many_images_of_a_trained_model_as_pgd(source: Run) -> None:
    model, split = read_model(source).eval(), measured_split()
    images, labels = split.images[::2].float() / 255, split.labels[::2]
    clean = correct(predict(model, images), labels)
    images, labels = images[clean], labels[clean]
    eps = 4 / 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = run(model, images, labels, eps, steps=15)
    budget = Budget(eps, eps / 4, 15)
    plain = attack(model, images, labels, begun(images, eps), budget, cross_entropy, False)
    assert torch.equal(outcome.fallen, ~correct(predict(model, outcome.adversarial), labels))
    assert int(plain.fallen.sum()) > 5
    assert abs(int(outcome.fallen.sum()) - int(plain.fallen.sum())) <= 2
