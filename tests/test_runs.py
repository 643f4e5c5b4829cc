import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from cartl_cli import load_model
from cartl_cli.core import storage
from cartl_cli.core.errors import DivergedError, RunError, UsageError
from cartl_cli.core.manifest import Manifest, Run
from cartl_cli.core.models.blocks import BlockModel, ResidualSum
from cartl_cli.core.runs import (
    find_run,
    list_runs,
    new_run,
    newest_run,
    read_model,
    read_run,
)
from tests.conftest import Command

UNFINISHED = {"status": "running", "weights": None, "results": None}


def test_a_manifest_survives_the_round_trip(source: Run) -> None:
    again = Manifest.model_validate_json(source.manifest.model_dump_json())
    assert again == source.manifest
    assert source.manifest.status == "completed"


def test_weights_survive_the_round_trip(source: Run, runs_dir: Path) -> None:
    model = read_model(source)
    assert isinstance(model, BlockModel)
    assert not any(module.training for module in model.modules())
    data = storage.weights_to_bytes(model)
    assert storage.sha256(data) == source.manifest.weights.sha256  # type: ignore[union-attr]
    loaded = load_model(runs_dir / "source")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_a_neft_model_is_read_with_its_convex_residuals(runs_dir: Path) -> None:
    target = read_model(read_run(runs_dir / "target"))
    convex = {n for n, m in target.named_modules() if isinstance(m, ResidualSum) and m.convex}
    assert convex == {"blocks.2.add"}


def test_a_target_run_records_its_source(runs_dir: Path) -> None:
    source, target = read_run(runs_dir / "source"), read_run(runs_dir / "target")
    recorded = target.manifest.source
    assert recorded is not None
    assert source.manifest.weights is not None
    assert (recorded.run, recorded.sha256) == ("source", source.manifest.weights.sha256)
    assert (recorded.k, recorded.fdm_lambda) == (3, 0.005)
    norms = target.results.spectral_norms
    assert norms
    assert all(norm == pytest.approx(0.4, abs=1e-5) for norm in norms.values())


def test_runs_are_found_by_name_number_and_path(runs_dir: Path) -> None:
    for selector in ("source", "1", str(runs_dir / "source")):
        assert find_run(selector, runs_dir, "RUN").name == "source"
    assert newest_run(runs_dir, ("pretrain",), "").name == "source"
    assert newest_run(runs_dir, ("pretrain", "transfer"), "").name == "target"


def test_only_finished_runs_are_newest(runs_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(runs_dir, runs)
    manifest = json.loads((runs / "target" / "manifest.json").read_text())
    manifest["status"] = "interrupted"
    (runs / "target" / "manifest.json").write_text(json.dumps(manifest))
    (runs / "no-run").mkdir()
    assert newest_run(runs, ("pretrain", "transfer"), "").name == "source"
    with pytest.raises(UsageError, match="no finished transfer run"):
        newest_run(runs, ("transfer",), "cartl transfer")
    with pytest.raises(RunError, match="not complete"):
        read_model(read_run(runs / "target"))


def test_numbers_rise_and_names_are_taken_once(source: Run, tmp_path: Path) -> None:
    draft = source.manifest.model_copy(update=UNFINISHED)
    for expected in ("001-pretrain", "002-pretrain"):
        with new_run(tmp_path, None, draft) as run:
            assert run.name == expected
    with (
        pytest.raises(UsageError, match="already holds a run"),
        new_run(tmp_path, "001-pretrain", draft),
    ):
        pass
    assert [run.manifest.number for run in list_runs(tmp_path)] == [1, 2]


def fail_in_run(runs: Path, draft: Manifest, error: BaseException) -> None:
    with new_run(runs, "bad", draft):
        assert read_run(runs / "bad").manifest.status == "running"
        raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergedError("x"), "diverged"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_run_that_ends_badly_says_so(
    source: Run, tmp_path: Path, error: BaseException, status: str
) -> None:
    draft = source.manifest.model_copy(update=UNFINISHED)
    with pytest.raises(type(error)):
        fail_in_run(tmp_path, draft, error)
    assert read_run(tmp_path / "bad").manifest.status == status


def test_a_running_run_is_locked(source: Run, tmp_path: Path) -> None:
    draft = source.manifest.model_copy(update=UNFINISHED)
    with (
        new_run(tmp_path, "busy", draft),
        pytest.raises(RunError, match="in use"),
        new_run(tmp_path, "busy", draft),
    ):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    storage.write_whole(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        storage.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_file_modes_follow_the_umask(source: Run) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert (source.folder / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_metrics_have_a_line_an_epoch(source: Run) -> None:
    lines = (source.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert {"loss", "clean_accuracy", "adversarial_accuracy", "learning_rate"} <= record.keys()


def test_a_manifest_is_a_valid_config_file(runs_dir: Path, cartl: Command) -> None:
    done = cartl(
        "pretrain", "--config", runs_dir / "source" / "manifest.json", "--name", "again", "--json"
    )
    assert done.code == 0
    first, again = read_run(runs_dir / "source"), read_run(Path("runs/again"))
    assert again.manifest.config == first.manifest.config
    assert again.manifest.weights == first.manifest.weights  # same seed, same bytes
