"""``cartl attack --model``: a network that was never trained here becomes a run to attack."""

from dataclasses import replace
from pathlib import Path

from cartl_cli.commands.options import Request
from cartl_cli.commands.session import layers, open_session
from cartl_cli.core.config import AttackConfig, ImportConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.errors import UsageError
from cartl_cli.core.registry.architectures import WHOLE, own_network


def of_model(
    request: Request, model: str | None, weights: Path | None, image_size: int | None
) -> Request:
    """The same request on the run of the model, which is imported unless it was before.

    Raises UsageError for what does not go together, or a network that cannot be attacked, and
    DataError for weights that do not fit it.
    """
    if model is None:
        flag = "--weights" if weights else "--image-size"
        raise UsageError(f"{flag}: goes with --model FILE.py:FACTORY")
    if own_network(model) is None:
        raise UsageError(f"--model: {model!r} is not FILE.py:FACTORY, as my_model.py:factory")
    if request.resume is not None:
        raise UsageError("--model: an attack that goes on keeps its model; drop --model")
    given = layers(request, "attack")
    if named := next((layer["run"] for layer in given if layer.get("run")), None):
        raise UsageError(f"--model: the run {named!r} has a model already; give one of the two")
    wanted = configure(AttackConfig, *given)  # what is wrong is said before any work
    if wanted.dataset is None:
        raise UsageError("--model: name images of its classes with --dataset")
    settings = {
        "arch": WHOLE + model,
        "checkpoint": str(weights or ""),
        "image_size": image_size,
        "dataset": wanted.dataset,
        "skip_bad": wanted.skip_bad,
    }
    try:
        name = _imported(replace(request, settings=settings, preset=None, config=None, name=None))
    except UsageError as error:
        raise UsageError(f"{error}".replace("--arch:", "--model:", 1)) from error
    return replace(request, settings=request.settings | {"run": name})


def _imported(request: Request) -> str:
    """The name of the run of the model, in the folder of runs."""
    opened = open_session(request, ImportConfig, "import")
    if opened.session.ranks.size > 1:
        raise UsageError(
            "--model: is read by one process alone; cartl import it first, as docs/attack.md has it"
        )
    from cartl_cli.core.imports.source_run import imported
    from cartl_cli.display.terminal import say

    run, new = imported(opened.config, opened.session)
    say(f"the model is {'saved as' if new else 'that of'} {run.folder}")
    return run.name
