"""A toy of each kind, added through the registries in one file each, goes through every command."""

import json
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cartl_cli.core.registry.architectures import FAMILIES, parse_architecture
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS, STRONG
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.registry.transfer_methods import ADDITIONS, TRANSFER_METHODS, looks

ROOT = Path(__file__).parents[1]
NAMED: tuple[dict[str, Any], ...] = (EVALUATION_ATTACKS, TRAINING_ATTACKS, TRANSFER_METHODS)
ARCHITECTURES = (
    *("wrn-16-1", "wrn-16-1-relu", "resnet-18", "preact-resnet-18", "preact-resnet-18-raw"),
    *("torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50"),
    *("torchvision:wide_resnet50_2", "timm:convnext_tiny", "my_model.py:factory"),
)
TOYS = ("architecture", "evaluation_attack", "training_attack", "transfer_method")
SMALL = "--epochs 1 --batch-size 16 --device cpu"
SOURCE = f"{SMALL} --arch toy-4 --method shaky --k 2 --classes disk,bar"
SWEEP = """
[base.pretrain]
arch = "toy-4"
method = "shaky"
epochs = 1
k = 2
classes = ["disk", "bar"]
[base.transfer]
epochs = 1
k = [1, 2]
classes = ["ring", "grid"]
[base.attack]
attack = ["pgd", "guess"]
pgd_steps = 2
limit = 20
checks = "fast"
[methods.plain]
[methods.smooth.transfer]
method = "smooth"
"""


@dataclass(frozen=True)
class Toys:
    """A folder to run commands in, whose interpreters have imported the toys before anything."""

    folder: Path

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        places = os.pathsep.join([str(self.folder / "site"), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "cartl_cli", *line.split()],
            cwd=self.folder,
            env=os.environ
            | {
                "PYTHONPATH": places,
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "COLUMNS": "200",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, line: str) -> str:
        ended = self.run(line)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    folder = tmp_path_factory.mktemp("toys")
    (folder / "site").mkdir()
    imports = "".join(f"import tests.toys.{name}\n" for name in TOYS)
    (folder / "site" / "sitecustomize.py").write_text(imports)
    (folder / "small.toml").write_text(SWEEP)
    return Toys(folder)


def test_a_toy_goes_from_pretrain_to_attack(toys: Toys) -> None:
    toys.done(f"pretrain {SOURCE} --name source")
    assert "toy-4" in toys.done("pretrain --describe --arch toy-4 --k 2")
    tuned = toys.done(f"transfer --method smooth {SMALL} --classes ring,grid --name target")
    assert "smooth" in tuned
    manifest = json.loads((toys.folder / "runs" / "target" / "manifest.json").read_text())
    assert manifest["config"]["method"] == "smooth"
    found = toys.done(
        "attack target --attack pgd,guess --eps 2/255,8/255 --pgd-steps 2 --limit 20 "
        "--checks default --plot --json --name first"
    )
    shown = json.loads(found)
    assert [one["attack"] for one in shown["by_eps"][0]["added"]] == ["pgd", "guess"]
    assert shown["headline"] != "invalid"
    for name in ("accuracy-over-steps", "accuracy-over-eps"):
        drawn = (toys.folder / "runs" / "first" / f"{name}.svg").read_text()
        assert "guess" in drawn or name == "accuracy-over-eps"
    assert "#654321" in (toys.folder / "runs" / "first" / "accuracy-over-steps.svg").read_text()
    again = toys.done("attack --resume first --json")
    assert json.loads(again)["by_eps"] == shown["by_eps"]


def test_a_toy_is_part_of_a_sweep_and_of_its_report(toys: Toys) -> None:
    swept = json.loads(toys.done("sweep small.toml --runs-dir grid --json"))
    assert (swept["done"], swept["failed"]) == (9, 0)  # one source, four targets and attacks
    labels = {point["labels"]["method"] for point in swept["points"]}
    assert labels == {"shaky", "vanilla", "smooth"}
    formats = "table,markdown,latex,csv,json,html"
    toys.done(
        f"report small --runs-dir grid --format {formats} --plot tradeoff,k,fraction "
        "--baseline vanilla --against paper --sort-by method --out report"
    )
    made = {path.name for path in (toys.folder / "report").iterdir()}
    texts = {f"report.{ending}" for ending in ("txt", "md", "tex", "csv", "json", "html")}
    pictures = ("tradeoff", "k", "fraction")
    assert made == texts | {f"{name}.{e}" for name in pictures for e in ("png", "svg", "pdf")}
    for name in texts:
        assert "smooth" in (toys.folder / "report" / name).read_text(), name
    for name in ("tradeoff", "k"):
        assert "#123456" in (toys.folder / "report" / f"{name}.svg").read_text()
    rows = json.loads((toys.folder / "report" / "report.json").read_text())["results"]
    assert [row["method"] for row in rows] == ["vanilla", "vanilla", "smooth", "smooth"]
    assert {row["freeze_bn"] for row in rows if row["method"] == "smooth"} == {"stats"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --help", "at|fast|free|trades|natural|shaky"),
        ("pretrain --help", "shaky: with noise"),
        ("pretrain --help", "toy-W"),
        ("pretrain --help", "timm:NAME (ConvNeXt"),
        ("pretrain --help", "FILE.py:FUNCTION"),
        ("transfer --help", "natural|latent|fast|at|trades|smooth"),
        ("transfer --help", "smooth: with smoothed labels"),
        ("transfer --help", "smooth stats"),
        ("attack --help", "autoattack, guess"),
        ("pretrain --arch toy", "unknown; known: "),
        ("pretrain --method shaky --pgd-steps 3", "--pgd-steps: noise takes no steps; drop it"),
        ("transfer --method smoth", "'smoth' is not one of 'natural', "),
        ("transfer --method smooth --radius 0.1", "--radius: is of --method latent, not of smooth"),
        ("attack --attack gues", "guess"),
    ],
)
def test_help_and_refusals_know_a_toy(toys: Toys, line: str, said: str) -> None:
    ended = toys.run(line)
    assert ended.returncode == (0 if "--help" in line else 2)
    words = " ".join((ended.stdout + ended.stderr).replace("│", " ").split())
    assert said in words


def test_what_objects_name_is_there() -> None:
    """Their code is named in strings, which no import checks."""
    codes = [one.code for found in NAMED for one in found.values()]
    codes += [one.obstacle for one in ADDITIONS.values()]
    for name in ARCHITECTURES:
        architecture = parse_architecture(name)
        codes.append(architecture.code)
        if isinstance(architecture.published, str):
            codes.append(architecture.published)
    for code in codes:
        assert code is None or callable(pkgutil.resolve_name(code)), code
    assert set(STRONG) <= EVALUATION_ATTACKS.keys()
    assert FAMILIES.keys() == {"wrn", "resnet", "preact", "torchvision", "timm", "own"}


def test_names_labels_and_lines_are_each_ones_own() -> None:
    for found in NAMED:
        assert all(name == one.name for name, one in found.items())
    drawn = [(a.colour, a.marker, a.dashes) for a in EVALUATION_ATTACKS.values()]
    for parts in (*zip(*drawn, strict=True), [look.label for look in looks()]):
        assert len(set(parts)) == len(parts)
    assert len({(look.colour, look.marker) for look in looks()}) == len(looks())
