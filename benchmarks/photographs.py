"""Photographs: what decoding and statistics take in time and memory, beside the bare decoder.

    python -m benchmarks.photographs --count 20000 --image-size 224

Makes so many JPEGs of 500×400 pixels (noise over gradients: they compress like photographs). Then
it runs three processes one after another: the bare decoder on all cores, the data set as ``cartl``
reads it, and the same from the cache with the statistics of ``pretrain``. Memory is the peak of the
process without the pages of the cache, which the system can take back at any time.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from PIL import Image
from rich.table import Table

from benchmarks.commands import progress
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.data.split import channel_statistics

DISTINCT = 200  # pictures; the others differ from them in one byte of a comment
STEPS = ("bare", "read", "again")


def made(folder: Path, count: int) -> Path:
    """A folder with so many photographs in two classes and two splits, made once."""
    if (folder / "done").exists():
        return folder
    draws = numpy.random.default_rng(0)
    ramp = numpy.linspace(0, 200, 500)[None, :, None] * numpy.ones((400, 1, 3))
    pictures = []
    for _ in range(min(DISTINCT, count)):
        small = draws.normal(0, 25, (50, 63, 3)).repeat(8, 0).repeat(8, 1)[:400, :500]
        pixels = (ramp * draws.uniform(0.3, 1, 3) + small).clip(0, 255).astype(numpy.uint8)
        held = io.BytesIO()
        Image.fromarray(pixels).save(held, "JPEG", quality=88)
        pictures.append(held.getvalue())
    for number in range(count):
        split, name = ("test" if number % 10 == 0 else "train"), f"class{number // 10 % 2}"
        place = folder / "data" / split / name
        place.mkdir(parents=True, exist_ok=True)
        start, rest = pictures[number % len(pictures)][:2], pictures[number % len(pictures)][2:]
        comment = b"\xff\xfe\x00\x06" + number.to_bytes(4, "big")
        (place / f"{number:06d}.jpg").write_bytes(start + comment + rest)
    (folder / "done").touch()
    return folder


def resident() -> int:
    """The most memory that this process held so far that is its own, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * (int(fields["RssAnon"].split()[0]))


class Peak:
    """The largest ``resident`` of a while, looked at by a thread."""

    def __enter__(self) -> "Peak":
        self.most, self.over = resident(), False
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(self._watch)
        return self

    def _watch(self) -> None:
        while not self.over:
            self.most = max(self.most, resident())
            time.sleep(0.02)

    def __exit__(self, *reason: object) -> None:
        self.over = True
        self.pool.shutdown()


def step(which: str, folder: Path, size: int) -> dict[str, float]:
    """Seconds and bytes of one step, in this process."""
    preprocessing = Preprocessing(image_size=size, resize="crop")
    files = sorted((folder / "data").rglob("*.jpg"))
    before, began = resident(), time.perf_counter()
    with Peak() as peak:
        if which == "bare":
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                for _ in pool.map(
                    lambda file: decode_image(file.read_bytes(), file.name, preprocessing)[1], files
                ):
                    pass
        else:
            data = load_data_set(
                DataChoice(str(folder / "data")), preprocessing, Place(folder / "cache")
            )
            if which == "again":
                channel_statistics(data.train)
    return {"seconds": time.perf_counter() - began, "bytes": peak.most - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--folder", type=Path, default=None, help="kept (default: a temporary one)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.folder, options.image_size)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = made(options.folder or Path(place), options.count)
        table = Table("step", "seconds", "beside the bare decoder", "memory above the start, MB")
        bare = None
        for which in STEPS:
            command = [*(sys.executable, "-m", "benchmarks.photographs", "--step", which)]
            command += ["--folder", str(folder), "--image-size", str(options.image_size)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            bare = bare or found["seconds"]
            ratio = found["seconds"] / bare
            row = (f"{found['seconds']:.1f}", f"{ratio:.2f}", f"{found['bytes'] / 1e6:.0f}")
            table.add_row(which, *row)
        progress.print(table)


if __name__ == "__main__":
    main()
