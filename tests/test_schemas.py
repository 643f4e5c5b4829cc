"""Run folders of every released schema stay readable, usable and as they are.

``tests/data/schema-N`` was written by the release that brought schema N.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cartl_cli import load_model
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runs.manifest import SCHEMA_VERSION
from cartl_cli.core.runs.parsing import parse_manifest
from cartl_cli.core.runs.reader import read_run
from tests.conftest import Command

DATA = Path(__file__).parent / "data"
SCHEMAS = sorted(path.name for path in DATA.iterdir())


@pytest.fixture
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one schema's runs, as ``runs`` in the current folder."""
    return Path(shutil.copytree(DATA / request.param, tmp_path / "runs"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_there_is_one_of_every_schema() -> None:
    assert [f"schema-{number + 1}" for number in range(SCHEMA_VERSION)] == SCHEMAS


@pytest.mark.parametrize("corpus", SCHEMAS, indirect=True)
def test_r10_old_runs_are_read_and_used_and_never_rewritten(corpus: Path, cartl: Command) -> None:
    before = digests(corpus)
    first, again = read_run(corpus / "source"), read_run(corpus / "source")
    assert first == again
    assert first.results.n == 150
    with torch.no_grad():
        assert load_model(corpus / "source")(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    for command in (
        ("transfer", "--source", "source", "--epochs", 1, "--classes", "ring,frame", "--k", 1),
        ("attack", "target", "--pgd-steps", 1, "--limit", 12, "--checks", "off", "--force"),
    ):
        done = cartl(*command)
        assert done.code == 0, done.err
    after = digests(corpus)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("corpus", ["schema-2"], indirect=True)
def test_an_old_interrupted_run_can_go_on(corpus: Path, cartl: Command) -> None:
    assert read_run(corpus / "interrupted").manifest.status == "interrupted"
    done = cartl("transfer", "--resume", "interrupted")
    assert done.code == 0, done.err
    assert "going on after step 2 of 4" in done.err


@pytest.mark.parametrize("corpus", ["schema-2", "schema-3", "schema-5"], indirect=True)
def test_old_attacks_are_read(corpus: Path) -> None:
    run = read_run(corpus / "attacked")
    results = run.attack_results
    assert run.attack.final_iterate  # nobody could ask for it: it was always there
    assert all(found.final_iterate_accuracy is not None for found in results.by_eps)
    for found in results.by_eps:
        assert found.robust_accuracy == min(added.robust_accuracy for added in found.added)
        for added in found.added:
            assert added.alone is None or added.alone >= found.robust_accuracy
            assert added.fell <= added.attacked <= results.n


def test_an_import_is_read_and_its_model_loaded() -> None:
    run = read_run(DATA / "schema-5" / "imported")
    assert run.manifest.original is not None
    assert run.import_results.n == 0
    with torch.no_grad():
        assert load_model(run.folder)(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_what_an_older_run_held_out_stays_out_of_its_training_images() -> None:
    """Until schema 4 the seed of a run chose them; where there was a test split it did not."""
    path = DATA / "schema-4" / "source" / "manifest.json"
    content = json.loads(path.read_text())
    content["config"]["seed"] = 3
    assert parse_manifest(content, path).config.model_dump()["split_seed"] == 0
    content["data"]["measured"] = "held-out"
    assert parse_manifest(content, path).config.model_dump()["split_seed"] == 3


@pytest.mark.parametrize("setting", [{"eps": [0.0]}, {"attack": ["pgd", "pgd"]}])
def test_an_attack_with_settings_that_are_refused_today_is_read(setting: dict[str, Any]) -> None:
    path = DATA / "schema-5" / "attacked" / "manifest.json"
    content = json.loads(path.read_text())
    content["config"] |= setting
    with pytest.raises(UsageError):
        configure(AttackConfig, content["config"])
    read = parse_manifest(content, path).config.model_dump(mode="json")
    assert {name: read[name] for name in setting} == setting
