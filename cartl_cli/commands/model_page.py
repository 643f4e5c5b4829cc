"""The page of one model, for ``cartl report RUN --format html``."""

from pathlib import Path

from cartl_cli.commands.session import data_place
from cartl_cli.core.errors import CartlError
from cartl_cli.core.reports.one_model import one_model
from cartl_cli.core.runs.manifest import Run
from cartl_cli.display.run_page import Examples, run_page


def model_page(run: Run, runs_dir: Path) -> str:
    """The page of a finished run. Raises RunError if it is unfinished or damaged."""
    model = one_model(run, runs_dir)
    return run_page(model, {attack.name: examples(attack, run) for attack in model.attacks})


def examples(attack: Run, attacked: Run) -> Examples:
    """A few images of an attack that saved them, which the model answers for again."""
    if attack.manifest.adversarial is None:
        return "None were saved: attack with --save-adversarial."
    from cartl_cli.core.evaluation.gallery import gallery

    try:
        return gallery(attack, attacked, data_place(None, download=False)).images
    except CartlError as error:  # the numbers are there: missing images are no reason to fail
        return f"They cannot be shown: {error}"
