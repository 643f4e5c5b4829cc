"""A loaded model does what other libraries of attacks and networks expect of one."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cartl_cli import load_model
from tests.conftest import Command


@pytest.fixture
def loaded(runs_dir: Path) -> nn.Module:
    """The tiny NEFT target."""
    return load_model(runs_dir / "target")


def test_a_plain_call_gives_float32_logits_of_plain_layout(
    loaded: nn.Module, images: Tensor
) -> None:
    """foolbox, torchattacks, AutoAttack and RobustBench call the model on NCHW float batches."""
    assert not loaded.training
    for batch in (images, images[:1], images.to(memory_format=torch.channels_last), images[::2]):
        logits = loaded(batch)
        assert (logits.shape, logits.dtype) == ((len(batch), 3), torch.float32)
        assert logits.is_contiguous()
        torch.testing.assert_close(logits, loaded(batch.contiguous()), rtol=0, atol=1e-6)
    assert loaded.eval() is loaded
    assert loaded.to(torch.device("cpu")) is loaded


def test_gradients_reach_the_pixels(loaded: nn.Module, images: Tensor) -> None:
    points = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(loaded(points), torch.zeros(8).long())
    (gradient,) = torch.autograd.grad(loss, points)
    assert gradient.shape == images.shape
    assert gradient.is_contiguous()  # AutoAttack and ART flatten it with view
    assert gradient.view(8, -1).norm(dim=1).gt(0).all()
    loss = nn.functional.cross_entropy(loaded(points), torch.zeros(8).long())
    loss.backward()  # torchattacks
    assert points.grad is not None
    torch.testing.assert_close(points.grad, gradient)


def test_parameters_are_leaves_that_can_be_frozen(loaded: nn.Module, images: Tensor) -> None:
    """As ART and torchattacks do; and a model that is trained further keeps its answers until."""
    assert all(parameter.is_leaf for parameter in loaded.parameters())
    before = loaded(images)
    loaded.requires_grad_(False)
    points = images.clone().requires_grad_()
    assert loaded(points).requires_grad
    loaded.requires_grad_(True)
    loaded.zero_grad(set_to_none=True)
    loaded.train()
    loaded.eval()
    assert torch.equal(loaded(images), before)


def test_weights_go_out_and_in_by_their_names(loaded: nn.Module, runs_dir: Path) -> None:
    other = load_model(runs_dir / "target")
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    state = loaded.state_dict()
    assert not {"classes", "image_size", "preprocess", "pretrained_cfg"} & set(state)
    assert other.load_state_dict(state) is not None
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(other(images), loaded(images))


def test_it_is_copied_doubled_and_wrapped(loaded: nn.Module, images: Tensor) -> None:
    copied = copy.deepcopy(loaded)
    assert copied.classes == loaded.classes
    torch.testing.assert_close(copied.double()(images.double()), loaded(images).double())
    wrapped = nn.DataParallel(nn.Sequential(nn.Identity(), loaded))
    assert torch.equal(wrapped(images), loaded(images))
    again = pickle.loads(pickle.dumps(loaded))  # ART and multiprocessing
    assert torch.equal(again(images), loaded(images))


def test_whole_numbers_are_refused_in_words(loaded: nn.Module) -> None:
    with pytest.raises(TypeError, match="divide them by 255"):
        loaded(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 32, 32), (3, 32, 32), (1, 32, 32, 3)])
def test_images_of_another_shape_are_refused_in_words(
    loaded: nn.Module, shape: tuple[int, ...]
) -> None:
    """A network that ends in a mean over the image would answer at any size."""
    with pytest.raises(ValueError, match=r"must be \(B, 3, 32, 32\), got .*model\.preprocess"):
        loaded(torch.rand(shape))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_its_graph_is_made_without_a_warning(loaded: nn.Module, images: Tensor) -> None:
    traced = torch.jit.trace(loaded, images)
    torch.testing.assert_close(traced(images[:3]), loaded(images[:3]))
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), loaded(images))


def test_timm_is_told_that_nothing_is_to_be_normalized(loaded: nn.Module) -> None:
    """Without it, timm's ``resolve_data_config`` takes ImageNet's numbers for any model."""
    assert loaded.num_classes == 3
    assert loaded.pretrained_cfg == {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_timm_makes_nearly_the_pixels_that_the_run_makes(
    cartl: Command, tmp_path: Path, resize: str
) -> None:
    """Its crop is rounded to whole pixels, so that it differs by shades; squashed, it is ours."""
    data = pytest.importorskip("timm.data")
    from cartl_cli.core.registry.architectures import build_model

    torch.save(build_model("wrn-10-1", 3).state_dict(), tmp_path / "weights.pt")
    done = cartl(
        *("import", "weights.pt", "--arch", "wrn-10-1", "--image-size", 28, "--resize", resize)
    )
    assert done.code == 0, done.err
    model = load_model("runs/001-import")
    draws = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (6, 9, 3), generator=draws, dtype=torch.uint8)
    image = Image.fromarray(coarse.numpy()).resize((90, 60), Image.Resampling.BICUBIC)
    transform = data.create_transform(**data.resolve_data_config({}, model=model))
    difference = (transform(image) - model.preprocess(image)).abs()
    if resize == "squash":
        assert difference.max() == 0
    else:
        assert difference.mean() < 0.02
