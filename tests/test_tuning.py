"""Choosing k, the method and its settings: the search by hand-computed truth, and the commands."""

import json
import math
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from cartl_cli.commands.transfer import chosen_k
from cartl_cli.core.config import TransferConfig, TuneConfig
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.data.split import Split, folds
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.sweeps import trials
from cartl_cli.core.sweeps.candidates import Candidate, blocks_grid, candidates, described
from cartl_cli.core.sweeps.halving import (
    K_RUNGS,
    LEAST,
    TUNE_RUNGS,
    Outcome,
    Search,
    Standing,
    Task,
    front,
    least_left,
    predicted,
    promoted,
    reason,
)
from cartl_cli.core.sweeps.search_file import SearchRecord, Trial, read_search, write_search
from cartl_cli.core.sweeps.trials import prepared, trained_on
from cartl_cli.core.training.target_model import blocks_to_tune
from tests import tiny
from tests.conftest import Command, Finished

RECIPES = ("natural", "latent", "at", "fast", "neft", "keep")
RADII = dict.fromkeys((2, 4, 6, 8), 0.02)


def candidate(k: int, epochs: int = 60, **settings: Any) -> Candidate:
    return Candidate({"method": "natural", "lr": 0.02, **settings, "k": k, "epochs": epochs})


def standing(k: int, clean: float, robust: float) -> Standing:
    return Standing(candidate(k), 100, clean, robust)


def ks(found: list[Candidate]) -> list[int]:
    return [one.k for one in found]


def trial(task: Task, seconds: float = 1.0, clean: int = 50, robust: int = 20) -> Trial:
    return Trial(
        settings=dict(task.settings),
        fold=task.fold,
        attack=task.attack,
        n=100,
        clean=clean,
        robust=robust,
        training_seconds=seconds,
        attack_seconds=0,
    )


# Candidates


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(8, (4, 6, 2, 8)), (5, (2, 4, 1, 5)), (17, (8, 13, 4, 17)), (2, (1, 2)), (1, (1,))],
)
def test_k_is_tried_at_the_quarters_the_middle_first(
    blocks: int, expected: tuple[int, ...]
) -> None:
    assert blocks_grid(blocks) == expected


