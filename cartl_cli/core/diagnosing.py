"""The diagnosis of a finished attack of the recipe, beside that of the source model."""

from collections.abc import Callable

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.diagnostics import BlockMoved, Diagnosis, Moved, feature_distances
from cartl_cli.core.errors import RunError
from cartl_cli.core.evaluation import Verdicts
from cartl_cli.core.manifest import Run
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs import list_runs, read_model


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
    kept = verdicts.probe
    attacked_ones = verdicts.clean[kept]
    images = to_pixels(split.images[kept[attacked_ones]])
    adversarial = verdicts.adversarial[attacked_ones]
    target = feature_distances(model, images, adversarial, config.batch_size)
    source: list[Moved | None] = [None] * len(target)
    if (before := source_of(attacked, say)) is not None:
        before.to(images.device)
        source[:] = feature_distances(before, images, adversarial, config.batch_size)
    boundary = len(model.blocks) - attacked.manifest.k
    blocks = tuple(
        BlockMoved(block=block, tuned=block > boundary, target=ours, source=theirs)
        for block, (ours, theirs) in enumerate(zip(target, source, strict=True))
    )
    return Diagnosis(n=len(images), blocks=blocks)


def source_of(run: Run, say: Callable[[str], None]) -> BlockModel | None:
    """The model that a transferred one started from, from the runs beside it.

    None, and a note where there should be one, if it is gone or is not what it was.
    """
    record = run.manifest.source
    if record is None:
        return None
    beside = [other for other in list_runs(run.folder.parent) if other.name == record.run]
    try:
        if not beside:
            raise RunError(f"no run {record.run!r} beside {run.name!r}")
        weights = beside[0].manifest.weights
        if weights is None or weights.sha256 != record.sha256:
            raise RunError(f"run {record.run!r} has other weights now (sha256 differs)")
        return read_model(beside[0])
    except RunError as error:
        say(f"note: nothing to compare with the source model: {error}")
        return None
