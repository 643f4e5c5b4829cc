import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import Outcome
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.attacks.square import _bump, _share, counted_draws, square
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import margin
from cartl_cli.core.method.norm_ball import sizes
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.weights import read_model
from tests.victims import linear, measured_split, trained_on_all_shapes, untouched

NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    queries: int,
    seed: int = 0,
) -> Outcome:
    draws = counted_draws(images, seed, torch.arange(len(images)), queries, norm)
    return square(model, images, labels, draws, Budget(eps, float("nan"), queries, norm))


def test_it_equals_the_closed_form_on_a_linear_model() -> None:
    model, images, labels = linear(classes=2, side=4)
    outcome = run(model, images, labels, 0.02, "linf", 2500)
    worst = model.worst(images, labels, 0.02, "linf")
    assert 20 < int((worst > 0).sum()) < 180
    assert torch.equal(outcome.fallen, worst > 0)
    standing = ~outcome.fallen
    reached = margin(predict(model, outcome.adversarial[standing]), labels[standing])
    assert torch.allclose(reached, worst[standing], atol=1e-3)


def test_in_l2_it_comes_near_the_closed_form_on_a_linear_model() -> None:
    model, images, labels = linear(classes=2, side=6)
    eps = 0.1
    outcome = run(model, images, labels, eps, "l2", 800)
    worst = model.worst(images, labels, eps, "l2")
    assert int((worst > 0).sum()) > 20
    assert not (outcome.fallen & (worst <= 0)).any()
    standing = ~outcome.fallen
    reached = margin(predict(model, outcome.adversarial[standing]), labels[standing])
    clean = margin(predict(model, images[standing]), labels[standing])
    assert ((reached - clean) / (worst[standing] - clean)).min() > 0.3


@NORMS
def test_it_stays_in_the_ball_and_in_the_pixel_range(
    model: BlockModel, images: Tensor, norm: Norm, eps: float
) -> None:
    images = torch.cat([images[:4].round(), images[4:]])  # pixels on both ends of the range
    labels = predict(model.eval(), images).argmax(1)
    outcome = run(model, images, labels, eps, norm, 60)
    used = sizes(outcome.adversarial - images, norm)
    assert used.max() <= eps + 1e-6
    assert used.min() > 0.5 * eps
    assert outcome.adversarial.min() >= 0
    assert outcome.adversarial.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 7, 12), (2, 3, 2), (3, 1, 1)])
def test_eps_zero_changes_nothing_and_any_shape_will_do(
    norm: Norm, shape: tuple[int, int, int]
) -> None:
    class Brightness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.flatten(1).mean(1)
            return torch.stack([level, 1 - level], dim=1)

    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 2
    outcome = run(Brightness(), images, labels, 0, norm, 15)
    assert torch.equal(outcome.adversarial, images)
    clean = correct(predict(Brightness(), images), labels)
    assert torch.equal(outcome.fell_at, torch.where(clean, -1, 0))
    moved = run(Brightness(), images, labels, 0.01, norm, 15).adversarial
    assert sizes(moved - images, norm).max() <= 0.01 + 1e-6


@NORMS
def test_it_does_not_depend_on_the_batch(norm: Norm, eps: float) -> None:
    model = trained_on_all_shapes().double()
    images = measured_split().images[::3].double() / 255
    labels = predict(model, images).argmax(1)
    indices = 7 + torch.arange(len(labels))
    budget = Budget(eps / 2, 0, 30, norm)

    def verdicts(rows: Tensor) -> Outcome:
        draws = counted_draws(images[rows], 0, indices[rows], 30, norm)
        return square(model, images[rows], labels[rows], draws, budget)

    whole = verdicts(torch.arange(len(labels)))
    assert whole.fallen.any()
    assert not whole.fallen.all()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for rows in shuffled.split(11):
        part = verdicts(rows)
        assert torch.equal(part.fell_at, whole.fell_at[rows])
        assert torch.allclose(part.adversarial, whole.adversarial[rows], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_draws_belong_to_an_image(images: Tensor, norm: Norm) -> None:
    def then(seed: int, indices: Tensor) -> Tensor:
        return counted_draws(images[: len(indices)], seed, indices, 4, norm).then

    whole = then(0, torch.arange(8))
    assert torch.equal(then(0, torch.tensor([5, 2])), whole[[5, 2]])
    assert not torch.equal(then(1, torch.arange(8)), whole)


def test_a_proposal_is_kept_only_if_it_raises_the_margin(model: BlockModel, images: Tensor) -> None:
    labels = predict(model.eval(), images).argmax(1)
    margins = torch.stack(
        [
            margin(
                predict(model, run(model, images, labels, 2 / 255, "linf", q).adversarial), labels
            )
            for q in (0, 5, 20, 60)
        ]
    )
    assert (margins.diff(dim=0) >= -1e-5).all()
    assert (margins[-1] > margins[0]).all()


def test_squares_shrink_on_the_schedule_of_the_paper() -> None:
    shares = [_share(query) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8, 0.8, *(0.8 / 2**halved for halved in range(1, 10))]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 11])