def test_methods_as_they_come_are_tried_before_what_departs_from_them() -> None:
    found = candidates((4, 2), RECIPES, RADII)
    assert len(found) == 2 * (6 + 2) * 4  # k; recipes and two more radii; learning rates, epochs
    assert len({json.dumps(dict(one.settings), sort_keys=True) for one in found}) == len(found)
    assert [(one.settings["method"], one.k) for one in found[:4]] == [
        ("natural", 4),
        ("latent", 4),
        ("natural", 2),
        ("latent", 2),
    ]
    as_they_come = found[:12]
    for one in as_they_come:
        method = TRANSFER_METHODS[one.settings["method"]]
        assert (one.settings["lr"], one.settings["epochs"]) == (method.lr, method.epochs)
    assert {one.settings.get("radius") for one in as_they_come} == {None, 0.02}
    assert {one.settings.get("radius") for one in found} == {None, 0.01, 0.02, 0.04}
    last = found[-1].settings
    method = TRANSFER_METHODS[last["method"]]
    assert (last["lr"], last["epochs"]) == (2.5 * method.lr, method.epochs // 3)


def test_without_a_radius_there_is_no_latent() -> None:
    found = candidates((4,), RECIPES, {})
    assert {one.settings["method"] for one in found} == {"natural", "at", "fast"}


def test_slow_methods_are_tried_only_where_they_are_asked_for() -> None:
    assert {"at", "trades"}.isdisjoint(TuneConfig().methods)
    assert TuneConfig.model_validate({"methods": "fast,at"}).methods == ("fast", "at")


def test_every_candidate_is_a_valid_transfer() -> None:
    for one in candidates((4, 2), (*RECIPES, "trades"), RADII):
        assert TransferConfig.model_validate(one.settings).k == one.k


# Standings


def test_the_front_is_what_no_other_beats() -> None:
    a, b, c, d = (standing(2, 0.9, 0.1), standing(4, 0.8, 0.4), standing(6, 0.8, 0.3),
                  standing(8, 0.5, 0.4))  # fmt: skip
    assert front([a, b, c, d]) == [a, b]
    twin = standing(1, 0.8, 0.4)
    assert front([b, twin]) == [b, twin]


def test_what_is_wanted_goes_on_and_the_ends_of_the_front() -> None:
    clean, middle, robust = standing(8, 0.9, 0.1), standing(4, 0.8, 0.4), standing(2, 0.5, 0.6)
    second, bad = standing(6, 0.8, 0.37), standing(1, 0.4, 0.2)
    everything = [bad, clean, second, middle, robust]
    # balanced: .6 .585 .55 .5 .3; twice the best balanced, then robust; clean is sixth
    assert ks(promoted(everything, "balanced")) == [4, 6, 2, 8, 1]
    assert ks(promoted(everything, "robust"))[:2] == [2, 4]
    assert ks(promoted(everything, "clean"))[:2] == [8, 4]
    assert ks(promoted([standing(3, 0.5, 0.5), standing(5, 0.5, 0.5)], "balanced")) == [3, 5]


def test_the_choice_is_what_was_wanted_and_says_why() -> None:
    rungs = [[standing(8, 0.9, 0.1), standing(4, 0.8, 0.4), standing(2, 0.5, 0.6)]]
    outcome = Outcome(rungs, 12.0, False)
    assert [outcome.best(want).candidate.k for want in ("balanced", "robust", "clean")] == [4, 2, 8]
    said = reason(outcome, "balanced")
    # sqrt(.6 · .4 / 100) = 4.9 points
    assert "60.0 %, the highest of 3, on 100 training images" in said
    assert "about 4.9 points" in said
    assert said.endswith("second: vanilla, k 2, lr 0.02, 60 epochs, 55.0 %")
    close = [standing(4, 0.7, 0.5), standing(2, 0.6, 0.52)]
    near = reason(Outcome([close], 12.0, False), "balanced")
    assert near.endswith("56.0 %, as good as far as these images can tell")


def test_what_the_network_does_not_allow_is_left_out_and_told() -> None:
    network: Any = SimpleNamespace(
        original=build_model("timm:xcit_nano_12_p16_224", 3), config=TransferConfig()
    )
    everything, said = candidates((4, 6), ("natural", "neft"), {}), list[str]()
    left = trials.allowed(network, everything, said.append)
    assert {one.settings.get("neft_beta") for one in everything} == {None, 1.0}
    assert left == [one for one in everything if "neft_beta" not in one.settings]
    (note,) = said
    assert note.startswith("note: 8 of 16 candidates are left out: --neft-beta: NEFT cannot make")
    with pytest.raises(UsageError, match="NEFT cannot make"):
        trials.allowed(network, [one for one in everything if one not in left], said.append)


def test_chance_is_that_of_the_images_that_are_judged() -> None:
    labels = torch.tensor([0] * 200 + [1] * 3800)
    split = Split(torch.zeros(4000, 3, 1, 1, dtype=torch.uint8), labels)
    bench: Any = SimpleNamespace(
        setup=SimpleNamespace(split=split), folds=folds(labels, 4, 0), config=TransferConfig()
    )
    # a fold has 50 and 950; of 250 that are judged every one of the 50 is
    assert trials.largest_class(bench, 250) == 200
    assert trials.largest_class(bench, 750) == 600


def test_a_candidate_in_words() -> None:
    assert described(candidate(4, neft_beta=1.0)) == "NEFT, k 4, lr 0.02, β 1, 60 epochs"
    assert described(candidate(4), 60) == "vanilla, k 4, lr 0.02, 60 epochs"
    assert described(candidate(4), 7) == "vanilla, k 4, lr 0.02, 7 of 60 epochs"


# Time


def test_the_time_of_a_task_is_that_of_those_most_alike() -> None:
    def task(k: int, **settings: Any) -> Task:
        return Task(candidate(k, **settings), 20, 0, "quick")

    def took(task: Task, training: float, attack: float) -> Trial:
        seconds = {"training_seconds": training, "attack_seconds": attack}
        return trial(task).model_copy(update=seconds)

    assert predicted(task(4), []) == 0
    known = [took(task(4), 10, 2), took(task(2), 4, 4)]  # an epoch: 0.5 s, 0.2 s; attack 3 s
    assert predicted(task(4), known) == pytest.approx(10 + 3)
    assert predicted(task(8), known) == pytest.approx(2 * 10 + 3)  # in proportion to k = 4
    assert predicted(task(1), known) == pytest.approx(4 + 3)  # not less than at k = 2
    assert predicted(task(2, neft_beta=1.0), known) == pytest.approx(4 + 3)  # as others at k = 2
    strong = Task(candidate(4), 60, 1, "strong")
    assert predicted(strong, known) == pytest.approx(30 + 10 * 3)
    known.append(took(strong, 30, 7))
    assert predicted(strong, known) == pytest.approx(30 + 7)


# The search


class Pretended:
    """Trials without a model: each epoch takes a second, accuracies are a function of settings."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __call__(self, task: Task) -> Trial:
        assert task not in self.tasks, "tried twice"
        self.tasks.append(task)
        clean = 60 + 4 * task.candidate.k
        robust = 50 - (task.candidate.k - 3) ** 2 + (10 if "radius" in task.settings else 0)
        return trial(task, float(task.epochs), clean, robust)


def test_a_search_with_time_ends_at_the_best_candidate() -> None:
    everything = candidates((4, 6, 2, 8), RECIPES, RADII)
    tried = Pretended()
    outcome = Search(math.inf, tried).run(everything, TUNE_RUNGS, "balanced")
    # robust + clean = 110 + 4 k - (k - 3)² + 10: at the even k, best at 4, of latent
    best = outcome.best("balanced").candidate
    assert (best.settings["method"], best.k) == ("latent", 4)
    assert [len(rung) for rung in outcome.rungs] == [128, 64, 8, 6]
    assert not outcome.cut
    last = [task for task in tried.tasks if task.attack == "strong"]
    assert {task.fold for task in last} == {1, 2, 3}
    assert all(one.n == 300 for one in outcome.finalists)
    assert any(one.candidate.k == 8 for one in outcome.finalists)  # the clean end of the front


@pytest.mark.parametrize("budget", [700.0, 2000.0, 5000.0])
def test_a_search_ends_within_its_budget(budget: float) -> None:
    search = Search(budget, Pretended())
    outcome = search.run(candidates((4, 6, 2, 8), RECIPES, RADII), TUNE_RUNGS, "robust")
    assert outcome.cut
    assert budget / 2 < outcome.seconds <= budget
    assert len(outcome.finalists) >= LEAST
    assert len({one.n for one in outcome.finalists}) == 1


def test_without_time_a_few_still_get_through() -> None:
    outcome = Search(0.001, Pretended()).run(
        candidates((4, 6, 2, 8), RECIPES, RADII), TUNE_RUNGS, "clean"
    )
    assert [len(rung) for rung in outcome.rungs] == [LEAST] * 2  # the rung between is left out
    assert [one.n for one in outcome.finalists] == [100, 100]  # one fold each
    assert outcome.cut


def test_what_a_short_search_takes_is_foretold_after_each_trial() -> None:
    everything = candidates((4, 6, 2, 8), RECIPES, RADII)
    outcome = Search(0.001, tried := Pretended()).run(everything, TUNE_RUNGS, "clean")
    trials: list[Trial] = []
    for task in tried.tasks:
        trials.append(Pretended()(task))
        spent = sum(one.seconds for one in trials)
        assert spent + least_left(everything, TUNE_RUNGS, trials) == outcome.seconds
    assert least_left(everything, TUNE_RUNGS, trials) == 0


@pytest.mark.parametrize("budget", [1500.0, math.inf])
@pytest.mark.parametrize("done", [1, 7, 40])
def test_a_search_goes_on_where_it_stopped(budget: float, done: int) -> None:
    everything, whole = candidates((4, 6), RECIPES, RADII), Pretended()
    first = Search(budget, whole)
    first.run(everything, TUNE_RUNGS, "balanced")
    rest = Pretended()
    rest.tasks = whole.tasks[:done]
    again = Search(budget, rest, first.trials[:done])
    again.run(everything, TUNE_RUNGS, "balanced")
    if budget == math.inf:
        assert rest.tasks == whole.tasks
    assert again.spent <= budget
    once_more = Search(budget, mock.Mock(side_effect=AssertionError), list(again.trials))
    assert once_more.run(everything, TUNE_RUNGS, "balanced").seconds == again.spent


def test_a_search_for_k_costs_two_and_a_half_trainings() -> None:
    tried = Pretended()
    outcome = Search(math.inf, tried).run([candidate(k) for k in (4, 6, 2, 8)], K_RUNGS, "balanced")
    assert sum(task.epochs for task in tried.tasks) * 0.75 / 60 == 2.5
    assert [len(rung) for rung in outcome.rungs] == [4, 2]
    assert outcome.best("balanced").candidate.k == 4


def test_folds_have_each_class_alike() -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([9, 12, 6]))
    parts = folds(labels, 4, 0)
    assert torch.cat(parts).sort().values.tolist() == list(range(27))
    assert {len(part) for part in parts} == {6, 7}
    counts = torch.stack([labels[part].bincount(minlength=3) for part in parts])
    assert ((counts.max(0).values - counts.min(0).values) <= 1).all()
    again = folds(labels, 4, 0)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(folds(labels, 4, 1)[0], parts[0])


# The file


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    tasks = [Task(one, 20, 0, "quick") for one in candidates((4, 2), RECIPES, RADII)]
    record = SearchRecord(identity="0" * 12, trials=tuple(trial(task) for task in tasks))
    write_search(tmp_path / "mine", record)
    found = read_search(tmp_path / "mine", "0" * 12)
    assert all(task.done_by(one) for task, one in zip(tasks, found.trials, strict=True))
    with pytest.raises(UsageError, match="another source, data or settings"):
        read_search(tmp_path / "mine", "1" * 12)
    content = json.loads((tmp_path / "mine" / "search.json").read_text())
    content["trials"][0]["robust"] = 51
    (tmp_path / "mine" / "search.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"search is not valid: trials\.0"):
        read_search(tmp_path / "mine", "0" * 12)


# The commands, in small

TUNE = shlex.split("sweep tune --dataset ../images --batch-size 8 --device cpu --budget 30m --json")
NARROW = [*TUNE, "--methods", "natural,latent", "--k", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny images, and ``made/runs`` with a source run."""
    root = tmp_path_factory.mktemp("tuning")
    tiny.make_images(root / "images")
    return root


@pytest.fixture
def here(
    place: Path, cartl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Finished]:
    """Run ``cartl`` beside the source run; methods are short, attacks weak."""
    for name in ("natural", "latent"):
        monkeypatch.setitem(TRANSFER_METHODS, name, replace(TRANSFER_METHODS[name], epochs=3))
    weak = {"quick": (("pgd-margin",), 1), "strong": (("pgd-margin", "apgd-t"), 2)}
    monkeypatch.setattr(trials, "ATTACKS", weak)
    template = place / "made"
    if not template.exists():
        template.mkdir()
        monkeypatch.chdir(template)
        done = cartl(*shlex.split(tiny.SOURCE), "--name", "source")
        assert done.code == 0, done.err
    shutil.copytree(place / "images", tmp_path / "images")
    shutil.copytree(template / "runs", tmp_path / "here" / "runs")
    monkeypatch.chdir(tmp_path / "here")
    return cartl


def test_a_search_ends_with_a_choice_whose_commands_run(here: Command) -> None:
    done = here(*NARROW)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["tried"], len(found["finalists"]), found["cut"]) == (16, 3, False)
    assert [one["n"] for one in found["finalists"]] == [9] * 3  # three folds of three images
    assert [one["settings"] for one in found["finalists"] if one["chosen"]] == [found["chosen"]]
    folder = Path(found["folder"])
    assert {path.name for path in folder.iterdir()} == {"search.json", "front.png"}
    with Image.open(folder / "front.png") as picture:
        assert picture.size == (960, 720)
    assert f"--lr {found['chosen']['lr']}" in found["commands"][0]
    for command in found["commands"]:
        program, *arguments = shlex.split(command)
        assert program == "cartl"
        attacked = ["--pgd-steps", "2", "--checks", "off"] if arguments[0] == "attack" else []
        made = here(*arguments, *attacked)
        assert made.code == 0, made.err
    run = read_run(Path("runs") / f"{found['search']}-balanced")
    config = run.training
    assert {name: getattr(config, name) for name in found["chosen"]} == found["chosen"]
    assert run.manifest.data.train_images == 12
    again = json.loads(here(*NARROW).out)["commands"]
    assert all(f" {run.name}-2" in line for line in again)  # the first name is taken

    shown = here(*[word for word in NARROW if word != "--json"], "--want", "robust")
    assert shown.code == 0
    assert "(quick attack)" not in shown.err  # whatever is wanted, trials are the same
    assert "chosen: " in shown.out
    assert f"cartl attack {found['search']}-robust" in shown.out


