"""The file formats of the public data sets, read in memory: nothing is unpacked to disk or pickled.

A reader takes the open archives of a data set, in the order of its list, and gives the images of
each part as they are stored, uint8 (N, C, H, W), with their labels, int64 (N,).
"""

import csv
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.decoding import as_tensor, decode_image, resized
from cartl_cli.core.data.listings import Listing, list_zip
from cartl_cli.core.errors import DataError

MAX_MEMBER = 500_000_000  # bytes of one unpacked file; the largest that is read has 225 MB

Files = Sequence[BinaryIO]
Images = tuple[Tensor, Tensor]
"""Images and labels."""


def cifar10(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """The binary version of CIFAR-10: records of a label and 3072 pixels."""
    folder = "cifar-10-batches-bin"
    train = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar(files[0], train, f"{folder}/test_batch.bin", label_bytes=1)


def cifar100(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """The binary version of CIFAR-100: records of a coarse and a fine label and 3072 pixels."""
    folder = "cifar-100-binary"
    return _cifar(files[0], [f"{folder}/train.bin"], f"{folder}/test.bin", label_bytes=2)


def _cifar(file: BinaryIO, train: list[str], test: str, label_bytes: int) -> tuple[Images, Images]:
    members = tar_members(file, [*train, test])

    def part(names: list[str]) -> Images:
        records = tensor_of(b"".join(members[name] for name in names))
        records = records.view(-1, label_bytes + 3 * 32 * 32)
        return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].long()

    return part(train), part([test])


def stl10(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """STL-10: 96 × 96 pixels, columns first; labels from 1. The unlabelled images stay unread."""
    names = ["train_X", "train_y", "test_X", "test_y"]
    members = tar_members(files[0], [f"stl10_binary/{name}.bin" for name in names])

    def part(split: str) -> Images:
        pixels = tensor_of(members[f"stl10_binary/{split}_X.bin"]).view(-1, 3, 96, 96)
        labels = tensor_of(members[f"stl10_binary/{split}_y.bin"])
        return pixels.transpose(2, 3), labels.long() - 1

    return part("train"), part("test")


def mnist(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """MNIST and its kin: gzipped IDX files of images and labels, for train and for test."""
    train, train_labels, test, test_labels = (idx(file) for file in files)
    return (train.unsqueeze(1), train_labels.long()), (test.unsqueeze(1), test_labels.long())


def svhn(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """SVHN, cropped: MATLAB arrays ``X`` (H, W, C, N) and ``y`` (N, 1), where 10 stands for 0."""

    def part(file: BinaryIO) -> Images:
        arrays = mat(file)
        return arrays["X"].permute(3, 2, 0, 1), arrays["y"].flatten().long() % 10

    return part(files[0]), part(files[1])


def gtsrb(files: Files, preprocessing: Preprocessing) -> tuple[Images, Images]:
    """GTSRB: PPM images of many sizes; the classes of the test images are in a table."""
    train, test, table = (list_zip(zipfile.ZipFile(file)) for file in files)
    by_class = [
        (parts, int(parts[2]))
        for parts, _ in train.entries
        if parts[:2] == ("GTSRB", "Training") and parts[-1].endswith(".ppm")
    ]
    text = table.read(("GT-final_test.csv",)).decode()
    rows = csv.DictReader(io.StringIO(text), delimiter=";", skipinitialspace=True)
    for column in ("Filename", "ClassId"):
        if column not in (rows.fieldnames or ()):
            raise DataError(f"GT-final_test.csv: no column {column!r}")
    listed = [
        (("GTSRB", "Final_Test", "Images", row["Filename"]), int(row["ClassId"])) for row in rows
    ]
    return _decoded(train, by_class, preprocessing), _decoded(test, listed, preprocessing)


def _decoded(
    listing: Listing, images: Sequence[tuple[tuple[str, ...], int]], preprocessing: Preprocessing
) -> Images:
    decoded = [decode_image(listing.read(p), "/".join(p), preprocessing)[0] for p, _ in images]
    return torch.stack(decoded), torch.tensor([label for _, label in images])


def as_squares(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images (N, C, H, W) as (N, 3, S, S), gray repeated; resized as ``decode_image`` does."""
    side = preprocessing.image_size
    height, width = images.shape[2:]
    if (height, width) != (side, side) or preprocessing.part_taken(width, height)[0] > 0:
        squares = torch.empty(len(images), images.shape[1], side, side, dtype=torch.uint8)
        for place, image in enumerate(images):
            pixels = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
            squares[place] = as_tensor(resized(pixels, preprocessing))
        images = squares
    return images.expand(-1, 3, -1, -1).contiguous()


def tar_members(file: BinaryIO, names: Collection[str]) -> dict[str, bytes]:
    """The named files of a ``.tar.gz``. Raises DataError for an unsafe, huge or missing member."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for member in archive:
            safe = member.isreg() or member.isdir()
            if not safe or member.name.startswith("/") or ".." in member.name.split("/"):
                raise DataError(f"archive contains an unsafe member: {member.name!r}")
            name = member.name.removeprefix("./")
            if name not in names:
                continue
            if member.size > MAX_MEMBER:
                raise DataError(f"archive would expand to {member.size / 1e6:,.0f} MB")
            opened = archive.extractfile(member)
            found[name] = opened.read() if opened else b""
            if len(found) == len(names):
                return found
    raise DataError(f"archive has no member {min(set(names) - found.keys())!r}")


def idx(file: BinaryIO) -> Tensor:
    """A gzipped IDX file of bytes: two zeros, type 8, the number of dimensions, their sizes."""
    with gzip.GzipFile(fileobj=file) as unpacked:
        data = unpacked.read(MAX_MEMBER + 1)
    if len(data) > MAX_MEMBER:
        raise DataError(f"archive would expand to more than {MAX_MEMBER / 1e6:,.0f} MB")
    if data[:3] != b"\0\0\x08":
        raise DataError("not an IDX file of bytes")
    sizes = struct.unpack_from(f">{data[3]}I", data, 4)
    return tensor_of(data[4 + 4 * data[3] :]).view(sizes)


MATRIX, COMPRESSED = 14, 15
TYPES = {1: torch.int8, 2: torch.uint8, 3: torch.int16, 5: torch.int32, 9: torch.float64}


def mat(file: BinaryIO) -> dict[str, Tensor]:
    """The numeric arrays of a little-endian MATLAB 5 file, by name, indexed as in MATLAB."""
    data = file.read()
    if data[124:128] != b"\0\1IM":
        raise DataError("not a MATLAB 5 file")
    arrays, place = {}, 128
    while place < len(data):
        kind, content, place = _element(data, place)
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            unpacked = inflater.decompress(content, MAX_MEMBER)
            if inflater.unconsumed_tail:
                raise DataError(f"archive would expand to more than {MAX_MEMBER / 1e6:,.0f} MB")
            kind, content, _ = _element(unpacked, 0)
        if kind == MATRIX:  # flags, sizes, name, real part
            _, _, after = _element(content, 0)
            _, sizes, after = _element(content, after)
            _, name, after = _element(content, after)
            kind, values, _ = _element(content, after)
            reversed_sizes = struct.unpack(f"<{len(sizes) // 4}i", sizes)[::-1]
            stored = tensor_of(values).view(TYPES[kind]).view(reversed_sizes)
            arrays[name.decode()] = stored.permute(*reversed(range(stored.dim())))
    return arrays


def _element(data: bytes, place: int) -> tuple[int, bytes, int]:
    """Type and content of one element, and where the next begins; short ones share their tag."""
    kind, size = struct.unpack_from("<II", data, place)
    if kind >> 16:
        return kind & 0xFFFF, data[place + 4 : place + 4 + (kind >> 16)], place + 8
    end = place + 8 + size
    return kind, data[place + 8 : end], end if kind == COMPRESSED else end + -size % 8


def tensor_of(data: bytes) -> Tensor:
    """Bytes as uint8 (n,)."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
