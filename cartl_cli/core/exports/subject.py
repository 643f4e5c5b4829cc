"""What is exported: a run's network, and what is known about it."""

from dataclasses import dataclass
from typing import Any

from cartl_cli import __version__
from cartl_cli.core.config import ImportConfig, PretrainConfig
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.evaluation.confusion import by_class, confusions
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import attacks_on, source_beside
from cartl_cli.core.runs.results import checked
from cartl_cli.core.runs.seal import check_seal
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.statistics import accuracy_interval


@dataclass(frozen=True)
class Subject:
    """A finished run, its network, and the runs beside it that tell more.

    ``model`` is in evaluation mode on the CPU and takes no gradients. ``attacks``: the finished
    attacks on exactly these weights, the most telling first. ``source``: the run whose model this
    one started from, None where that is not beside it.
    """

    run: Run
    model: BlockModel
    attacks: tuple[Run, ...]
    source: Run | None

    @property
    def side(self) -> int:
        """The side of its images in pixels."""
        return self.run.manifest.model.image_size

    @property
    def sha256(self) -> str:
        """Of its weights."""
        weights = self.run.manifest.weights
        assert weights is not None  # ``read_model`` has read them
        return weights.sha256


def read_subject(run: Run) -> Subject:
    """The network of a finished run, and what lies beside it. Raises RunError.

    What it says of itself was not changed since it was finished, nor what its attacks say.
    """
    model, attacks = read_model(run), attacks_on(run)
    for one in (run, *attacks):
        check_seal(one)
    telling = sorted(attacks, key=_telling, reverse=True)  # stable: of equal ones the newest first
    return Subject(run, model.requires_grad_(False), tuple(telling), source_beside(run))


def _telling(attack: Run) -> tuple[bool, bool, bool, int]:
    """How much an attack tells: rather on unseen images, with no failed check, and on many."""
    results, checks = attack.attack_results, checked(attack.attack_results.trust)
    unseen = attack.manifest.data.measured != "train"
    return unseen, checks != "invalid", checks in ("ok", "off"), results.n


def licence(run: Run | None) -> str:
    """The licence that was stated of an imported model; maybe nothing."""
    return run.making.licence if run and isinstance(run.making, ImportConfig) else ""


def threat(run: Run) -> str:
    """What a model was trained to resist, as a threat model; of an import, what was stated."""
    config = run.making
    if isinstance(config, ImportConfig):
        return config.threat
    if isinstance(config, PretrainConfig):
        return f"linf {shown_pixels(config.eps)}" if config.method != "natural" else ""
    return f"linf {shown_pixels(config.attack_eps)}" if "eps" in config.tuning.takes else ""


def described(subject: Subject) -> dict[str, Any]:
    """Everything a program needs to use the network, and what was measured, ready for JSON."""
    manifest = subject.run.manifest
    normalize = subject.model.normalize
    return {
        "cartl": __version__,
        "run": subject.run.name,
        "imported": manifest.kind == "import",
        "sha256": subject.sha256,
        "architecture": manifest.model.arch,
        "convex_blocks": manifest.model.convex_blocks,
        "classes": [*manifest.model.classes],
        "input": {
            "name": "images",
            "shape": ["batch", 3, subject.side, subject.side],
            "dtype": "float32",
            "range": [0, 1],
        },
        "output": {"name": "logits", "shape": ["batch", len(manifest.model.classes)]},
        "normalization": {
            "inside": True,
            "mean": normalize.mean.flatten().tolist(),
            "std": normalize.std.flatten().tolist(),
        },
        "preprocessing": {
            **manifest.model.preprocessing.model_dump(),
            "colour": "RGB",
            "alpha": "laid on black",
            "exif": "turned upright first",
            "resampling": "Pillow, antialiased",
            "steps": manifest.model.preprocessing.steps,
        },
        "measured": measured(subject.run),
        "moved": [*subject.run.seen.moved],
        "licence": licence(subject.run),
        "source_licence": licence(subject.source),
        "threat": threat(subject.run),
        "claim": manifest.original.claim if manifest.original else "",
        "attack": attacked(subject.attacks[0]) if subject.attacks else None,
    }


def measured(run: Run) -> dict[str, Any] | None:
    """The accuracies from when its model was made, None of an import that was not measured.

    Those of a source model and of an import are also under PGD on the cross-entropy.
    """
    seen, config, data = run.seen, run.making, run.manifest.data
    if seen.clean_accuracy is None:
        return None
    found = {
        "data": data.name,
        "split": data.measured,
        "n": seen.n,
        "part": seen.n < data.measured_images,
        "clean_accuracy": seen.clean_accuracy,
        "clean_interval": _interval(seen.clean_accuracy, seen.n),
    }
    if seen.robust_accuracy is None or not isinstance(config, PretrainConfig | ImportConfig):
        return found
    return found | {
        "attacks": ["pgd"],
        "steps": seen.pgd_steps,
        "norm": "linf",
        "eps": config.eps,
        "robust_accuracy": seen.robust_accuracy,
        "robust_interval": _interval(seen.robust_accuracy, seen.n),
    }


def _interval(accuracy: float, n: int) -> list[float]:
    return [*accuracy_interval(round(accuracy * n), n)]


def attacked(attack: Run) -> dict[str, Any]:
    """What a finished attack found, how it was made, and what its checks say of it.

    Raises RunError where what it kept of each image is damaged.
    """
    config, results, data = attack.attack, attack.attack_results, attack.manifest.data
    classes = by_class(confusions(attack))
    del classes["classes"]  # there may be thousands
    return {
        "run": attack.name,
        "data": data.name,
        "split": data.measured,
        "n": results.n,
        "part": config.limit is not None,
        "attacks": [*config.attacks],
        "norm": config.norm,
        **config.effort,
        "clean_accuracy": results.clean_accuracy,
        "clean_interval": [*results.clean_interval],
        "by_eps": [
            {
                "eps": found.eps,
                "robust_accuracy": found.robust_accuracy,
                "interval": [*found.interval],
            }
            for found in results.by_eps
        ],
        "by_class": classes,
        "checks": checked(results.trust),
        "not_passed": [
            {"id": check.id, "verdict": check.verdict, "text": check.text}
            for check in results.trust
            if check.verdict != "pass"
        ],
    }
