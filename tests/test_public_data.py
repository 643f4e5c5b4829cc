"""Public data sets: small archives in their formats, through the real download code."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import torchvision.datasets.utils
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, STL10, SVHN, FashionMNIST

from cartl_cli import load_model
from cartl_cli.core.config import AttackConfig, PretrainConfig
from cartl_cli.core.config.configure import at_own_eps, configure
from cartl_cli.core.config.fields import PUBLIC_DATA
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data import downloads, public_formats
from cartl_cli.core.data.data_sets import DataChoice, augmentation, load_data_set
from cartl_cli.core.data.downloads import Place, Store
from cartl_cli.core.data.public import PUBLIC, public_data_set
from cartl_cli.core.data.split import DataSet, channel_statistics
from cartl_cli.core.errors import CartlError, DataError, StorageError, UsageError
from cartl_cli.core.runs.reader import read_run
from tests import publishing
from tests.conftest import Command
from tests.publishing import Answer, Files, Made, Pixels, Server, made, serving, tarred

FORMATS: dict[str, tuple[Made, Callable[[Made], Files]]] = {
    "cifar10": (made(32, 10), publishing.cifar10),
    "cifar100": (made(32, 100), publishing.cifar100),
    "svhn": (made(32, 10), publishing.svhn),
    "gtsrb": (made(41, 43), publishing.gtsrb),
    "mnist": (made(28, 10, colours=False), publishing.mnist),
    "fashion-mnist": (made(28, 10, colours=False), publishing.mnist),
    "stl10": (made(96, 10), publishing.stl10),
}
ARCHIVE = "cifar-10-binary.tar.gz"
TINY = ("--epochs", 1, "--batch-size", 4, "--lr", 0.05, "--device", "cpu")
PRETRAIN = ("pretrain", "--dataset", "cifar10", "--arch", "wrn-10-1", "--k", 3, *TINY)
ATTACK = ("attack", "--attack", "pgd", "--pgd-steps", 1, "--checks", "off", "--device", "cpu")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


Publish = Callable[..., None]


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a small data set, or these files as one, in a public one's place."""

    def put(name: str, files: Files | None = None) -> None:
        data, archives = FORMATS[name]
        published = server.publish(name, archives(data) if files is None else files)
        monkeypatch.setitem(PUBLIC, name, published)

    return put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def load(name: str, store: Store, image_size: int = 32, cache: Path | None = None) -> DataSet:
    preprocessing = Preprocessing(image_size=image_size)
    return public_data_set(name, PUBLIC[name], preprocessing, Place(cache, store))


def chosen_of(name: str, classes: tuple[str, ...], place: Place) -> DataSet:
    return load_data_set(DataChoice(name, classes), Preprocessing(image_size=32), place)


def as_shown(images: Pixels, size: int = 32) -> torch.Tensor:
    """Images as PIL shows them: RGB at one size, (N, 3, S, S)."""
    shown = [Image.fromarray(image).convert("RGB") for image in images]
    small = [image.resize((size, size), Image.Resampling.BILINEAR) for image in shown]
    return torch.stack([torch.from_numpy(numpy.array(i)).permute(2, 0, 1) for i in small])


def left_in(store: Store, name: str = "cifar10") -> list[str]:
    """The files of a data set, its lock apart."""
    assert store.folder is not None
    folder = store.folder / name
    return sorted(f.name for f in folder.iterdir() if f.name != ".lock") if folder.exists() else []


# What is read


@pytest.mark.parametrize("name", FORMATS)
def test_images_and_labels_are_those_of_the_archives(
    name: str, store: Store, publish: Publish
) -> None:
    publish(name)
    source = FORMATS[name][0]
    data = load(name, store)
    assert (data.classes, data.measured) == (PUBLIC[name].classes, "test")
    order = list(range(len(source.train)))
    if name == "gtsrb":  # a folder a class
        order.sort(key=lambda index: source.train_labels[index])
    assert torch.equal(data.train.images, as_shown(source.train[order]))
    assert data.train.labels.tolist() == [source.train_labels[index] for index in order]
    assert torch.equal(data.evaluation.images, as_shown(source.test))
    assert data.evaluation.labels.tolist() == source.test_labels
    assert data.train.labels.dtype == data.evaluation.labels.dtype == torch.int64
    assert ("all images were grayscale, made RGB" in data.notes) == ("mnist" in name)
    resized = name in ("mnist", "fashion-mnist", "stl10")
    assert ("all images were resized to 32x32" in data.notes) == resized


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "mnist"])
def test_images_can_have_another_size(name: str, store: Store, publish: Publish) -> None:
    publish(name)
    data = load(name, store, image_size=28)
    assert torch.equal(data.evaluation.images, as_shown(FORMATS[name][0].test, 28))


