"""Damaged files for the readers of runs, and a watch over what the readers answer.

A reader must return or raise ``RunError``, in under ``MAX_SECONDS`` of computing and with under
``MAX_MEMORY`` of new memory, whatever bytes it is given.
"""

import random
import re
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.errors import RunError
from cartl_cli.core.runs import checkpoints, reader, weights, writer
from cartl_cli.core.runs.manifest import Checkpoint, Manifest, Position, Run, source_record
from cartl_cli.core.runs.results import Added, AttackResults, EpsResults
from cartl_cli.core.storage import FileRecord, describe

FIRST_RELEASE = Path(__file__).parent / "data" / "schema-1"
MAX_SECONDS = 2.0
MAX_MEMORY = 200.0  # MB

TINY = {
    "weight": torch.arange(4.0).view(2, 2),
    "norm.running_var": torch.ones(2),
    "norm.num_batches_tracked": torch.tensor(3),
    "standing": torch.tensor([True, False, True]),
}


# Watching


@dataclass(frozen=True)
class Answer:
    """What a reader did with one input; ``fault`` says what it should not have done."""

    accepted: bool
    seconds: float
    fault: str | None


def watch(read: Callable[[], object]) -> Answer:
    """Call a reader and measure it: computing time, so that a busy machine counts for nothing."""
    memory, began = peak_memory(), time.process_time()
    accepted, fault = False, None
    try:
        read()
        accepted = True
    except RunError:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        fault = f"{type(error).__name__}: {error}"
    seconds, grown = time.process_time() - began, peak_memory() - memory
    if seconds > MAX_SECONDS:
        fault = f"took {seconds:.1f} s"
    if grown > MAX_MEMORY:
        fault = f"took {grown:.0f} MB"
    return Answer(accepted, seconds, fault)


def peak_memory() -> float:
    """The most memory this process ever held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# What is damaged: files as they should be


@dataclass(frozen=True)
class Corpus:
    """Manifests, weights with the run they belong to, and the files of two checkpoints."""

    manifests: tuple[bytes, ...]
    models: tuple[tuple[Run, bytes], ...]
    checkpoints: Mapping[str, bytes]
    tiny: bytes


def corpus() -> Corpus:
    """The runs of the first release, as they are and as they are written today, and an attack."""
    released = [reader.read_run(FIRST_RELEASE / name) for name in ("source", "target")]
    old = [(run.folder / reader.MANIFEST).read_bytes() for run in released]
    new = [run.manifest.model_dump_json(indent=1).encode() for run in released]
    attack = attack_of(released[0]).model_dump_json(indent=1).encode()
    models = [(run.folder / writer.WEIGHTS).read_bytes() for run in released]
    saved = [checkpoint_files(step, released[0].manifest.id) for step in (10, 20)]
    return Corpus(
        manifests=(*old, *new, attack),
        models=tuple(zip(released, models, strict=True)),
        checkpoints=saved[0] | saved[1],
        tiny=weights.to_bytes(TINY),
    )


def attack_of(run: Run) -> Manifest:
    """The manifest of an attack on a run."""
    half = (0.4, 0.6)
    return run.manifest.model_copy(
        update={
            "kind": "attack",
            "config": AttackConfig(run=run.name),
            "source": source_record(run),
            "weights": None,
            "outcomes": run.manifest.weights,
            "results": AttackResults(
                n=150,
                clean_accuracy=0.5,
                clean_interval=half,
                by_eps=(
                    EpsResults(
                        eps=0.03,
                        step_size=0.01,
                        robust_accuracy=0.5,
                        interval=half,
                        final_iterate_accuracy=0.5,
                        added=(
                            Added(
                                attack="pgd", attacked=75, fell=0, alone=0.5, robust_accuracy=0.5
                            ),
                        ),
                    ),
                ),
                half_eps=None,
                seconds=1.5,
            ),
        }
    )


def checkpoint_files(step: int, run: str) -> dict[str, bytes]:
    """The files of a small checkpoint, by their place in the run folder."""
    data = weights.to_bytes(TINY)
    names = ("model.safetensors", "train.safetensors")
    record = Checkpoint(
        run=run,
        position=Position(
            step=step, seconds=1.5, seen=64, loss_sum=70.5, correct={"clean": 20, "adversarial": 10}
        ),
        files=tuple(describe(name, data) for name in names),
    )
    contents = dict.fromkeys(names, data)
    contents[checkpoints.RECORD] = record.model_dump_json(indent=1).encode()
    return {f"ckpt-{step:06d}/{name}": content for name, content in contents.items()}


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files under a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# Readers


def read_manifest(folder: Path, data: bytes) -> Run:
    """``read_run`` on a folder with this manifest."""
    put(folder, {reader.MANIFEST: data})
    return reader.read_run(folder)


def read_newest(folder: Path, run: Run) -> object:
    """``newest`` on the checkpoints that lie in ``folder``."""
    return checkpoints.newest(replace(run, folder=folder), lambda line: None)


def read_tiny(data: bytes) -> dict[str, Tensor]:
    """``from_bytes`` where ``TINY`` is expected."""
    return weights.from_bytes(data, TINY, Path("tiny.safetensors"))


def read_weights(folder: Path, run: Run, data: bytes, agree: bool) -> torch.nn.Module:
    """``read_model`` on changed weights, to which the manifest may ``agree``."""
    put(folder, {writer.WEIGHTS: data})
    record: FileRecord | None = describe(writer.WEIGHTS, data) if agree else run.manifest.weights
    return weights.read_model(Run(folder, run.manifest.model_copy(update={"weights": record})))


# Blind damage

Damage = Callable[[bytes, int, int, random.Random], bytes]
LENGTHS = (0, 1, 7, 2**16, 10**6, 10**6 + 1, 2**31, 2**63, 2**64 - 1)
TOKENS = (
    *(b"\0", b"\xff" * 8, b"NaN", b"-", b"1e999", b'"', b"[" * 200, b"{", b"null", b"9" * 50),
    *(
        b"9" * 5000,
        b"\\ud800",
        b"\xed\xa0\x80",
        "\u202e".encode(),
        b"../",
        b"true",
        b",",
        b"\\u0000",
    ),
)


def _flip(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 16))):
        if start < len(data):
            changed[draw.randrange(start, len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start]


def _remove(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + data[end:]


def _double(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:end] + data[start:]


def _move(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + data[start:end] + data[place:]


def _insert(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + draw.choice(TOKENS) + data[start:]


def _overwrite(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + draw.choice(TOKENS) + data[end:]


def _zero(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


def _noise(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + draw.randbytes(end - start) + data[end:]


def _header_length(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    near = max(0, min(length, 2**63) + draw.randint(-9, 9))
    return struct.pack("<Q", draw.choice((near, *LENGTHS))) + data[8:]


def _number(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    found = re.compile(rb"\d+").search(data, start)
    if found is None:
        return data
    number = str(draw.choice((0, 1, -1, 2, 255, *LENGTHS, draw.randrange(1000)))).encode()
    return data[: found.start()] + number + data[found.end() :]


DAMAGES: tuple[Damage, ...] = (
    *(_flip, _truncate, _remove, _double, _move, _insert, _overwrite),
    *(_zero, _noise, _header_length, _number),
)


def damaged(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The bytes after one or a few blind changes, more often near the beginning.

    Now and then they go on as the ``other`` bytes do.
    """
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        start = int(len(data) * draw.random() ** 3)
        end = min(len(data), start + draw.choice((1, 2, 8, 64, 1024)))
        data = draw.choice(DAMAGES)(data, start, end, draw)
    if draw.random() < 0.05:
        data = data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]
    return data


