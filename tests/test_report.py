import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from rich.console import Console

from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.reports.collection import find_results
from cartl_cli.core.reports.paper import TableName, beside_paper, read_paper
from cartl_cli.core.reports.rows import paired_with, rows_of, sorted_rows
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import Check
from cartl_cli.core.statistics import accuracy_interval, holm, mcnemar, spread
from cartl_cli.core.sweeps.grid import plan
from cartl_cli.core.sweeps.points import Point, Sweep, point_id, write_sweep
from cartl_cli.core.sweeps.spec import open_spec
from cartl_cli.display.report_formats import rich_table
from cartl_cli.display.report_latex import latex
from cartl_cli.display.report_sheets import Report, Sheet, results_sheet
from tests.conftest import Command
from tests.pages import HOSTILE, parsed
from tests.reported import Runs, outcomes, paper_like

Json = dict[str, Any]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def pair(runs: Runs, name: str = "target", **settings: Any) -> None:
    """A source, a target and an attack on it."""
    source = runs.pretrain(f"{name}-source", seed=settings.get("seed", 0))
    target = runs.transfer(source, name, **settings)
    runs.attack(target, f"{name}-attack", 900, 300, 350)


def report(cartl: Command, *arguments: object, code: int = 0) -> Json:
    done = cartl("report", "--json", *arguments)
    assert done.code == code, done.err
    value: Json = json.loads(done.out)
    return value


def reasons(value: Json) -> dict[str, str]:
    return {one["name"]: one["reason"] for one in value["left_out"]}


# Numbers


def test_holm_agrees_with_its_definition() -> None:
    """Each hypothesis's adjusted p is the least level at which the step-down procedure rejects."""
    ps = [0.01, 0.04, 0.03, 0.005, 0.2, 0.03]

    def rejected(level: float) -> set[int]:
        found = set()
        for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
            if ps[place] > level / (len(ps) - rank):
                break
            found.add(place)
        return found

    for place, adjusted in enumerate(holm(ps)):
        assert place in rejected(adjusted * (1 + 1e-9))
        assert adjusted == 1 or place not in rejected(adjusted * (1 - 1e-9))
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_spread_of_seeds_is_that_of_a_sample() -> None:
    values = [0.5, 0.53, 0.56]
    found = spread(values, 1000)
    assert found.mean == pytest.approx(0.53)
    assert found.sd == pytest.approx(0.03)
    assert (found.low, found.high) == accuracy_interval(530, 1000)
    assert spread([0.5], 1000).sd is None


def test_z26_means_over_seeds_and_no_plus_minus_from_one(cartl: Command, tmp_path: Path) -> None:
    paper_like(tmp_path / "runs", seeds=3, ks=(6,))
    rows = {row["method"]: row for row in report(cartl)["results"]}
    assert rows.keys() == {"vanilla", "LwF", "NEFT", "CARTL"}
    robust = [(380 - 4 - 3 * seed) / 1000 for seed in range(3)]
    assert rows["CARTL"]["robust"]["mean"] == pytest.approx(statistics.mean(robust))
    assert rows["CARTL"]["robust"]["sd"] == pytest.approx(statistics.stdev(robust))
    assert rows["CARTL"]["pgd"]["mean"] == pytest.approx(statistics.mean(robust) + 0.06)
    assert rows["CARTL"]["seeds"] == ["0", "1", "2"]
    assert "± 0.3" in cartl("report").out
    one = cartl("report", "cartl-k6-0-attack")
    assert "±" not in one.out.replace("without ±", "")
    assert "one seed" in one.out


def test_seeds_of_targets_from_one_source_are_listed(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    for seed in (1, 2, 3):
        target = runs.transfer(source, f"target-{seed}", seed=seed)
        runs.attack(target, f"attack-{seed}", 900, 300)
    done = cartl("report")
    assert done.code == 0, done.err
    assert "0/1, 0/2, 0/3" in done.out


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"eps": [4 / 255]}, {}),
        ({"attack": ["pgd"]}, {}),
        ({"pgd_steps": 50}, {}),
        ({"restarts": 2}, {}),
        ({"queries": 500}, {}),
        ({"norm": "l2"}, {}),
        ({"limit": 1000}, {}),
        ({"fingerprint": "0" * 64}, {}),
        ({"n": 2000}, {}),
        ({}, {"epochs": 61}),
        ({}, {"lr": 0.1}),
        ({}, {"freeze_bn": "none"}),
    ],
)
def test_z05_z06_only_what_agrees_is_averaged(
    cartl: Command, runs: Runs, ours: Json, theirs: Json
) -> None:
    first = runs.pretrain("source")
    for seed, attack, training in ((0, {}, {}), (1, ours, theirs)):
        target = runs.transfer(first, f"target-{seed}", seed=seed, **training)
        runs.attack(target, f"attack-{seed}", 900, 300, 350, **attack)
    value = report(cartl)
    assert [len(row["runs"]) for row in value["results"]] == [1, 1]


