"""docs/quickstart.md is a transcript: its commands run in order, and lead where it says."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Command, ImageFolder

PAGE = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text()
SMALL = {
    "transfer": {"--epochs": "1", "--batch-size": "8"},
    "attack": {"--pgd-steps": "1", "--attack": "pgd", "--checks": "fast", "--batch-size": "8"},
}
"""What makes a command of the page small enough for a test."""


def transcript() -> list[tuple[list[str], list[str]]]:
    """The words of each command of the page, and the lines that it shows below it."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line.removeprefix("$ "), comments=True), []))
            else:
                found[-1][1].append(line)
    return found


def small(words: list[str]) -> list[str]:
    """The same command with the settings of ``SMALL`` in the place of its own."""
    settings = SMALL.get(words[0], {})
    kept, after = [], iter(words)
    for word in after:
        if word in settings:
            next(after)
        else:
            kept.append(word)
    return [*kept, *(word for pair in settings.items() for word in pair)]


def test_its_commands_run_in_order(
    cartl: Command, image_folder: ImageFolder, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    classes = ("left", "no-entry", "stop", "yield")
    image_folder(classes, train=6, test=3, name="my-photos")
    new = tmp_path / "new-photos"
    new.mkdir()
    for number, photo in enumerate(sorted((tmp_path / "my-photos" / "test").rglob("*.png"))):
        if number % 3 == 2:
            photo.rename(new / f"{number}.png")
    commands = [(words, shown) for words, shown in transcript() if words[0] == "cartl"]
    names = [words[1] for words, _ in commands]
    assert names == ["transfer", "attack", "report", "predict", "export"]
    for words, shown in commands:
        done = cartl(*small(words[1:]))
        assert done.code == 0, done.err
        said = (done.out + done.err).splitlines()
        for line in shown:
            if line.startswith(("next", "saved", "written", "load it", "source:", "run:")):
                assert line in said
    for path in re.findall(r"`([\w./-]+\.(?:html|onnx|png|json|safetensors))`", PAGE):
        assert any(tmp_path.rglob(path)), path
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes((new / "2.png").read_bytes())
    exec(python, {})