def test_the_bump_of_the_l2_attack_is_that_of_autoattack(size: int) -> None:
    from pyautoattack.square import SquareAttack

    theirs = SquareAttack(None, norm="L2", eps=1, device="cpu")
    with torch.random.fork_rng():
        expected = theirs.eta(size)  # transposed or not
    bump = _bump(size)
    assert torch.allclose(bump, expected, atol=1e-6) or torch.allclose(bump.T, expected, atol=1e-6)


def test_it_leaves_the_model_as_it_found_it(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    model.train()
    model.blocks[0].eval()
    with untouched(model):
        run(model, images, labels, 8 / 255, "linf", 3)
        run(model, images, labels, 0.5, "l2", 3)


class NotANumber(nn.Module):
    """No number at all for bright images, and right for the others."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1)
        return torch.stack([torch.where(level > 0.5, torch.nan, 1.0), level], dim=1)


def test_a_logit_that_is_not_a_number_counts_as_wrong() -> None:
    images = torch.tensor([0.3, 0.7])[:, None, None, None].expand(2, 3, 4, 4).contiguous()
    outcome = run(NotANumber(), images, torch.zeros(2, dtype=torch.int64), 0.1, "linf", 5)
    assert outcome.fell_at.tolist() == [-1, 0]


def test_verdicts_are_float32_where_queries_are_not() -> None:
    model = trained_on_all_shapes()
    images = measured_split().images[::5].float() / 255
    labels = predict(model, images).argmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = run(model, images, labels, 4 / 255, "linf", 50)
        wrong = ~correct(predict(model, outcome.adversarial), labels)
    assert torch.equal(outcome.fallen, wrong)
    assert outcome.fallen.any()
    assert not outcome.fallen.all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "eps", "seeds"), [("linf", 3 / 255, 3), ("l2", 0.4, 1)])
def test_agrees_with_autoattack_on_a_small_network(norm: Norm, eps: float, seeds: int) -> None:
    model, images = trained_on_all_shapes(), measured_split().images[::3].float() / 255
    labels = predict(model, images).argmax(1)
    theirs, ours = broken(model, images, labels, norm, eps, 80, seeds)
    assert 8 < ours < 45
    assert abs(theirs - ours) <= 2


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_autoattack_on_a_trained_model(source: Run) -> None:
    model, split = read_model(source).eval(), measured_split()
    images, labels = split.images[::3].float() / 255, split.labels[::3]
    clean = int(correct(predict(model, images), labels).sum())
    theirs, ours = broken(model, images, labels, "linf", 12 / 255, 60, 1)
    assert 50 - clean + 5 < ours < 45
    assert abs(theirs - ours) <= 2


def broken(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
    eps: float,
    queries: int,
    seeds: int,
) -> tuple[float, float]:
    """How many images are wrong under AutoAttack's search and under ours, in the mean."""
    from pyautoattack.square import SquareAttack

    theirs = ours = 0
    for seed in range(seeds):
        search = SquareAttack(
            model, norm.capitalize(), queries, eps, seed=seed, resc_schedule=False, device="cpu"
        )
        adversarial = search.perturb(images, labels)
        theirs += int((~correct(predict(model, adversarial), labels)).sum())
        ours += int(run(model, images, labels, eps, norm, queries, seed).fallen.sum())
    return theirs / seeds, ours / seeds
