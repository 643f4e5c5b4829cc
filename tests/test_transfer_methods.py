"""Methods of transfer and what is added to them: each alone, and every pair of them."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.errors import UsageError
from cartl_cli.core.method.keeping import DISTANCES, Keeping, kept_blocks
from cartl_cli.core.method.latent import worst_features
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.registry.transfer_methods import ADDITIONS, TRANSFER_METHODS
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.radius import PART
from cartl_cli.core.training.source_model import pretrain
from cartl_cli.core.training.target_model import prepare, transfer
from tests import tiny
from tests.conftest import Command

# The worst features


def linear_model(blocks: int = 3) -> BlockModel:
    """Two classes; the last two blocks are linear maps of 6 features."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 6))]
    parts += [nn.Linear(6, 6) for _ in range(blocks - 2)]
    last = nn.Sequential()
    last.add_module("linear", nn.Linear(6, 2))
    return BlockModel(nn.Identity(), [*parts, last])


def ball(radius: float) -> Budget:
    return Budget(radius, radius, 1, "l2")


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_worst_features_of_a_linear_sub_model_are_those_of_the_closed_form(
    k: int, steps: int
) -> None:
    """z = A·h + c with two classes: δ* = r‖h‖ · (a_other − a_y) / ‖a_other − a_y‖."""
    model = linear_model().double()
    features = torch.randn(5, 6, dtype=torch.float64)
    labels, noise = torch.tensor([0, 1, 1, 0, 1]), torch.rand(5, 6, dtype=torch.float64)
    found = worst_features(model, k, steps)(features, labels, noise, ball(0.15))
    matrix = model.head.weight
    if k == 2:
        matrix = matrix @ model.get_parameter("blocks.1.weight")
    towards = (matrix[1 - labels] - matrix[labels]).detach()
    reach = 0.15 * features.norm(dim=1, keepdim=True)
    expected = features + reach * towards / towards.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_worst_features_are_worse_than_random_ones_on_the_sphere(k: int) -> None:
    torch.manual_seed(1)
    model = build_model("wrn-10-1", 4).train()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    cut = len(model.blocks) - k
    with torch.no_grad(), eval_mode(model):
        features = model.features(images, cut)
    worst = worst_features(model, k, 1)(features, labels, torch.rand_like(features), ball(0.1))
    moved = (worst - features).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, 0.1 * features.flatten(1).norm(dim=1))

    def loss(points: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            return F.cross_entropy(model.classify(points, cut), labels, reduction="none")

    for _ in range(5):
        other = torch.randn_like(features)
        scale = moved / other.flatten(1).norm(dim=1)
        other = features + other * scale.view(-1, *[1] * (features.dim() - 1))
        assert (loss(worst) > loss(other)).all()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.training


def test_features_without_a_gradient_stay_where_they_are() -> None:
    model = linear_model()
    nn.init.zeros_(model.head.weight)
    features = torch.randn(3, 6)
    labels, noise = torch.tensor([0, 1, 0]), torch.rand(3, 6)
    torch.testing.assert_close(
        worst_features(model, 1, 1)(features, labels, noise, ball(0.3)), features
    )


# The distance to the source


def test_distances_are_those_of_their_definition() -> None:
    ours, theirs = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    for image in range(4):
        a, b = ours[image].flatten(), theirs[image].flatten()
        cosine = 1 - (a @ b) / (a.norm() * b.norm())
        torch.testing.assert_close(DISTANCES["cosine"](ours, theirs)[image], cosine)
        torch.testing.assert_close(DISTANCES["l1"](ours, theirs)[image], (a - b).abs().sum())


def test_blocks_to_keep() -> None:
    wide, plain = build_model("wrn-10-1", 3), build_model("resnet-18", 3)
    assert kept_blocks(wide, 4, "last") == (5,)
    assert kept_blocks(wide, 4, "all") == (2, 3, 4)  # block 5 is the classifier alone
    assert kept_blocks(wide, 1, "all") == (5,)
    assert kept_blocks(wide, 4, "5,3") == (3, 5)
    last = len(plain.blocks)
    assert kept_blocks(plain, 3, "all") == (last - 2, last - 1, last)
    with pytest.raises(ValueError, match="tuned are blocks 2 to 5, got 1"):
        kept_blocks(wide, 4, "1")


def given(config: TransferConfig, k: int, **more: Any) -> tuple[BlockModel, BlockModel, Any]:
    """A source model in double precision, a target model, and how that is tuned."""
    torch.manual_seed(3)
    source = build_model("wrn-10-1", 3).double().eval()
    model = copy.deepcopy(source)
    tuned = prepare(model, source, config, k, 3, **more)
    return model.double(), source, tuned


def test_at_first_nothing_is_far_from_the_source() -> None:
    images, labels = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])
    model, source, _ = given(TransferConfig(), 4)
    model.eval()
    for distance in DISTANCES.values():
        keeping = Keeping(model, source, 4, (3, 4, 5), distance, 2.0, False, False)
        assert keeping(images, labels, 0).loss.item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        model.get_parameter("blocks.2.conv1.weight").mul_(1.5)
    one, two = (
        Keeping(model, source, 4, (3, 5), DISTANCES["l1"], weight, False, False)(
            images, labels, 0
        ).loss
        for weight in (1.0, 2.0)
    )
    assert two.item() == pytest.approx(2 * one.item())
    ours, theirs = (
        model.stages(model.features(images, 1), 1),
        source.stages(source.features(images, 1), 1),
    )
    by_hand = torch.stack([(ours[i] - theirs[i]).abs().sum() / len(images) for i in (1, 3)]).mean()
    assert one.item() == pytest.approx(by_hand.item(), rel=1e-5)  # distances are float32


