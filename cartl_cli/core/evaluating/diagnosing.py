"""The diagnosis of a finished attack of the recipe, beside that of the source model."""

from collections.abc import Callable

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.evaluating.diagnostics import feature_distances
from cartl_cli.core.evaluating.evaluation import Verdicts
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.records.manifest import Run
from cartl_cli.core.records.moved import BlockMoved, Diagnosis, Moved
from cartl_cli.core.records.runs import read_source


def diagnosed(
    config: AttackConfig,
    attacked: Run,
    model: BlockModel,
    split: Split,
    verdicts: Verdicts,
    say: Callable[[str], None],
) -> Diagnosis | None:
    """How far the kept adversarial images move the features, if the config asks for it.

    An image that is wrong when clean was not attacked, and is left out.
    """
    if not config.diagnose:
        return None
    kept = verdicts.kept
    attacked_ones = verdicts.clean[kept]
    images = to_pixels(split.images[kept[attacked_ones]])
    adversarial = verdicts.adversarial[attacked_ones]
    target = feature_distances(model, images, adversarial, config.batch_size)
    source: list[Moved | None] = [None] * len(target)
    record, before = attacked.manifest.source, read_source(attacked)
    if before is not None:
        before.to(images.device)
        source[:] = feature_distances(before, images, adversarial, config.batch_size)
    elif record is not None:
        say(f"note: no source model beside it: run {record.run!r} is gone or has changed")
    boundary = len(model.blocks) - attacked.manifest.k
    blocks = tuple(
        BlockMoved(block=block, tuned=block > boundary, target=ours, source=theirs)
        for block, (ours, theirs) in enumerate(zip(target, source, strict=True))
    )
    return Diagnosis(n=len(images), blocks=blocks)
