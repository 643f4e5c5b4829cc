import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cartl_cli.core import storage
from cartl_cli.core.errors import RunError
from cartl_cli.core.runs import weights, writer
from cartl_cli.core.runs.manifest import Run
from tests.fuzzing import (
    MAX_MEMORY,
    MAX_SECONDS,
    corpus,
    fuzz,
    put,
    read_manifest,
    read_newest,
    read_tiny,
    read_weights,
    watch,
)

SOUND = corpus()
RUN = SOUND.models[0][0]

settings.register_profile(
    "fuzzing",
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
fuzzed = settings.get_profile("fuzzing")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder, in memory where there is one: many thousand files are written over."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


# JSON that its writer would never write

ODD = (
    *("null", "true", "-1", "0", "1.5", "[]", "{}", '""', "NaN", "-Infinity", "1e999", "-0.0"),
    *("9" * 18, "9" * 400, "9" * 4000, "9" * 5000, '"../../x"', '"/etc/passwd"', '"wrn-994-99"'),
    *('"\\ud800"', '"\\u0000"', '"\\u202e\\u001b[31m"', '{"\\ud800": "\\ud800"}', '["\\ud800"]'),
    *("[" * 15 + "]" * 15, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900),
    *('{"a": 1, "a": 2}', '{"": 0}', '["a", "a"]', "[1, 2]"),
)
BOMBS = (
    *("[" * 100_000, '"' + "x" * 100_000 + '"', "[" + "1," * 300_000 + "1]"),
    "{" + ",".join(f'"{number:x}":1' for number in range(90_000)) + "}",
)
values = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(BOMBS),
    st.integers().map(json.dumps),
    st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    st.text(max_size=20).map(json.dumps),
    st.lists(st.integers(0, 9), max_size=5).map(json.dumps),
)
KINDS = ("pretrain of the first release", "transfer", "attack")
Spot = tuple[Any, Any]


def spots(content: Any) -> list[Spot]:
    """Every (container, key or index) inside a JSON value."""
    if isinstance(content, dict):
        inside: list[Spot] = [(content, key) for key in content]
    else:
        inside = [(content, index) for index in range(len(content))]
    for container, key in list(inside):
        if isinstance(container[key], dict | list):
            inside += spots(container[key])
    return inside


