"""The radius of ``--method latent``: how far adversarial images move the source's features."""

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.data.data_sets import choice_of, load_data_set
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.evaluation.diagnosis import moved_by_pgd
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.training.source_model import first_look

PART = 1 / 12
"""Radius as a part of that distance: docs/which-method.md."""


def radius_of(
    config: TransferConfig, source: Run, original: BlockModel, k: int, session: Session
) -> float | None:
    """The radius of ``--method latent``, relative to ‖h‖: as given, or from the source model.

    That is ``PART`` times the mean distance by which adversarial images move the features at block
    L−k of the source model, on its own images and at its own eps: what was measured when it was
    trained, else measured now. Raises UsageError where its images are not there. A run that goes on
    keeps its radius.
    """
    if config.method != "latent":
        return None
    if isinstance(config.radius, float):
        return config.radius
    if session.resume is not None and session.resume.manifest.radius is not None:
        return session.resume.manifest.radius
    distance = distances(config, source, original, session)[len(original.blocks) - k]
    radius = radius_from(distance, source)
    session.say(
        f"radius {radius:.3g} of the features' norm: 1/{1 / PART:.3g} of the {distance:.3g} by "
        f"which adversarial images move the features of {source.name}"
    )
    return radius


def distances(
    config: TransferConfig, source: Run, original: BlockModel, session: Session
) -> tuple[float | None, ...]:
    """How far adversarial images move each block 0..L of the source model, relative to ‖h‖.

    What was measured when it was trained, else measured now. Raises UsageError where its images
    are not there.
    """
    return source.seen.moved or measured_on_source(config, source, original, session)


def radius_from(distance: float | None, source: Run) -> float:
    """The radius that belongs to a distance. Raises UsageError where there is none."""
    if not distance:
        raise UsageError(
            f"--radius: how far adversarial images move block L−k of source {source.name!r} is not "
            "known, or they do not move it; give a number such as 0.02"
        )
    return PART * distance


def measured_on_source(
    config: TransferConfig, source: Run, original: BlockModel, session: Session
) -> tuple[float | None, ...]:
    """How far adversarial images move each block of the source model, on its own images.

    Raises UsageError where they cannot be read.
    """
    training = source.manifest.config
    if not isinstance(training, PretrainConfig):
        raise UsageError(
            f"--radius: auto needs the images of source {source.name!r}; give a number such as "
            "0.02, or import it again with --dataset"
        )
    try:
        data = load_data_set(choice_of(training), training.preprocessing, session.place)
    except CartlError as error:
        raise UsageError(
            f"--radius: auto needs the images of source {source.name!r} ({error}); give a number "
            "such as 0.02"
        ) from None
    budget = first_look(training)
    return moved_by_pgd(original, data.evaluation, budget, training.seed, config.batch_size)
