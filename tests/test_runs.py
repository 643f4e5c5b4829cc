import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cartl_cli import load_model
from cartl_cli.core import storage
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.errors import (
    DataError,
    DivergedError,
    InUseError,
    RunError,
    StoppedError,
    UsageError,
)
from cartl_cli.core.models.blocks import BlockModel, ResidualSum
from cartl_cli.core.runs.manifest import Manifest, ModelSpec, Run
from cartl_cli.core.runs.parsing import parse_manifest
from cartl_cli.core.runs.reader import find_run, list_runs, newest_run, next_number, read_run, state
from cartl_cli.core.runs.recorded import read_recorded
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runs.weights import from_bytes, read_model, to_bytes
from cartl_cli.core.runs.writer import Session, check_place, finish_model, written
from tests.conftest import Command

UNFINISHED: dict[str, Any] = {"status": "running", "weights": None, "results": None}
TRAININGS: Any = ("pretrain", "transfer")


def session(runs_dir: Path, name: str | None = None, resume: Run | None = None) -> Session:
    return Session(runs_dir, name, NOWHERE, lambda line: None, resume)


@pytest.fixture
def draft(source: Run) -> Manifest:
    return source.manifest.model_copy(update=UNFINISHED)


def test_a_manifest_survives_the_round_trip(source: Run) -> None:
    content = json.loads(source.manifest.model_dump_json())
    assert parse_manifest(content, source.folder) == source.manifest
    assert source.manifest.status == "completed"


def test_weights_survive_the_round_trip(source: Run, runs_dir: Path) -> None:
    model = read_model(source)
    assert isinstance(model, BlockModel)
    assert not any(module.training for module in model.modules())
    data = to_bytes(model.state_dict())
    assert storage.describe("model.safetensors", data) == source.manifest.weights
    loaded = load_model(runs_dir / "source")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images), model(images), atol=1e-5)


def test_a_channel_that_is_always_zero_has_no_variance(source: Run, tmp_path: Path) -> None:
    expected = read_model(source).state_dict()
    (name,) = (name for name in expected if name.endswith("blocks.0.norm_act1.norm.running_var"))
    expected[name][0] = 0
    found = from_bytes(to_bytes(expected), expected, tmp_path)
    assert found[name][0] == 0
    with pytest.raises(RunError, match="running_var < 0"):
        from_bytes(to_bytes(expected | {name: expected[name] - 1}), expected, tmp_path)


def test_a_network_of_many_classes_is_a_model(draft: Manifest, tmp_path: Path) -> None:
    names = tuple(f"a class of ImageNet-21k, {number}" for number in range(21_843))
    counts = (0,) * len(names)
    data = draft.data.model_copy(update={"train_counts": counts, "measured_counts": counts})
    spec = draft.model.model_copy(update={"classes": names})
    many = draft.model_copy(update={"model": spec, "data": data})
    with written(session(tmp_path), many, 0) as run:
        assert read_run(run.folder).manifest.model.classes == names
    assert ModelSpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize("first", [b"\x80\x02", b"\x80\x04"])
def test_a_file_may_begin_like_a_pickle_by_the_length_of_its_header(
    tmp_path: Path, first: bytes
) -> None:
    length = int.from_bytes(first, "little")
    for filling in range(length):
        data = save({"weight": torch.ones(2)}, {"filling": "x" * filling})
        if data.startswith(first):
            break
    else:
        raise AssertionError("no such length")
    (tmp_path / "weights").write_bytes(data)
    assert read_recorded(tmp_path, storage.describe("weights", data)) == data