def test_a_budget_that_is_short_is_told_once_and_at_once(here: Command) -> None:
    short = [word if word != "30m" else "0.01s" for word in NARROW]
    told = here(*short).err.splitlines()
    (note,) = (number for number, line in enumerate(told) if "--budget 0.01s is short" in line)
    assert re.search(r"which takes about \d+ s in all$", told[note])
    trials_told = [number for number, line in enumerate(told) if " of fold " in line]
    assert trials_told[0] < note < trials_told[1]
    (cut,) = (
        line for line in told if line.startswith("not all that was planned fits --budget 0.01s")
    )
    assert re.search(r"; \d+ candidates were left out, the first [a-z]+, k \d, lr ", cut), cut


def test_what_was_tried_is_not_tried_again_after_a_signal(
    here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], trials.carried_out

    def carried_out(bench: trials.Bench, task: Task) -> Trial:
        calls.append(task)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(bench, task)

    monkeypatch.setattr(trials, "carried_out", carried_out)
    stopped = here(*NARROW, "--name", "mine")
    assert stopped.code == 130
    assert stopped.err.endswith("are saved; the same command goes on\n")
    path = Path("runs/sweeps/mine")
    assert len(json.loads((path / "search.json").read_text())["trials"]) == 3
    done = here(*NARROW, "--name", "mine")
    assert done.code == 0, done.err
    assert calls[4] == calls[3]  # the one that was interrupted
    settled = calls[:3] + calls[4:]
    assert len(settled) == len(json.loads((path / "search.json").read_text())["trials"])
    assert all(settled.count(task) == 1 for task in settled)
    count = len(calls)
    assert here(*NARROW, "--name", "mine").code == 0
    assert len(calls) == count


