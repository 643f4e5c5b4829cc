"""Other people's checkpoints: every published layout goes through, every other file is refused."""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.imports.checkpoint_files import LEGACY, read_checkpoint
from cartl_cli.core.imports.unwrapping import PREFIXES, Normalization, shared_prefix, tidy, unwrap

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (4, 3, 3, 3),
    "bn1.weight": (4,),
    "bn1.running_var": (4,),
    "layer1.0.conv1.weight": (4, 4, 3, 3),
    "layer1.10.conv1.weight": (4, 4, 1, 1),
    "fc.weight": (10, 4),
    "fc.bias": (10,),
}
Weights = dict[str, Tensor]
Save = Callable[..., Path]


def weights() -> Weights:
    """A network's weights and a counter under its published names, the same each time."""
    draws = torch.Generator().manual_seed(0)
    floats = {name: torch.rand(shape, generator=draws) for name, shape in SHAPES.items()}
    return floats | {"bn1.num_batches_tracked": torch.tensor(7)}


def under(prefix: str, tensors: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def statistics(mean: str, std: str, shape: tuple[int, ...] = (1, 3, 1, 1)) -> Weights:
    """ImageNet's normalization under two names."""
    return {
        mean: torch.tensor(IMAGENET.mean).view(shape),
        std: torch.tensor(IMAGENET.std).view(shape),
    }


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"momentum_buffer": torch.rand(4, 3, 3, 3)}}, "param_groups": [{"lr": 1}]}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a checkpoint in one of PyTorch's two formats."""

    def write(content: object, legacy: bool = False) -> Path:
        path = tmp_path / "model.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def same(found: Weights, expected: Weights) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


# Published layouts


@dataclass(frozen=True)
class Layout:
    """What a project saves, and what is to come of it beside the weights."""

    content: object
    normalization: Normalization | None = None
    remarks: tuple[str, ...] = ()


def madry() -> Layout:
    """MadryLab/robustness, train.py: DataParallel of a model that holds the network twice."""
    attacker = under("model.", weights()) | statistics(
        "normalize.new_mean", "normalize.new_std", (3, 1, 1)
    )
    whole = (
        statistics("normalizer.new_mean", "normalizer.new_std", (3, 1, 1))
        | under("model.", weights())
        | under("attacker.", attacker)
    )
    return Layout(
        {
            "model": OrderedDict(under("module.", whole)),
            "optimizer": optimizer(),
            "schedule": {"last_epoch": 90},
            "epoch": 90,
            "amp": "N/A",
        },
        IMAGENET,
    )


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "madry": madry,
    "plain": lambda: Layout(weights()),
    "data-parallel": lambda: Layout(under("module.", weights())),
    "compiled": lambda: Layout({"model": under("_orig_mod.", weights()), "epoch": 3}),
    "compiled data-parallel": lambda: Layout(under("_orig_mod.module.", weights())),
    "trades": lambda: Layout({"state_dict": [under("module.", weights())], "acc": torch.tensor(9)}),
    "robustbench sequential": lambda: Layout(
        {"state_dict": under("module.", statistics("0.mean", "0.std") | under("1.", weights()))},
        IMAGENET,
    ),
    "robustbench normalize_model": lambda: Layout(
        statistics("normalize.mean", "normalize.std") | under("model.", weights()), IMAGENET
    ),
    "robustbench mu, sigma": lambda: Layout(
        under("module.", weights() | statistics("mu", "sigma")), IMAGENET
    ),
    "deepmind": lambda: Layout(statistics("mean", "std", (3, 1, 1)) | weights(), IMAGENET),
    "singh": lambda: Layout(
        under(
            "base_model.",
            statistics("normalize.mean", "normalize.std") | under("model.", weights()),
        ),
        IMAGENET,
    ),
    "timm": lambda: Layout(
        {"epoch": 9, "arch": "resnet50", "state_dict": weights(), "optimizer": optimizer()}
    ),
    "deit": lambda: Layout(
        {"model": under("module.", nothing()), "model_ema": weights(), "lr_scheduler": {"t": 1}},
        remarks=("took 'model_ema' of model_ema, model; cartl import --member takes another",),
    ),
    "last and best": lambda: Layout(
        {"best": nothing(), "last": weights()},
        remarks=("took 'last' of last, best; cartl import --member takes another",),
    ),
    "averaged": lambda: Layout({"ema": {"module": under("module.", weights()), "decay": 0.999}}),
    "swa_utils": lambda: Layout(
        {"model_ema": {"n_averaged": torch.tensor(5)} | under("module.", weights())}
    ),
    "adversarial wrapper": lambda: Layout({"net": under("module.basic_net.", weights())}),
    "some other word": lambda: Layout({"generator": weights(), "epoch": 1}),
}


