"""Results class by class: kept by an attack, counted from it, shown by attack and report."""

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cartl_cli import load_model
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.data.split import Split
from cartl_cli.core.errors import RunError
from cartl_cli.core.evaluation.comparison import beside_a_constant, read_outcomes
from cartl_cli.core.evaluation.confusion import Confusion, by_class, confusions
from cartl_cli.core.evaluation.verdicts import likeliest_other
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.training.remarks import class_by_class
from cartl_cli.display.class_tables import class_table
from cartl_cli.display.tables import print_fitted, stdout
from tests.conftest import Command
from tests.crashes import call
from tests.reported import CLASSES, Runs, outcomes
from tests.victims import measured_split

SAVING = "--save-adversarial --pgd-steps 2 --eps 2/255,8/255 --attack pgd,pgd-margin --checks off"


@pytest.fixture(scope="module")
def attacked(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An attack of two eps and two attacks on the tiny source run, its images saved."""
    folder = tmp_path_factory.mktemp("by-class") / "runs"
    shutil.copytree(runs_dir / "source", folder / "source")
    code, said = call(["attack", "source", *SAVING.split(), "--name", "a"], folder.parent)
    assert code == 0, said
    return read_run(folder / "a")


# What an attack keeps


def test_answers_are_those_of_the_model_on_the_images_and_on_the_saved_ones(attacked: Run) -> None:
    kept, saved = read_outcomes(attacked), load_file(attacked.folder / "adversarial.safetensors")
    model, split = load_model(attacked.folder.parent / "source"), measured_split()
    assert kept["labels"].tolist() == split.labels.tolist() == saved["labels"].tolist()
    with torch.no_grad():
        clean, under_attack = (
            torch.cat([model(image[None]).argmax(1) for image in images])
            for images in (split.images.float() / 255, saved["adversarial"])
        )
    assert kept["answers"][0].tolist() == clean.tolist()
    stands = kept["clean"] & ~(kept["fell_at"] >= 0).flatten(0, 1).any(0)
    expected = torch.where(stands, split.labels, under_attack)
    assert kept["answers"][2].tolist() == expected.tolist()
    assert len({*zip(kept["labels"].tolist(), kept["answers"][2].tolist(), strict=True)}) > 4


def test_answers_are_right_exactly_where_the_verdicts_say(attacked: Run) -> None:
    kept, results = read_outcomes(attacked), attacked.attack_results
    right = kept["answers"] == kept["labels"]
    fallen = (kept["fell_at"] >= 0).any(1)
    assert torch.equal(right[0], kept["clean"])
    assert torch.equal(right[1], kept["clean"] & ~fallen[0])
    assert torch.equal(right[2], kept["clean"] & ~fallen.any(0))
    counted = [one.overall_accuracy for one in confusions(attacked)]
    accuracies = [found.robust_accuracy for found in results.by_eps]
    assert counted == pytest.approx([results.clean_accuracy, *accuracies])
    assert counted[0] > counted[2]


def test_the_likeliest_other_class_is_never_the_label() -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor(
        [[3.0, 1, 2], [1, 3, 2], [inf, -inf, -inf], [nan, nan, nan], [nan, inf, -inf]]
    )
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = likeliest_other(logits, labels)
    assert found[:2].tolist() == [2, 1]
    assert not (found == labels).any()


# What is counted


def test_by_class_is_counted_from_what_the_attack_kept(attacked: Run) -> None:
    kept, classes = read_outcomes(attacked), attacked.manifest.model.classes
    found = by_class(confusions(attacked))
    shares = {}
    for place, name in enumerate(classes):
        mine = kept["labels"] == place
        shares[name] = [
            (kept["answers"][row][mine] == place).double().mean().item() for row in (0, 2)
        ]
        (line,) = [one for one in found["classes"] if one["class"] == name]
        assert line["n"] == mine.sum()
        assert [line["clean_accuracy"], line["robust_accuracy"]] == pytest.approx(shares[name])
    for row, name in enumerate(("clean", "robust")):
        column = {one: values[row] for one, values in shares.items()}
        worst = min(column, key=lambda one: column[one])
        assert found[f"balanced_{name}"] == pytest.approx(sum(column.values()) / len(column))
        assert found[f"worst_{name}"] == {"class": worst, "accuracy": pytest.approx(column[worst])}


def test_an_attack_tells_each_class_and_json_has_them(attacked: Run, cartl: Command) -> None:
    where = ("--resume", "a", "--runs-dir", attacked.folder.parent)
    clean, _, left = confusions(attacked)
    told = cartl("attack", *where).out
    assert "source: class by class, eps 8/255" in told
    for name in attacked.manifest.model.classes:
        (row,) = [line for line in told.splitlines() if line.startswith(f"│ {name} ")]
        cells = [text.strip() for text in row.strip("│").split("│")]
        assert cells[:3] == [name, "50", f"{100 * clean.accuracy(name):.1f} %"]
        assert cells[3] == f"{100 * left.accuracy(name):.1f} %"
        if (mistaken := left.mistaken_for(name)) is not None:
            assert cells[5] == f"{mistaken[0]} ({mistaken[1]})"
    line = " ".join(told.split())
    assert f"worst class: clean {clean.worst_named} (" in line
    assert f"under attack {left.worst_named} (" in line
    for one in (clean, left):
        lowest = min(map(one.accuracy, one.labels))
        others = sum(one.accuracy(label) == lowest for label in one.labels) - 1
        assert one.worst_named == (f"{one.worst} and {others} more" if others else one.worst)
    means = [f"{100 * one.balanced_accuracy:.1f} %" for one in (clean, left)]
    assert f"the mean of the classes: clean {means[0]}, under attack {means[1]}" in line
    assert json.loads(cartl("attack", *where, "--json").out)["by_class"] == by_class((clean, left))


def test_that_a_constant_answer_withstands_more_is_told(cartl: Command, attacked: Run) -> None:
    place = ("--runs-dir", attacked.folder.parent, "--attack", "fgsm", "--checks", "off")
    said = cartl("attack", "source", *place, "--eps", "0,1/255,60/255", "--name", "curve").err
    curve = read_run(attacked.folder.parent / "curve")
    labels = read_outcomes(curve)["labels"]
    constant = int(labels.bincount().max()) / len(labels)
    low = [one for one in curve.attack_results.by_eps if one.robust_accuracy < constant]
    assert low  # of 60/255 nothing is left
    (note,) = [line for line in said.splitlines() if "a model that always answers" in line]
    assert f"from eps {shown_pixels(low[0].eps)} on" in note
    assert (
        f"{100 * constant:.1f} %, where this one has {100 * low[0].robust_accuracy:.1f} %" in note
    )
    assert beside_a_constant(curve) == [note.removeprefix("cartl: ")]


def test_of_many_classes_the_worst_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(tmp_path / "runs")
    run = runs.attack(runs.pretrain("source"), "a", 900, 300)
    names = tuple(f"c{place:02}" for place in range(25))
    right = Counter({(name, name): 25 for name in names})
    fallen = Counter({(name, name): 1 + place for place, name in enumerate(names)})
    fallen += Counter({(name, "c00"): 24 - place for place, name in enumerate(names)})
    fallen["c00", "c00"], fallen["c00", "c01"] = 1, 24
    clean, left = Confusion(names, right), Confusion(names, fallen)
    print_fitted(class_table(run, clean, left), stdout())
    told = capsys.readouterr().out
    assert "the 5 worst of 25" in told
    rows = [line.split("│")[1].strip() for line in told.splitlines() if line.startswith("│ c")]
    assert rows == ["c00", "c01", "c02", "c03", "c04"]
    few = Confusion(names[:20], Counter({pair: n for pair, n in right.items() if pair[0] < "c20"}))
    print_fitted(class_table(run, few, few), stdout())
    told = capsys.readouterr().out
    assert len([line for line in told.splitlines() if line.startswith("│ c")]) == 20


def test_what_an_older_attack_did_not_keep_is_not_told(cartl: Command, tmp_path: Path) -> None:
    """Its outcomes are those of every release before: verdicts without labels."""
    runs = Runs(tmp_path / "runs")
    made = outcomes(torch.ones(100, dtype=torch.bool), torch.arange(100) < 50)
    run = runs.attack(runs.pretrain("source"), "a", 100, 50, n=100, outcomes=made)
    assert confusions(run) == ()
    assert read_outcomes(run).keys() == made.keys()
    told = cartl("attack", "--resume", "a")
    assert told.code == 0, told.err
    assert "class by class" not in told.out
    assert by_class(())["worst_clean"] == {"class": None, "accuracy": None}
    assert "Class by class" not in cartl("report").out


@pytest.mark.parametrize("trouble", ["class", "negative", "short", "type"])
def test_answers_that_cannot_be_are_refused(cartl: Command, tmp_path: Path, trouble: str) -> None:
    runs, made = Runs(tmp_path / "runs"), answered(50, 20)
    if trouble in ("class", "negative"):
        made["answers"][1, 3] = {"class": len(CLASSES), "negative": -1}[trouble]
    elif trouble == "short":
        made["answers"] = made["answers"][:1].contiguous()
    else:
        made["labels"] = made["labels"].long()
    run = runs.attack(runs.pretrain("source"), "a", 50, 20, n=100, outcomes=made)
    with pytest.raises(RunError, match=r"outcomes|expected I32"):
        confusions(run)
    found = json.loads(cartl("report", "--json").out)
    assert [one["name"] for one in found["left_out"]] == ["a"]
    assert found["left_out"][0]["reason"].startswith("not counted class by class: ")
    assert found["results"][0]["by_class"]["balanced_clean"] is None


# What a report says


def answered(clean: int, robust: int, n: int = 100) -> dict[str, Tensor]:
    """Outcomes of an attack at one eps: of each class in turn the first images are right."""
    labels = torch.arange(n) % len(CLASSES)
    numbers = torch.arange(n)
    right, stands = numbers < clean, numbers < robust
    other = (labels + 1) % len(CLASSES)
    answers = [torch.where(verdict, labels, other) for verdict in (right, stands)]
    return {
        **outcomes(right, stands),
        "labels": labels.int(),
        "answers": torch.stack(answers).int(),
    }


def test_a_report_has_the_means_of_the_classes_and_the_worst(
    cartl: Command, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    counts = {0: (90, 31), 1: (83, 38)}  # of 100: of class a 23 and 21 are right, of d 22 and 20
    for seed, (clean, robust) in counts.items():
        source = runs.pretrain(f"source-{seed}", seed=seed)
        made = answered(clean, robust)
        runs.attack(source, f"a-{seed}", clean, robust, n=100, outcomes=made)
    (row,) = json.loads(cartl("report", "--json").out)["results"]
    found = row["by_class"]
    by_hand = {
        name: [
            sum(
                sum(range(100)[i] % 4 == place for i in range(pair[which]))
                for pair in counts.values()
            )
            / 50
            for which in (0, 1)
        ]
        for place, name in enumerate(CLASSES)
    }
    assert {
        one["class"]: [one["clean_accuracy"], one["robust_accuracy"]] for one in found["classes"]
    } == {name: pytest.approx(values) for name, values in by_hand.items()}
    assert found["balanced_clean"] == pytest.approx(row["clean"]["mean"])
    assert found["balanced_robust"] == pytest.approx(row["robust"]["mean"])
    worst = min(CLASSES, key=lambda name: by_hand[name][1])
    assert found["worst_robust"] == {"class": worst, "accuracy": pytest.approx(by_hand[worst][1])}
    (line,) = csv.DictReader(io.StringIO(cartl("report", "--format", "csv").out))
    assert float(line["by_class_balanced_robust"]) == pytest.approx(found["balanced_robust"])
    assert line["by_class_worst_robust_class"] == worst
    for form in ("table", "markdown", "latex", "html"):
        told = cartl("report", "--format", form).out
        assert "Class by class" in told
        assert f"{100 * by_hand[worst][1]:.1f}" in told


def test_seeds_of_which_one_does_not_tell_have_none(cartl: Command, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    for seed in (0, 1):
        made = answered(90, 30)
        if seed:
            made = {name: made[name] for name in ("clean", "margin", "fell_at", "last", "indices")}
        source = runs.pretrain(f"source-{seed}", seed=seed)
        runs.attack(source, f"a-{seed}", 90, 30, n=100, outcomes=made)
    other = runs.pretrain("other", lr=0.3)
    runs.attack(other, "b", 90, 30, n=100, outcomes=answered(90, 30))
    found = json.loads(cartl("report", "--json").out)["results"]
    assert [one["by_class"]["balanced_clean"] for one in found].count(None) == 1
    assert "–: an attack that did not keep its answers." in cartl("report").out


def test_classes_that_are_equally_low_are_counted() -> None:
    split = Split(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2]))
    told = class_by_class(torch.tensor([True, False, False]), split, ("one", "two", "three"))
    assert told.startswith("worst class: two and 1 more (0.0 %);")


def test_a_training_tells_its_worst_class() -> None:
    """Three classes of 1, 2 and 4 images, none of a fourth: 1 of 1, 1 of 2 and 3 of 4 are right."""
    labels = torch.tensor([0, 1, 1, 3, 3, 3, 3])
    right = torch.tensor([True, False, True, True, True, False, True])
    split = Split(torch.zeros(7, 3, 2, 2, dtype=torch.uint8), labels)
    assert class_by_class(right, split, ("one", "two", "three", "four")) == (
        "worst class: two (50.0 %); balanced accuracy, the mean of the classes: 75.0 %"
    )