def test_the_test_split_has_no_part_in_the_choice(here: Command) -> None:
    def found() -> Any:
        done = here(*NARROW)
        assert done.code == 0, done.err
        shown = json.loads(done.out)
        stored = json.loads((Path(shown["folder"]) / "search.json").read_text())
        counts = [
            [one[x] for x in ("settings", "n", "clean", "robust")] for one in stored["trials"]
        ]
        return shown["search"], counts, shown["chosen"]

    before = found()
    shutil.rmtree("runs/sweeps")
    for path in Path("../images/test").rglob("*.png"):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    assert found() == before


def test_a_search_for_classes_that_count_alike_is_one_of_its_own(here: Command) -> None:
    one = [*TUNE, "--methods", "natural", "--k", "1"]
    plain, balanced = (json.loads(here(*one, *more).out) for more in ((), ("--balance",)))
    assert plain["folder"] != balanced["folder"]
    assert "--balance" not in plain["commands"][0]
    assert "--balance" in balanced["commands"][0].split()


def test_a_trial_on_all_images_is_the_model_that_transfer_makes(here: Command) -> None:
    for name, extra in {
        "plain": "--method latent",
        "more": "--neft-beta 0.5 --ema 0.5",
        "fast": "--method fast --freeze-bn none",
    }.items():
        asked = f"transfer {tiny.TRAINED} --source source --k 2 --name {name} {extra}"
        done = here(*shlex.split(asked))
        assert done.code == 0, done.err
        run, source = read_run(Path("runs") / name), read_run(Path("runs/source"))
        config = run.training
        assert isinstance(config, TransferConfig)
        session = Session(Path("runs"), None, NOWHERE, lambda line: None)
        bench = prepared(config, source, session)
        bench = trials.with_radii(bench, source, (2,), session)
        ours = trained_on(bench, config, bench.setup.split, lambda: None).state_dict()
        for weight, value in read_model(run).state_dict().items():
            assert torch.equal(ours[weight], value), weight