def nothing() -> Weights:
    """Weights that are not to be taken."""
    return {name: torch.zeros_like(tensor) for name, tensor in weights().items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_gives_the_weights(name: str, legacy: bool, save: Save) -> None:
    layout = LAYOUTS[name]()
    path = save(layout.content, legacy)
    found = read_checkpoint(path)
    assert same(found.tensors, weights())
    assert found.remarks == layout.remarks
    assert (found.normalization is None) == (layout.normalization is None)
    if found.normalization and layout.normalization:
        assert found.normalization.mean == pytest.approx(layout.normalization.mean)
        assert found.normalization.std == pytest.approx(layout.normalization.std)
    assert found.size == path.stat().st_size
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_come_in_the_order_of_counting(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(under("module.", weights()), path, {"format": "pt", "epoch": "3"})
    found = read_checkpoint(path).tensors
    assert same({name: found[name] for name in weights()}, weights())
    assert list(found).index("layer1.10.conv1.weight") == len(found) - 1
    save_file({f"{place}.weight": torch.rand(2, 2) for place in range(12)}, path)
    assert list(read_checkpoint(path).tensors) == [f"{place}.weight" for place in range(12)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_become_float32_and_contiguous(dtype: torch.dtype, save: Save) -> None:
    narrow = {name: t.to(dtype) if t.dim() else t for name, t in weights().items()}
    narrow["conv1.weight"] = narrow["conv1.weight"].to(memory_format=torch.channels_last)
    found = read_checkpoint(save(narrow)).tensors
    for name, tensor in narrow.items():
        assert torch.equal(found[name].double(), tensor.double())
        assert found[name].is_contiguous()
        assert found[name].dtype == (torch.float32 if tensor.dim() else torch.int64)


def test_tensors_outlive_their_file(save: Save) -> None:
    path = save({"weights": weights()})
    found = read_checkpoint(path).tensors
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same(found, weights())


def test_parameters_are_tensors(save: Save) -> None:
    module = nn.Linear(3, 2)
    found = read_checkpoint(save(dict(module.named_parameters()))).tensors
    assert type(found["weight"]) is Tensor
    assert not found["weight"].requires_grad


def test_a_header_of_any_length_is_that_of_safetensors(tmp_path: Path) -> None:
    """Its length comes first; as text 15392 is `` <``, with which a web page may begin."""
    path = tmp_path / "model.safetensors"
    for length in (0x3C20, 0x5020, 0x1F8B8):
        entry = {"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
        header = json.dumps(entry).encode().ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(8))
        assert read_checkpoint(path).tensors["a.weight"].tolist() == [0, 0]


# Which of several


def test_a_member_is_taken_by_name(save: Save) -> None:
    path = save([{"ema": {"shadow": nothing()}, "model": weights()}])
    assert same(read_checkpoint(path, "model").tensors, weights())
    assert same(read_checkpoint(path).tensors, nothing())
    assert read_checkpoint(path).remarks == (
        "took 'ema' of ema, model; cartl import --member takes another",
    )


@pytest.mark.parametrize(
    ("content", "member", "line"),
    [
        (
            lambda: {"student": weights(), "teacher": weights(), "optimizer": optimizer()},
            None,
            "holds several sets of weights (student, teacher); save the one you want",
        ),
        (
            lambda: [weights(), weights()],
            None,
            "holds several sets of weights (0, 1); save the one you want",
        ),
        (lambda: {"model": weights()}, "ema", "has no part 'ema'"),
        (lambda: {"optimizer": optimizer(), "epoch": 3}, None, "holds no weights of a network"),
        (lambda: [1, 2], None, "holds no weights of a network"),
        (lambda: {}, None, "holds no weights of a network"),
        (lambda: torch.rand(3), None, "holds no weights of a network"),
        (lambda: {"step": torch.tensor(3)}, None, "holds no weights of a network"),
        (lambda: {"counts": torch.arange(3)}, None, "holds no weights of a network"),
    ],
)
def test_what_is_no_one_network_is_refused(
    content: Callable[[], object], member: str | None, line: str, save: Save
) -> None:
    path = save(content())
    with pytest.raises(DataError) as refused:
        read_checkpoint(path, member)
    assert str(refused.value) == f"{str(path)!r} {line}"


def test_what_holds_itself_is_read_to_its_end(save: Save) -> None:
    circle: list[object] = [weights()]
    circle.append(circle)
    with pytest.raises(DataError, match="several sets of weights"):
        read_checkpoint(save(circle))
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(DataError, match="no weights"):
        read_checkpoint(save(endless))


# Normalization


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize(
    "names",
    [
        ("normalizer.new_mean", "normalizer.new_std"),
        ("normalize.mean", "normalize.std"),
        ("0.mean", "0.std"),
        ("mean", "std"),
        ("mu", "sigma"),
    ],
)
@pytest.mark.parametrize("scale", [1, 255])
def test_the_normalization_is_taken_on_the_scale_of_one(
    names: tuple[str, str], shape: tuple[int, ...], scale: int, save: Save
) -> None:
    scaled = {name: scale * tensor for name, tensor in statistics(*names, shape).items()}
    found = read_checkpoint(save(weights() | scaled))
    assert same(found.tensors, weights())
    assert found.normalization is not None
    assert found.normalization.mean == pytest.approx(IMAGENET.mean)
    assert found.normalization.std == pytest.approx(IMAGENET.std)
    said = "its normalization was for pixels in 0..255, and is divided by 255"
    assert found.remarks == ((said,) if scale == 255 else ())


@pytest.mark.parametrize("std", [0.0, -0.2, float("nan")])
def test_a_normalization_that_divides_by_nothing_is_refused(std: float, save: Save) -> None:
    path = save(weights() | {"mean": torch.zeros(3), "std": torch.full((3,), std)})
    with pytest.raises(DataError, match="has a normalization that is none: mean"):
        read_checkpoint(path)


def test_half_a_normalization_stays_among_the_weights(save: Save) -> None:
    odd = {
        "mean": torch.zeros(3),
        "norm.std": torch.ones(3),
        "mu": torch.ones(64),
        "sigma": torch.ones(64),
    }
    found = read_checkpoint(save(weights() | odd))
    assert found.normalization is None
    assert found.tensors.keys() == weights().keys() | odd.keys()


# Prefixes

NAMES = st.sets(
    st.sampled_from(
        [*SHAPES, "0.weight", "1.0.weight", "model.weight", "module.0.bias", "a.model.b"]
    ),
    min_size=1,
)
CHAINS = st.lists(st.sampled_from(PREFIXES), max_size=5)
WRAPS: dict[str, Callable[[object], object]] = {
    "model": lambda content: {"model": content, "epoch": 1},
    "state_dict": lambda content: {"state_dict": content, "optimizer": optimizer()},
    "ema": lambda content: {"ema": content, "model": nothing()},
    "list": lambda content: [content],
    "tuple": lambda content: ("resnet", content, 3),
    "word": lambda content: {"robust": content, "args": {"lr": 0.1}},
}


@given(NAMES, CHAINS)
def test_stripping_twice_is_stripping_once(names: set[str], chain: list[str]) -> None:
    prefixed = under("".join(chain), {name: torch.zeros(1) for name in names})
    once, _, _ = tidy(prefixed)
    twice, _, _ = tidy(once)
    assert once.keys() == twice.keys()
    assert len(once) == len(names)
    assert shared_prefix(once) == ""
    plain, _, _ = tidy({name: torch.zeros(1) for name in names})
    assert once.keys() == plain.keys()


@given(st.lists(st.sampled_from(sorted(WRAPS)), max_size=6), CHAINS, st.booleans())
def test_any_chain_of_wrappers_gives_the_same_tensors(
    wraps: list[str], chain: list[str], normalized: bool
) -> None:
    inner = under("".join(chain), weights())
    if normalized:
        inner = statistics("normalize.mean", "normalize.std") | under("model.", inner)
    content: object = inner
    for wrap in wraps:
        content = WRAPS[wrap](content)
    state, _ = unwrap(content, None)
    tensors, normalization, _ = tidy(state)
    assert same(tensors, weights())
    assert (normalization is not None) == normalized


def test_a_prefix_is_stripped_only_at_the_start_and_only_of_all() -> None:
    """A key like layer1.0.conv1 loses nothing, nor does a network of which a part is a model."""
    for names in (
        {"layer1.0.conv1.weight", "layer1.1.conv1.weight"},
        {"model.conv.weight", "fc.weight"},
        {"0.weight", "1.weight", "2.weight"},
        {"backbone.conv.weight", "head.weight"},
    ):
        assert tidy(dict.fromkeys(names, torch.zeros(1)))[0].keys() == names


# Refusals


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


CURE = "have its owner save the weights alone: torch.save(model.state_dict(), …) or safetensors"
CUT = "is cut off or damaged; download it again"


def pickled(content: object, protocol: int = 2) -> bytes:
    return pickle.dumps(content, protocol)


def zipped(*names: str, kind: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name in names:
                archive.writestr(name, pickled({}))

    return write


def cut(legacy: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(weights(), path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def cut_safetensors(path: Path) -> None:
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-10])


def holding(**odd: Tensor) -> Callable[[Path], None]:
    return lambda path: torch.save(
        weights() | {k.replace("_", "."): t for k, t in odd.items()}, path
    )


def numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        numpy.savez(file, a=numpy.zeros(3))


def numpy_array(path: Path) -> None:
    with path.open("wb") as file:
        numpy.save(file, numpy.zeros(3))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder; name the file of weights in it"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "empty": (Path.touch, "is empty; download it again"),
    "html": (
        lambda path: path.write_text("\n<!DOCTYPE html><html>Google Drive can't scan this file"),
        "is a web page; download it again",
    ),
    "html in capitals": (
        lambda path: path.write_text("<HTML><BODY>404"),
        "is a web page; download it again",
    ),
    "git-lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "is a git-lfs pointer, not the file; fetch it with git lfs pull",
    ),
    "text": (
        lambda path: path.write_text("conv1.weight 0.5"),
        "is neither safetensors nor a checkpoint of PyTorch",
    ),
    "one byte": (
        lambda path: path.write_bytes(b"P"),
        "is neither safetensors nor a checkpoint of PyTorch",
    ),
    "zeros": (
        lambda path: path.write_bytes(bytes(5000)),
        "begins with nothing but zeros; download it again",
    ),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08"), "is a gzip archive; unpack it first"),
    "tar": (
        lambda path: path.write_bytes(b"model.pt".ljust(257, b"\0") + b"ustar"),
        "is a tar archive; unpack it first",
    ),
    "hdf5": (
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
        "is an HDF5 file (Keras), not a checkpoint of PyTorch",
    ),
    "npy": (numpy_array, "is a numpy array, not a checkpoint of PyTorch"),
    "npz": (numpy_archive, "is a numpy archive, not a checkpoint of PyTorch"),
    "zip": (zipped("images/1.png"), "is a zip archive, but not a checkpoint of PyTorch"),
    "compressed": (
        zipped("model/data.pkl", "model/version", kind=zipfile.ZIP_DEFLATED),
        "is a compressed zip archive, which PyTorch does not write",
    ),
    "torchscript": (
        zipped("model/data.pkl", "model/constants.pkl", "model/code/model.py"),
        f"is a TorchScript archive, which holds code; {CURE}",
    ),
    "pickle": (
        lambda path: path.write_bytes(pickled({"a": 1}, 4)),
        f"is a pickle of Python objects, which is not loaded; {CURE}",
    ),
    "old pickle": (
        lambda path: path.write_bytes(pickled({"a": 1})),
        f"is a pickle of Python objects, which is not loaded; {CURE}",
    ),
    "module": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        "holds Python objects (torch.nn.modules.linear.Linear), which are not loaded; " + CURE,
    ),
    "object beside weights": (
        lambda path: torch.save({"model": weights(), "lr": numpy.float64(0.1)}, path),
        f"holds Python objects (numpy._core.multiarray.scalar), which are not loaded; {CURE}",
    ),
    "half a zip": (cut(legacy=False), CUT),
    "half a legacy file": (cut(legacy=True), CUT),
    "the start of a legacy file": (lambda path: path.write_bytes(LEGACY[:9]), CUT),
    "half a safetensors file": (cut_safetensors, CUT),
    "integers": (
        holding(conv2_weight=torch.ones(2, 2, dtype=torch.int8)),
        "holds 'conv2.weight' as int8; save the weights as float32 or float16",
    ),
    "complex": (
        holding(phase=torch.ones(2, dtype=torch.complex64)),
        "holds 'phase' as complex64; save the weights as float32 or float16",
    ),
    "float8": (
        holding(conv2_weight=torch.ones(2).to(torch.float8_e4m3fn)),
        "holds 'conv2.weight' as float8_e4m3fn; save the weights as float32 or float16",
    ),
    "sparse": (
        holding(conv2_weight=torch.eye(3).to_sparse()),
        "holds 'conv2.weight', which is not a dense tensor with values",
    ),
    "meta": (
        holding(conv2_weight=torch.empty(3, device="meta")),
        "holds 'conv2.weight', which is not a dense tensor with values",
    ),
    "nan": (
        holding(conv2_weight=torch.tensor([1.0, float("nan")])),
        "holds NaN or infinite values in 'conv2.weight'; the model is broken",
    ),
    "infinite": (
        holding(bn2_bias=torch.tensor([-float("inf")], dtype=torch.float16)),
        "holds NaN or infinite values in 'bn2.bias'; the model is broken",
    ),
    "too large for float32": (
        holding(bn2_bias=torch.tensor([1e300], dtype=torch.float64)),
        "holds NaN or infinite values in 'bn2.bias'; the model is broken",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, line = REFUSED[name]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(DataError) as refused:
        read_checkpoint(path)
    assert str(refused.value) == f"{str(path)!r} {line}"


def test_a_file_that_is_not_there_or_not_readable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(UsageError) as refused:
        read_checkpoint(path)
    assert str(refused.value) == f"no such file: {str(path)!r}"
    path.symlink_to(path)
    with pytest.raises(DataError) as unreadable:
        read_checkpoint(path)
    assert str(unreadable.value).startswith(f"cannot read {str(path)!r}: ")


def test_a_link_to_a_file_is_followed(save: Save, tmp_path: Path) -> None:
    """Caches of downloads are made of links."""
    link = tmp_path / "link.pt"
    link.symlink_to(save(weights()))
    assert same(read_checkpoint(link).tensors, weights())


def test_names_that_are_no_text_are_passed_over(save: Save) -> None:
    assert same(read_checkpoint(save({**weights(), 3: torch.rand(2)})).tensors, weights())


def test_more_than_one_network_can_need_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with path.open("wb") as file:
        file.truncate(17 * 2**30)  # a hole: it takes no room
    with pytest.raises(DataError, match=r"has 17 GiB, too much for one network$"):
        read_checkpoint(path)


def test_what_claims_more_than_its_file_holds_is_refused(save: Save) -> None:
    """One number, said to be a matrix of a hundred million."""
    path = save(weights() | {"big.weight": torch.zeros(1).expand(10_000, 10_000)})
    with pytest.raises(DataError, match=r"claims \d+ bytes of weights, but has only \d+$"):
        read_checkpoint(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_run(form: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "trapped"
    content = weights() | {"trap": Trap(marker)}
    if form == "pickle":
        path.write_bytes(pickled({"trap": Trap(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DataError, match="Python objects"):
        read_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickled(Trap(marker)))  # the trap works
    assert marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cutting=st.booleans())
def test_a_damaged_file_is_read_or_refused(
    form: str, place: float, value: int, cutting: bool, tmp_path: Path
) -> None:
    """Whatever byte is changed and wherever it is cut: an answer, or one line."""
    path = tmp_path / "model.pt"
    if form == "safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=form == "zip")
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    if cutting:
        del data[at:]
    else:
        data[at] = value
    path.write_bytes(data)
    line = refusal_of(path)
    assert line is not None or not cutting
    assert line is None or re.fullmatch(re.escape(repr(str(path))) + ".+", line)


def refusal_of(path: Path) -> str | None:
    """What is said against a file, if anything."""
    try:
        read_checkpoint(path)
    except DataError as error:
        return str(error)
    return None
