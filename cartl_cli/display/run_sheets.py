"""What is known of one model, as facts and as sheets of plain text. Nothing here is escaped."""

from collections.abc import Collection, Iterator, Sequence

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config import ImportConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.told import last_blocks, told_settings
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.reports.one_model import OneModel
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.metrics import Line
from cartl_cli.core.runs.results import MEANINGS, Check, checked
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.display import tables
from cartl_cli.display.class_tables import in_a_line
from cartl_cli.display.report_sheets import NONE, Cell, Sheet

ORDER = ("fail", "warn", "pass")
Fact = tuple[str, str]


def facts(model: OneModel) -> Iterator[Fact]:
    """What the model is: a word and what is so called, in the order in which they are read."""
    run = model.run
    manifest, config = run.manifest, run.making
    data = manifest.data
    yield from _method(run)
    yield "network", f"{manifest.model.arch}, {len(manifest.model.classes)} classes"
    yield "classes", ", ".join(manifest.model.classes)
    if not isinstance(config, ImportConfig):
        yield "trained on", f"{data.train_images:,} images of {data.name}"
        yield "augmentation", ", ".join(data.augment) or "none"
    if run.seen.n:
        yield "measured on", f"{run.seen.n:,} {data.measured} images of {data.name}"
    yield from (("about the data", note) for note in data.notes)
    yield "preprocessing", manifest.model.preprocessing.shown
    yield "made", f"{manifest.created}, in {run.seen.seconds:,.0f} s, seed {config.seed}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "made with", versions or "not recorded"
    if manifest.weights is not None:
        yield "weights", f"sha256 {manifest.weights.sha256}"


def _method(run: Run) -> Iterator[Fact]:
    """How the model was made."""
    config, original = run.making, run.manifest.original
    if isinstance(config, PretrainConfig):
        yield "kind", "source model, trained from scratch"
        yield "method", f"{config.method}: {TRAINING_ATTACKS[config.method].about}"
    elif isinstance(config, TransferConfig):
        yield "kind", f"target model: {last_blocks(run.manifest.k)} of a source model fine-tuned"
        yield "method", f"{tables.method(run)}: {config.tuning.about}"
        yield "source model", run.source.run
    else:
        yield "kind", "source model, trained elsewhere and imported"
        if original is not None:
            yield "file", f"{original.file}, sha256 {original.sha256}"
        yield "origin", config.origin or "not stated"
        yield "licence", config.licence or "not stated"
        yield "claimed to resist", config.threat or "nothing"
        if original is not None and original.claim:
            yield "its maker measured", original.claim


def settings_sheet(run: Run) -> Sheet:
    """The settings of a training that have a value, with what they mean."""
    rows = tuple(tuple(Cell(text) for text in told) for told in told_settings(run.making))
    return Sheet(run.name, ("setting", "value", "meaning"), (False,) * 3, rows, ())


def accuracy_sheet(model: OneModel) -> Sheet:
    """Every accuracy that was measured of the model, when it was made and by attacks."""
    heads = ("accuracy", "eps", "%", "95 %", "n", "attack", "checks")
    rows = (*_when_made(model.run), *(row for attack in model.attacks for row in _under(attack)))
    notes = [
        "Robust accuracies are upper bounds: a stronger attack may leave less. Eps is the most "
        "that an attack may change a pixel."
    ]
    if not model.attacks:
        original = model.run.manifest.original
        known = "nobody knows how robust they are"
        if original is not None and original.claim:
            known = "what their maker found was not checked"
        notes.append(f"No attack was made on these weights: {known}.")
    if not rows:
        notes = ["Nothing was measured here.", notes[-1]]
    return Sheet("Accuracy", heads, (False, True, True, True, True, False, False), rows, (*notes,))


def _when_made(run: Run) -> Iterator[tuple[Cell, ...]]:
    seen, config = run.seen, run.making
    if seen.clean_accuracy is not None:
        yield _accuracy("clean", None, seen.clean_accuracy, seen.n, "", "")
    if seen.robust_accuracy is not None and not isinstance(config, TransferConfig):
        name = f"PGD-{seen.pgd_steps}, cross-entropy, ℓ∞"
        yield _accuracy(name, config.eps, seen.robust_accuracy, seen.n, "", "off")


def _under(attack: Run) -> Iterator[tuple[Cell, ...]]:
    config, results = attack.attack, attack.attack_results
    checks = checked(results.trust)
    yield _accuracy("clean", None, results.clean_accuracy, results.n, attack.name, checks)
    for found in results.by_eps:
        name = f"{' + '.join(config.attacks)}, {NORM_SIGNS[config.norm]}"
        yield _accuracy(name, found.eps, found.robust_accuracy, results.n, attack.name, checks)