def test_z29_models_of_other_classes_are_not_averaged(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    for seed in (0, 1):
        runs.attack(runs.transfer(source, f"t{seed}", seed=seed), f"a{seed}", 900, 300)
    runs.edit("a1", "model", "classes", value=["a", "b", "c", "e"])
    assert len(report(cartl)["results"]) == 2


def test_z27_z28_paired_tests_are_mcnemars_and_holms(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    n, draws = 200, torch.Generator().manual_seed(0)
    clean = torch.ones(n, dtype=torch.bool)
    verdicts = {
        "vanilla": torch.rand(n, generator=draws) < 0.3,
        "neft": torch.rand(n, generator=draws) < 0.5,
    }
    for name, robust in verdicts.items():
        beta = 0.4 if name == "neft" else None
        target = runs.transfer(source, name, neft_beta=beta)
        made = outcomes(clean, robust)
        runs.attack(target, f"{name}-attack", n, int(robust.sum()), n=n, outcomes=made)
    clean_test, robust_test = report(cartl, "--baseline", "VANILLA")["paired"]
    b = int((verdicts["neft"] & ~verdicts["vanilla"]).sum())
    c = int((verdicts["vanilla"] & ~verdicts["neft"]).sum())
    assert (robust_test["b"], robust_test["c"]) == (b, c)
    assert robust_test["p"] == mcnemar(b, c)
    assert robust_test["p_holm"] == pytest.approx(2 * mcnemar(b, c))
    assert (clean_test["p"], clean_test["p_holm"], clean_test["b"]) == (1, 1, 0)
    done = cartl("report", "--baseline", "vanilla-attack")
    assert "identical" in done.out
    assert "adjusted for all 2 comparisons" in " ".join(done.out.split())


def test_z07_without_outcomes_there_is_no_test(cartl: Command, runs: Runs) -> None:
    pair(runs, "a")
    pair(runs, "b", neft_beta=0.4)
    value = report(cartl, "--baseline", "vanilla")
    assert value["paired"] == []
    assert "image by image are not there" in reasons(value)["b-attack"]
    assert len(value["results"]) == 2


def test_the_gain_at_equal_accuracy_lies_on_the_baselines_line(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    for name, method, k, clean, robust in (
        ("v4", {}, 4, 900, 400),
        ("v6", {}, 6, 960, 200),
        ("v8", {}, 8, 970, 100),
        ("ours", {"neft_beta": 0.4}, 6, 930, 500),
        ("beyond", {"neft_beta": 1}, 6, 980, 300),
    ):
        target = runs.transfer(source, name, k=k, **method)
        runs.attack(target, f"a-{name}", clean, robust, robust)
    shown = report(cartl, "--baseline", "vanilla")
    (gain,) = shown["gains"]
    assert gain["runs"] == ["a-ours"]
    assert (gain["clean"], gain["robust"], gain["eps"]) == (0.93, 0.5, 8 / 255)
    assert gain["baseline_robust"] == pytest.approx(0.3)
    assert gain["points"] == pytest.approx(0.2)
    draw = numpy.random.default_rng(0).binomial
    c0, r0, c1, r1, c, r = (draw(1000, p, 20_000) / 1000 for p in (0.9, 0.4, 0.96, 0.2, 0.93, 0.5))
    drawn = r - (r0 + (c - c0) / (c1 - c0) * (r1 - r0))
    low, high = numpy.quantile(drawn, [0.025, 0.975])
    assert (gain["low"], gain["high"]) == pytest.approx((low, high), abs=0.015)
    table = cartl("report", "--baseline", "vanilla").out
    assert "At the same clean accuracy as vanilla" in table
    assert "+20.0" in table
    assert shown["no_gain"] == [
        {"runs": ["a-beyond"], "eps": 8 / 255, "clean": 0.98, "baseline_clean": [0.9, 0.96, 0.97]}
    ]
    section = " ".join(table[table.index("At the same clean accuracy") :].split())
    assert "98.0 30.0 – – outside 90.0–97.0" in section
    assert "–: left out, as no two lines of vanilla enclose its clean accuracy" in section
    assert report(cartl, "--baseline", "a-v4")["gains"] == []


def test_gains_at_several_eps_are_told_apart(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    for name, method, k, clean, robust in (
        ("v4", {}, 4, 900, (600, 400)),
        ("v6", {}, 6, 960, (500, 200)),
        ("ours", {"neft_beta": 0.4}, 6, 930, (700, 500)),
    ):
        target = runs.transfer(source, name, k=k, **method)
        runs.attack(target, f"a-{name}", clean, robust, eps=[4 / 255, 8 / 255])
    section = cartl("report", "--baseline", "vanilla", "--format", "markdown").out
    section = section[section.index("At the same clean accuracy") :]
    assert re.search(r"\| NEFT.*\| 4/255 \|.*\| \+15\.0", section), section
    assert re.search(r"\| NEFT.*\| 8/255 \|.*\| \+20\.0", section), section


def test_a_baseline_with_one_line_gives_no_section_of_gains(cartl: Command, runs: Runs) -> None:
    pair(runs, "a")
    pair(runs, "b", neft_beta=0.4)
    value = report(cartl, "--baseline", "vanilla")
    assert (value["gains"], value["no_gain"]) == ([], [])
    assert "At the same clean accuracy" not in cartl("report", "--baseline", "vanilla").out


def test_paired_tests_name_runs_in_words(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    made = outcomes(torch.ones(100, dtype=torch.bool), torch.arange(100) < 50)
    long = "c" * 70
    models: dict[str, Json] = {
        "transfer-0a1b2c3d4e5f": {"k": 4},
        "transfer-1a1b2c3d4e5f": {"k": 6},
        "transfer-2a1b2c3d4e5f": {"k": 4, "neft_beta": 0.4},
        "transfer-3a1b2c3d4e5f": {"k": 4, "neft_beta": 1},
        "transfer-4a1b2c3d4e5f": {"k": 4, "method": "fast", "classes": [f"{long}1", "b"]},
        "transfer-5a1b2c3d4e5f": {"k": 4, "method": "fast", "classes": [f"{long}2", "b"]},
    }
    for number, (name, settings) in enumerate(models.items()):
        target = runs.transfer(source, name, **settings)
        runs.attack(target, f"attack-{number}", 100, 50, n=100, outcomes=made)
    table = cartl("report", "--baseline", "vanilla").out
    section = table[table.index("Paired tests") : table.index("only run, only baseline: ")]
    words = " ".join(section.split())
    assert "β 0.4" in words
    assert "β 1" in words
    assert "transfer-" not in words
    assert not re.search("attack-[0-3]", words)
    for number in (4, 5):  # cut to one length their classes are alike
        assert f"attack-{number}" in words


def test_several_lines_of_a_baseline_are_told_in_words(cartl: Command, runs: Runs) -> None:
    pair(runs, "a", lr=0.1)
    pair(runs, "b", lr=0.2)
    pair(runs, "c", neft_beta=0.4)
    for name in ("a", "b", "c"):
        runs.edit(f"{name}-attack", "outcomes", value={"name": "x", "size": 1, "sha256": "0" * 64})
    assert reasons(report(cartl, "--baseline", "vanilla"))["c-attack"] == (
        "no paired test: 2 lines of vanilla are alike in k, fraction, λ FDM and freeze-bn; "
        "choose a run with --baseline RUN"
    )


def test_settings_have_the_words_of_their_flags(cartl: Command, runs: Runs) -> None:
    pair(runs, "a", method="at", awp_gamma=0.01, freeze_bn="none")
    pair(runs, "b", method="at", awp_gamma=0.02, freeze_bn="all")
    for name in ("table", "markdown", "html"):
        shown = cartl("report", "--format", name).out
        assert "awp-gamma 0.01" in shown
        assert "freeze-bn none" in shown
        assert "awp_gamma" not in shown.replace("\\", "")


def test_a_baseline_that_means_nothing_is_refused(cartl: Command, runs: Runs) -> None:
    pair(runs)
    for name, says in (("LwF", "no LwF among"), ("nobody", "'nobody' is neither")):
        done = cartl("report", "--baseline", name)
        assert done.code == 2
        assert says in done.err


def test_seeds_meet_their_own_baseline(tmp_path: Path) -> None:
    paper_like(tmp_path / "runs", seeds=2, ks=(4, 6))
    rows, _ = rows_of(find_results([], tmp_path / "runs").results)
    paired, impossible = paired_with(rows, "vanilla")
    assert not impossible
    assert len(paired) == 2 * 2 * 5  # clean and robust, two seeds, NEFT and CARTL twice, LwF once
    for one in paired:
        assert one.ours.seed == one.theirs.seed
        assert one.ours.setting.k == one.theirs.setting.k
        assert one.theirs.setting.method == "vanilla"


def test_z39_ties_after_rounding_are_ranked_by_exact_value(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source")
    for name, robust in (("low", 4996), ("high", 5004)):
        target = runs.transfer(source, name, lr=0.01 if name == "low" else 0.02)
        runs.attack(target, f"{name}-attack", 9000, robust, n=10_000)
    found = report(cartl, "--sort-by", "robust")["results"]
    assert [row["runs"] for row in found] == [["high-attack"], ["low-attack"]]
    assert cartl("report", "--sort-by", "robust").out.count("50.0") == 4


def test_z36_an_unknown_column(cartl: Command, runs: Runs) -> None:
    pair(runs)
    done = cartl("report", "--sort-by", "foo")
    assert done.code == 2
    assert "no column 'foo'; have method, k" in done.err


def test_every_column_sorts(tmp_path: Path) -> None:
    paper_like(tmp_path / "runs", seeds=1, ks=(4, 6))
    rows, _ = rows_of(find_results([], tmp_path / "runs").results)
    for column in ("clean", "pgd", "robust"):
        means = [getattr(row, column).mean for row in sorted_rows(rows, column)]
        assert means == sorted(means, reverse=True)
    assert [row.setting.k for row in sorted_rows(rows, "k")] == sorted(r.setting.k for r in rows)


# What is left out


def test_z01_no_runs(cartl: Command, runs: Runs) -> None:
    done = cartl("report")
    assert done.code == 1
    assert "no attacks in 'runs'" in done.err


def test_z02_folders_that_are_no_runs(cartl: Command, runs: Runs, tmp_path: Path) -> None:
    pair(runs)
    (tmp_path / "other").mkdir()
    done = cartl("report", "other/", "runs/target-attack", "runs/target")
    assert done.code == 1
    assert "is not a run" in done.err
    assert "30.0" in done.out
    assert cartl("report", "nobody").code == 2


@pytest.mark.parametrize("status", ["running", "failed", "diverged", "interrupted"])
def test_z03_unfinished_runs_are_listed(cartl: Command, runs: Runs, status: str) -> None:
    pair(runs)
    runs.attack(read_run(runs.folder / "target"), "later", 900, 100, status=status)
    value = report(cartl)
    assert "incomplete: " in reasons(value)["later"]
    assert [row["runs"] for row in value["results"]] == [["target-attack"]]


def test_z04_one_damaged_run_hides_no_other(cartl: Command, runs: Runs) -> None:
    pair(runs, "good")
    pair(runs, "bad")
    (runs.folder / "bad-attack" / "manifest.json").write_text("{")
    done = cartl("report")
    assert done.code == 1
    assert "1 run skipped, such as bad-attack: manifest is not valid JSON" in done.err
    assert "30.0" in done.out
    value = report(cartl, code=1)
    assert [row["runs"] for row in value["results"]] == [["good-attack"]]


def test_z08_the_same_run_twice_counts_once(cartl: Command, runs: Runs, tmp_path: Path) -> None:
    pair(runs)
    runs.attack(read_run(runs.folder / "target"), "again", 900, 290, seed=5)
    (tmp_path / "link").symlink_to(runs.folder / "target-attack")
    shutil.copytree(runs.folder / "target-attack", runs.folder / "copy")
    names = ("target-attack", "runs/target-attack", "link", "again", "copy")
    value = report(cartl, *names)
    assert len(value["results"]) == len(value["results"][0]["runs"]) == 1
    assert reasons(value).keys() == {"again"}
    assert "counted once" in reasons(value)["again"]
    assert report(cartl, "4")["results"][0]["runs"] == ["again"]


def test_z09_a_stale_attack_is_refused(cartl: Command, runs: Runs) -> None:
    pair(runs)
    pair(runs, "other", neft_beta=0.4)
    runs.edit("target", "weights", "sha256", value="0" * 64)
    value = report(cartl, code=1)
    assert "stale attack result" in reasons(value)["target-attack"]
    assert [row["runs"] for row in value["results"]] == [["other-attack"]]


def test_a_run_of_the_same_name_here_is_not_taken_for_the_attacked_one(
    cartl: Command, runs: Runs, tmp_path: Path
) -> None:
    there = Runs(tmp_path / "there")
    target = there.transfer(there.pretrain("source", seed=3), "target", seed=3)
    runs.transfer(runs.pretrain("source"), "target")
    runs.attack(target, "attack", 900, 300, run=str(there.folder / "target"))
    (row,) = report(cartl)["results"]
    assert row["seeds"] == ["3"]


def test_an_attack_whose_run_is_gone_is_left_out(cartl: Command, runs: Runs) -> None:
    pair(runs)
    shutil.rmtree(runs.folder / "target")
    assert "is gone: 'target'" in reasons(report(cartl, code=1))["target-attack"]


@pytest.mark.parametrize(("check", "left"), [("V3", 0), ("K4", 1)])
def test_z10_failed_checks_are_marked(cartl: Command, runs: Runs, check: str, left: int) -> None:
    target = runs.transfer(runs.pretrain("source"), "target")
    failed = Check(id=check, verdict="fail", value=None, text="it failed")
    runs.attack(target, "attack", 900, 300, trust=(failed,))
    value = report(cartl)
    assert len(value["results"]) == left
    if left:
        assert value["results"][0]["incomplete"] == ["attack"]
        assert "30.0 †" in cartl("report").out
    else:
        assert reasons(value)["attack"] == "INVALID: V3 failed"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        pytest.param(("by_eps", 0, "robust_accuracy"), 0.95, "impossible value", id="Z24-above"),
        pytest.param(("by_eps", 0, "robust_accuracy"), -0.1, "is not valid", id="Z24-below"),
        pytest.param(("by_eps", 0, "robust_accuracy"), 0.12345, "impossible value", id="Z24-part"),
        pytest.param(("n",), 0, "is not valid", id="Z25-none"),
        pytest.param(("by_eps", 0, "added", 0, "fell"), 1001, "more fell", id="Z25-more"),
        pytest.param(("clean_accuracy",), None, "diverged", id="Z23-null"),
        pytest.param(("clean_accuracy",), math.nan, "diverged", id="Z23-nan"),
    ],
)
def test_impossible_numbers(
    cartl: Command, runs: Runs, place: tuple[str | int, ...], value: object, says: str
) -> None:
    pair(runs)
    runs.edit("target-attack", "results", *place, value=value)
    assert says in reasons(report(cartl, code=1))["target-attack"]


def test_z23_what_was_not_measured_is_a_dash(cartl: Command, runs: Runs) -> None:
    target = runs.transfer(runs.pretrain("source"), "target")
    runs.attack(target, "attack", 900, 300, attack=["apgd-ce"])
    assert report(cartl)["results"][0]["pgd"]["mean"] is None
    shown = cartl("report").out
    assert "PGD by itself, on the cross-entropy, was not measured" in shown
    assert "PGD %" not in shown
    runs.attack(target, "with-pgd", 900, 300)
    shown = cartl("report").out
    assert "PGD %" in shown
    assert "–: it was not run" in shown


def test_z37_a_broken_link_is_skipped(cartl: Command, runs: Runs, tmp_path: Path) -> None:
    pair(runs)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    done = cartl("report", "./gone", "target-attack")
    assert done.code == 1
    assert "gone" in done.err
    assert "30.0" in done.out


@pytest.mark.parametrize("name", ["eps", "norm"])
def test_z38_an_attack_without_a_threat_model(cartl: Command, runs: Runs, name: str) -> None:
    pair(runs)
    path = runs.folder / "target-attack" / "manifest.json"
    content = json.loads(path.read_text())
    del content["config"][name]
    path.write_text(json.dumps(content))
    assert "no eps and norm recorded" in reasons(report(cartl, code=1))["target-attack"]


def test_z40_time_stamps_order_nothing(cartl: Command, runs: Runs) -> None:
    pair(runs, "a")
    pair(runs, "b", neft_beta=0.4)
    before = [row["runs"] for row in report(cartl)["results"]]
    runs.edit("a-attack", "created", value="2999-01-01T00:00:00+00:00")
    value = report(cartl)
    assert [row["runs"] for row in value["results"]] == before
    assert "2999" in value["results"][0]["created"][0]


def test_z41_older_runs_are_read_newer_ones_skipped(
    cartl: Command, runs: Runs, tmp_path: Path
) -> None:
    shutil.rmtree(runs.folder)
    shutil.copytree(Path(__file__).parent / "data" / "schema-2", runs.folder)
    value = report(cartl)
    assert [row["runs"] for row in value["results"]] == [["attacked"]]
    pair(runs, "newer")
    runs.edit("newer-attack", "schema_version", value=99)
    value = report(cartl, code=1)
    assert [row["runs"] for row in value["results"]] == [["attacked"]]
    assert "newer cartl" in reasons(value)["newer-attack"]


def test_z31_a_manifest_that_is_replaced_is_old_or_new(cartl: Command, runs: Runs) -> None:
    pair(runs)
    path = runs.folder / "target-attack" / "manifest.json"
    versions = [path.read_text(), path.read_text().replace("0.3,", "0.2,")]
    assert versions[0] != versions[1]
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for text in versions:
                path.with_suffix(".new").write_text(text)
                os.replace(path.with_suffix(".new"), path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        found = {report(cartl)["results"][0]["robust"]["mean"] for _ in range(10)}
    finally:
        stop.set()
        thread.join()
    assert found <= {0.3, 0.2}


# Sweeps, the paper, commands


def test_a_sweep_is_its_attacks(cartl: Command, runs: Runs) -> None:
    configs = {
        "pretrain": PretrainConfig(),
        "transfer": TransferConfig(neft_beta=0.4),
        "attack": AttackConfig(eps=(8 / 255,), norm="linf"),
    }
    points: list[Point] = []
    for kind, config in configs.items():
        needs = points[-1].id if points else None
        points.append(
            Point(id=point_id(kind, config, needs), kind=kind, config=config, needs=needs)  # type: ignore[arg-type]
        )
    later = AttackConfig(eps=(8 / 255,), norm="linf", seed=7)
    needs = points[1].id
    points.append(
        Point(id=point_id("attack", later, needs), kind="attack", config=later, needs=needs)
    )
    write_sweep(
        runs.folder, Sweep(name="mine", created="now", points=tuple(points), table="table2")
    )
    source = runs.pretrain(points[0].run)
    target = runs.transfer(source, points[1].run, neft_beta=0.4)
    runs.attack(target, points[2].run, 900, 300)
    pair(runs, "another")
    for selector in ("mine", runs.folder / "sweeps" / "mine.json"):
        value = report(cartl, selector)
        assert [row["runs"] for row in value["results"]] == [[points[2].run]]
        assert reasons(value) == {points[3].run: "not run yet"}
    lines = report(cartl, "mine", "--against", "paper")["paper"]
    assert {line["table"] for line in lines} == {"table2"}
    assert len(report(cartl)["results"]) == 2


def test_the_papers_numbers_agree_with_each_other() -> None:
    paper = read_paper()
    tables = {name: [row for row in paper.rows if row.table == name] for name in ("table1",)}
    tables |= {f"table{i}": [r for r in paper.rows if r.table == f"table{i}"] for i in (2, 3, 4)}
    assert {name: len(rows) for name, rows in tables.items()} == {
        "table1": 16,
        "table2": 18,
        "table3": 9,
        "table4": 12,
    }
    assert all(0.5 < row.clean < 1 and 0 < row.robust < row.clean for row in paper.rows)
    best = {r.k: r for r in tables["table2"] if (r.fdm_lambda, r.neft_beta) == (0.005, 0.4)}
    for row in tables["table3"]:  # the ablation repeats Table 2 at λ 0.005, β 0.4
        if row.method == "CARTL":
            assert (row.clean, row.robust) == (best[row.k].clean, best[row.k].robust)
    assert (0.9476, 0.2165) in [(row.clean, row.robust) for row in tables["table4"]]
    again = [r for r in tables["table1"] if (r.k, r.freeze_bn, r.target_data) == (6, "all", "svhn")]
    vanilla = [
        row
        for row in tables["table4"]
        if row.method == "vanilla" and (row.source_data, row.target_data) == ("cifar10", "svhn")
    ]
    assert [(r.clean, r.robust) for r in again] == [(r.clean, r.robust) for r in vanilla]


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4"])
def test_every_line_of_the_paper_has_its_run_in_the_sweep(
    table: TableName, cartl: Command, runs: Runs
) -> None:
    made: dict[str | None, Run] = {}
    for point in plan(*open_spec(table), "now", lambda config: config, runs.folder)[0].points:
        settings = point.config.model_dump(exclude={"source", "run"})
        if point.kind == "pretrain":
            made[point.id] = runs.pretrain(point.run, **settings)
        elif point.kind == "transfer":
            made[point.id] = runs.transfer(made[point.needs], point.run, **settings)
        else:
            runs.attack(made[point.needs], point.run, 800, 200, 250, **settings)
    rows, _ = rows_of(find_results([], runs.folder).results)
    lines = beside_paper(rows, table)
    assert lines
    assert [line.published for line in lines if line.ours is None] == []
    for line in lines:  # but for the pretended test images and the version of GTSRB
        signs = "gtsrb" in (line.published.source_data, line.published.target_data)
        assert {said for said in line.differs if "not told" not in said} == {
            f"n = 1000, paper n = {read_paper().test_images[line.published.target_data]}",
            *(["26,640 training images of gtsrb, paper 39,209"] if signs else []),
        }


def test_the_paper_beside_ours_says_what_differs(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source", dataset="cifar100", k=6, fdm_lambda=0.005)
    target = runs.transfer(source, "target", dataset="cifar10", neft_beta=0.4, fraction=0.1)
    runs.attack(target, "attack", 800, 200, 250, attack=["pgd"], pgd_steps=20, eps=[4 / 255])
    lines = report(cartl, "--against", "paper", "--table", "table2")["paper"]
    assert len(lines) == 18
    (ours,) = [line for line in lines if line["ours"]]
    assert (ours["k"], ours["fdm_lambda"], ours["neft_beta"]) == (6, 0.005, 0.4)
    assert ours["ours"]["robust"] == 0.25
    assert set(ours["ours"]["differs"]) == {
        "wrn-16-1, paper wrn-34-10",
        "n = 1000, paper n = 10000",
        "fraction 0.1, paper fraction 1",
        "eps 4/255, paper eps 8/255",
        "20 steps, paper 100 steps",
    }
    shown = " ".join(cartl("report", "--against", "paper", "--format", "markdown").out.split())
    assert "87.79" in shown
    assert "-7.8" in shown
    rows, _ = rows_of(find_results([], runs.folder).results)
    assert {beside.published.table for beside in beside_paper(rows, None)} == {"table2", "table3"}


def test_only_distances_of_pixels_are_told_in_255ths(runs: Runs) -> None:
    source = runs.pretrain("source", lr=0.2, eps=51 / 255)
    words = command_of(source)
    assert "--eps 51/255" in words
    target = runs.transfer(source, "target", lr=0.4, method="at", step_size=2 / 255)
    words = command_of(target)
    assert "--lr 0.4" in words
    assert "--step-size 2/255" in words


def test_commands_make_the_same_settings(runs_dir: Path, tmp_path: Path, cartl: Command) -> None:
    """What a command line is read as is what was stored: for the commands of real and odd runs."""
    from cartl_cli.core.config.configure import configure

    runs = Runs(tmp_path / "odd")
    trained: Json = {"dataset": "a 'b' $c", "classes": ("x", "y"), "eps": 0.1 / 3, "augment": ()}
    trained |= {"milestones": (1, 2), "step_size": 2 / 255, "lr": 0.1}
    trained |= {"fdm_at": "2,4,6", "fdm_lambda": 0.005}
    source = runs.pretrain("source", **trained)
    odd: Json = {"dataset": 'pictures, "new"', "seed": 4}
    target = runs.transfer(source, "target", lwf_lambda=0.01, head_first=3, **odd)
    made: Json = {"eps": [0.01, 8 / 255], "norm": "l2", "attack": ["pgd", "square"], "limit": 10}
    attacked = runs.attack(target, "attack", 9, (5, 3), n=10, diagnose=True, **made)
    real = [read_run(runs_dir / name) for name in ("source", "target")]
    for run in (source, target, attacked, *real):
        config = run.manifest.config
        program, kind, *words = shlex.split(command_of(run))
        assert (program, kind) == ("cartl", run.manifest.kind)
        settings: Json = {}
        if kind == "attack":
            settings["run"] = words.pop(0)
        while words:
            name = words.pop(0).removeprefix("--").replace("-", "_")
            is_switch = name in ("diagnose", "save_adversarial")
            settings[name] = True if is_switch else words.pop(0)
        assert settings.pop("name") == run.name
        again: Any = configure(type(config), settings)
        assert again.model_dump() == config.model_dump()


# Formats and their sinks


@pytest.mark.parametrize("row", HOSTILE)
def test_z16_z17_z18_z19_z20_z21_names_are_text_in_every_format(
    cartl: Command, runs: Runs, row: str
) -> None:
    name = HOSTILE[row]
    pair(runs, "plain")
    source = runs.pretrain("source", dataset=name)
    target = runs.transfer(source, name.replace("/", "-"), dataset=f"{name}!")
    runs.attack(target, "attack", 900, 300, 350)
    runs.attack(target, f"{name.replace('/', '-')}2", 900, 300, status="failed")
    shown = name.encode("unicode_escape").decode() if row == "z20" else name
    out = {form: cartl("report", "--format", form).out for form in FORMS}
    for form, text in out.items():
        assert "\x1b" not in text, form
        assert "\u202e" not in text, form
        assert "\x07" not in text, form
    assert shown[:6] in out["table"]  # the rest may be folded
    page = parsed(out["html"])
    assert page.tags.count("script") == 1
    assert not {"b", "a", "em"} & set(page.tags)
    assert any(shown in text for text in page.texts)
    lines = list(csv.DictReader(io.StringIO(out["csv"])))
    assert shown in [line["source_data"].lstrip("'") for line in lines]
    values = [value for line in lines for value in line.values()]
    assert not any(value.startswith(("=", "+", "-", "@")) for value in values)
    assert name in [row["source_data"] for row in json.loads(out["json"])["results"]]
    check_latex(out["latex"])
    check_markdown(out["markdown"])


def check_latex(text: str) -> None:
    """Braces balanced, environments closed, every line of a table as long as its head."""
    assert text.isascii()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    body = body.replace("{!}{%\n", "{!}{\n")  # the one comment: no space before what is resized
    bare = re.sub(r"\\[\\{}$&#%_]", "", body)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert not re.findall(r"[#%~^]", bare)
    assert bare.count("$") % 2 == 0
    commands = set(re.findall(r"\\([a-zA-Z]+)", body.replace("\\\\", "")))
    assert commands <= LATEX_COMMANDS
    open_now: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        if what == "begin":
            open_now.append(name)
        else:
            assert open_now.pop() == name
    assert open_now == []
    tables = re.findall(r"\\begin\{tabular\}\{@\{\}(.*?)@\{\}\}(.*?)\\end\{tabular\}", body, re.S)
    assert tables
    for columns, table in tables:
        count = len(re.findall(r"[lr]|p\{[\d.]+em\}", columns))
        lines = table.split(r"\tabularnewline")[:-1]
        assert {re.sub(r"\\&", "", line).count("&") for line in lines} == {count - 1}


def check_markdown(text: str) -> None:
    """No line of a table has another number of cells than its head, and no HTML is left."""
    counts: set[int] = set()
    for line in text.splitlines():
        if line.startswith("|"):
            counts.add(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)))
        else:
            assert len(counts) <= 1
            counts = set()
        assert not re.search(r"<\w", line)
        assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[]", line)


FORMS = ("table", "markdown", "latex", "csv", "json", "html")
LATEX_COMMANDS = {
    *("begin", "end", "centering", "small", "caption", "toprule", "midrule", "bottomrule", "par"),
    *("footnotesize", "scriptsize", "textbackslash", "textasciitilde", "textasciicircum"),
    *("textless", "textgreater", "textbar", "textquotedbl", "textquotesingle"),
    *("textasciigrave", "textdagger", "ldots", "beta", "lambda", "pm", "le", "ge", "to", "ell"),
    *("infty", "times", "sigma", "resizebox", "ifdim", "width", "linewidth", "else", "fi"),
    *("smallskip", "tabularnewline", "raggedright", "allowbreak", "clearpage"),
}


def test_z22_a_long_name_is_cut_but_whole_in_json(cartl: Command, runs: Runs) -> None:
    name = "x" * 10_000
    runs.attack(runs.transfer(runs.pretrain("s", dataset=name), "t"), "attack", 900, 300)
    assert report(cartl)["results"][0]["source_data"] == name
    for form in ("table", "markdown", "latex"):
        text = cartl("report", "--format", form).out
        assert "x" * 61 not in text
        assert len(text) < 5_000
    assert all(len(line) <= 100 for line in cartl("report").out.splitlines())


def test_formats_hold_the_same_numbers(cartl: Command, tmp_path: Path) -> None:
    paper_like(tmp_path / "runs", seeds=2, ks=(4, 6))
    every = ",".join(FORMS)
    more = ("--baseline", "vanilla", "--against", "paper", "--table", "table3")
    done = cartl(
        "report", "--format", every, "--out", "out", "--plot", "tradeoff,k,fraction", *more
    )
    assert done.code == 0, done.err
    endings = ("txt", "md", "tex", "csv", "json", "html")
    text = {end: (tmp_path / "out" / f"report.{end}").read_text() for end in endings}
    rows = json.loads(text["json"])["results"]
    lines = list(csv.DictReader(io.StringIO(text["csv"])))
    assert len(rows) == len(lines) == 7
    for row, line in zip(rows, lines, strict=True):
        assert float(line["robust_mean"]) == row["robust"]["mean"]
        shown = f"{100 * row['robust']['mean']:.1f}"
        assert all(shown in text[end] for end in ("txt", "md", "tex", "html"))
    check_latex(text["tex"])
    check_markdown(text["md"])
    page = parsed(text["html"])
    assert len(page.addresses) == 2  # trade-off and k; there is one fraction
    for command in rows[0]["commands"]:
        assert any(command in one for one in page.texts)
    for name in ("tradeoff", "k", "fraction"):
        starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
        for ending, start in starts.items():
            assert (tmp_path / "out" / f"{name}.{ending}").read_bytes().startswith(start)


def test_z33_a_page_needs_nothing_from_elsewhere(cartl: Command, runs: Runs) -> None:
    source = runs.pretrain("source", dataset="http://x/../../y.png")
    runs.attack(runs.transfer(source, "target", dataset="file:///z.png"), "attack", 900, 300)
    page = parsed(cartl("report", "--format", "html").out)
    assert page.addresses
    assert all(one.startswith("data:image/svg+xml;base64,") for one in page.addresses)
    assert "link" not in page.tags


def test_z32_without_matplotlib_there_are_tables(
    cartl: Command, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(runs)
    for name in ("report_plots", "attack_plots"):
        monkeypatch.delitem(sys.modules, f"cartl_cli.display.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cartl("report", "--format", "html")
    assert done.code == 0
    assert "No pictures without matplotlib" in done.out
    done = cartl("report", "--plot", "k", "--out", "out")
    assert done.code == 2
    assert "needs matplotlib" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param("--format pdff", "no 'pdff'; choose from table, markdown", id="Z11"),
        pytest.param("--format html --out out.csv", "must be a folder", id="Z12"),
        pytest.param("--format html --out old", "exists; --force", id="Z13"),
        pytest.param("--format html --out runs/target", "would change run 'target'", id="Z14"),
        pytest.param("--format html --out runs/target/x", "would change run 'target'", id="Z14-in"),
        pytest.param("--format html --out -", "must be a folder", id="Z15"),
        pytest.param("--format html,csv", "need --out FOLDER", id="Z15-several"),
        pytest.param("--plot k", "needs --out FOLDER", id="Z15-plot"),
        pytest.param("--plot foo --out x", "no 'foo'; choose from tradeoff, k", id="plot"),
        pytest.param("--out a/b/c", "parent folder missing", id="parent"),
        pytest.param("--table table1", "goes with --against", id="table"),
        pytest.param("--against paper --table table9", "choose table1", id="no-table"),
        pytest.param("--against me", "choose paper", id="against"),
    ],
)
def test_refused(cartl: Command, runs: Runs, tmp_path: Path, arguments: str, says: str) -> None:
    pair(runs)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.html").write_text("mine")
    done = cartl("report", *arguments.split())
    assert done.code == 2, done.err
    assert says in done.err
    assert done.out == ""
    assert (tmp_path / "old" / "report.html").read_text() == "mine"
    assert [path.name for path in (runs.folder / "target").iterdir()] == ["manifest.json"]


def test_force_writes_over_an_older_report(cartl: Command, runs: Runs, tmp_path: Path) -> None:
    pair(runs)
    for more in ((), ("--force",)):
        assert cartl("report", "--format", "csv", "--out", "out", *more).code == 0
    assert cartl("report", "--format", "csv", "--out", "out").code == 2


def test_z30_many_runs_are_read_without_torch(runs: Runs, tmp_path: Path) -> None:
    """What takes time and memory, loading torch, is not done, whatever the number of runs."""
    pair(runs)
    code = (
        "import sys\nsys.argv = ['cartl', 'report', '--format', 'html']\n"
        "from cartl_cli.app import main\ntry:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "<!doctype html>" in done.stdout


def test_real_runs_are_reported(cartl: Command, runs_dir: Path, tmp_path: Path) -> None:
    for name in ("source", "target"):
        shutil.copytree(runs_dir / name, tmp_path / "runs" / name)
    for name in ("source", "target"):
        assert cartl("attack", name, "--pgd-steps", 1, "--checks", "off").code == 0
    numbers = [
        read_run(tmp_path / "runs" / name).attack_results for name in ("003-attack", "004-attack")
    ]
    rows = report(cartl, "3", "004-attack")["results"]
    found = {row["method"]: row["robust"]["mean"] for row in rows}
    assert found == {
        "source": numbers[0].by_eps[-1].robust_accuracy,
        "CARTL": numbers[1].by_eps[-1].robust_accuracy,
    }
    value = report(cartl, "--baseline", "003-attack")
    assert "no paired test" in reasons(value)["004-attack"]


def lines_of(runs: Runs) -> tuple[list[str], list[str], str]:
    """Of each line of the results its text under the method, its key; all notes as a text."""
    sheet = results_sheet(rows_of(find_results([], runs.folder).results)[0])
    methods = [line[sheet.heads.index("method")].small for line in sheet.rows]
    has_key = "key" in sheet.heads
    keys = [line[sheet.heads.index("key")].text for line in sheet.rows] if has_key else []
    return methods, keys, "\n".join(sheet.notes)


def test_what_lines_share_is_said_once(tmp_path: Path) -> None:
    """For all, for a method, or in the line itself: nothing that two lines differ in is lost."""
    runs = paper_like(tmp_path / "runs", seeds=1, ks=(6,))
    methods, keys, notes = lines_of(runs)
    assert methods == [""] * 4
    assert keys == []
    assert "In every line: shapes → shapes-target; k 6; eps 8/255" in notes
    assert "CARTL: λ FDM 0.005; freeze-bn affine; β 0.4." in notes
    assert "LwF: λ FDM 0; freeze-bn none; λ LwF 0.01." in notes
    fdm = read_run(runs.folder / "fdm-k6-0")
    more = runs.transfer(fdm, "other", neft_beta=0.8, lr=0.5)
    runs.attack(more, "other-attack", 900, 300)
    methods, _, notes = lines_of(runs)
    assert [text for text in methods if "β" in text] == [
        "β 0.4, lr 0.02",
        "β 0.4, lr 0.02",
        "β 0.8, lr 0.5",
    ]
    assert "β" not in notes


def test_attacks_that_differ_have_letters(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    source = runs.pretrain("source")
    vanilla, neft = runs.transfer(source, "v"), runs.transfer(source, "n", neft_beta=0.4)
    runs.attack(vanilla, "a", 900, 300, attack=["pgd"], pgd_steps=20)
    runs.attack(neft, "b", 900, 300, attack=["pgd"], pgd_steps=100)
    runs.attack(neft, "c", 450, 150, attack=["autoattack"], n=500, limit=500)
    _, keys, notes = lines_of(runs)
    assert keys == ["a", "b", "c"]
    assert "Key a: ℓ∞ pgd; 20 steps; 1 restart; test images; n 1000." in notes
    assert "Key c: ℓ∞ pgd; 100 steps; 1 restart; test images; n 1000." in notes
    assert "Key b: ℓ∞ autoattack; test images, a subset drawn by seed 0; n 500." in notes


def test_every_line_of_many_conditions_is_unlike_every_other(tmp_path: Path) -> None:
    """Two lines never look the same: their settings, keys, and the notes on their method."""
    runs = Runs(tmp_path / "runs")
    sources = [runs.pretrain("at"), runs.pretrain("fdm", fdm_lambda=0.005, k=6)]
    trained: list[Json] = [
        {},
        {"freeze_bn": "none"},
        {"fraction": 0.1},
        {"lr": 0.1},
        {"neft_beta": 0.4},
        {"neft_beta": 0.4, "freeze_bn": "all"},
        {"lwf_lambda": 0.1},
        {"dataset": "cifar10", "k": 3},
    ]
    attacks: list[Json] = [{}, {"restarts": 2}, {"fingerprint": "0" * 64}, {"norm": "l2"}]
    for place, source in enumerate(sources):
        for number, settings in enumerate(trained):
            target = runs.transfer(source, f"t{place}-{number}", **settings)
            for attack, conditions in enumerate(attacks):
                runs.attack(target, f"a{place}-{number}-{attack}", 900, 300, **conditions)
    sheet = results_sheet(rows_of(find_results([], runs.folder).results)[0])
    told = sheet.heads.index("clean %")
    seen = {tuple((one.text, one.small) for one in line[:told]) for line in sheet.rows}
    assert len(seen) == len(sheet.rows) == len(sources) * len(trained) * len(attacks)


def test_a_table_is_as_wide_as_the_terminal_and_numbers_are_whole(tmp_path: Path) -> None:
    runs = paper_like(tmp_path / "runs", seeds=2, ks=(4, 6))
    far = runs.pretrain("far", dataset="/somewhere/" + "x" * 70, k=4)
    runs.attack(runs.transfer(far, "far-t", freeze_bn="stats"), "far-a", 900, 300, restarts=3)
    sheet = results_sheet(rows_of(find_results([], runs.folder).results)[0])
    for width in (24, 40, 60, 70, 80, 100):
        text = printed(sheet, width)
        assert max(map(len, text.splitlines())) <= width
        for line in sheet.rows:
            for cell, right in zip(line, sheet.numeric, strict=True):
                assert not right or (cell.text in text and cell.small in text)
    assert max(map(len, printed(sheet, 200).splitlines())) < 200


def test_a_table_too_wide_for_the_terminal_is_lines_of_names_and_values(tmp_path: Path) -> None:
    runs = paper_like(tmp_path / "runs", seeds=2, ks=(4, 6))
    sheet = results_sheet(rows_of(find_results([], runs.folder).results)[0])
    text = "".join(printed(sheet, 24).split())
    for line in sheet.rows:
        said = [
            f"{head}:{cell.text}" + (f"({cell.small})" if cell.small else "")
            for head, cell in zip(sheet.heads, line, strict=True)
            if cell.text
        ]
        assert "".join("".join(said).split()) in text


def printed(sheet: Sheet, width: int) -> str:
    """A sheet on a terminal of so many columns."""
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_table(sheet, width))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_long_tables_for_a_paper_are_cut_into_pages(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    source = runs.pretrain("source")
    for number in range(45):
        target = runs.transfer(source, f"t{number}", neft_beta=(number + 1) / 100)
        runs.attack(target, f"a{number}", 900, 300)
    rows, _ = rows_of(find_results([], runs.folder).results)
    text = latex(Report(tuple(rows), (), (), None, None, ()))
    check_latex(text)
    assert text.count(r"\begin{table}") == 3
    assert text.count("(continued)") == text.count(r"\clearpage") == 2
    assert text.count("In every line") == 1


def test_a_setting_with_one_point_is_left_out_where_there_are_lines(tmp_path: Path) -> None:
    from cartl_cli.display.report_plots import over_k

    runs = Runs(tmp_path / "runs")
    source = runs.pretrain("source")
    for number, (k, beta) in enumerate(((4, 0.4), (6, 0.4), (6, 1.0))):
        runs.attack(runs.transfer(source, f"t{number}", k=k, neft_beta=beta), f"a{number}", 90, 30)
    rows, _ = rows_of(find_results([], runs.folder).results)
    (axes,) = over_k(rows).axes
    assert [len(line[0].get_xydata()) for line in axes.containers] == [2, 2]  # clean, robust
    assert "left out, with one k alone: 1" in axes.get_title()
    (axes,) = over_k([row for row in rows if row.setting.k == 6]).axes
    assert [len(line[0].get_xydata()) for line in axes.containers] == [1, 1] * 2
    assert "left out" not in axes.get_title()


def test_pictures_show_the_rows(tmp_path: Path) -> None:
    from cartl_cli.display.report_plots import over_k, tradeoff

    paper_like(tmp_path / "runs", seeds=2, ks=(4, 6, 8))
    rows, _ = rows_of(find_results([], tmp_path / "runs").results)
    (axes,) = tradeoff(rows).axes
    points = {(float(x), float(y)) for line in axes.containers for x, y in line[0].get_xydata()}
    assert points == {(100 * row.clean.mean, 100 * row.robust.mean) for row in rows}
    assert {text.get_text() for text in axes.texts} == {"k=4", "k=6", "k=8"}
    assert {line.get_label() for line in axes.containers} == {"vanilla", "NEFT", "CARTL", "LwF"}
    (axes,) = over_k(rows).axes
    found = {line.get_label(): line for line in axes.containers}
    cartl = found["CARTL"][0].get_xydata()  # λ and β of all lines of a method are in the notes
    ours = [row for row in rows if row.setting.method == "CARTL"]
    assert cartl.tolist() == [[row.setting.k, 100 * row.robust.mean] for row in ours]


def test_the_trade_off_tells_settings_of_one_method_apart(tmp_path: Path) -> None:
    """Colour and marker are the method's, what is white of it the setting's; the legend says it."""
    from cartl_cli.display.report_plots import curves, tradeoff

    runs = Runs(tmp_path / "runs")
    source = runs.pretrain("source")
    for beta in (0.4, 1.0):
        for k in (4, 6):
            target = runs.transfer(source, f"n{beta}-{k}", k=k, neft_beta=beta)
            runs.attack(target, f"a{beta}-{k}", 800 + 10 * k, 300)
    for number in range(20):
        target = runs.transfer(source, f"v{number}", k=6, lr=0.01 * (number + 1))
        runs.attack(target, f"va{number}", 900, 300 - number)
    rows, _ = rows_of(find_results([], runs.folder).results)
    few = [row for row in rows if row.setting.method == "NEFT"]
    figure = tradeoff(few)
    (axes,) = figure.axes
    first, second = (one[0] for one in axes.containers)
    assert [one.get_label() for one in axes.containers] == ["NEFT, beta 0.4", "NEFT, beta 1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "NEFT, beta 0.4",
        "NEFT, beta 1",
    ]
    assert len(first.get_xydata()) == len(second.get_xydata()) == 2  # a point for each k
    assert first.get_color() == second.get_color()
    assert first.get_marker() == second.get_marker()
    assert first.get_markerfacecolor() != second.get_markerfacecolor()
    (axes,) = tradeoff([row for row in rows if row.setting.method == "vanilla"][:12]).axes
    looks = {
        (line[0].get_markerfacecolor(), line[0].get_fillstyle(), line[0].get_markersize())
        for line in axes.containers
    }
    assert len(looks) == 12
    assert curves(rows, ["tradeoff"]).keys() == {f"tradeoff.{x}" for x in ("png", "svg", "pdf")}