# The whole


@dataclass(frozen=True)
class Summary:
    """What became of the damaged files, by reader, and the worst that was seen."""

    cases: int
    accepted: Mapping[str, int]
    refused: Mapping[str, int]
    slowest_seconds: float
    memory_mb: float
    failures: tuple[str, ...]


READERS = {"manifest": 8, "checkpoint": 5, "tensors": 6, "model": 1}  # how often each is tried


def fuzz(count: int, seed: int, folder: Path) -> Summary:
    """Give ``count`` damaged files to the readers; ``folder`` (best in memory) is written over.

    Each case depends on ``seed`` and its number alone.
    """
    sound = corpus()
    for kind in READERS:  # what is loaded only once is not part of any case
        _case(kind, sound, folder, None)()
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures, slowest, memory = [], 0.0, peak_memory()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        kind = draw.choices(list(READERS), list(READERS.values()))[0]
        answer = watch(_case(kind, sound, folder, draw))
        slowest = max(slowest, answer.seconds)
        (accepted if answer.accepted else refused)[kind] += 1
        if answer.fault:
            failures.append(f"{kind}, seed {seed}, case {number}: {answer.fault}")
    grown = peak_memory() - memory
    return Summary(count, accepted, refused, slowest, grown, tuple(failures))


def _case(
    reader: str, sound: Corpus, folder: Path, draw: random.Random | None
) -> Callable[[], object]:
    """A reader with its damaged input (sound without ``draw``), to be called."""
    chance = draw or random.Random(0)

    def change(data: bytes, other: bytes) -> bytes:
        return damaged(data, other, draw) if draw else data

    if reader == "manifest":
        text = change(chance.choice(sound.manifests), chance.choice(sound.manifests))
        return lambda: read_manifest(folder / "manifest", text)
    if reader == "tensors":
        data = change(sound.tiny, sound.models[0][1])
        return lambda: read_tiny(data)
    run, weights = chance.choice(sound.models)
    if reader == "model":
        data = change(weights, sound.tiny)
        agree = chance.random() < 0.8
        return lambda: read_weights(folder / "model", run, data, agree)
    files = dict(sound.checkpoints)
    for name in chance.sample(sorted(files), chance.choice((1, 1, 2, 6))):
        files[name] = change(files[name], chance.choice(list(files.values())))
    put(folder / "checkpoint", files)
    return lambda: read_newest(folder / "checkpoint", sound.models[0][0])
