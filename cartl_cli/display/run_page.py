"""The page of one model: what it is, how it was trained, how robust it is, and how we know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cartl_cli.core.errors import RunError
from cartl_cli.core.evaluation.confusion import confusions
from cartl_cli.core.reports.one_model import OneModel
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.core.runs.manifest import Run
from cartl_cli.display import page_parts as parts
from cartl_cli.display import run_sheets as sheets
from cartl_cli.display.page_parts import text

if TYPE_CHECKING:
    from cartl_cli.core.evaluation.gallery import Shown

NO_PLOTS = "No curves without matplotlib: pip install 'cartl[plot]'."


Examples = Sequence["Shown"] | str
"""Images of an attack, or why there are none."""


def run_page(model: OneModel, examples: Mapping[str, Examples]) -> str:
    """A whole page. ``examples``: those of each attack, by its name."""
    name = model.run.name
    return parts.document(
        f"{name} – cartl",
        [
            f"<h1>{text(name)}</h1>",
            *_identity(model),
            parts.sheet_html(sheets.accuracy_sheet(model)),
            *_training(model),
            *_attacks(model, examples),
            *_commands(model),
        ],
    )


def _identity(model: OneModel) -> Iterator[str]:
    yield parts.heading("What it is")
    yield parts.facts(sheets.facts(model))
    steps = model.run.manifest.model.preprocessing.steps
    yield parts.folded("How an image file becomes what it takes", parts.numbered(steps))
    for run in reversed(model.makings):
        sheet = sheets.settings_sheet(run)
        yield parts.folded(f"Settings of {run.name}", parts.table(sheet))


def _training(model: OneModel) -> Iterator[str]:
    yield parts.heading("Training")
    if not model.epochs:
        elsewhere = " It was trained elsewhere." * (model.run.manifest.kind == "import")
        yield parts.note(f"No epochs are recorded.{elsewhere}")
        return
    yield parts.note(
        "Loss and accuracy of each epoch, on the training images as they came, while the model "
        "learned."
    )
    try:
        from cartl_cli.display.run_plots import training_curves
    except ImportError:
        yield parts.note(NO_PLOTS)
    else:
        yield _curve("Accuracy and loss by epoch", training_curves(model.epochs))
    yield parts.folded("The numbers", parts.table(sheets.epochs_sheet(model.epochs)))


def _attacks(model: OneModel, examples: Mapping[str, Examples]) -> Iterator[str]:
    yield parts.heading("Attacks")
    if not model.attacks:
        images = "" if model.run.making.dataset else " --dataset FOLDER, of images of its classes"
        yield parts.note(f"None yet. To make one: cartl attack {model.run.name}{images}")
    for attack in model.attacks:
        yield from _attack(attack, examples[attack.name])


def _attack(attack: Run, examples: Examples) -> Iterator[str]:
    results = attack.attack_results
    yield parts.heading(attack.name, 3)
    yield f"<p>{text(sheets.conditions(attack))}</p>"
    yield parts.sheet_html(sheets.added_sheet(attack), 4)
    yield parts.heading("Accuracy over eps", 4)
    yield _eps_curve(attack)
    yield _classes(attack)
    yield parts.heading("Adversarial images", 4)
    yield parts.note(examples) if isinstance(examples, str) else _grid(examples)
    yield parts.sheet_html(sheets.checks_sheet(results.trust), 4)


def _classes(attack: Run) -> str:
    try:
        answered, missing = confusions(attack), "This attack did not keep its answers."
    except RunError as error:  # the numbers of all classes together are there
        answered, missing = (), f"Not known: {error}"
    if not answered:
        return f"{parts.heading('Class by class', 4)}\n{parts.note(missing)}"
    return parts.sheet_html(sheets.class_sheet(attack, answered[0], answered[-1]), 4)


def _eps_curve(attack: Run) -> str:
    if len(attack.attack_results.by_eps) < 2:
        return parts.note("One eps makes no curve: attack with --eps 2/255,4/255,8/255.")
    try:
        from cartl_cli.display.run_plots import eps_curve
    except ImportError:
        return parts.note(NO_PLOTS)
    return _curve(f"Accuracy over eps of {attack.name}", eps_curve(attack))


def _curve(title: str, svg: bytes) -> str:
    return f'<div class="curve">{parts.picture(title, svg, "svg+xml")}</div>'


def _grid(examples: Sequence["Shown"]) -> str:
    shown = "\n".join(map(_example, examples))
    legend = "Each image clean and adversarial, what the model answers to the two, and the truth."
    return f'<div class="grid">\n{shown}\n</div>\n{parts.note(legend)}'


def _example(one: "Shown") -> str:
    from cartl_cli.core.evaluation.saved_images import eight_bits, png

    name = f"image {one.index}"
    clean = parts.picture(f"{name}, clean", png(eight_bits(one.clean)), "png")
    adversarial = parts.picture(f"{name}, adversarial", png(eight_bits(one.adversarial)), "png")
    answers = "".join(
        f'<span class="{"held" if answer == one.label else "fell"}">{text(answer)}</span>'
        for answer in (one.before, one.after)
    )
    truth = f"<small>truth: {text(one.label)}, {name}</small>"
    caption = f"<figcaption>{answers}{truth}</figcaption>"
    return f"<figure>{clean}{adversarial}{caption}</figure>"


def _commands(model: OneModel) -> Iterator[str]:
    yield parts.heading("Commands")
    yield parts.note("They made the model:")
    yield parts.commands(map(command_of, model.makings))
    if model.attacks:
        yield parts.note("They attacked it:")
        yield parts.commands(map(command_of, reversed(model.attacks)))