@st.composite
def edited(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON text with values replaced, removed, added, swapped or repeated."""
    content = json.loads(text)
    odd: dict[str, str] = {}
    for number in range(draw(st.integers(1, 3))):
        found = spots(content)
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        marker = f"odd value {number}"
        odd[json.dumps(marker)] = draw(values)
        match draw(st.sampled_from(("replace", "remove", "add", "swap", "repeat"))):
            case "replace":
                container[key] = marker
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.text(max_size=5))] = marker
            case "add":
                container.insert(key, marker)
            case "swap":
                other, place = found[draw(st.integers(0, len(found) - 1))]
                container[key], other[place] = marker, json.loads(json.dumps(container[key]))
            case "repeat" if isinstance(container, dict):
                odd[json.dumps(key) + ":"] = json.dumps(key) + ":0," + json.dumps(key) + ":"
    text_ = json.dumps(content, separators=(",", ":"), ensure_ascii=draw(st.booleans()))
    for marker, raw in odd.items():
        text_ = text_.replace(marker, raw)
    return text_.encode("utf-8", "surrogatepass")


def any_of(texts: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=200), *map(edited, texts))


@fuzzed
@given(data=any_of(SOUND.manifests))
def test_any_manifest_is_read_or_refused(place: Path, data: bytes) -> None:
    assert watch(lambda: read_manifest(place / "manifest", data)).fault is None


@pytest.mark.parametrize("text", [SOUND.manifests[number] for number in (0, 3, 4)], ids=KINDS)
def test_any_odd_value_anywhere_is_refused_or_can_be_written_again(
    place: Path, text: bytes
) -> None:
    for number in range(len(spots(json.loads(text)))):
        content = json.loads(text)
        container, key = spots(content)[number]
        container[key] = "odd"
        for odd in ODD:
            data = json.dumps(content).replace('"odd"', odd).encode()
            try:
                manifest = read_manifest(place / "manifest", data).manifest
            except RunError:
                continue
            again = manifest.model_dump_json().encode()
            assert read_manifest(place / "again", again).manifest == manifest


@fuzzed
@given(data=st.data())
def test_any_checkpoints_are_read_passed_over_or_refused(place: Path, data: st.DataObject) -> None:
    files = dict(SOUND.checkpoints)
    for name in data.draw(st.sets(st.sampled_from(sorted(files)), min_size=1)):
        if name.endswith(".json"):
            files[name] = data.draw(any_of((files[name],)))
        else:
            files[name] = data.draw(st.binary(max_size=300))
    put(place / "checkpoint", files)
    assert watch(lambda: read_newest(place / "checkpoint", RUN)).fault is None


def header_of(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@st.composite
def safetensors(draw: st.DrawFn, data: bytes) -> bytes:
    """The file with an edited header, a length that may lie, and a body that may be cut."""
    body = data[8 + len(header_of(data)) :]
    header = draw(edited(header_of(data))) + b" " * draw(st.integers(0, 8))
    off = draw(st.sampled_from((0, 0, 0, 0, -1, 1, 8, 2**20, 2**62)))
    kept = draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    return struct.pack("<Q", max(0, len(header) + off)) + header + body[:kept]


@fuzzed
@given(data=st.one_of(st.binary(max_size=200), safetensors(SOUND.tiny)))
def test_any_tensors_are_read_or_refused(data: bytes) -> None:
    assert watch(lambda: read_tiny(data)).fault is None


@settings(fuzzed, max_examples=40)
@given(data=safetensors(SOUND.models[0][1]), agree=st.booleans())
def test_any_weights_are_read_or_refused(place: Path, data: bytes, agree: bool) -> None:
    assert watch(lambda: read_weights(place / "model", RUN, data, agree)).fault is None


@pytest.mark.parametrize("seed", range(2))
def test_blind_damage_is_read_or_refused(place: Path, seed: int) -> None:
    summary = fuzz(1000, seed, place)
    assert summary.failures == ()
    assert summary.slowest_seconds < MAX_SECONDS
    assert summary.memory_mb < MAX_MEMORY
    for reader in ("manifest", "checkpoint", "tensors", "model"):
        assert summary.accepted[reader] > 0  # or the damage would be too coarse to reach far
        assert summary.refused[reader] > 0


# What fuzzing found


def with_raw(field: str, value: str) -> bytes:
    """A sound manifest with a field of its data record written as ``value``."""
    content = json.loads(SOUND.manifests[0])
    content["data"][field] = "odd"
    return json.dumps(content).replace('"odd"', value).encode()


REFUSED_CHEAPLY = {
    "many wrong values": with_raw("notes", "[" + "1," * 450_000 + "1]"),
    "many keys, the last twice": with_raw(
        "notes", "{" + "".join(f'"{n:x}":1,' for n in range(90_000)) + '"0":1}'
    ),
    "deep nesting": with_raw("notes", "[" * 900 + "]" * 900),
    "a lone surrogate": with_raw("name", '"\\ud800"'),
}


@pytest.mark.parametrize("data", REFUSED_CHEAPLY.values(), ids=REFUSED_CHEAPLY)
def test_a_manifest_that_would_cost_much_is_refused(tmp_path: Path, data: bytes) -> None:
    answer = watch(lambda: read_manifest(tmp_path, data))
    assert answer.fault is None
    assert not answer.accepted


@pytest.mark.parametrize("size", [10**9, 10**15, 2**63 - 1])
def test_a_size_is_believed_of_no_file(tmp_path: Path, size: int) -> None:
    data = SOUND.models[0][1]
    (tmp_path / writer.WEIGHTS).write_bytes(data)
    record = storage.describe(writer.WEIGHTS, data).model_copy(update={"size": size})
    lying = Run(tmp_path, RUN.manifest.model_copy(update={"weights": record}))
    assert watch(lambda: weights.read_model(lying)).fault is None
    with pytest.raises(RunError, match="checkpoint is truncated"):
        weights.read_model(lying)