def test_some_classes_in_the_order_of_the_data_set(store: Store, publish: Publish) -> None:
    publish("cifar10")
    data = chosen_of("cifar10", ("truck", "cat"), Place(None, store))
    labels = torch.tensor(FORMATS["cifar10"][0].test_labels)
    assert data.classes == ("cat", "truck")
    chosen = (labels == 3) | (labels == 9)
    assert data.evaluation.labels.tolist() == (labels[chosen] == 9).long().tolist()
    assert torch.equal(data.evaluation.images, as_shown(FORMATS["cifar10"][0].test)[chosen])
    publish("mnist")
    notes = chosen_of("mnist", ("3", "7"), Place(None, store)).notes
    assert notes == ("all images were grayscale, made RGB", "all images were resized to 32x32")


def test_a_class_that_is_not_there_is_said_before_a_download(
    server: Server, store: Store, publish: Publish
) -> None:
    publish("cifar10")
    with pytest.raises(UsageError, match="--classes: no class 'cow'; the data has 10: airplane, "):
        chosen_of("cifar10", ("cow", "cat"), Place(None, store))
    assert not server.asked


def test_decoded_once(server: Server, store: Store, publish: Publish, tmp_path: Path) -> None:
    publish("cifar10")
    first = load("cifar10", store, cache=tmp_path / "cache")
    asked = len(server.asked)
    again = load("cifar10", Store(None), cache=tmp_path / "cache")
    assert first.fingerprint() == again.fingerprint()
    assert first.notes == again.notes
    small = load("cifar10", store, image_size=16, cache=tmp_path / "cache")
    assert small.train.images.shape == (20, 3, 16, 16)
    assert len(server.asked) == asked  # the archive is kept, too


def test_what_is_published() -> None:
    assert tuple(PUBLIC) == PUBLIC_DATA
    counts = {name: len(published.classes) for name, published in PUBLIC.items()}
    assert counts == {
        **{"cifar10": 10, "cifar100": 100, "svhn": 10, "gtsrb": 43},
        **{"mnist": 10, "fashion-mnist": 10, "stl10": 10},
    }
    assert list(PUBLIC["cifar100"].classes) == sorted(PUBLIC["cifar100"].classes)
    for published in PUBLIC.values():
        assert len(set(published.classes)) == len(published.classes)
        assert not any("," in name for name in published.classes)  # --classes a,b
        for archive in published.archives:
            assert len(bytes.fromhex(archive.sha256)) == 32


def test_places_are_those_of_torchvision() -> None:
    def urls(name: str) -> list[str]:
        return [url for archive in PUBLIC[name].archives for url in archive.urls]

    assert urls("cifar10") == [CIFAR10.url.replace("python", "binary")]
    assert urls("cifar100") == [CIFAR100.url.replace("python", "binary")]
    assert urls("stl10") == [STL10.url]
    assert urls("svhn") == [SVHN.split_list[part][0] for part in ("train", "test")]
    for name, known in (("mnist", MNIST), ("fashion-mnist", FashionMNIST)):
        files = [file for file, _ in known.resources]
        assert urls(name) == [place + file for file in files for place in known.mirrors]
    assert PUBLIC["fashion-mnist"].classes == tuple(FashionMNIST.classes)


# What is refused


