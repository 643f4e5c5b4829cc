import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.evaluation.diagnosis import fall, feature_distances
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.weights import read_model, read_source
from tests.conftest import Command
from tests.victims import untouched

ATTACK = "--attack pgd --pgd-steps 3 --limit 30 --checks off --diagnose --device cpu"
TRANSFER = "--epochs 1 --classes ring,frame,grid --freeze-bn all"


@pytest.fixture
def runs(runs_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny runs, to be damaged, as ``runs`` in the current folder."""
    return Path(shutil.copytree(runs_dir, tmp_path / "runs"))


@pytest.fixture
def adversarial(images: Tensor) -> Tensor:
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(7))
    return (images + 0.1 * (noise - 0.5)).clamp(0, 1)


def linear(*weights: Tensor) -> BlockModel:
    """Blocks that multiply flattened images by a matrix each, behind a stem that flattens."""
    blocks = []
    for weight in weights:
        block = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        block.weight.data = weight
        blocks.append(block)
    return BlockModel(nn.Flatten(), blocks)


def hooked(model: BlockModel, images: Tensor) -> list[Tensor]:
    """What leaves the stem and each block, by forward hooks on the whole model."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _given, made: found.append(made.flatten(1)))
        for module in (model.stem, *model.blocks)
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("batch_size", [3, 8])
def test_distances_are_those_that_forward_hooks_see(
    model: BlockModel, images: Tensor, adversarial: Tensor, batch_size: int
) -> None:
    with untouched(model):
        found = feature_distances(model, images, adversarial, batch_size)
    clean, moved = hooked(model, images), hooked(model, adversarial)
    apart = [(y - x).norm(dim=1) for x, y in zip(clean, moved, strict=True)]
    assert len(found) == len(model.blocks) + 1 == len(apart)
    assert found[0].growth is None
    for block, here in enumerate(found):
        expected = (apart[block] / clean[block].norm(dim=1)).mean().item()
        assert here.distance == pytest.approx(expected, rel=1e-4)
        if block > 0:
            ratios = (apart[block] / apart[block - 1]).sort().values
            assert here.growth == pytest.approx(ratios[3:5].mean().item(), rel=1e-4)


def test_they_are_float32_in_evaluation_mode_whatever_the_caller_is(
    model: BlockModel, images: Tensor, adversarial: Tensor
) -> None:
    plain = feature_distances(model, images, adversarial, 8)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature_distances(model, images, adversarial, 8) == plain


def test_growth_of_linear_blocks_is_known(images: Tensor, adversarial: Tensor) -> None:
    d = images[0].numel()
    same, threefold = torch.eye(d), 3 * torch.eye(d)
    found = feature_distances(linear(same, threefold), images, adversarial, 8)
    relative = (
        (adversarial - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    ).mean()
    assert [row.distance for row in found] == pytest.approx([relative.item()] * 3, rel=1e-5)
    assert found[0].growth is None
    assert [row.growth for row in found[1:]] == pytest.approx([1, 3], rel=1e-5)


@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_a_block_of_spectral_norm_beta_grows_by_at_most_beta(
    images: Tensor, adversarial: Tensor, beta: float
) -> None:
    weight = torch.randn(16, images[0].numel(), generator=torch.Generator().manual_seed(3))
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    weight = beta * left @ right  # every singular value is β
    growth = feature_distances(linear(weight), images, adversarial, 8)[1].growth
    assert growth is not None
    assert growth <= beta * (1 + 1e-5)
    along = images + 0.1 * right[0].view_as(images[0])  # where the bound is met
    assert feature_distances(linear(weight), images, along, 8)[1].growth == pytest.approx(
        beta, rel=1e-3
    )


def test_what_has_no_finite_ratio_is_left_out(images: Tensor, adversarial: Tensor) -> None:
    d = images[0].numel()
    dead = linear(torch.zeros(2, d), torch.ones(2, 2))
    _, first, second = feature_distances(dead, images, adversarial, 8)
    assert (first.distance, first.growth) == (None, 0.0)
    assert (second.distance, second.growth) == (None, None)
    unmoved = feature_distances(linear(torch.eye(d)), images, images, 8)
    assert [(row.distance, row.growth) for row in unmoved] == [(0.0, None), (0.0, None)]
    one_moved = torch.cat([images[:1], adversarial[1:]])
    growth = feature_distances(linear(torch.eye(d)), images, one_moved, 8)[1].growth
    assert growth == pytest.approx(1, rel=1e-5)
    nobody = feature_distances(linear(torch.eye(d)), images[:0], images[:0], 8)
    assert {(row.distance, row.growth) for row in nobody} == {(None, None)}


def test_accuracy_falls_with_the_iterates_from_what_the_attack_was_run_on() -> None:
    fell_at = torch.tensor([0, 3, 3, -1, -2, 7, -1, -2, -2, -2], dtype=torch.int32)
    curve = fall(fell_at != -2, fell_at, 10)
    assert curve == [(0, 0.6), (0, 0.5), (3, 0.3), (7, 0.2), (10, 0.2)]


def diagnosis(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text())["results"]["diagnosis"]


def test_attack_compares_target_and_source_where_they_differ(runs: Path, cartl: Command) -> None:
    done = cartl("attack", "target", *ATTACK.split(), "--json", "--name", "a")
    assert done.code == 0, done.err
    printed = json.loads(done.out)["diagnosis"]
    assert printed == diagnosis(runs / "a")
    outcomes = read_run(runs / "a").attack_results
    assert 0 < printed["n"] == round(outcomes.clean_accuracy * 30)  # as few, all are kept
    assert [row["tuned"] for row in printed["blocks"]] == [False] * 3 + [True] * 3
    stem, *_, last = printed["blocks"]
    assert 0 < stem["target"]["distance"] < 0.3  # of another image it would be far more
    assert stem["source"] == stem["target"]  # no statistics before it: the same weights
    assert last["source"]["growth"] != last["target"]["growth"]


def test_the_table_shows_the_boundary_in_100_columns(runs: Path, cartl: Command) -> None:
    done = cartl("attack", "target", *ATTACK.split())
    assert done.code == 0, done.err
    table = done.out[done.out.index("how far adversarial images move") :]
    assert max(map(len, table.splitlines())) <= 100
    lines = [line.split("│") for line in table.splitlines() if line.startswith("│")]
    assert [line[1].strip() for line in lines] == ["stem", "1", "2 = L−k", "3", "4", "5 (logits)"]
    assert [line[2].strip() for line in lines] == ["frozen"] * 3 + ["tuned"] * 3
    above = table.splitlines().index(next(line for line in table.splitlines() if "L−k" in line))
    assert table.splitlines()[above + 1].startswith("├")


def test_a_frozen_part_moves_as_in_the_source_model(runs: Path, cartl: Command) -> None:
    assert cartl("transfer", "--source", "source", "--name", "frozen", *TRANSFER.split()).code == 0
    assert cartl("attack", "frozen", *ATTACK.split(), "--name", "a").code == 0
    for row in diagnosis(runs / "a")["blocks"]:
        assert (row["source"] == row["target"]) == (not row["tuned"])


def another_source(runs: Path) -> None:
    content = json.loads((runs / "source" / "manifest.json").read_text())
    content["weights"]["sha256"] = "0" * 64
    (runs / "source" / "manifest.json").write_text(json.dumps(content))


def damaged(runs: Path) -> None:
    path = runs / "source" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "change", [lambda runs: shutil.rmtree(runs / "source"), another_source, damaged]
)
def test_without_the_source_model_there_is_a_note_and_the_target_alone(
    runs: Path, cartl: Command, change: Callable[[Path], None]
) -> None:
    change(runs)
    done = cartl("attack", "target", *ATTACK.split(), "--name", "a")
    assert done.code == 0, done.err
    notes = [
        line for line in done.err.splitlines() if "run 'source' is gone or has changed" in line
    ]
    assert len(notes) == 1
    assert notes[0].startswith("note: ")
    assert "source ‖Δ‖/‖f‖" not in done.out
    blocks = diagnosis(runs / "a")["blocks"]
    assert [row["source"] for row in blocks] == [None] * 6


def test_the_source_is_only_looked_for_beside_the_run(source: Run, runs_dir: Path) -> None:
    target = read_run(runs_dir / "target")
    record = target.manifest.source
    assert record is not None
    astray = record.model_copy(update={"run": f"../{runs_dir.name}/source"})
    moved = Run(target.folder, target.manifest.model_copy(update={"source": astray}))
    assert read_source(moved) is None
    assert read_source(source) is None  # a pretrained model has none
    found = read_source(target)
    assert found is not None
    expected = read_model(source).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_no_diagnosis_unless_asked_for(runs: Path, cartl: Command) -> None:
    done = cartl("attack", "source", *ATTACK.split(), "--no-diagnose", "--name", "a")
    assert done.code == 0, done.err
    assert diagnosis(runs / "a") is None
    assert "move the features" not in done.out
