"""What a user should know of a transfer, before it and after it."""

from collections.abc import Sequence

from torch import Tensor

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.data.split import Split
from cartl_cli.core.evaluation.confusion import and_more
from cartl_cli.core.runs.baselines import baselines
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.statistics import at_chance, chance, too_few

LOW = 0.8  # of the training images, and less is a training that stopped low


def remarks(config: TransferConfig, source: Run, k: int, blocks: int) -> list[str]:
    """What a user should know about this pairing of source, k and target."""
    manifest = source.manifest
    found = []
    fdm_ks = manifest.config.fdm_ks if isinstance(manifest.config, PretrainConfig) else ()
    if fdm_ks and k not in fdm_ks:
        found.append(
            f"source {source.name}: its feature distance was minimised for "
            f"k={','.join(map(str, fdm_ks))}, you use k={k}"
        )
    robust_at_all = "eps" in config.tuning.takes or any(one.all_blocks for one in config.additions)
    if k == blocks and not robust_at_all:
        found.append(f"k={k} tunes every block: no robust block is kept")
    seen, classes = source.seen, len(manifest.model.classes)
    clean = seen.clean_accuracy
    if clean is not None and at_chance(round(clean * seen.n), seen.n, seen.n // classes):
        found.append(
            f"warning: source {source.name} is itself at chance: it has {100 * clean:.1f} % clean "
            f"accuracy on its {classes} classes"
        )
    if manifest.config.dataset == config.dataset:
        found.append(f"source and target use the same data set {config.dataset}")
    return found


def class_by_class(right: Tensor, measured: Split, classes: Sequence[str]) -> str:
    """The worst class and the balanced accuracy, of images that are ``right`` (N,) when clean."""
    labels = measured.labels.cpu()
    images = labels.bincount(minlength=len(classes))
    met = images.nonzero().squeeze(1)
    shares = labels[right.cpu()].bincount(minlength=len(classes))[met] / images[met]
    worst = int(shares.argmin())
    named = and_more(classes[int(met[worst])], int((shares == shares[worst]).sum()))
    return (
        f"worst class: {named} ({100 * float(shares[worst]):.1f} %); balanced "
        f"accuracy, the mean of the classes: {100 * float(shares.mean()):.1f} %"
    )


def against_chance(results: TrainingResults, measured: Split) -> str:
    """What to say of a model that may be no better than always answering the largest class."""
    right, largest = round(results.clean_accuracy * results.n), measured.labels.bincount().max()
    return chance(right, results.n, int(largest))


def verdict(run: Run, measured: Split) -> list[str]:
    """Whether training stopped low or at chance, and what plain fine-tuning had."""
    found, results, config = [], run.results, run.training
    assert isinstance(config, TransferConfig)
    if guessed := against_chance(results, measured):
        largest = 100 * float(measured.labels.bincount().max()) / results.n
        found.append(
            f"warning: clean accuracy {guessed}; always answering with the largest class gives "
            f"{largest:.1f} %"
        )
    if few := too_few(results.n, round(results.clean_accuracy * results.n)):
        more = "; hold out more with --val-fraction, or make a test folder"
        found.append(few + more * (run.manifest.data.measured == "held-out"))
    if results.train_accuracy is not None and results.train_accuracy < LOW:
        found.append(
            f"warning: training stopped low: {100 * results.train_accuracy:.1f} % of the training "
            "images are right; try more --epochs, a larger --lr, a larger --k"
            + (" or a larger --neft-beta" if config.neft_beta else "")
        )
    for what, other in baselines(run).items():
        theirs = other.results.clean_accuracy
        found.append(
            f"beside {other.name}, {what}: {100 * results.clean_accuracy:.1f} % clean here, "
            f"{100 * theirs:.1f} % there"
        )
    return found
