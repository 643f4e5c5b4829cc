"""Features of clean images kept near those of the frozen source model.

One family: the distance is the cosine (robust representation matching, Vaishnavi et al. 2022, arXiv
2202.09994, is its case of the last block) or ℓ1 (LwF, Shafahi et al. 2020, arXiv 1905.08232, as in
their code, is its case of what enters the classifier).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.method.losses import classification_loss, right
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.ranks import EVERYTHING, Part

Distance = Callable[[Tensor, Tensor], Tensor]
"""(features, the source's features), (B, …) each → one distance for each image (B,)."""


def l1_distance(features: Tensor, source: Tensor) -> Tensor:
    """‖z(x) − z₀(x)‖₁ of each image (B,)."""
    return (features.float() - source.float()).abs().flatten(1).sum(1)


def cosine_distance(features: Tensor, source: Tensor) -> Tensor:
    """1 − cos(z(x), z₀(x)) of each image (B,): it does not depend on their size."""
    return 1 - F.cosine_similarity(features.float().flatten(1), source.float().flatten(1), dim=1)


DISTANCES: dict[str, Distance] = {"cosine": cosine_distance, "l1": l1_distance}


@dataclass(frozen=True)
class Keeping:
    """λ · mean over the images, and over the ``kept`` blocks, of the distance to the source.

    ``kept``: numbers of blocks from L−k+1 to L; of block L, what enters the classifier counts.
    ``on_features``: the batches are features at block L−k, the source's own.
    ``with_cross_entropy``: the mean cross-entropy of the same images is part of the loss, and
    ``weights`` (classes,) are those of each class in it.
    """

    model: BlockModel
    source: BlockModel
    k: int
    kept: Sequence[int]
    distance: Distance
    weight: float
    on_features: bool
    with_cross_entropy: bool
    weights: Tensor | None = None

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        cut = len(self.model.blocks) - self.k
        ours = theirs = images
        with torch.no_grad():
            if not self.on_features:
                theirs = self.source.features(images, cut)
            before = self.source.stages(theirs, cut)
        if not self.on_features:
            ours = self.model.features(images, cut)
        now = self.model.stages(ours, cut)  # f^(cut+1) … f^L
        logits = self.model.head(now[-1]).float()  # (B, classes)
        distances = [
            self.distance(now[block - cut - 1], before[block - cut - 1]).mean()
            for block in self.kept
        ]
        loss = self.weight * torch.stack(distances).mean()
        if self.with_cross_entropy:
            loss = loss + classification_loss(logits, labels, self.weights)
        return StepLoss(loss, {"clean": right(logits, labels)})


def kept_blocks(model: BlockModel, k: int, at: str) -> tuple[int, ...]:
    """The blocks that ``--keep-at`` names: last, all that are tuned, or numbers as a,b.

    Raises ValueError for a block that is not tuned.
    """
    blocks = len(model.blocks)
    if at == "last":
        return (blocks,)
    tuned = range(blocks - k + 1, blocks + 1)
    classifier_only = len(list(model.blocks[-1].children())) == 1
    if at == "all":  # such a last block takes in what leaves the one before
        return tuple(tuned[:-1] if k > 1 and classifier_only else tuned)
    chosen = tuple(sorted({int(number) for number in at.split(",")}))
    if not set(chosen) <= set(tuned):
        raise ValueError(f"tuned are blocks {tuned[0]} to {tuned[-1]}, got {at}")
    return chosen