# Gradients

LOSSES: dict[str, dict[str, Any]] = {
    "natural": {},
    "natural, kept": {"keep_lambda": 0.7, "keep_at": "all"},
    "lwf": {"lwf_lambda": 0.1, "head_first": 0},
    "latent": {"method": "latent"},
    "latent, kept": {"method": "latent", "keep_lambda": 0.7},
    "at": {"method": "at"},
    "trades": {"method": "trades", "trades_beta": 3},
    "latent, neft": {"method": "latent", "neft_beta": 0.8},
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """What an attack has found is constant: the gradient of a worst case is that at the worst."""
    found: dict[int, Tensor] = {}

    def remembered(make: Any) -> Any:
        def attack(images: Tensor, *rest: Any) -> Tensor:
            if 0 not in found:
                found[0] = make(images, *rest).detach()
            return found[0]

        return attack

    config = configure(TransferConfig, LOSSES[name], {"pgd_steps": 1} if name == "at" else {})
    model, _, tuned = given(config, 4, radius=0.1)
    objective = tuned.objective
    for part in walk(objective):
        if hasattr(part, "attack"):
            object.__setattr__(part, "attack", remembered(part.attack))
    model.eval()  # the statistics of a batch would do as well, but for their momentum
    images, labels = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])

    def loss() -> Tensor:
        result: StepLoss = objective(images, labels, 0)
        return result.loss

    loss().backward()
    checked = 0
    for parameter in (p for p in model.parameters() if p.requires_grad and p.ndim > 1):
        assert parameter.grad is not None
        direction = parameter.grad / parameter.grad.norm()
        slope = (parameter.grad * direction).sum().item()
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * 1e-3)
                values.append(loss().item())
                parameter.sub_(direction, alpha=sign * 1e-3)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.02)
        checked += 1
    assert checked >= 5


def walk(objective: Any) -> Iterator[Any]:
    """An objective and those that it is made of."""
    yield objective
    for name in ("on_features", "first", "second", "then"):
        if not isinstance(part := getattr(objective, name, None), bool) and part is not None:
            yield from walk(part)


# Every pair

CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "method": tuple({"method": name} for name in TRANSFER_METHODS),
    "neft": ({"neft_beta": 0.6},),
    "lwf": ({"lwf_lambda": 0.1},),
    "keep": ({"keep_lambda": 1.0}, {"keep_lambda": 0.1, "keep_at": "all", "keep_distance": "l1"}),
    "ema": ({"ema": 0.5},),
    "awp": ({"awp_gamma": 0.01},),
    "head": ({"head_first": 1},),
    "mixed": ({"interpolate": 0.5},),
}
REFUSED = {
    ("method", "awp"): "--awp-gamma: is of --method latent, fast, at or trades, not of natural",
    (
        "neft",
        "lwf",
    ): "--neft-beta: does not go with --lwf-lambda: NEFT changes the size of features",
    (
        "neft",
        "keep",
    ): "--keep-distance: NEFT changes the size of features, so that l1 means nothing",
    ("neft", "awp"): "--awp-gamma: is of --method latent",
    ("lwf", "keep"): "--keep-lambda: does not go with --lwf-lambda: LwF is one case of it",
    ("neft", "mixed"): "--interpolate: does not go with --neft-beta: mixed weights",
}
PAIRS = [
    one | two
    for first, second in itertools.combinations(CHOICES, 2)
    for one, two in itertools.product(CHOICES[first], CHOICES[second])
]


def allowed(settings: dict[str, Any]) -> bool:
    """Whether settings go together, as a second opinion on what the tool says."""
    attacked = settings.get("method", "natural") != "natural"
    return not (
        ("awp_gamma" in settings and not attacked)
        or ("neft_beta" in settings and {"lwf_lambda", "interpolate"} & settings.keys())
        or ("neft_beta" in settings and settings.get("keep_distance") == "l1")
        or {"lwf_lambda", "keep_lambda"} <= settings.keys()
    )


