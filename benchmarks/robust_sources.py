"""Weights of robust models that were trained elsewhere, as finished runs to transfer from.

    python -m benchmarks.robust_sources FILE.safetensors... --dataset cifar10.zip --runs-dir runs

Each file becomes a ``pretrain`` run of the file's name, which ends with how it was trained (``at``
or ``fdm``). It holds weights under our own names, in float16. The accuracies are measured here, on
200 test images. Seconds and versions in the manifest are those of measuring, not of training.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.commands import progress
from cartl_cli.commands.session import located
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.data.split import stratified
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.manifest import ModelSpec, Position, Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.storage import cache_dir
from cartl_cli.core.training.source_model import FINAL_PGD_STEPS, measure
from cartl_cli.core.training.training_plan import TrainingPlan
from cartl_cli.core.training.training_run import begun, set_up

TRAINED: dict[str, Any] = {
    "arch": "wrn-28-4",
    "augment": ("crop", "flip"),
    "pgd_steps": 7,
    "eps": 8 / 255,
    "eps_warmup": 0,
    "epochs": 10,
    "batch_size": 256,
    "lr": 0.2,
}
WITH: dict[str, dict[str, Any]] = {"at": {}, "fdm": {"k": 6, "fdm_lambda": 0.0025}}
MEASURED = 200  # images: the same as ``cartl attack --limit 200`` takes


def source_run(file: Path, dataset: Path, runs_dir: Path) -> Run:
    """The finished run of a file's weights; one that is there is used again."""
    folder = runs_dir / file.stem
    stored = read_run(folder) if folder.exists() else None
    if stored and stored.manifest.status == "completed":
        return stored
    config = settings(file.stem, dataset)
    session = Session(runs_dir, file.stem, Place(cache_dir()), progress.print, stored)
    setup = set_up(config, config.preprocessing, session)
    model = read_weights(file, config.arch, len(setup.data.classes)).to(setup.device)
    plan = TrainingPlan(NaturalTraining(model))
    classes, preprocessing = setup.data.classes, config.preprocessing
    spec = ModelSpec(arch=config.arch, classes=classes, preprocessing=preprocessing)
    images = setup.data.evaluation
    some = images.take(stratified(images.labels, MEASURED, config.seed, "limit"))
    with begun(session, setup, model, plan, spec, config.k) as training:
        began = time.monotonic()
        found = measure(model, some.to(setup.device), config, setup.autocast, training)
        results = TrainingResults(
            clean_accuracy=found.clean_accuracy,
            robust_accuracy=found.robust_accuracy,
            pgd_steps=FINAL_PGD_STEPS,
            n=MEASURED,
            seconds=time.monotonic() - began,
        )
        run = training.finish(model, results, Position())
    read_model(run)  # refuses what is no sound model
    return run


def settings(name: str, dataset: Path) -> PretrainConfig:
    """How the weights of that name were trained."""
    how = WITH[name.rpartition("-")[2]]
    return located(PretrainConfig.model_validate({"dataset": str(dataset), **TRAINED, **how}))


def read_weights(file: Path, arch: str, classes: int) -> BlockModel:
    """The network of a file, ready to predict."""
    model: BlockModel = build_model(arch, classes)
    model.load_state_dict(load_file(file))  # into float32
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.safetensors")
    parser.add_argument("--dataset", type=Path, required=True, help="what they were trained on")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for file in options.files:
        run = source_run(file, options.dataset, options.runs_dir)
        found = run.results
        print(
            f"{run.name}: {found.clean_accuracy:.1%} clean, {found.robust_accuracy or 0:.1%} "
            f"under PGD-{found.pgd_steps}, {found.n} images"
        )


if __name__ == "__main__":
    main()
