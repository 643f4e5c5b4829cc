"""Eleven small commands and what they leave, to hold one version of cartl against another.

    python -m benchmarks.same_bytes before/      with the one version
    python -m benchmarks.same_bytes after/       with the other, on the same machine
    diff -r before after                         nothing, where both do the same

Every method of pretrain, the methods and batch-norm cases of transfer, an attack with all attacks
and every check, and a sweep with its report. Each command leaves a text file: the sha256 of its
weights or verdicts, its metrics and results, and what it printed. Times, dates, ids and settings
are left out: a version may have settings that another has not. It takes some minutes.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = "--classes disk,square,bar --epochs 2 --batch-size 32 --seed 3 --device cpu"
SOURCE = f"{SMALL} --arch wrn-10-1 --k 3 --pgd-steps 2 --val-fraction 0.1"
RESIDUAL = (
    SOURCE.replace("wrn-10-1", "resnet-18")
    .replace("--epochs 2", "--epochs 1")
    .replace(",square,bar", ",bar")
)
TARGET = f"{SMALL.replace('disk,square,bar', 'ring,frame,grid')} --source at"
ATTACKS = "pgd,fgsm,pgd-margin,apgd-ce,apgd-t,square,feature,autoattack"
COMMANDS = {
    "at": f"pretrain {SOURCE} --fdm-lambda 0.01",
    "fast": f"pretrain {SOURCE} --method fast --ema 0.9",
    "free": f"pretrain {SOURCE} --method free --replays 2 --fdm-lambda 0.01",
    "trades": f"pretrain {SOURCE} --method trades --awp-gamma 0.01 --lr 0.05",
    "natural": f"pretrain {RESIDUAL} --method natural --lr 0.05",
    "vanilla": f"transfer {TARGET}",
    "neft": f"transfer {TARGET} --neft-beta 0.4 --freeze-bn affine --fraction 0.5",
    "lwf": f"transfer {TARGET} --lwf-lambda 0.05 --freeze-bn none --augment flip",
    "stats": f"transfer {TARGET} --neft-beta 1 --freeze-bn stats --k 2",
    "attack": f"attack neft --attack {ATTACKS} --eps 4/255,8/255 --pgd-steps 6 --restarts 2 "
    "--queries 20 --limit 8 --checks thorough --diagnose --save-adversarial --plot --device cpu",
}
SWEEP = """
table = "table1"
[base.pretrain]
arch = "wrn-10-1"
classes = ["disk", "square"]
epochs = 1
k = [2, 3]
pgd_steps = 1
[base.transfer]
classes = ["ring", "frame"]
epochs = 2
[base.attack]
pgd_steps = 2
attack = ["pgd", "strong"]
limit = 20
eps = [0.01, 0.02]
checks = "fast"
[methods.vanilla]
[methods.CARTL]
pretrain = {fdm_lambda = 0.005}
transfer = {neft_beta = 0.4}
[methods.LwF.transfer]
lwf_lambda = 0.1
"""
REPORT = "--baseline vanilla --against paper --plot tradeoff,k,fraction --out report"
FORMATS = "table,markdown,latex,csv,json,html"
PASSING = (
    r"\d+ s;",
    r"[\d,]+ images/s",
    r'"?seconds"?: ?[\d.e-]+',
    r"\d{4}-\d\d-\d\dT[\d:+]+",
    r"\d{4}-\d\d-\d\d",
)
"""Patterns of what is another at every run."""


def cartl(folder: Path, *arguments: str) -> str:
    """What a command prints, run in a folder, without times."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    paths = [str(Path(place).absolute()) for place in sys.path if Path(place or ".").is_dir()]
    ended = subprocess.run(
        [sys.executable, "-m", "cartl_cli", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    text = f"exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return timeless(text.replace(str(folder), "."))


def timeless(text: str) -> str:
    """The text without what is another at every run."""
    for pattern in PASSING:
        text = re.sub(pattern, "…", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def left(run: Path) -> str:
    """What a run folder holds: digests, metrics and results."""
    lines = []
    for path in sorted(run.rglob("*")):
        if path.suffix in (".safetensors", ".png", ".jsonl") and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{path.relative_to(run)} {digest}")
    manifest = json.loads((run / "manifest.json").read_text())
    for name in ("k", "model", "data", "results"):
        lines.append(f"{name} {timeless(json.dumps(manifest[name], sort_keys=True))}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, "sweep"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, command in COMMANDS.items():
            if options.only is None or name in (*options.only, "at"):
                printed = cartl(folder, *command.split(), "--name", name)
                kept = f"{printed}\n{left(folder / 'runs' / name)}\n"
                (options.out / f"{name}.txt").write_text(kept)
        if options.only is None or "sweep" in options.only:
            (folder / "small.toml").write_text(SWEEP)
            parts = [cartl(folder, "sweep", "small.toml", "--runs-dir", "grid")]
            for run in sorted((folder / "grid").glob("*-*/")):
                parts += [run.name, left(run)]
            parts.append(
                cartl(folder, *f"report small --runs-dir grid --format {FORMATS} {REPORT}".split())
            )
            for file in sorted((folder / "report").iterdir()):
                parts += [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
                if file.suffix in (".txt", ".md", ".tex", ".csv", ".json"):
                    parts.append(timeless(file.read_text()))
            (options.out / "sweep.txt").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
