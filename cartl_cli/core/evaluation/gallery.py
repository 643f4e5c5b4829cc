"""A few images of an attack to look at: clean, adversarial, and what the model says of each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.data.split import stratified, to_pixels
from cartl_cli.core.errors import DataError, RunError
from cartl_cli.core.evaluation.comparison import read_outcomes
from cartl_cli.core.evaluation.saved_images import read_saved
from cartl_cli.core.evaluation.targets import load_targets
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runtime.devices import resolve_device

ROWS = 8


@dataclass(frozen=True)
class Shown:
    """One image: its number in the data set, its class, the classes predicted before and after.

    ``clean`` and ``adversarial`` (C, H, W) are in [0, 1].
    """

    index: int
    clean: Tensor
    adversarial: Tensor
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Gallery:
    """At most ``ROWS`` images, and the largest ball of the attack."""

    attacked: str
    eps: float
    norm: Norm
    images: tuple[Shown, ...]


def gallery(run: Run, attacked: Run, place: Place) -> Gallery:
    """Images of a finished attack that saved them: fallen ones first, spread over the classes.

    Raises DataError if the data changed since, RunError where a file is missing or damaged.
    """
    manifest, config = run.manifest, run.attack
    if manifest.adversarial is None:
        raise RunError(f"attack {run.name!r} saved no images")
    data = load_targets(config, attacked, place)
    if data.fingerprint() != manifest.data.fingerprint:
        raise DataError(f"the data changed since {run.name!r}")
    saved = read_saved(run, manifest.adversarial, run.attack_results.n)
    rows = chosen_rows(read_outcomes(run), saved["labels"], config.seed)
    indices, adversarial = saved["indices"][rows], saved["adversarial"][rows]
    clean = to_pixels(data.evaluation.take(indices).images)
    device = resolve_device("auto")  # that of the attack may be of another machine
    model = weights.read_model(attacked).to(device)
    predicted = predict(model, torch.cat([clean, adversarial]).to(device)).argmax(1).tolist()
    names = manifest.model.classes
    labels = saved["labels"][rows].tolist()
    return Gallery(
        attacked.name,
        config.eps[-1],
        config.norm,
        tuple(
            Shown(index, *pair, *(names[label] for label in three))
            for index, *pair, three in zip(
                indices.tolist(),
                clean,
                adversarial,
                zip(labels, predicted[: len(rows)], predicted[len(rows) :], strict=True),
                strict=True,
            )
        ),
    )


def chosen_rows(outcomes: dict[str, Tensor], labels: Tensor, seed: int) -> list[int]:
    """At most ``ROWS`` images: fallen ones, then standing ones, then those wrong when clean.

    Of each kind they are spread over the classes and ordered by them.
    """
    clean, fallen = outcomes["clean"], (outcomes["fell_at"] >= 0).flatten(0, 1).any(0)
    chosen: list[int] = []
    for kind in (clean & fallen, clean & ~fallen, ~clean):
        rows = kind.nonzero().squeeze(1)
        count = min(ROWS - len(chosen), len(rows))
        found = rows[stratified(labels[rows], count, seed, "gallery")].tolist()
        chosen += sorted(found, key=lambda row: int(labels[row]))
    return chosen
