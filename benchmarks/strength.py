"""How close ``--attack strong`` comes to AutoAttack, and in what part of its forward passes.

    python -m benchmarks.strength --runs-dir demo-runs                     all finished targets
    python -m benchmarks.strength cartl-0 --runs-dir demo-runs --limit 200
    python -m benchmarks.strength --runs-dir runs --device cuda --jobs 16

AutoAttack and ``strong`` attack the same images of each model, all of them at once, each in its own
number format. *One round* is ``strong`` with a third of the steps towards each of nine classes and
no second round. Passes are images that went through the network; AutoAttack makes all four attacks.
Writes docs/figures/strength.json, and prints the table of docs/strength.md.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.commands import machine, progress
from cartl_cli.core.attacks import apgd
from cartl_cli.core.attacks.apgd import ROUNDS, Round
from cartl_cli.core.attacks.contract import WRONG_CLASSES
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.evaluation.targets import set_up
from cartl_cli.core.evaluation.verdicts import robustness, unattacked
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs import reader
from cartl_cli.core.runs.writer import Session

WAYS: dict[str, tuple[str, tuple[Round, ...]]] = {
    "autoattack": ("autoattack", ()),
    "one round": ("strong", (Round(-math.inf, WRONG_CLASSES, 1 / 3),)),
    "strong": ("strong", ROUNDS),
}
"""Each an attack of ``cartl attack``, and its rounds."""


@dataclass(frozen=True)
class Found:
    """What one way found: which images are right when clean (N,), and which stand (N,)."""

    clean: Tensor
    stands: Tensor
    passes: int
    seconds: float


def measure(runs_dir: Path, limit: int, device: str, name: str) -> dict[str, Any]:
    """One run, attacked in each way."""
    found = {way: attacked(runs_dir, limit, device, name, way) for way in WAYS}
    row = {"run": name, **counts(found)}
    progress.print(json.dumps(row), markup=False, soft_wrap=True)
    return row


def attacked(runs_dir: Path, limit: int, device: str, name: str, way: str) -> Found:
    """``limit`` images of the run, at once, with 100 steps."""
    attack, rounds = WAYS[way]
    run = reader.find_run(name, runs_dir, "RUN", ("pretrain", "transfer", "import"))
    config = AttackConfig(
        run=name, attack=(attack,), limit=limit, batch_size=limit, device=device, checks="off"
    )
    setup = set_up(config, run, Session(runs_dir, None, NOWHERE, progress.print))
    with counted(setup.model) as passes, mock.patch.object(apgd, "ROUNDS", rounds):
        began = time.perf_counter()
        verdicts = unattacked(setup.model, setup.split, setup.plan)
        for _ in robustness(setup.model, setup.split, setup.plan, setup.autocast, verdicts):
            pass
        stands = verdicts.worst(0).cpu()
        seconds = time.perf_counter() - began
    return Found(verdicts.clean.cpu(), stands, sum(passes), seconds)


def counts(found: dict[str, Found]) -> dict[str, Any]:
    """Of n images how many are right when clean and, by way, how many stand.

    ``missed`` fell to AutoAttack and not to this way, ``alone`` the other way round.
    """
    theirs = found["autoattack"].stands
    by_way = {
        way: {
            "stand": int(one.stands.sum()),
            "missed": int((one.stands & ~theirs).sum()),
            "alone": int((~one.stands & theirs).sum()),
            "passes": one.passes,
            "seconds": one.seconds,
        }
        for way, one in found.items()
    }
    return {"n": len(theirs), "clean": int(found["strong"].clean.sum()), **by_way}


@contextmanager
def counted(model: BlockModel) -> Iterator[list[int]]:
    """How many images go at once through the model, or through a copy of it, pass by pass."""
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    yield passes
    hook.remove()


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line for each run; gaps in points of accuracy above AutoAttack."""
    lines = [
        "| model | n | clean | AutoAttack | one round | strong | passes of strong |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            percent(row[name] if name == "clean" else row[name]["stand"], row)
            for name in ("clean", "autoattack")
        ]
        cells += [f"{gap(row, way):+.2f}" for way in ("one round", "strong")]
        lines.append(f"| {row['run']} | {row['n']} | {' | '.join(cells)} | 1/{part(row):.1f} |")
    for way in list(WAYS)[1:]:
        gaps = [gap(row, way) for row in rows]
        missed, alone = (sum(row[way][which] for row in rows) for which in ("missed", "alone"))
        lines.append(
            f"\n{way}: {mean(gaps):+.3f} points above AutoAttack on average, {max(gaps):+.2f} at "
            f"most, 1/{mean(part(row, way) for row in rows):.1f} of its passes; {missed} images "
            f"fell to AutoAttack alone, {alone} to {way} alone"
        )
    return "\n".join(lines)


def percent(count: int, row: dict[str, Any]) -> str:
    return f"{100 * count / row['n']:.1f} %"


def gap(row: dict[str, Any], way: str) -> float:
    return float(100 * (row[way]["stand"] - row["autoattack"]["stand"]) / row["n"])


def part(row: dict[str, Any], way: str = "strong") -> float:
    """How many times the passes AutoAttack makes."""
    return float(row["autoattack"]["passes"] / row[way]["passes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="finished targets (default: all)")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time")
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/strength.json"))
    options = parser.parse_args()
    names = options.runs or sorted(
        path.parent.name
        for path in options.runs_dir.glob("*/manifest.json")
        if (manifest := json.loads(path.read_text()))["kind"] == "transfer"
        and manifest["status"] == "completed"
    )
    rows: list[dict[str, Any]] = []
    work = partial(measure, options.runs_dir, options.limit, options.device)
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(work, names):
            rows.append(row)
            options.out.write_text(
                json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n"
            )
    print(f"{markdown(rows)}\n\n{machine()}")


if __name__ == "__main__":
    main()
