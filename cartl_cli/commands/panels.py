"""The panels of every ``--help``: which option stands in which, and in what order."""

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args

from typer.models import OptionInfo

FIRST = "Options"
"""The panel of the few that matter, and of ``--help``; it is Typer's own, which it shows first."""

PANELS = {
    FIRST: """
        source dataset arch mean std k method methods fdm_lambda neft_beta attack eps pgd_steps
        model weights epochs budget want jobs dry_run listed top format form formats out baseline
        against table sort_by mistakes""",
    "Data": """
        classes fraction val_fraction split_seed split limit skip_bad image_size resize shorter_side
        interpolation member origin licence threat augment
        data_dir no_download""",
    "Method": """
        fdm_at replays radius latent_steps trades_beta lwf_lambda keep_lambda keep_at keep_distance
        head_first head_init interpolate freeze_bn balance awp_gamma ema""",
    "Attack": """
        norm step_size eps_warmup restarts queries checks strict compare""",
    "Schedule": "batch_size lr schedule milestones warmup_epochs momentum weight_decay",
    "Run": """
        name resume extend preset config seed device precision compile sync_bn save_every executor
        cpus gpus ray_address runs_dir force""",
    "Output": "describe diagnose final_iterate save_adversarial plot as_json",
}
"""Panel → parameters of the commands, each once: an option is found where it is elsewhere."""

PLACES = {name: panel for panel, names in PANELS.items() for name in names.split()}


def in_panels(command: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> None:
    """Give a command these parameters, in the order and with the panels of ``PANELS``.

    Arguments of the command line come first. Raises KeyError for an option without a panel.
    """
    options, arguments = [], []
    for parameter in parameters:
        kind, info = get_args(parameter.annotation)
        if isinstance(info, OptionInfo):
            info = copy.copy(info)
            panel = PLACES[parameter.name]
            info.rich_help_panel = None if panel == FIRST else panel
            options.append(parameter.replace(annotation=Annotated[kind, info]))
        else:
            arguments.append(parameter)
    order = [*PLACES]
    options.sort(key=lambda parameter: order.index(parameter.name))
    made = [one.replace(kind=one.KEYWORD_ONLY) for one in (*arguments, *options)]
    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in made}


def panelled(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with its own parameters in their panels."""
    in_panels(command, inspect.signature(command).parameters.values())
    return command