def test_the_batches_of_a_trial_are_no_larger_than_its_images(here: Command) -> None:
    config = TransferConfig(dataset="../images", batch_size=64, k=2, epochs=2, device="cpu")
    said: list[str] = []
    session, source = (
        Session(Path("runs"), None, NOWHERE, said.append),
        read_run(Path("runs/source")),
    )
    bench = prepared(config, source, session)
    assert bench.config.batch_size == 12
    assert [line for line in said if "batch" in line] == [
        "note: --batch-size 64 is more than the 12 training images; batches have 12"
    ]
    nine = bench.setup.split.take(torch.arange(9))
    fitting = bench.config.model_copy(update={"batch_size": 9})
    ours, theirs = (
        trained_on(bench, one, nine, lambda: None).state_dict() for one in (config, fitting)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("clean", "warned"), [(62, True), (80, False)])
def test_a_choice_at_chance_is_told(
    here: Command, monkeypatch: pytest.MonkeyPatch, clean: int, warned: bool
) -> None:
    def carried_out(bench: trials.Bench, task: Task) -> Trial:
        return trial(task, clean=clean, robust=0)

    monkeypatch.setattr(trials, "carried_out", carried_out)
    for path in [*Path("../images/train/light").iterdir()][:2]:
        path.unlink()  # of ten images six are dark
    done = here(*NARROW)
    assert done.code == 0, done.err
    said = (
        "warning: the chosen candidate is no better than chance: it has 62.0 % clean accuracy, the"
    )
    assert (f"{said} largest class alone gives 60.0 %" in done.err) == warned