@pytest.mark.parametrize("pair", [p for p in PAIRS if not allowed(p)], ids=str)
def test_a_pair_that_makes_no_sense_is_refused_in_words(pair: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        configure(TransferConfig, pair)
    assert any(str(error.value).startswith(words) for words in REFUSED.values()), str(error.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny images, and ``runs`` with a finished source run of them."""
    root = tmp_path_factory.mktemp("pairs")
    tiny.make_images(root / "images")
    config = configure(
        PretrainConfig,
        {"dataset": str(root / "images"), "arch": "wrn-10-1", "k": 3, "image_size": 8},
        {"batch_size": 4, "epochs": 1, "pgd_steps": 1, "device": "cpu", "fdm_lambda": 0.01},
    )
    assert pretrain(config, session(root, "source"), lambda progress: None) is not None
    return root


def session(root: Path, name: str | None, resume: Run | None = None) -> Session:
    return Session(root / "runs", name, NOWHERE, lambda line: None, resume)


class StopError(Exception):
    pass


@pytest.mark.parametrize("pair", [p for p in PAIRS if allowed(p)], ids=str)
def test_every_pair_trains_and_goes_on_to_the_same_bytes(place: Path, pair: dict[str, Any]) -> None:
    """Three steps to an epoch; stopped after the fourth of six, where a phase is over."""
    config = configure(
        TransferConfig,
        {"dataset": str(place / "images"), "source": "source", "batch_size": 4, "epochs": 2},
        {"save_every": "1", "device": "cpu", "k": 4},
        pair,
    )
    source = read_run(place / "runs" / "source")
    whole = transfer(config, source, session(place, None), lambda progress: None)
    assert whole is not None

    def stop(progress: Progress) -> None:
        if progress.position.step == 5:
            raise StopError

    name = f"{whole.name}-stopped"
    with pytest.raises(StopError):
        transfer(config, source, session(place, name), stop)
    stopped = read_run(place / "runs" / name)
    assert stopped.manifest.weights is None
    went_on = transfer(config, source, session(place, None, stopped), lambda progress: None)
    assert went_on is not None
    assert tiny.left(went_on.folder) == tiny.left(whole.folder)
    assert whole.manifest.radius == went_on.manifest.radius
    trained = whole.results.train_accuracy
    assert trained is not None


# From the command line


def test_radius_is_a_twelfth_of_the_distance_that_the_source_knows(
    place: Path, cartl: Command
) -> None:
    runs = ["--runs-dir", place / "runs", "--source", "source", "--dataset", place / "images"]
    done = cartl(
        "transfer", *runs, "--method", "latent", "--epochs", 1, "--batch-size", 4, "--json"
    )
    assert done.code == 0, done.err
    source = read_run(place / "runs" / "source")
    moved = source.results.moved
    assert len(moved) == 6  # the stem and L = 5 blocks
    distance = moved[5 - 3]
    assert distance is not None
    assert f'"radius": {PART * distance}' in done.out
    assert f"1/12 of the {distance:.3g} by which adversarial images move" in done.err


def test_a_radius_without_a_measure_is_measured_on_the_sources_own_images(
    place: Path, tmp_path: Path
) -> None:
    source = read_run(place / "runs" / "source")
    bare = source.results.model_copy(update={"moved": ()})
    unmeasured = Run(source.folder, source.manifest.model_copy(update={"results": bare}))
    config = configure(
        TransferConfig,
        {"dataset": str(place / "images"), "method": "latent", "batch_size": 4, "epochs": 1},
    )
    found = transfer(config, unmeasured, session(place, None), lambda progress: None)
    known = transfer(config, source, session(place, None), lambda progress: None)
    assert found is not None
    assert known is not None
    assert found.manifest.radius == pytest.approx(known.manifest.radius)
    training = unmeasured.training.model_copy(update={"dataset": str(tmp_path / "gone")})
    lost = unmeasured.manifest.model_copy(update={"config": training})
    with pytest.raises(
        UsageError, match=r"auto needs the images of source 'source'.*give a number"
    ):
        transfer(config, Run(source.folder, lost), session(place, None), lambda progress: None)


def test_a_run_says_when_training_stopped_low_and_what_vanilla_reached(
    place: Path, cartl: Command
) -> None:
    cartl("pretrain", "--arch", "wrn-10-1", "--k", 3, "--epochs", 1, "--pgd-steps", 1)
    short = ["transfer", "--epochs", 1, "--classes", "ring,frame,grid"]
    vanilla = cartl(*short, "--name", "plain")
    assert "vanilla transfer" not in vanilla.err
    done = cartl(*short, "--neft-beta", 0.1)
    assert "warning: training stopped low: " in done.err
    assert "or a larger --neft-beta" in done.err
    assert "beside plain, vanilla transfer at the same k: " in done.err
    assert set(ADDITIONS) == {"neft_beta", "lwf_lambda", "keep_lambda"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--radius 0.1", "--radius: is of --method latent, not of natural; drop it"),
        ("--method at --latent-steps 2", "--latent-steps: is of --method latent, not of at"),
        ("--method latent --eps 4/255", "--eps: is of --method fast, at or trades, not of latent"),
        ("--method at --trades-beta 3", "--trades-beta: is of --method trades, not of at"),
        ("--keep-at all", "--keep-at: is of --keep-lambda; give that too, or drop it"),
        ("--keep-lambda 1 --keep-at first", "--keep-at: must be last, all, or numbers such as 5,6"),
        ("--method latent --radius 0", "--radius: must be > 0"),
        ("--method latent --radius big", "--radius: must be a number such as 0.03"),
        ("--method at --eps 0", "--eps: 0 means training on clean images; use --method natural"),
        ("--interpolate 1", "--interpolate: must be < 1"),
        ("--interpolate 0.5 --head-first 0", "--head-first: --interpolate begins at the"),
        ("--head-first 60", "--head-first: must be < epochs (60), got 60"),
        ("--k some", "--k: must be a whole number"),
    ],
)
def test_what_is_wrong_is_said(cartl: Command, line: str, said: str) -> None:
    done = cartl("transfer", *line.split())
    assert done.code == 2
    assert said in done.err


def test_a_block_to_keep_must_be_tuned(place: Path, cartl: Command) -> None:
    runs = ["--runs-dir", place / "runs", "--source", "source", "--dataset", place / "images"]
    done = cartl("transfer", *runs, "--keep-lambda", 1, "--keep-at", "1", "--batch-size", 4)
    assert done.code == 2
    assert "--keep-at: tuned are blocks 3 to 5, got 1" in done.err


def test_the_former_name_of_a_setting_is_understood_in_files() -> None:
    old = configure(TransferConfig, {"lwf_lambda": 0.1, "head_epochs": 3})
    assert old.head_first == old.head_phase == 3
