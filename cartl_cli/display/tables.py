"""Tables on stdout. Accuracies become percent here and nowhere else."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config import ImportConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.runs.reader import MANIFEST
from cartl_cli.core.runs.results import Headline, headline
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.display.terminal import printable, stderr
from cartl_cli.display.widths import lines, widths

if TYPE_CHECKING:
    from cartl_cli.core.models.block_table import BlockRow
    from cartl_cli.core.runs.manifest import Run
    from cartl_cli.core.runs.results import AttackResults
    from cartl_cli.core.statistics import Difference


WIDTH = 100  # columns
FRAME = 3  # columns that the frame of a table takes of each column, and one more
LEAST = 72  # columns of a table, where there are as many, so that its title has room


def show(table: Table) -> None:
    """Print a table on stdout."""
    print_fitted(table, stdout())


def show_aside(table: Table) -> None:
    """Print a table on stderr, beside what is said."""
    print_fitted(table, stderr())


def print_fitted(table: Table, console: Console) -> None:
    """Print a table, or where it has no room its cells as lines ``heading: value``."""
    heads = [as_text(column.header) for column in table.columns]
    cells = [[*map(as_text, column.cells)] for column in table.columns]
    columns = [
        (head.plain, column.justify == "right" or column.no_wrap, [text.plain for text in texts])
        for head, column, texts in zip(heads, table.columns, cells, strict=True)
    ]
    wide = widths(columns, console.width - FRAME * len(columns) - 1)
    if wide is None:
        ends = [as_text(text) for text in (table.title, table.caption) if text]
        console.print(lines(heads, [*zip(*cells, strict=True)], ends[:1], ends[1:]))
        return
    for column, width in zip(table.columns, wide, strict=True):
        column.overflow, column.max_width, column.min_width = "fold", width, width
    table.min_width = min(LEAST, console.width)
    console.print(table)


def as_text(content: RenderableType) -> Text:
    """What a table was given, which is text of one of two kinds."""
    return content if isinstance(content, Text) else Text(str(content))


def stdout() -> Console:
    """Standard output, at most ``WIDTH`` columns wide, which it is where it is no terminal."""
    console = Console(file=sys.stdout, highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def cell(value: object) -> Text:
    """Any text as a table cell, without markup."""
    return Text(printable(str(value)))


def percent(fraction: float) -> str:
    """0.123 → ``12.3 %``."""
    return f"{100 * fraction:.1f} %"


def titled(
    title: str | Text, caption: str | Text, left: tuple[str, ...], right: tuple[str, ...]
) -> Table:
    """An empty table: columns of words, then columns of numbers, which end at the right."""
    table = Table(title=title, caption=caption)
    for heading in left:
        table.add_column(cell(heading))
    for heading in right:
        table.add_column(cell(heading), justify="right")
    return table


def block_table(arch: str, rows: list["BlockRow"]) -> Table:
    """The blocks of an architecture, and the k that tunes each."""
    table = Table(title=cell(f"{arch}: L = {rows[-1].number} blocks"))
    for heading in ("block", "tuned when", "layers", "output", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for row in rows:
        table.add_row(
            "stem" if row.number == 0 else str(row.number),
            "never" if row.number == 0 else f"k ≥ {row.k}",
            row.layers,
            "×".join(map(str, row.output)),
            f"{row.parameters:,}",
        )
    return table


def training_table(run: "Run") -> Table:
    """Clean accuracy of a trained model and, if it was measured, its robust accuracy."""
    results, config, data = run.results, run.manifest.config, run.manifest.data
    part = ""
    if isinstance(config, TransferConfig) and config.fraction < 1:
        part = f"trained on {data.train_images} images, fraction {config.fraction:g}; "
    if isinstance(config, PretrainConfig) and config.ema > 0:
        part = f"the model is the average of the weights, decay {config.ema:g}; "
    if isinstance(config, PretrainConfig | TransferConfig) and config.balance:
        part += "each class counted alike in training; "
    if results.collapsed_after is not None:
        part += f"N-FGSM overfitted catastrophically by epoch {results.collapsed_after}; "
    caption = (
        f"n = {results.n} {data.measured} images of {data.name}; {part}seed {config.seed}; "
        f"{results.seconds:.0f} s; 95 % intervals"
    )
    table = titled(cell(run.name), cell(caption), ("accuracy",), ("", "95 %"))
    _add_row(table, "clean", results.clean_accuracy, results.n)
    if results.robust_accuracy is not None and isinstance(config, PretrainConfig):
        conditions = f"PGD-{results.pgd_steps}, cross-entropy, eps {shown_pixels(config.eps)}"
        _add_row(table, f"robust ({conditions})", results.robust_accuracy, results.n)
        if last := results.last_weights:
            _add_row(table, "clean, last weights", last.clean_accuracy, results.n)
            _add_row(table, "robust, last weights", last.robust_accuracy, results.n)
    return table


def import_table(run: "Run") -> Table:
    """Clean and robust accuracy of an imported model."""
    results, data = run.import_results, run.manifest.data
    config = run.manifest.config
    assert isinstance(config, ImportConfig)
    caption = f"n = {results.n} {data.measured} images of {data.name}; 95 % intervals"
    table = titled(cell(run.name), cell(caption), ("accuracy",), ("", "95 %"))
    conditions = f"PGD-{results.pgd_steps}, cross-entropy, eps {shown_pixels(config.eps)}"
    _add_row(table, "clean", results.clean_accuracy or 0.0, results.n)
    _add_row(table, f"robust ({conditions})", results.robust_accuracy or 0.0, results.n)
    return table


def tuned(run: "Run") -> list[str]:
    """The method, which blocks were frozen and tuned, and with NEFT what σ of the tuned weights is.

    σ: the largest singular value of a weight as a C_out × (C_in·K·K) matrix, which NEFT made β.
    """
    config, k, norms = run.manifest.config, run.manifest.k, run.results.spectral_norms
    assert isinstance(config, TransferConfig)
    blocks = max(int(name.split(".")[1]) + 1 for name in norms)
    beta, cut = config.neft_beta, blocks - k
    frozen = f"stem, blocks 1–{cut}" if cut > 1 else "stem, block 1" if cut else "stem"
    last = f"block {blocks}" if k == 1 else f"blocks {cut + 1}–{blocks}"
    told = [method(run), f"frozen: {frozen}; tuned: {last}"]
    if beta is None:
        return told
    low, high = min(norms.values()), max(norms.values())
    sigma = f"σ of {len(norms)} layers: {low:.3f} to {high:.3f}, β {beta:g}"
    return [*told, f"{sigma} (each: --json, {MANIFEST})"]


def method(run: "Run") -> str:
    """How a target model was tuned, with the numbers that belong to the method."""
    config = run.manifest.config
    assert isinstance(config, TransferConfig)
    look = config.look(None)
    numbers = {
        **{one.symbol: getattr(config, one.setting) for one in config.additions},
        "radius": run.manifest.radius,
        "eps": config.attack_eps if "eps" in config.tuning.takes else None,
        "β TRADES": config.divergence_weight,
        "γ AWP": config.awp_gamma or None,
        "EMA": config.ema or None,
        "interpolated": config.interpolate,
    }
    shown = [
        f"{name.removesuffix(f' {look.label}')} = "
        + (shown_pixels(value) if name == "eps" else f"{value:.3g}")
        for name, value in numbers.items()
        if value is not None
    ]
    if config.head_phase:
        shown.append(f"first {config.head_phase} of {config.epochs} epochs the classifier alone")
    return ", ".join([look.label, *shown])


def attack_table(run: "Run") -> Table:
    """What each attack leaves at each eps, and what it added to those before it."""
    config, results, data = run.attack, run.attack_results, run.manifest.data
    norm = NORM_SIGNS[config.norm]
    half = f"half have fallen at eps {results.half_eps:.4f}; " if results.half_eps else ""
    effort = config.effort
    restarts = f"restarts {effort['restarts']}; " if effort else ""
    caption = (
        f"n = {results.n} {data.measured} images of {data.name}; {restarts}seed {config.seed}; "
        f"{half}{results.seconds:.0f} s; robust accuracies are upper bounds under these attacks; "
        "95 % intervals"
    )
    steps = f", {effort['steps']} steps" if "steps" in effort else ""
    title = f"{run.source.run}: {norm}{steps}"
    if (trusted := headline(results.trust)) != "ok":
        title += f" ({_loud(trusted)})"
    headings = ("alone", "fell", "accuracy left", "95 %")
    table = titled(cell(title), cell(caption), ("attack",), headings)
    low, high = results.clean_interval
    clean = percent(results.clean_accuracy)
    table.add_row("none (clean)", "", "", clean, f"{100 * low:.1f}–{100 * high:.1f}")
    for found in results.by_eps:
        table.add_section()
        table.add_row(f"eps {shown_pixels(found.eps)}", style="bold")
        for added in found.added:
            alone = "" if added.alone is None else percent(added.alone)
            fell = f"{added.fell} of {added.attacked}"
            table.add_row(cell(f"  {added.attack}"), alone, fell, percent(added.robust_accuracy))
        low, high = found.interval
        worst = "INVALID" if trusted == "invalid" else f"≤ {percent(found.robust_accuracy)}"
        table.add_row("  worst of all", "", "", worst, f"{100 * low:.1f}–{100 * high:.1f}")
        if found.final_iterate_accuracy is not None:
            last = percent(found.final_iterate_accuracy)
            table.add_row(f"  {config.attacks[0]}, last iterate only", last)
    if (saved := results.saved) is not None:
        table.add_section()
        table.add_row("saved images, read back", style="bold")
        table.add_row("  float32", "", "", percent(saved.accuracy))
        table.add_row("  8-bit pictures", "", "", percent(saved.accuracy_8bit))
    return table


def in_words(run: "Run") -> str:
    """The robust accuracy at the largest eps as it may be cited, with its conditions."""
    config, results = run.attack, run.attack_results
    found, trusted = results.by_eps[-1], headline(results.trust)
    marks = {"ok": "", "invalid": "INVALID: "}
    return (
        f"{marks.get(trusted, 'attack incomplete: ')}robust accuracy ≤ "
        f"{percent(found.robust_accuracy)} (upper bound under {', '.join(config.attacks)}; "
        f"{'l-inf' if config.norm == 'linf' else 'l2'}, eps {shown_pixels(found.eps)}, "
        f"n = {results.n})"
    )


def diagnosis_table(run: "Run") -> Table:
    """How far the adversarial images move what leaves each block; a line after block L−k."""
    diagnosis = run.attack_results.diagnosis
    assert diagnosis is not None
    compared = any(row.source for row in diagnosis.blocks)
    last = len(diagnosis.blocks) - 1
    caption = (
        f"‖Δ‖/‖f‖: mean distance, relative to the clean features; growth: median of ‖Δ‖ over that "
        f"of the block before; n = {diagnosis.n} images, right when clean, each where it fell or "
        "was last led to"
    )
    names = ("source ‖Δ‖/‖f‖", "growth", "target ‖Δ‖/‖f‖", "growth")
    table = titled(
        cell(f"{run.source.run}: how far adversarial images move the features"),
        cell(caption),
        ("block", "in transfer"),
        names if compared else ("‖Δ‖/‖f‖", "growth"),
    )
    for row in diagnosis.blocks:
        name = {0: "stem", last: f"{last} (logits)"}.get(row.block, str(row.block))
        boundary = row.block == last - run.manifest.k
        moved = (row.source, row.target) if row.source else (row.target,)
        table.add_row(
            f"{name} = L−k" if boundary else name,
            "tuned" if row.tuned else "frozen",
            *("" if x is None else f"{x:.3g}" for one in moved for x in (one.distance, one.growth)),
            end_section=boundary,
        )
    return table


def trust_table(results: "AttackResults") -> Table:
    """What the checks say that the attack worked; every one that did not pass, with its reason."""
    passed = [check.id for check in results.trust if check.verdict == "pass"]
    title = f"Did the attack work? {_loud(headline(results.trust))}"
    caption = cell(f"passed: {', '.join(passed)}")
    table = titled(title, caption, ("check", "verdict", ""), ())
    for check in results.trust:
        if check.verdict != "pass":
            table.add_row(check.id, check.verdict, cell(check.text))
    return table


def difference_table(
    ours: "Run", theirs: "Run", differences: "dict[float | None, Difference]"
) -> Table:
    """How two attacked models differ on the same images, at each eps."""
    first, second = ours.source.run, theirs.source.run
    table = titled(
        cell(f"{first} ({ours.name}) against {second} ({theirs.name}), image by image"),
        "difference in points with its 95 % interval (Tango 1998); p: exact McNemar test",
        ("",),
        (f"only {first}", f"only {second}", "difference", "95 %", "p"),
    )
    for eps, found in differences.items():
        table.add_row(
            "clean" if eps is None else f"eps {shown_pixels(eps)}",
            str(found.b),
            str(found.c),
            f"{100 * found.value:+.1f}",
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            f"{found.p:.3g}",
        )
    return table


def _loud(trusted: Headline) -> str:
    return "INVALID" if trusted == "invalid" else trusted


def _add_row(table: Table, name: str, accuracy: float, n: int) -> None:
    low, high = accuracy_interval(round(accuracy * n), n)
    table.add_row(name, percent(accuracy), f"{100 * low:.1f}–{100 * high:.1f}")
