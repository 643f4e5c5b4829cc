"""How accurate and how robust an imported model is, and what that says of how it was read."""

from collections.abc import Callable

from torch import Tensor

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.data.split import DataSet, Split, stratified
from cartl_cli.core.evaluation.diagnosis import moved_by_pgd
from cartl_cli.core.evaluation.verdicts import Plan, clean_correct, robustness, share, unattacked
from cartl_cli.core.imports.unwrapping import Normalization
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.results import ImportResults
from cartl_cli.core.runtime.devices import autocast_for, resolve_precision
from cartl_cli.core.statistics import chance

USUAL = {
    "ImageNet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "-1 to 1": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""What networks are most often given, for one that comes without."""
BETTER = 0.1  # of the images right with another normalization, and more than without: told
MOVED = 32  # images of a look at how far features are moved
FEW_LEFT = 0.1  # of the images that are right when clean: a source with fewer is not robust


def measured(config: ImportConfig, data: DataSet) -> Split:
    """A seeded stratified part of the images, as ``cartl attack --limit`` takes it."""
    split = data.evaluation
    if len(split) <= config.limit:
        return split
    return split.part(stratified(split.labels, config.limit, config.seed, "limit"))


def look_at(
    config: ImportConfig, model: BlockModel, split: Split, attacked: Callable[[int], None]
) -> ImportResults:
    """Clean accuracy, accuracy under PGD, and how far that moves the features of each block."""
    budget = Budget(config.eps, config.eps / 4, config.pgd_steps)
    precision = resolve_precision(config.precision, split.labels.device)
    plan = Plan(("pgd",), (budget,), 1, 0, config.k, config.seed, config.batch_size, probe=0)
    found = unattacked(model, split, plan)
    attacked(0)
    autocast = autocast_for(split.labels.device, precision)
    for left in robustness(model, split, plan, autocast, found):
        attacked(len(split) - left)
    moved = moved_by_pgd(model, split, budget, config.seed, config.batch_size, MOVED)
    return ImportResults(
        clean_accuracy=share(found.clean),
        robust_accuracy=share(found.worst(0)),
        pgd_steps=config.pgd_steps,
        n=len(split),
        seconds=0,
        moved=moved,
    )


def judged(
    config: ImportConfig, model: BlockModel, split: Split, results: ImportResults, normalized: bool
) -> list[str]:
    """Whether the model is robust, and whether another normalization would suit it better."""
    found = []
    clean, robust = results.clean_accuracy or 0.0, results.robust_accuracy or 0.0
    right_ones, largest = round(clean * results.n), int(split.labels.bincount().max())
    if guessed := chance(right_ones, results.n, largest):
        found.append(
            f"warning: clean accuracy {100 * clean:.1f} % {guessed}; these may be other images "
            "than its own, --arch another network, or --classes in another order than its outputs"
        )
    if not normalized:
        rights = {name: right(config, model, split, usual) for name, usual in USUAL.items()}
        best = max(rights, key=lambda name: rights[name])
        if rights[best] > clean + BETTER:
            mean, std = (",".join(map(str, part)) for part in (USUAL[best].mean, USUAL[best].std))
            found.append(
                f"warning: no normalization is known; with that of {best} "
                f"{100 * rights[best]:.1f} % are right, not {100 * clean:.1f} %: look up what it "
                f"was trained with, such as --mean {mean} --std {std}"
            )
    if robust < FEW_LEFT * clean:
        found.append(
            f"warning: this source is not robust: PGD-{config.pgd_steps} at eps "
            f"{shown_pixels(config.eps)} leaves {100 * robust:.1f} % of {100 * clean:.1f} %; a "
            "transfer has no robustness to inherit from it"
        )
    return found


def right(config: ImportConfig, model: BlockModel, split: Split, usual: Normalization) -> float:
    """The share of images that are right with another normalization; the model is left as it is."""
    kept: tuple[Tensor, Tensor] = model.normalize.mean.clone(), model.normalize.std.clone()
    model.normalize.fix(usual.mean, usual.std)
    found = clean_correct(model, split, config.batch_size, split.labels.device)
    model.normalize.mean.copy_(kept[0])
    model.normalize.std.copy_(kept[1])
    return share(found)