def test_a_loaded_model_is_what_other_libraries_expect(runs_dir: Path) -> None:
    model = load_model(runs_dir / "source")
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    assert images.grad.is_contiguous()
    assert images.grad.view(2, -1).shape == (2, 3072)
    assert all(p.is_contiguous() for p in model.parameters())
    wide = model.double()(images.double())
    assert wide.dtype == torch.float64
    torch.set_default_dtype(torch.float64)
    try:
        again = load_model(runs_dir / "source")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_a_loaded_model_knows_what_it_takes_and_stays_a_module(
    runs_dir: Path, tmp_path: Path
) -> None:
    model = load_model(runs_dir / "source")
    spec = read_run(runs_dir / "source").manifest.model
    assert (model.classes, model.image_size) == (spec.classes, spec.image_size)
    assert (
        model.state_dict().keys() == read_model(read_run(runs_dir / "source")).state_dict().keys()
    )
    path = tmp_path / "a.png"
    Image.effect_noise((50, 70), 90).save(path)
    image = model.preprocess(path)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert image.min() >= 0
    assert image.max() <= 1
    with Image.open(path) as opened:
        assert torch.equal(model.preprocess(opened), image)
    with torch.no_grad():
        logits = model(image[None])
    torch.save(model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for other in (copy.deepcopy(model), whole):
        assert other.classes == model.classes
        assert torch.equal(other.preprocess(str(path)), image)
        assert torch.equal(other(image[None]), logits)
    exported = torch.export.export(model, (image[None],)).module()
    assert torch.allclose(exported(image[None]), logits, atol=1e-5)
    with pytest.raises(DataError, match="too small"):
        model.preprocess(Image.new("RGB", (4, 4)))
    with pytest.raises(DataError, match="missing"):
        model.preprocess(tmp_path / "none.png")


def test_a_neft_model_is_read_with_its_convex_residuals(runs_dir: Path) -> None:
    target = read_model(read_run(runs_dir / "target"))
    convex = {n for n, m in target.named_modules() if isinstance(m, ResidualSum) and m.convex}
    assert convex == {"blocks.2.add"}


def test_an_attack_names_the_run_that_has_its_model(runs_dir: Path) -> None:
    target = read_run(runs_dir / "target")
    attack = target.manifest.model_copy(update={"kind": "attack", "weights": None})
    with pytest.raises(RunError, match="is an attack; its model is that of 'source'"):
        read_model(Run(target.folder, attack))


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
        assert find_run(selector, runs_dir, "RUN", TRAININGS).name == "source"
    assert newest_run(runs_dir, ("pretrain",), "").name == "source"
    assert newest_run(runs_dir, TRAININGS, "").name == "target"


def test_only_finished_runs_are_newest(runs_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(runs_dir, runs)
    manifest = json.loads((runs / "target" / "manifest.json").read_text())
    manifest["status"] = "interrupted"
    (runs / "target" / "manifest.json").write_text(json.dumps(manifest))
    (runs / "no-run").mkdir()
    assert newest_run(runs, TRAININGS, "").name == "source"
    with pytest.raises(UsageError, match="no finished transfer run"):
        newest_run(runs, ("transfer",), "cartl transfer")
    with pytest.raises(RunError, match="interrupted; go on with: cartl transfer --resume"):
        read_model(read_run(runs / "target"))


def test_numbers_rise_and_names_are_taken_once(draft: Manifest, tmp_path: Path) -> None:
    for expected in ("001-pretrain", "002-pretrain"):
        with written(session(tmp_path), draft, 0) as run:
            assert run.name == expected
    with (
        pytest.raises(UsageError, match="already holds a run"),
        written(session(tmp_path, "001-pretrain"), draft, 0),
    ):
        pass
    assert [run.manifest.number for run in list_runs(tmp_path)] == [1, 2]
    for folder in ("2024-05-01-signs", "2024-backup", "002-pretrain-old"):
        (tmp_path / folder).mkdir()
    assert next_number(tmp_path) == 3
    (tmp_path / "007-attack").mkdir()
    assert next_number(tmp_path) == 8


def fail_in_run(runs: Path, draft: Manifest, error: BaseException) -> None:
    with written(session(runs, "bad"), draft, 0) as run:
        assert read_run(runs / "bad").manifest.status == "running"
        assert state(run) == "being written now; wait for it"
        raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergedError("x"), "diverged"),
        (ValueError("x"), "failed"),
        (RunError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (StoppedError("x", 15), "interrupted"),
    ],
)
def test_a_run_that_ends_badly_says_so(
    draft: Manifest, tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)):
        fail_in_run(tmp_path, draft, error)
    run = read_run(tmp_path / "bad")
    assert run.manifest.status == status
    assert state(run).startswith(status)


def test_running_with_a_free_lock_is_crashed(draft: Manifest, tmp_path: Path) -> None:
    with written(session(tmp_path, "a"), draft, 0) as run:
        pass
    assert read_run(run.folder).manifest.status == "running"
    assert state(run) == f"crashed; go on with: cartl pretrain --resume {run.folder}"


def test_a_running_run_is_locked(draft: Manifest, tmp_path: Path) -> None:
    with (
        written(session(tmp_path, "busy"), draft, 0) as run,
        pytest.raises(InUseError, match="in use"),
        written(session(tmp_path, "busy"), draft, 0),
    ):
        pass
    with (
        written(session(tmp_path, resume=run), draft, 0),
        pytest.raises(InUseError, match="in use"),
        written(session(tmp_path, resume=run), draft, 0),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: {"data": d.data.model_copy(update={"fingerprint": "x"})}, "the data changed"),
        (lambda d: {"k": 2}, "another model"),
    ],
)
def test_going_on_needs_the_same_data_and_model(
    draft: Manifest, tmp_path: Path, change: Any, says: str
) -> None:
    with written(session(tmp_path, "a"), draft, 0) as run:
        pass
    other = draft.model_copy(update=change(draft))
    with pytest.raises(RunError, match=says), written(session(tmp_path, resume=run), other, 0):
        pass
    assert read_run(run.folder) == run


def test_leftovers_are_swept_by_the_next_writer_and_nothing_else_is(
    draft: Manifest, tmp_path: Path
) -> None:
    with written(session(tmp_path, "a"), draft, 0) as run:
        pass
    mine = run.folder / "notes.tmp-file"
    mine.write_text("the user's own")
    for folder in (tmp_path, run.folder):
        (folder / "x.tmp-12-0123abcd").mkdir()
        (folder / "x.tmp-12-0123abcd" / "half").write_text("")
        (folder / "manifest.json.tmp-12-0123abcd").write_text("")
    again = session(tmp_path, resume=run)
    check_place(again)
    with written(again, draft, 0):
        assert not list(tmp_path.rglob("*.tmp-12-*"))
    assert mine.exists()


def test_c55_file_modes_follow_the_umask(
    draft: Manifest, tmp_path: Path, model: BlockModel
) -> None:
    results = TrainingResults(clean_accuracy=0.5, n=10, seconds=1.0)
    for mask in (0o077, 0o000, 0o022):
        before = os.umask(mask)
        try:
            with written(session(tmp_path, f"m{mask}"), draft, 0) as run:
                finish_model(run, model, results)
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in run.folder.iterdir()}
        assert modes["model.safetensors"] == modes["manifest.json"] == 0o666 & ~mask
        assert run.folder.stat().st_mode & 0o777 == 0o777 & ~mask


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