@pytest.mark.parametrize(
    ("answer", "says", "left"),
    [
        (publishing.missing, "HTTP 404 Not Found; try again, or put the file into", []),
        (publishing.out_of_order, "HTTP 503 Service Unavailable", []),
        (publishing.silent, "no answer for 0.2 s", []),
        (publishing.cut_off, "got 0.0[0-9]* of 0.0[0-9]* MB", []),
        (publishing.log_in_page, r"sent an HTML page \(is there a log-in", []),
        (publishing.changed, r"sha256 differs .* kept as cifar-10-b.*\.bad", [f"{ARCHIVE}.bad"]),
    ],
    ids=["D03-404", "D03-503", "D03-silence", "D04", "D06", "D05"],
)
def test_a_bad_answer_leaves_nothing_that_counts(
    server: Server,
    store: Store,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    says: str,
    left: list[str],
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    publish("cifar10")
    server.answer = answer
    with pytest.raises(DataError, match=f"cannot download {ARCHIVE}: http.*{says}") as refused:
        load("cifar10", store)
    assert "\n" not in str(refused.value)
    assert left_in(store) == left
    server.answer = publishing.whole
    assert len(load("cifar10", store).train) == 20


def test_d03_no_server(server: Server, cartl: Command, publish: Publish) -> None:
    """Nobody listens there; as without a network, in the words of the command."""
    server.url = "http://127.0.0.1:9/"
    publish("cifar10")
    done = cartl(*PRETRAIN)
    assert done.code == 1
    (line,) = (line for line in done.err.splitlines() if line.startswith("cartl: error: "))
    assert f"cannot download {ARCHIVE}: http://127.0.0.1:9/{ARCHIVE}: Connection refused" in line
    assert not list(Path("runs").glob("*-pretrain"))


def test_a_second_place_is_tried(
    server: Server, store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("mnist")
    elsewhere = tuple(
        replace(archive, urls=("http://127.0.0.1:9/x", *archive.urls))
        for archive in PUBLIC["mnist"].archives
    )
    monkeypatch.setitem(PUBLIC, "mnist", replace(PUBLIC["mnist"], archives=elsewhere))
    assert len(load("mnist", store).train) == 20


def test_d02_without_downloads_it_says_what_is_missing_and_how_to_get_it(
    server: Server, cartl: Command, publish: Publish, tmp_path: Path
) -> None:
    publish("cifar10")
    done = cartl(*PRETRAIN, "--no-download", "--data-dir", "my data")
    folder = "my data/cifar10"
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        f"cartl: error: cifar10: not in '{folder}': {ARCHIVE}; run without --no-download, or: "
        f"wget -P '{folder}' {server.url}{ARCHIVE}"
    )
    assert not server.asked
    Path(folder).mkdir(parents=True)
    Path(folder, ARCHIVE).write_bytes(server.files[ARCHIVE])
    done = cartl(*PRETRAIN, "--no-download", "--data-dir", "my data")
    assert done.code == 0, done.err
    assert not server.asked


def test_d05_a_file_that_is_not_the_published_one_is_not_opened(
    server: Server, store: Store, publish: Publish
) -> None:
    publish("cifar10")
    load("cifar10", store)
    assert store.folder is not None
    path = store.folder / "cifar10" / ARCHIVE
    path.write_bytes(tarred({"../escaped": b"x"}))
    asked = len(server.asked)
    with pytest.raises(DataError, match=r"is not the published file \(sha256 differs\); remove"):
        load("cifar10", store)
    assert (left_in(store), len(server.asked)) == ([ARCHIVE], asked)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("cifar10", {ARCHIVE: tarred({}, member("../x"))}, "unsafe member: '../x'"),
        ("cifar10", {ARCHIVE: tarred({}, member("/etc/x"))}, "unsafe member: '/etc/x'"),
        (
            "cifar10",
            {ARCHIVE: tarred({}, member("a/data_batch_1.bin", tarfile.SYMTYPE, "/etc/passwd"))},
            "unsafe member: 'a/data_batch_1.bin'",
        ),
        ("cifar10", {ARCHIVE: tarred({}, member("null", tarfile.CHRTYPE))}, "unsafe member"),
        ("cifar10", {ARCHIVE: tarred({"a": b"b"})}, "has no member 'cifar-10-batches-bin/data_b"),
        ("cifar10", {ARCHIVE: b"no archive"}, "cannot read its archive: "),
        (
            "gtsrb",
            publishing.gtsrb(made(41, 43))
            | {"GTSRB-Training_fixed.zip": publishing.zipped({"../x": b""})},
            "unsafe member: '../x'",
        ),
        (
            "gtsrb",
            publishing.gtsrb(made(41, 44, train=44)),
            r" train: label 43; classes are 0\.\.42",
        ),
        (
            "gtsrb",
            publishing.gtsrb(made(41, 43), columns="Filename;Width;Class"),
            "GT-final_test.csv: no column 'ClassId'",
        ),
        ("mnist", publishing.mnist(made(28, 12, colours=False)), "label 11; classes are 0..9"),
    ],
    ids=[
        *("D07-up", "D07-root", "D07-link", "D07-device", "member", "archive"),
        *("D07-zip", "D28-folder", "D29", "D28"),
    ],
)
def test_a_bad_archive_is_refused_whoever_published_it(
    store: Store, publish: Publish, name: str, files: Files, says: str
) -> None:
    publish(name, files)
    with pytest.raises(DataError, match=f"^{name}.*{says}"):
        load(name, store)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "svhn", "gtsrb"])
