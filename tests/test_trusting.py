import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cartl_cli.core.attacks.contract import STANDS, Batch, Outcome, by_batches
from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.evaluation import attack_run, trust_checks
from cartl_cli.core.evaluation.trust_checks import allowed
from cartl_cli.core.evaluation.verdicts import Plan, Verdicts, robustness
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import Check
from cartl_cli.core.runs.weights import read_model, read_source
from cartl_cli.core.trust.invariants import invariants
from cartl_cli.core.trust.probe import Probe
from cartl_cli.core.trust.tiers import CHECKS
from tests.conftest import Command

QUICK = ("--attack", "pgd", "--pgd-steps", 2, "--limit", 8, "--precision", "fp32")


@pytest.fixture
def copied(cartl: Command, runs_dir: Path) -> Path:
    """The tiny runs, to be damaged, in the folder where commands run."""
    shutil.copytree(runs_dir, "runs")
    return Path("runs")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Probe]:
    """What the checks are made on, filled as they are made."""
    found: list[Probe] = []

    def spied(probe: Probe, *rest: object) -> list[Check]:
        found.append(probe)
        return invariants(probe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trust_checks, "invariants", spied)
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_weights_that_change_while_they_are_attacked_void_the_number(
    cartl: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddled(*arguments: object) -> object:
        damage(copied / "source" / "model.safetensors")
        return robustness(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attack_run, "robustness", meddled)
    done = cartl("attack", "source", *QUICK, "--json", "--strict", "--name", "first")
    found = json.loads(done.out)
    assert (done.code, found["headline"]) == (1, "invalid")
    assert "V9" in done.err
    assert found["in_words"].startswith("INVALID: robust accuracy ≤ ")
    failed = [check["id"] for check in found["trust"] if check["verdict"] == "fail"]
    assert [name for name in failed if name.startswith("V")] == ["V9"]
    again = cartl("attack", "--resume", "first")
    assert "INVALID" in again.out
    assert f"≤ {100 * found['robust_accuracy']:.1f} %" not in again.out


def test_the_number_is_an_upper_bound_in_words_and_checks_come_in_order(
    cartl: Command, copied: Path
) -> None:
    settings = (*QUICK, "--eps", "4/255", "--final-iterate", "--json", "--name", "first")
    done = cartl("attack", copied / "source", *settings)
    found = json.loads(done.out)
    words = f"robust accuracy ≤ {100 * found['robust_accuracy']:.1f} % "
    assert words + "(upper bound under pgd; l-inf, eps 4/255, n = 8)" in found["in_words"]
    names = [check["id"] for check in found["trust"]]
    assert names[:12] == [f"V{number}" for number in range(1, 13) if number != 10] + ["K1"]
    assert names[12:] == ["K2", "K4", "K5", "K9", "K13", "K14", "K15"]
    (gap,) = [check["value"] for check in found["trust"] if check["id"] == "V7"]
    assert gap == pytest.approx(found["final_iterate_accuracy"] - found["robust_accuracy_ce"])
    assert "≤" in cartl("attack", "--resume", "first").out


def test_images_of_the_source_model_are_tried_where_it_is_still_there(
    cartl: Command, copied: Path
) -> None:
    attack = ("attack", "target", *QUICK, "--checks", "default", "--json", "--force")
    names = []
    for place in ("source", "elsewhere"):
        (copied / "source").rename(copied / place)
        done = cartl(*attack)
        assert done.code == 0
        names.append({check["id"] for check in json.loads(done.out)["trust"]})
    assert names[0] - names[1] == {"K10"}
    assert {"K3", "K6", "K7", "K18"} < names[1]


def test_the_source_model_is_known_by_name_and_by_hash(copied: Path) -> None:
    target = read_run(copied / "target")
    model, expected = read_source(target), read_model(read_run(copied / "source"))
    assert model is not None
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert read_source(read_run(copied / "source")) is None
    damage(copied / "source" / "model.safetensors")
    assert read_source(target) is None
    shutil.rmtree(copied / "source")
    assert read_source(target) is None
    shutil.copytree(copied / "target", copied / "source")
    assert read_source(target) is None


def test_thorough_checks_are_made_on_more_images(
    cartl: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(probe: Probe, tier: str, before_pass: object) -> list[Check]:
        seen.append((tier, probe.count, probe.k))
        return []

    monkeypatch.setattr(trust_checks, "checks_of", watched)
    for tier in ("fast", "thorough"):
        quick = ("--attack", "fgsm", "--pgd-steps", 2, "--precision", "fp32")
        assert cartl("attack", copied / "source", "--checks", tier, *quick).code == 0
    assert seen == [("fast", 128, 3), ("thorough", 150, 3)]


def test_several_eps_are_each_a_budget_of_its_own() -> None:
    plan = Plan(
        ("fgsm", "pgd"), tuple(Budget(eps, eps, 1) for eps in (0.0, 0.1, 0.3)), 1, 1, 1, 0, 8
    )
    fell_at = torch.full((3, 2, 4), STANDS)
    fell_at[0, 1, 0] = fell_at[1, 0, 1] = fell_at[2, 0, 1] = fell_at[2, 1, 2] = 1
    everything = torch.ones(4, dtype=torch.bool)
    verdicts = Verdicts(
        everything,
        torch.ones(4),
        fell_at,
        everything.expand(3, -1),
        torch.zeros(4, 4, dtype=torch.int32),
        torch.arange(0),
        torch.empty(0, 3, 8, 8),
    )
    assert allowed(plan, verdicts).tolist() == pytest.approx([0.0, 0.1, 0.3, 0.3])


@by_batches
def only_half(model: object, batch: Batch, budget: Budget, setting: object) -> Outcome:
    """An attack of a package: what it has of an image that stands is the image itself."""
    fallen = batch.indices % 2 == 0
    moved = torch.where(batch.images < 0.5, batch.images + budget.eps, batch.images - budget.eps)
    found = torch.where(fallen.view(-1, 1, 1, 1), moved, batch.images)
    return Outcome(found, torch.where(fallen, 0, STANDS), fallen)


def test_images_of_which_an_attack_tells_nothing_are_not_taken_for_unmoved(
    cartl: Command, copied: Path, seen: list[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = replace(EVALUATION_ATTACKS["autoattack"], code="tests.test_trusting:only_half")
    monkeypatch.setitem(EVALUATION_ATTACKS, "autoattack", theirs)
    for attacks in ("autoattack", "pgd-margin,autoattack"):
        done = cartl("attack", "source", "--attack", attacks, "--pgd-steps", 2, "--json")
        (verdict,) = [c["verdict"] for c in json.loads(done.out)["trust"] if c["id"] == "V3"]
        assert verdict == "pass", attacks
    alone, after_pgd = seen
    assert alone.allowed is not None
    right = alone.allowed[alone.standing]
    assert len(right) > 0
    assert not right.any()
    moved = (after_pgd.adversarial - after_pgd.images).abs().amax((1, 2, 3))
    assert (moved[after_pgd.standing] > 0).all()


def test_images_of_a_list_of_eps_are_checked_by_the_eps_they_fell_at(
    cartl: Command, copied: Path, seen: list[Probe]
) -> None:
    done = cartl("attack", "source", *QUICK, "--eps", "8/255,128/255", "--json", "--name", "first")
    (probe,) = seen
    assert probe.allowed is not None
    assert {round(255 * eps) for eps in probe.allowed.tolist()} == {8, 128}
    moved = (probe.adversarial - probe.images).abs().amax((1, 2, 3))
    assert (moved <= probe.allowed + 1e-6).all()
    (verdict,) = [c["verdict"] for c in json.loads(done.out)["trust"] if c["id"] == "V3"]
    assert verdict == "pass"


def test_an_attack_that_is_stopped_while_checked_goes_on_with_the_checks(
    cartl: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(probe: Probe) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        predict(probe.model, probe.images)
        raise AssertionError("the check goes on after the signal")

    straight = json.loads(cartl("attack", copied / "source", *QUICK, "--json").out)
    with monkeypatch.context() as patch:
        patch.setitem(CHECKS, "fast", (stop, *CHECKS["fast"]))
        done = cartl("attack", copied / "source", *QUICK, "--force", "--name", "stopped")
    assert done.code == 128 + signal.SIGTERM
    assert "interrupted while checking the attack, after its last batch; go on with" in done.err
    assert read_run(copied / "stopped").manifest.status == "interrupted"
    went_on = cartl("attack", "--resume", "stopped", "--json")
    assert "going on after batch" in went_on.err
    found = json.loads(went_on.out)
    for name in ("by_eps", "trust", "headline"):
        assert found[name] == straight[name]
