"""Small archives in the formats of the public data sets, and a server on this machine for them."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image
from scipy import io as matlab

from cartl_cli.core.data.downloads import Archive
from cartl_cli.core.data.public import PUBLIC, Published

Pixels = NDArray[numpy.uint8]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Made:
    """Images (N, H, W, 3) or (N, H, W) as a person sees them, and their labels."""

    train: Pixels
    train_labels: list[int]
    test: Pixels
    test_labels: list[int]


def made(size: int, classes: int, colours: bool = True, train: int = 20, test: int = 10) -> Made:
    """Noise of its own in every image, every label in turn."""
    draws = numpy.random.default_rng(0)
    shape = (size, size, 3) if colours else (size, size)

    def noise(count: int) -> Pixels:
        return draws.integers(0, 256, (count, *shape), dtype=numpy.uint8)

    return Made(
        noise(train),
        [index % classes for index in range(train)],
        noise(test),
        [(7 * index) % classes for index in range(test)],
    )


def tarred(members: Files, *more: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for info in more:
            archive.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def zipped(members: Files) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def cifar_records(images: Pixels, labels: list[int], coarse: bool = False) -> bytes:
    """A label (after a coarse one), then the red, green and blue plane of each image."""
    return b"".join(
        (bytes([99]) if coarse else b"")
        + bytes([label])
        + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, label in zip(images, labels, strict=True)
    )


def cifar10(data: Made) -> Files:
    folder = "cifar-10-batches-bin"
    members = {f"{folder}/batches.meta.txt": b"airplane\n"}
    for batch in range(5):
        part = slice(4 * batch, 4 * batch + 4)
        records = cifar_records(data.train[part], data.train_labels[part])
        members[f"{folder}/data_batch_{batch + 1}.bin"] = records
    members[f"{folder}/test_batch.bin"] = cifar_records(data.test, data.test_labels)
    return {"cifar-10-binary.tar.gz": tarred(members)}


def cifar100(data: Made) -> Files:
    train = cifar_records(data.train, data.train_labels, coarse=True)
    test = cifar_records(data.test, data.test_labels, coarse=True)
    members = {"cifar-100-binary/test.bin": test, "cifar-100-binary/train.bin": train}
    return {"cifar-100-binary.tar.gz": tarred(members)}


def mnist(data: Made) -> Files:
    files = {}
    for name, images, labels in (
        ("train", data.train, data.train_labels),
        ("t10k", data.test, data.test_labels),
    ):
        sizes = struct.pack(">4I", 0x803, *images.shape)
        files[f"{name}-images-idx3-ubyte.gz"] = gzip.compress(sizes + images.tobytes())
        sizes = struct.pack(">2I", 0x801, len(labels))
        files[f"{name}-labels-idx1-ubyte.gz"] = gzip.compress(sizes + bytes(labels))
    return files


def svhn(data: Made) -> Files:
    files = {}
    for name, images, labels in (
        ("train", data.train, data.train_labels),
        ("test", data.test, data.test_labels),
    ):
        packed = io.BytesIO()
        tens: NDArray[Any] = numpy.array([[n or 10] for n in labels], dtype=numpy.uint8)
        if name == "train":  # in MATLAB numbers are doubles
            tens = tens.astype(numpy.float64)
        content = {"X": numpy.transpose(images, (1, 2, 3, 0)), "y": tens}
        matlab.savemat(packed, content, do_compression=name == "train")
        files[f"{name}_32x32.mat"] = packed.getvalue()
    return files


def stl10(data: Made) -> Files:
    folder = "stl10_binary"
    members = {f"{folder}/unlabeled_X.bin": bytes(100)}
    for name, images, labels in (
        ("test", data.test, data.test_labels),
        ("train", data.train, data.train_labels),
    ):
        columns_first = numpy.transpose(images, (0, 3, 2, 1))
        members[f"{folder}/{name}_X.bin"] = columns_first.tobytes()
        members[f"{folder}/{name}_y.bin"] = bytes(label + 1 for label in labels)
    return {"stl10_binary.tar.gz": tarred(members)}


def ppm(image: Pixels) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "ppm")
    return packed.getvalue()


def gtsrb(data: Made, columns: str = "Filename;Width;ClassId") -> Files:
    train = {"GTSRB/Training/00000/GT-00000.csv": b"Filename;ClassId\n"}
    for index, (image, label) in enumerate(zip(data.train, data.train_labels, strict=True)):
        train[f"GTSRB/Training/{label:05d}/{index:05d}_00000.ppm"] = ppm(image)
    rows = [f"{i:05d}.ppm;9;{label}" for i, label in enumerate(data.test_labels)]
    test = {
        f"GTSRB/Final_Test/Images/{index:05d}.ppm": ppm(image)
        for index, image in enumerate(data.test)
    }
    table = "\r\n".join([columns, *rows, ""]).encode()
    return {
        "GTSRB-Training_fixed.zip": zipped(train),
        "GTSRB_Final_Test_Images.zip": zipped(test),
        "GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": table}),
    }


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def whole(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def cut_off(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])


def log_in_page(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(handler, b"\n<!DOCTYPE html><html>Welcome to our hotel</html>")


def changed(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(handler, data[:-1] + bytes([data[-1] ^ 1]))


def missing(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_error(404)


def out_of_order(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_error(503)


def silent(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    time.sleep(1)


@dataclass
class Server:
    """Files by name, how they are answered, and what was asked for."""

    files: Files = field(default_factory=dict)
    answer: Answer = whole
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def publish(self, name: str, files: Files) -> Published:
        """A public data set whose archives are these files, to be had here."""
        self.files.update(files)
        archives = tuple(
            Archive(n, len(d), hashlib.sha256(d).hexdigest(), (f"{self.url}{n}",))
            for n, d in files.items()
        )
        assert [a.name for a in archives] == [a.name for a in PUBLIC[name].archives]
        return replace(PUBLIC[name], archives=archives)


@contextmanager
def serving() -> Iterator[Server]:
    """A server in threads of this process."""
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.answer(self, served.files.get(self.path[1:], b""))

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
