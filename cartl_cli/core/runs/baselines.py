"""What a transfer is measured against: plain fine-tuning of the same source on the same images."""

from cartl_cli.core.config import TransferConfig
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import list_runs


def baselines(run: Run) -> dict[str, Run]:
    """By what each is called, the newest vanilla transfer beside a run at its own k and at k = 1.

    Only finished ones with the run's source, weights and images count. A vanilla transfer has none
    at its own k. What is not a transfer has none at all.
    """
    ours = run.manifest
    if not isinstance(ours.config, TransferConfig):
        return {}
    vanilla = {other.manifest.k: other for other in _vanilla_beside(run)}
    if _is_vanilla(ours.config):
        vanilla.pop(ours.k, None)
    called = {ours.k: "vanilla transfer at the same k", 1: "the classifier alone"}
    return {what: vanilla[k] for k, what in called.items() if k in vanilla}


def _vanilla_beside(run: Run) -> list[Run]:
    """Oldest first."""
    ours = run.manifest
    return [
        other
        for other in list_runs(run.folder.parent)
        if isinstance((theirs := other.manifest).config, TransferConfig)
        and _is_vanilla(theirs.config)
        and theirs.status == "completed"
        and theirs.source == ours.source
        and theirs.data.fingerprint == ours.data.fingerprint
        and theirs.data.train_images == ours.data.train_images
    ]


def _is_vanilla(config: TransferConfig) -> bool:
    return config.method == "natural" and not config.additions
