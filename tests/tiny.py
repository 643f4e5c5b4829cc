"""The three commands so small that hundreds of them run in a minute, and what they leave."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

TRAINED = "--dataset ../images --batch-size 4 --epochs 2 --lr 0.05 --save-every 1 --device cpu"
SOURCE = f"pretrain {TRAINED} --image-size 8 --arch wrn-10-1 --k 3 --pgd-steps 2 --fdm-lambda 0.01"
COMMANDS = {
    "pretrain": f"{SOURCE} --name pretrain",
    "fast": f"{SOURCE} --method fast --awp-gamma 0.01 --ema 0.5 --name fast",
    "free": f"{SOURCE} --method free --replays 2 --name free",
    "neft": f"transfer {TRAINED} --source source --neft-beta 0.4 --freeze-bn affine --name neft",
    "vanilla": f"transfer {TRAINED} --source source --freeze-bn none --name vanilla",
    "attack": "attack source --attack pgd,pgd-margin --pgd-steps 2 --batch-size 4 --eps 2/255 "
    "--save-every 1 --checks off --device cpu --name attack",
}
COMMANDS["saving"] = COMMANDS["attack"].replace("--name attack", "--save-adversarial --name saving")
STEPS = 6  # of each training but ``free``; an epoch has three
BATCHES = 4  # of the attack


def command(name: str) -> list[str]:
    """The arguments of one of ``COMMANDS``, whose run gets the same name."""
    return COMMANDS[name].split()


def resume(name: str) -> list[str]:
    """The arguments that go on with its run."""
    return [command(name)[0], "--resume", name]


def make_images(root: Path) -> None:
    """Two classes of noise, six images each to train on and four to measure."""
    draws = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("test", 4)):
        for place, label in enumerate(("dark", "light")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                noise = torch.randint(0, 128, (8, 8, 3), generator=draws) + 100 * place
                Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{index}.png")


def scene(template: Path, place: Path) -> Path:
    """A fresh copy of a folder of runs, beside the images; the folder to run commands in."""
    if template.exists():
        shutil.copytree(template, place / "runs")
    place.mkdir(exist_ok=True, parents=True)
    return place


def left(folder: Path) -> dict[str, Any]:
    """Everything a finished run has made, as digests; times left out."""
    manifest = json.loads((folder / "manifest.json").read_text())
    results = {k: v for k, v in manifest["results"].items() if k != "seconds"}
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("ckpt-*/*.safetensors")])
    files += [*folder.glob("metrics.jsonl"), *sorted(folder.glob("adversarial/*/*.png"))]
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    return {"status": manifest["status"], "results": results, **digests}


def orphans(root: Path) -> list[str]:
    """Temporary names that nobody removed."""
    return [str(path.relative_to(root)) for path in root.rglob("*.tmp-*")]