def _accuracy(
    name: str, eps: float | None, accuracy: float, n: int, attack: str, checks: str
) -> tuple[Cell, ...]:
    invalid = checks == "invalid" and eps is not None
    shown = f"{'' if eps is None else '≤ '}{100 * accuracy:.1f}"
    return (
        Cell(name),
        Cell(NONE if eps is None else shown_pixels(eps), value=eps or 0.0),
        Cell("INVALID" if invalid else shown, value=accuracy),
        _interval(accuracy, n),
        Cell(f"{n:,}", value=n),
        Cell(attack or "when it was made"),
        Cell(checks or NONE),
    )


def _interval(accuracy: float, n: int) -> Cell:
    low, high = accuracy_interval(round(accuracy * n), n)
    return Cell(f"{100 * low:.1f}–{100 * high:.1f}", value=low)


def conditions(attack: Run) -> str:
    """How an attack was made, in a sentence."""
    config, results, data = attack.attack, attack.attack_results, attack.manifest.data
    counts = ", ".join(
        f"{count:,} {name.removesuffix('s') if count == 1 else name}"
        for name, count in config.effort.items()
    )
    effort = f" ({counts})" if counts else ""
    return (
        f"{', '.join(config.attacks)} in {NORM_SIGNS[config.norm]} balls{effort} on "
        f"{results.n:,} {data.measured} images of {data.name}; seed {config.seed}; "
        f"{results.seconds:,.0f} s."
    )


def added_sheet(attack: Run) -> Sheet:
    """What each attack left at each eps, and what it added to those before it."""
    results = attack.attack_results
    rows: list[tuple[Cell, ...]] = []
    for found in results.by_eps:
        eps = Cell(shown_pixels(found.eps), value=found.eps)
        for one in found.added:
            fell = Cell(f"{one.fell:,} of {one.attacked:,}", value=one.fell)
            left = one.robust_accuracy
            rows.append((eps, Cell(one.attack), _percent(one.alone), fell, _percent(left)))
        worst = found.robust_accuracy
        rows.append((eps, Cell("worst of all"), Cell(NONE), Cell(NONE), _percent(worst)))
    heads = ("eps", "attack", "alone, %", "fell", "left, %")
    note = "Alone: the accuracy that this attack leaves by itself. Left: after it and those before."
    numeric = (True, False, True, True, True)
    return Sheet("What each attack added", heads, numeric, tuple(rows), (note,))


def _percent(accuracy: float | None) -> Cell:
    return Cell(NONE) if accuracy is None else Cell(f"{100 * accuracy:.1f}", value=accuracy)


def class_sheet(attack: Run, clean: Confusion, attacked: Confusion) -> Sheet:
    """What the largest eps of an attack left of each class."""
    invalid = checked(attack.attack_results.trust) == "invalid"
    rows = []
    for label in clean.labels:
        n, mistaken = clean.images(label), attacked.mistaken_for(label)
        taken = Cell(NONE) if mistaken is None else Cell(f"{mistaken[0]} ({mistaken[1]:,})")
        left = Cell("INVALID") if invalid else _percent(attacked.accuracy(label))
        interval = _interval(attacked.accuracy(label), n)
        images = Cell(f"{n:,}", value=n)
        rows.append((Cell(label), images, _percent(clean.accuracy(label)), left, interval, taken))
    eps = shown_pixels(attack.attack_results.by_eps[-1].eps)
    heads = ("class", "images", "clean, %", "left, %", "95 %", "most often taken for")
    numeric = (False, True, True, True, True, False)
    line = in_a_line(clean, attacked, invalid)
    return Sheet(f"Class by class at eps {eps}", heads, numeric, tuple(rows), (f"{line}.",))


def checks_sheet(checks: Collection[Check]) -> Sheet:
    """Every check with its outcome, the worst first."""
    ordered = sorted(checks, key=lambda check: ORDER.index(check.verdict))
    rows = tuple(
        (Cell(check.id), Cell(check.verdict, value=ORDER.index(check.verdict)), Cell(check.text))
        for check in ordered
    )
    return Sheet(
        "Checks", ("check", "outcome", "found"), (False,) * 3, rows, (MEANINGS[checked(checks)],)
    )


def epochs_sheet(epochs: Sequence[Line]) -> Sheet:
    """The numbers behind the curves of training."""
    names = list(dict.fromkeys(name for line in epochs for name in line))
    rows = tuple(
        tuple(_number(name, line[name]) if name in line else Cell(NONE) for name in names)
        for line in epochs
    )
    heads = tuple(name.replace("_", " ") for name in names)
    return Sheet("Each epoch", heads, (True,) * len(heads), rows, ())


def _number(name: str, value: float) -> Cell:
    shown = f"{100 * value:.1f} %" if name.endswith("_accuracy") else f"{value:.4g}"
    return Cell(str(value) if isinstance(value, int) else shown, value=value)