def test_transfer_chooses_k(here: Command) -> None:
    asked = shlex.split(f"transfer {tiny.TRAINED} --source source --k auto --name chosen")
    done = here(*asked, "--json")
    assert done.code == 0, done.err
    k = json.loads(done.out)["k"]
    assert f"k {k}: the mean of clean and robust accuracy is " in done.err
    assert "--k auto" in done.err
    run = read_run(Path("runs/chosen"))
    assert (run.manifest.k, run.manifest.config.model_dump()["k"]) == (k, "auto")
    again = here("transfer", "--resume", "chosen")
    assert "is already complete" in again.err
    assert json.loads(here(*asked[:-1], "other", "--json").out)["k"] == k


def test_a_k_that_the_settings_do_not_allow_is_not_tried(here: Command) -> None:
    done = here(*shlex.split(f"transfer {tiny.TRAINED} --k auto --keep-lambda 1 --keep-at 4,5"))
    assert done.code == 0, done.err
    assert "note: 1 of 4 candidates are left out: --keep-at: tuned are blocks 5 to 5" in done.err


def test_a_run_that_goes_on_keeps_its_k() -> None:
    opened = mock.Mock(config=TransferConfig(k="auto"))
    opened.session.resume.manifest.k = 5
    assert chosen_k(opened, print) == 5
    opened.session.resume, opened.session.ranks.size = None, 2
    with pytest.raises(UsageError, match="one process alone"):
        chosen_k(opened, print)
    assert chosen_k(mock.Mock(config=TransferConfig(k=3)), print) is None


def test_no_training_begins_with_a_k_that_is_not_chosen() -> None:
    with pytest.raises(UsageError, match="--k: auto is chosen before the training begins"):
        blocks_to_tune(TransferConfig(k="auto"), mock.Mock(), mock.Mock())


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--budget 0m", "--budget: must be a time above 0, such as 90s, 20m or 2h"),
        ("--budget soon", "--budget: must be a time above 0"),
        ("--k 2,9", "--k: 9, but wrn-10-1 has 5 blocks; use 1..5"),
        ("--k auto", "--k: must be a whole number"),
        ("--methods natural,magic", "--methods: choose 'natural', "),
        ("--methods none", "--methods: "),
        ("--want most", "most"),
        ("--name a/b", "--name: 'a/b' is no name of a search"),
        ("--source nobody", "--source: no such run"),
    ],
)
def test_what_is_refused(here: Command, extra: str, said: str) -> None:
    asked = shlex.split(extra)
    kept = [*TUNE]
    if asked[0] in kept:
        place = kept.index(asked[0])
        del kept[place : place + 2]
    done = here(*kept, *asked)
    assert (done.code, done.err.count("\n") <= 5) == (2, True)
    assert said in done.err
    assert not Path("runs/sweeps/a").exists()


def test_a_class_with_too_few_images_is_refused(here: Command) -> None:
    for index in (0, 1, 2):
        Path(f"../images/train/dark/{index}.png").unlink()
    done = here(*TUNE)
    assert done.code == 2
    assert "class 'dark' has 3 training images; to choose on them takes 4" in done.err


def test_a_sweep_takes_no_k_to_be_chosen(cartl: Command) -> None:
    Path("mine.toml").write_text('[base.transfer]\nk = "auto"\n')
    done = cartl("sweep", "mine.toml", "--dry-run")
    assert done.code == 2
    assert "base.transfer.k: a sweep takes numbers" in done.err


def test_a_grid_may_have_the_name_of_the_search(cartl: Command) -> None:
    Path("tune.toml").write_text("[base.transfer]\nk = [2, 4]\n")
    assert "sweep tune: 1 source run, 2 transfers" in cartl("sweep", "tune.toml", "--dry-run").out
    assert "cartl sweep tune" in " ".join(cartl("sweep", "--help").out.replace("│", "").split())
    assert "--budget" in cartl("sweep", "tune", "--help").out
