"""Small models, small images, and the real commands in small."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cartl_cli.app import main
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from tests.catalogue import coverage

# commands are sent signals, which ``nohup`` or a shell's background would have them ignore
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY_PRETRAIN = "--arch wrn-10-1 --k 3 --epochs 2 --pgd-steps 1 --classes disk,square,bar --lr 0.1"
TINY_TRANSFER = "--epochs 2 --classes ring,frame,grid"


@dataclass(frozen=True)
class Finished:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Finished]


@pytest.fixture
def cartl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run ``cartl`` as a shell would, in an empty folder with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["cartl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        code = exit_.value.code
        return Finished(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny source run ``source`` and one tiny NEFT target run ``target``."""
    folder = tmp_path_factory.mktemp("shared") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        for arguments in (
            f"pretrain --fdm-lambda 0.005 {TINY_PRETRAIN} --name source",
            f"transfer --source source --neft-beta 0.4 {TINY_TRANSFER} --name target",
        ):
            patch.setattr(sys, "argv", ["cartl", *arguments.split(), "--runs-dir", str(folder)])
            with pytest.raises(SystemExit) as exit_:
                main()
            assert exit_.value.code == 0
    return folder


@pytest.fixture
def source(runs_dir: Path) -> Run:
    """The tiny source run."""
    return read_run(runs_dir / "source")


@pytest.fixture
def model() -> BlockModel:
    """A small wide ResNet with drawn weights and batch-norm statistics, L = 5, 4 classes."""
    torch.manual_seed(0)
    model: BlockModel = build_model("wrn-10-1", 4)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def images() -> Tensor:
    """Eight random images (8, 3, 32, 32) in [0, 1]."""
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    """Their labels (8,), of four classes."""
    return torch.arange(8) % 4


@pytest.fixture
def data() -> DataSet:
    """Random images of three classes: ten of each to train on, four of each to measure."""
    draws = torch.Generator().manual_seed(2)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (3 * count, 3, 32, 32), generator=draws, dtype=torch.uint8)
        return Split(pixels, torch.arange(3).repeat_interleave(count))

    return DataSet("random", ("a", "b", "c"), split(10), split(4), "test")


ImageFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """A maker of folders of plain-coloured images: ``image_folder(classes, train=, test=)``."""

    def make(
        classes: tuple[str, ...] = ("cat", "dog"),
        train: int = 4,
        test: int = 2,
        mode: str = "RGB",
        size: tuple[int, int] = (32, 32),
        name: str = "images",
    ) -> Path:
        root = tmp_path / name
        for split, count in (("train", train), ("test", test)):
            for place, label in enumerate(classes):
                for index in range(count):
                    path = root / split / label / f"{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shade = (40 * place + 10 * index) % 256
                    colour = shade if mode in ("L", "1") else (shade,) * len(mode)
                    Image.new(mode, size, colour).save(path)
        return root

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of the catalogue of bad input the passed tests cover, if they were to cover it."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    if any("test_bad_input.py" in test for test in passed):
        terminalreporter.write_line(coverage(passed))


@pytest.fixture
def careless() -> Iterator[None]:
    """A caller who lets matrix products and convolutions round to less than float32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
