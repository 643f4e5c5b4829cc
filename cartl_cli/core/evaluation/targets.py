"""What an attack begins with: the model, the images, the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cartl_cli.core.config import AttackConfig, ImportConfig, SplitName, own_eps
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.data.data_sets import DataChoice, choice_of, in_order, load_data_set
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.data.split import DataSet, Split, stratified
from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.evaluation.verdicts import Plan
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs import weights, writer
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import (
    autocast_for,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)

IMAGES: Mapping[str, int] = {"off": 128, "fast": 128, "default": 128, "thorough": 256}
"""On how many images the checks of each tier are made."""

SMALL_L2 = 0.05  # a tenth of what is usual at 32 pixels
LARGE_EPS = 16 / 255  # above it, a change of a colour image is plain to see


@dataclass(frozen=True)
class AttackSetup:
    """What an attack begins with: the ``model`` of the run ``attacked``, and a plan.

    ``split`` holds the images to attack, which are those numbered ``indices`` of ``data``.
    """

    attacked: Run
    model: BlockModel
    data: DataSet
    indices: Tensor
    split: Split
    plan: Plan
    device: torch.device
    precision: Literal["fp32", "bf16"]
    compile: bool

    @property
    def autocast(self) -> torch.autocast:
        """The number format of the gradients."""
        return autocast_for(self.device, self.precision)


def set_up(config: AttackConfig, attacked: Run, session: Session) -> AttackSetup:
    """Device, place, model and images of an attack, checked before any work.

    Raises UsageError, RunError or DataError.
    """
    for name in config.attacks:
        EVALUATION_ATTACKS[name].require_package()
    ranks = session.ranks
    device = resolve_device(config.device, ranks)
    keep_freed_memory()
    writer.check_place(session)
    model = weights.read_model(attacked).to(device)
    with ranks.in_turn():
        data = load_targets(config, attacked, session.place)
    indices = chosen_images(config, data.evaluation)
    return AttackSetup(
        attacked=attacked,
        model=model,
        data=data,
        indices=indices,
        split=data.evaluation.part(indices).to(device),
        plan=plan_of(config, attacked.manifest.k),
        device=device,
        precision=resolve_precision(config.precision, device),
        compile=bool(config.compile),
    )


def plan_of(config: AttackConfig, k: int) -> Plan:
    """What the settings ask for, on a model with a sub-model of ``k`` blocks."""
    budgets = tuple(
        Budget(eps, config.step(eps), config.pgd_steps, config.norm) for eps in config.eps
    )
    return Plan(
        config.attacks,
        budgets,
        config.restarts,
        config.queries,
        k,
        config.seed,
        config.batch_size,
        IMAGES[config.checks],
        config.save_adversarial,
        config.final_iterate and EVALUATION_ATTACKS[config.attacks[0]].to_the_end,
    )


def notes(config: AttackConfig, data: DataSet) -> list[str]:
    """What is unusual about an attack before it begins."""
    found, eps = [], config.eps[-1]
    for name in config.attacks if len(data.classes) < 4 else ():
        if different := EVALUATION_ATTACKS[name].few_classes:
            found.append(f"with fewer than 4 classes {name} {different}")
    if config.final_iterate and not EVALUATION_ATTACKS[config.attacks[0]].to_the_end:
        found.append(f"no last iterate, which is that of pgd: {config.attacks[0]} comes first")
    if config.norm == "linf" and eps > max(LARGE_EPS, own_eps(data.name)):
        found.append(f"eps {shown_pixels(eps)} is unusual for images of this kind")
    if config.norm == "l2" and eps < SMALL_L2:
        found.append(f"eps {shown_pixels(eps)} is so small in ℓ₂ that hardly an image can fall")
    return [f"note: {line}" for line in found]


def changed(config: AttackConfig, attacked: Run, data: DataSet) -> list[str]:
    """Whether the run's own images are others now than when its model was made and measured."""
    before = attacked.manifest.data
    own = config.dataset is None and config.split is None and before.measured == data.measured
    if not own or before.fingerprint == data.fingerprint():
        return []
    held = "; held-out images may be among those it was trained on" * (data.measured == "held-out")
    return [f"warning: {data.name} has changed since run {attacked.name!r} was made{held}"]


def load_targets(config: AttackConfig, attacked: Run, place: Place) -> DataSet:
    """The attacked run's data, or those asked for; ``evaluation`` is the split to attack.

    ``--split test`` is the whole test split, whatever part of the training data a run held out.
    Raises UsageError or DataError.
    """
    own = own_images(attacked)
    if not (dataset := config.dataset or own.dataset):
        raise UsageError(
            f"--dataset: {attacked.name!r} was imported without images; name some, or another run"
        )
    choice = replace(
        own,
        dataset=dataset,
        val_fraction=0.0 if config.split == "test" else own.val_fraction,
        skip_bad=own.skip_bad or config.skip_bad,
        measured=None if config.split == "train" else config.split,
    )
    data = load_data_set(choice, attacked.manifest.model.preprocessing, place)
    classes = attacked.manifest.model.classes
    if attacked.manifest.kind == "import" and {*classes} == {*data.classes}:
        data = in_order(data, classes)  # their order is that of the outputs, whatever it is
    check_classes(attacked, data)
    return measured_on(data, config.split)


def own_images(run: Run) -> DataChoice:
    """The images that a run's model was made with or seen on; an import may have none."""
    making = run.making
    if isinstance(making, ImportConfig):
        return DataChoice(making.dataset or "", skip_bad=making.skip_bad)
    return choice_of(making)


def measured_on(data: DataSet, split: SplitName | None) -> DataSet:
    """The data set with a split of the user's choice as the one that measures.

    Raises UsageError if it is not there.
    """
    own = "test" if data.measured == "test" else "val"
    if split in (None, own):
        return data
    if split == "train":
        return replace(data, evaluation=data.train, measured="train")
    what = "no test split" if split == "test" else "no val split, and the run held nothing out"
    raise UsageError(f"--split: {data.name!r} has {what}; choose {own} or train")


def chosen_images(config: AttackConfig, split: Split) -> torch.Tensor:
    """Indices of the images to attack: all, or a seeded stratified ``limit`` of them.

    Raises UsageError if there are not so many.
    """
    if config.limit is None:
        return torch.arange(len(split))
    if config.limit > len(split):
        raise UsageError(f"--limit: must be 1..{len(split)}, got {config.limit}")
    return stratified(split.labels, config.limit, config.seed, "limit")


def check_classes(run: Run, data: DataSet) -> None:
    """Refuse data whose classes are not the run's, in the run's order. Raises DataError."""
    expected, found = run.manifest.model.classes, data.classes
    hint = "; import it again with --classes @FILE" if run.manifest.kind == "import" else ""
    if len(expected) != len(found):
        raise DataError(f"run {run.name!r} has {len(expected)} classes, data has {len(found)}")
    for place, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs and set(expected) == set(found):
            raise DataError(
                f"class order differs: {ours!r} is {found.index(ours)} in the data, {place} in "
                f"run {run.name!r}"
            )
        if ours != theirs:
            raise DataError(
                f"class names differ: {ours!r} in run {run.name!r}, {theirs!r} in data{hint}"
            )