def test_d08_a_bomb_is_not_unpacked(
    name: str, store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(name)
    monkeypatch.setattr(public_formats, "MAX_MEMBER", 3000)
    if name == "gtsrb":
        bomb = {"GTSRB/Training/00000/1.ppm": bytes(20_000_000)}
        signs = publishing.gtsrb(FORMATS[name][0])
        publish(name, signs | {"GTSRB-Training_fixed.zip": publishing.zipped(bomb)})
    with pytest.raises(DataError, match=f"^{name}: archive would expand to "):
        load(name, store)


def test_c49_without_a_home_there_is_no_place_for_downloads(publish: Publish) -> None:
    publish("cifar10")
    with pytest.raises(DataError, match="cifar10: no home folder to keep downloads in; give --da"):
        load("cifar10", Store(None))


def test_c37_a_disk_too_small_for_the_archive(
    server: Server, store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("cifar10")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="make room or give another --data-dir"):
        load("cifar10", store)
    assert not server.asked


def test_c38_a_disk_that_fills_up_while_downloading(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("cifar10")

    def fill_up(url: str, folder: str, name: str) -> None:
        Path(folder, name).write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fill_up)
    with pytest.raises(StorageError, match=r"cannot write .*cifar10': No space left on device"):
        load("cifar10", store)
    assert left_in(store) == []


def test_c27_a_data_dir_that_cannot_be(publish: Publish, tmp_path: Path) -> None:
    publish("cifar10")
    (tmp_path / "file").touch()
    with pytest.raises(CartlError, match="cannot write "):
        load("cifar10", Store(tmp_path / "file" / "data"))


def test_an_interrupted_download_leaves_nothing(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C removes what has come so far; what a killed process left, the next removes."""
    publish("cifar10")

    def interrupt(url: str, folder: str, name: str) -> None:
        Path(folder, name).write_bytes(b"x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets.utils, "download_url", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load("cifar10", store)
    assert left_in(store) == []
    assert store.folder is not None
    (store.folder / "cifar10" / f"{ARCHIVE}.tmp-1-0123abcd").touch()
    load("cifar10", store)
    assert left_in(store) == [ARCHIVE]


WAITING = """
import sys
from pathlib import Path
from cartl_cli.core.data.downloads import Archive, Store, verified
name, size, sha256, url, folder = sys.argv[1:]
store = Store(Path(folder), say=lambda line: print(line, flush=True))
with verified("cifar10", [Archive(name, int(size), sha256, (url,))], store) as (file,):
    print(len(file.read()), flush=True)
"""


def test_d09_s34_one_process_downloads_while_another_waits(
    server: Server, publish: Publish, tmp_path: Path
) -> None:
    publish("cifar10")
    asked, go_on = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        asked.set()
        assert go_on.wait(60)
        publishing.whole(handler, data)

    server.answer = slow
    (archive,) = PUBLIC["cifar10"].archives
    arguments = [archive.name, str(archive.size), archive.sha256, *archive.urls, str(tmp_path)]
    root = str(Path(__file__).parent.parent)

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", WAITING, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        )

    first = start()
    try:
        assert asked.wait(60)
        second = start()
        assert second.stdout is not None
        assert second.stdout.readline() == "waiting for another cartl that downloads cifar10\n"
    finally:
        go_on.set()
    for process in (first, second):
        out, _ = process.communicate()
        assert process.returncode == 0
        assert out.splitlines()[-1] == str(archive.size)
    assert len(server.asked) == 2  # torchvision asks for redirects first


# What it is used for


def test_source_and_target_by_name(cartl: Command, publish: Publish) -> None:
    """The three commands; normalization is the source's, eps and augmentation the data sets'."""
    for name in ("cifar10", "mnist"):
        publish(name)
    Path("cifar10").mkdir()  # a name means the public data set, ./cifar10 the folder
    done = cartl(*PRETRAIN, "--name", "source")
    assert done.code == 0, done.err
    assert "downloading cifar-10-binary.tar.gz, 0." in done.err
    assert {Path(p).stat().st_mode & 0o777 for p in ("cache/cartl", "cache/cartl/data")} == {0o700}
    assert "\r" not in done.err  # no progress bar of another library
    assert socket.getdefaulttimeout() is None
    done = cartl("transfer", "--dataset", "mnist", *TINY, "--name", "target")
    assert done.code == 0, done.err
    assert "all images were resized to 32x32" in done.err
    done = cartl(*ATTACK, "--name", "attacked", "--no-download", "--data-dir", "nowhere")
    assert done.code == 0, done.err
    assert "eps 0.15" in done.out
    assert "unusual" not in done.err

    data = chosen_of("cifar10", (), Place(Path("cache/cartl")))
    mean, std = channel_statistics(data.train)
    for run in ("source", "target"):
        stored = load_model(Path("runs") / run).state_dict()
        assert stored["normalize.mean"].flatten().tolist() == pytest.approx(mean)
        assert stored["normalize.std"].flatten().tolist() == pytest.approx(std)
    manifests = {n: read_run(Path("runs") / n).manifest for n in ("source", "target", "attacked")}
    assert manifests["source"].data.augment == ("crop", "flip", "rotate")
    assert manifests["target"].data.augment == ()
    assert manifests["target"].data.measured == "test"
    assert manifests["target"].model.classes == tuple("0123456789")
    assert isinstance(manifests["source"].config, PretrainConfig)
    assert manifests["source"].config.eps == 8 / 255
    assert isinstance(manifests["attacked"].config, AttackConfig)
    assert manifests["attacked"].config.eps == (0.15,)


def test_the_same_attack_from_another_place_is_the_same(cartl: Command, publish: Publish) -> None:
    publish("cifar10")
    assert cartl(*PRETRAIN, "--name", "source").code == 0
    assert cartl(*ATTACK).code == 0
    done = cartl(*ATTACK, "--data-dir", "elsewhere")
    assert done.code == 2
    assert "the same attack is already there" in done.err


def test_a_name_is_looked_for_among_all(cartl: Command) -> None:
    done = cartl("pretrain", "--dataset", "cifra10")
    assert done.code == 2
    assert "unknown data set 'cifra10'; did you mean cifar10?" in done.err


def test_eps_and_augmentation_are_the_data_sets_own() -> None:
    assert PretrainConfig().eps == PretrainConfig(dataset="svhn").eps == 8 / 255
    assert PretrainConfig(dataset="mnist").eps == 0.15
    assert configure(PretrainConfig, {"dataset": "mnist", "eps": "8/255"}).eps == 8 / 255
    assert at_own_eps(AttackConfig(), "fashion-mnist").eps == (0.15,)
    assert at_own_eps(configure(AttackConfig, {"eps": "0.1"}), "mnist").eps == (0.1,)
    with pytest.raises(UsageError, match=r"--step-size: must be at most 2 x eps = 0\.3, got 0.4"):
        at_own_eps(configure(AttackConfig, {"step_size": 0.4}), "mnist")
    assert at_own_eps(configure(AttackConfig, {"step_size": 0.2}), "mnist").step(0.15) == 0.2
    assert augmentation("cifar100", None, 32) == ("crop", "flip", "rotate")
    assert augmentation("gtsrb", None, 32) == augmentation("svhn", None, 32) == ()
    assert augmentation("svhn", ("flip",), 32) == ("flip",)
    assert augmentation("my-folder", None, 32) == ("crop",)
