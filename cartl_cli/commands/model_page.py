"""The page of one model, for ``cartl report RUN --format html``."""

from cartl_cli.commands.session import data_place
from cartl_cli.core.errors import CartlError
from cartl_cli.core.reports.one_model import one_model
from cartl_cli.core.runs.manifest import Run
from cartl_cli.display.run_page import Example, Examples, run_page


def model_page(run: Run) -> str:
    """The page of a finished run. Raises RunError if it is unfinished or damaged."""
    model = one_model(run)
    return run_page(model, {attack.name: examples(attack, run) for attack in model.attacks})


def examples(attack: Run, attacked: Run) -> Examples:
    """A few images of an attack that saved them, which the model answers for again."""
    if attack.manifest.adversarial is None:
        return "None were saved: attack with --save-adversarial."
    from cartl_cli.core.evaluation.gallery import gallery
    from cartl_cli.core.evaluation.saved_images import eight_bits, png
    from cartl_cli.core.runs.writer import Session

    place = data_place(None, download=False)
    session = Session(attack.folder.parent, None, place, lambda line: None)
    try:
        found = gallery(attack, attacked, session)
    except CartlError as error:  # the numbers are there: missing images are no reason to fail
        return f"They cannot be shown: {error}"
    return [
        Example(
            f"image {one.index}",
            png(eight_bits(one.clean)),
            png(eight_bits(one.adversarial)),
            one.label,
            one.before,
            one.after,
        )
        for one in found.images
    ]
